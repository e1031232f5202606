import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from patchscaler.evaluation.metrics import detail_energy
from patchscaler.training.losses import (
    balance_gradients,
    confidence_loss,
    contrastive_loss,
    detail_ratio,
    lattice_loss,
    perceptual_loss,
    relativistic_loss,
)


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


def test_rows_of_one_material_are_drawn_together_and_others_are_not():
    keys = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), dim=1).requires_grad_()
    kin, taught = torch.tensor([7, 7, -1, -1, 7, 3]), torch.tensor([True, True, True, True, False, True])
    alone = contrastive_loss(keys, keys, 0.1, taught)
    (with_kin,) = torch.autograd.grad(contrastive_loss(keys, keys, 0.1, taught, kin) - alone, keys)
    assert (with_kin[0] @ keys[1].detach()) < 0  # nearer to each other by descent
    torch.testing.assert_close(with_kin[2:], torch.zeros(4, 4))  # no kin, or does not count
    nobody = contrastive_loss(keys, keys, 0.1, taught, torch.full((6,), -1))
    torch.testing.assert_close(nobody, alone)


def test_a_contest_is_even_at_equal_scores_and_falls_with_the_lead():
    def loss(winner, loser):
        return float(relativistic_loss([torch.full((2, 1, 3, 3), winner)], [torch.full((2, 1, 3, 3), loser)]))

    assert loss(0.0, 0.0) == loss(5.0, 5.0) == pytest.approx(math.log(2))
    assert loss(2.0, 0.0) == loss(3.0, 1.0) < loss(0.0, 0.0) < loss(0.0, 2.0)


def test_a_contest_counts_every_scale_alike():
    even, won = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 8, 8), 50.0)
    assert float(relativistic_loss([even, won], [even, -won])) == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize("strength", [0.0, 0.25, 3.0])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_second_gradient_is_a_share_of_the_first(strength, scale):
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.enable_grad():
        (first,) = torch.autograd.grad(x.square().sum(), x)
        (second,) = torch.autograd.grad(x.sin().sum() * scale, x)
        a, b = balance_gradients(x, torch.tensor(strength))
        (both,) = torch.autograd.grad(a.square().sum() + b.sin().sum() * scale, x)
    assert torch.equal(a, x)
    assert torch.equal(b, x)
    torch.testing.assert_close((both - first).norm(), strength * first.norm())
    detail = second - F.avg_pool2d(second, 9, 1, 4)
    assert strength == 0 or F.cosine_similarity((both - first).flatten(), detail.flatten(), dim=0) > 0.999


def test_the_second_loss_cannot_shift_colours():
    x = torch.zeros(1, 3, 32, 32).requires_grad_()
    with torch.enable_grad():
        a, b = balance_gradients(x, torch.tensor(1.0))
        (gradient,) = torch.autograd.grad((a - 1).square().sum() - 5 * b.sum(), x)
    assert torch.allclose(gradient[..., 4:-4, 4:-4], torch.full((1, 3, 24, 24), -2.0))


def test_without_a_second_loss_the_first_gradient_stays_as_it_is():
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.enable_grad():
        a, _ = balance_gradients(x, torch.tensor(0.5))
        (gradient,) = torch.autograd.grad(a.square().sum(), x)
    torch.testing.assert_close(gradient, 2 * x)


def test_the_perceptual_loss_sees_both_images_at_the_same_varying_place():
    seen = []

    def features(images):
        seen.append(images)
        return [images]

    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(48.0), indexing="ij")
    images = torch.stack((y, x, y + x))[None]
    draw = torch.Generator().manual_seed(0)
    for _ in range(40):
        assert perceptual_loss(features, images, images, draw).tolist() == [0]
    assert all(part.shape == (1, 3, 32, 40) for part in seen)
    corners = {tuple(part[0, :2, 0, 0].tolist()) for part in seen}
    assert {row for row, _ in corners} == {col for _, col in corners} == set(range(8))
    assert float(perceptual_loss(features, images, images + images.flip(3), draw)) > 0


def test_the_lattice_loss_is_what_repeats_with_the_grid_and_nothing_else():
    truth = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    assert float(lattice_loss(truth + 0.1, truth)) == pytest.approx(0, abs=1e-6)  # a shift of all levels
    pattern = torch.linspace(-0.1, 0.1, 64).view(8, 8).repeat(32, 32)
    assert float(lattice_loss(truth + pattern, truth)) == pytest.approx(float(pattern.abs().mean()), rel=1e-3)
    half = torch.cat((pattern[:128], -pattern[128:]))  # would cancel over the whole image
    assert float(lattice_loss(truth + half, truth)) == pytest.approx(float(pattern.abs().mean()), rel=1e-3)
    other = torch.linspace(-0.1, 0.1, 49).view(7, 7).repeat(37, 37)[:256, :256]  # not the pitch
    assert float(lattice_loss(truth + other, truth)) < 0.1 * float(other.abs().mean())
    assert float(lattice_loss(truth[..., :64, :64] + pattern[:64, :64], truth[..., :64, :64])) > 0.04


def test_detail_is_measured_as_the_evaluation_does():
    draw = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 256, (1, 3, 256, 256), generator=draw, dtype=torch.uint8)
    blurred = F.avg_pool2d(truth.float(), 3, 1, 1).byte()
    ours = float(detail_ratio(blurred / 255, truth / 255))
    theirs = detail_energy(*(x[0].permute(1, 2, 0).numpy() for x in (blurred, truth)))
    assert ours == pytest.approx(theirs, abs=0.01)
    assert ours < -5
