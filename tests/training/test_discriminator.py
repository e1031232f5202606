import pytest
import torch

from patchscaler.training.discriminator import PixelDiscriminator, Thermostat


def test_a_score_depends_on_its_own_region_alone():
    judge = PixelDiscriminator(width=8, scales=2).eval()
    images = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    changed = images.clone()
    changed[..., 192:] = 0
    with torch.no_grad():
        for before, after in zip(judge(images), judge(changed), strict=True):
            kept = before.shape[-1] // 4
            assert torch.equal(before[..., :kept], after[..., :kept])
            assert not torch.equal(before[..., -kept:], after[..., -kept:])


@pytest.mark.parametrize(("detail", "sign"), [(-8.0, 1), (-1.0, 0), (3.0, -1)])
def test_the_thermostat_heats_where_detail_lacks(detail, sign):
    thermostat = Thermostat(-1.0)
    before = float(thermostat())
    thermostat.feel(torch.tensor(detail), torch.tensor(1.0))
    assert (float(thermostat()) > before) - (float(thermostat()) < before) == sign


def test_the_thermostat_stays_in_its_bounds_and_waits_to_be_heard():
    thermostat = Thermostat(-1.0, first=0.01, least=1e-3, most=0.1)
    thermostat.feel(torch.tensor(-9.0), torch.tensor(0.0))
    assert float(thermostat()) == pytest.approx(0.01)
    for detail, bound in ((-60.0, 0.1), (60.0, 1e-3)):
        for _ in range(6000):
            thermostat.feel(torch.tensor(detail), torch.tensor(1.0))
        assert float(thermostat()) == pytest.approx(bound)
