from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from patchscaler.data.degradation import CLEAN, SECOND_ORDER, Degradation, DegradationConfig, StageParameters
from patchscaler.errors import InputError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(batch, height=64, width=64):
    """Random blobs with edges, (B, 3, height, width) in [0, 1]."""
    coarse = torch.rand((batch, 3, 8, 8), generator=seeded(9))
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return torch.where(smooth[:, :1] > 0.5, smooth, 1 - smooth)


@pytest.fixture(scope="module")
def mixed():
    return Degradation()(images(48), seeded(1))


def test_outputs_are_levels_of_eight_bits(mixed):
    assert mixed.shape == (48, 3, 16, 16) and mixed.dtype == torch.float32
    levels = (mixed * 255).round()
    assert levels.min() >= 0 and levels.max() <= 255
    assert torch.equal(mixed, levels / 255)


@pytest.mark.parametrize("size", [(64, 64), (40, 72), (56, 64)])
def test_clean_samples_are_antialiased_bicubic(size):
    hr = images(4, *size)
    lr = Degradation(DegradationConfig(clean=1, light=0))(hr, seeded())
    expected = F.interpolate(hr, scale_factor=0.25, mode="bicubic", antialias=True).clamp(0, 1)
    assert (lr - expected).abs().max() < 0.51 / 255


def test_generator_fixes_the_result(mixed):
    assert torch.equal(Degradation()(images(48), seeded(1)), mixed)
    assert not torch.equal(Degradation()(images(48), seeded(2)), mixed)


def test_shares_are_those_of_the_configuration():
    kind = Degradation(DegradationConfig(clean=0.25, light=0.35)).draw(4000, seeded()).kind
    shares = torch.bincount(kind, minlength=3) / len(kind)
    assert torch.allclose(shares, torch.tensor([0.25, 0.35, 0.4]), atol=0.03)


def test_samples_get_different_degradations():
    hr = images(1).repeat(32, 1, 1, 1)
    degradation = Degradation(DegradationConfig(clean=0, light=0))
    lr = degradation(hr, seeded())
    assert len(lr.flatten(1).unique(dim=0)) == 32
    error = (lr - F.avg_pool2d(hr, 4)).pow(2).mean((1, 2, 3)).sqrt()
    assert error.max() > 1.5 * error.min()  # in strength as well, not the noise alone
    drawn = degradation.draw(400, seeded())
    stage = drawn.second
    for choice in (stage.grey, stage.antialias, stage.subsample):
        assert choice.any() and not choice.all()
    assert len(stage.quality.unique()) > 40 and len(stage.sigma.unique()) > 100
    assert stage.method.unique().tolist() == [0, 1, 2, 3]
    assert drawn.scale.min() < 0.4 and drawn.scale.max() > 1.3
    assert (
        drawn.sinc_before.any()
        and drawn.sinc_after.any()
        and not (drawn.sinc_before & drawn.sinc_after).any()
    )


def test_light_is_milder_than_second_order():
    hr = images(48)
    reference = F.interpolate(hr, scale_factor=0.25, mode="bicubic", antialias=True).clamp(0, 1)
    light, heavy = (
        (Degradation(DegradationConfig(clean=0, light=share))(hr, seeded()) - reference).abs().mean()
        for share in (1, 0)
    )
    assert 1 / 255 < light < heavy / 1.5


def test_a_sample_depends_only_on_its_own_pixels_and_parameters():
    degradation, hr = Degradation(), images(12)
    parameters = degradation.draw(12, seeded())
    assert parameters.kind.unique().tolist() == [0, 1, 2]
    lr = degradation.apply(hr, parameters, seeded(5))
    reverse = torch.arange(11, -1, -1)
    for kept in (parameters.kind == CLEAN).nonzero()[0], (parameters.kind == SECOND_ORDER).nonzero()[0]:
        order = torch.where(torch.arange(12) == kept, torch.arange(12), reverse)  # all others changed
        others = parameters._replace(
            kind=parameters.kind[order],
            first=StageParameters(*(t[order] for t in parameters.first)),
            second=StageParameters(*(t[order] for t in parameters.second)),
            scale=parameters.scale[order],
            sinc=parameters.sinc[order],
            sinc_before=parameters.sinc_before[order],
            sinc_after=parameters.sinc_after[order],
        )
        again = degradation.apply(hr[order], others, seeded(5))
        assert (again[kept] - lr[kept]).abs().max() < 1.5 / 255
        assert (again - lr).abs().max() > 0.1


def test_configuration_from_a_recipe():
    config = DegradationConfig.from_dict(
        {"clean": 0, "resize": [0.5, 1.2], "second_stage": {"quality": [40, 80], "blur": 1}}
    )
    assert config.clean == 0 and config.resize == (0.5, 1.2)
    assert config.second_stage.quality == (40.0, 80.0) and config.second_stage.blur == 1
    assert config.first_stage == DegradationConfig().first_stage
    drawn = Degradation(config).draw(500, seeded())
    assert drawn.scale.min() >= 0.5 and drawn.scale.max() <= 1.2
    quality = drawn.second.quality[drawn.kind == SECOND_ORDER]
    assert 40 <= quality.min() < 45 and 75 < quality.max() <= 80
    with pytest.raises(InputError, match="sharpness"):
        DegradationConfig.from_dict({"light_stage": {"sharpness": 1}})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nothing_waits_for_the_device():
    hr, generator = images(4).cuda(), torch.Generator("cuda").manual_seed(0)
    degradation = Degradation()
    first = degradation(hr, generator)  # fills the table of constants
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = degradation(hr, generator.manual_seed(0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, again)
