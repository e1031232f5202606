"""Colours of the output follow the input, whatever the networks do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from patchscaler.evaluation.colour import ciede2000, srgb_to_lab
from patchscaler.imaging.low_frequencies import REACH, follow_low_frequencies
from patchscaler.pipeline import PatchScalerPipeline

COAST = Path(__file__).parents[2] / "examples" / "coast.png"


def colour_shift(image: Tensor, lr: Tensor, side: int = 8) -> float:
    """Mean delta E 2000 between two pictures averaged over `side` LR pixels."""
    ours, theirs = F.avg_pool2d(image, side * (image.shape[-1] // lr.shape[-1])), F.avg_pool2d(lr, side)
    labs = (srgb_to_lab(part.permute(1, 2, 0).double().numpy()) for part in (ours, theirs))
    return float(ciede2000(*labs).mean())


@pytest.mark.parametrize("tint", [(0, 0, 0), (0.06, -0.03, -0.06)])
def test_the_bundled_model_keeps_colours_even_if_its_decoder_tints(tint):
    pixels = np.asarray(Image.open(COAST).convert("RGB"))[:64, :64]
    lr = torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255
    pipeline = PatchScalerPipeline.from_pretrained(device="cpu")
    with torch.inference_mode():
        pipeline.autoencoder.decoder.quarter[-2].bias.add_(2 * torch.tensor(tint).repeat_interleave(16))
    assert colour_shift(pipeline(lr, plan="fast").image, lr) < 1


def test_detail_is_left_alone():
    generator = torch.Generator().manual_seed(0)
    lr = F.interpolate(torch.rand(1, 3, 3, 4, generator=generator), (48, 64), mode="bicubic").clamp(0.2, 0.8)
    detail = 0.1 * (torch.arange(192)[:, None] + torch.arange(256)).remainder(2).sub(0.5)
    image = F.interpolate(lr, scale_factor=4.0, mode="bilinear") + detail
    changed = follow_low_frequencies(image - 0.05, lr) - image
    assert changed.abs().max() < 0.01, "the shift is gone, the detail as it was"


def test_a_change_beyond_the_reach_changes_nothing():
    lr, image = torch.full((1, 3, 40, 8), 0.5), torch.full((1, 3, 160, 32), 0.4)
    other = image.clone()
    other[:, :, :80] = 0.9
    same = follow_low_frequencies(image, lr) == follow_low_frequencies(other, lr)
    rows = same.all(dim=(0, 1, 3))
    assert rows[4 * (20 + REACH) :].all()
    assert not rows[80 : 4 * (20 + REACH - 1)].any()
