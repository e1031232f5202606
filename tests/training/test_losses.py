import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from patchscaler.training.losses import confidence_loss, contrastive_loss, fix_gradient_norm, hinge_loss


@settings(max_examples=40, deadline=None)
@given(eta=st.floats(0.01, 1), squared=st.floats(0.005, 10))
def test_confidence_is_taught_to_be_an_inverse_error(eta, squared):
    grid = torch.linspace(0.001, 1, 1000, dtype=torch.float64)
    losses = torch.stack([confidence_loss(c, torch.tensor(squared, dtype=torch.float64), eta) for c in grid])
    assert float(grid[losses.argmin()]) == pytest.approx(min(1, eta / squared), abs=0.0011)


def test_confidence_loss_is_a_mean_over_positions():
    confidence, squared = torch.tensor([[0.2, 0.9]]), torch.tensor([[1.0, 0.1]])
    apart = [confidence_loss(confidence[:, i], squared[:, i], 0.1) for i in range(2)]
    torch.testing.assert_close(confidence_loss(confidence, squared, 0.1), torch.stack(apart).mean())
    assert confidence_loss(torch.zeros(1), torch.ones(1), 0.1).isfinite()


@pytest.fixture
def keys():
    return F.normalize(torch.randn(8, 16, generator=torch.Generator().manual_seed(0)))


def test_contrast_is_least_when_each_query_finds_its_own_key(keys):
    own, others = contrastive_loss(keys, keys, 0.07), contrastive_loss(keys, keys.roll(1, 0), 0.07)
    assert own < 0.5 < others


def test_contrast_of_equal_keys_is_the_logarithm_of_their_number(keys):
    same = keys[:1].expand(8, -1)
    torch.testing.assert_close(contrastive_loss(same, same, 0.07), torch.tensor(8.0).log())


def test_contrast_works_both_ways_and_sharpens_with_a_lower_temperature(keys):
    other = F.normalize(keys + 0.3 * keys.roll(1, 0))
    torch.testing.assert_close(contrastive_loss(keys, other, 0.1), contrastive_loss(other, keys, 0.1))
    assert contrastive_loss(keys, other, 0.05) < contrastive_loss(keys, other, 0.5)


def test_rows_that_do_not_count_are_as_if_they_were_not_there():
    keys, other = (F.normalize(torch.randn(8, 6), dim=1).requires_grad_() for _ in range(2))
    taught = torch.tensor([True, False, True, True, False, True, True, True])
    loss = contrastive_loss(keys, other, 0.1, taught)
    torch.testing.assert_close(loss, contrastive_loss(keys[taught], other[taught], 0.1))
    loss.backward()
    for values in (keys, other):
        assert (values.grad.abs().sum(dim=1) > 0).tolist() == taught.tolist()


def test_hinge_loss_asks_for_a_margin_on_both_sides():
    def loss(real, fake):
        return float(hinge_loss([torch.full((2, 1, 3, 3), real)], [torch.full((2, 1, 3, 3), fake)]))

    assert loss(1.0, -1.0) == loss(5.0, -5.0) == 0
    assert loss(0.0, 0.0) == 2
    assert loss(-1.0, 1.0) == 4


def test_hinge_loss_counts_every_scale_alike():
    wrong, right = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 8, 8), 2.0)
    assert float(hinge_loss([wrong, right], [wrong, -right])) == 1


@pytest.mark.parametrize("norm", [0.0, 0.25, 3.0])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_a_fixed_gradient_keeps_its_direction(norm, scale):
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.enable_grad():
        (plain,) = torch.autograd.grad((x.square() * scale).sum(), x)
        y = fix_gradient_norm(x, norm)
        (fixed,) = torch.autograd.grad((y.square() * scale).sum(), x)
    assert torch.equal(y, x)
    torch.testing.assert_close(fixed, plain * norm / plain.norm())
