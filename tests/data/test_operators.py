from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from patchscaler.data import operators as op


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def scene(side=96):
    """Smooth colour waves with a hard edge and a little grain, (1, 3, side, side)."""
    y, x = torch.meshgrid(torch.linspace(0, 6, side), torch.linspace(0, 6, side), indexing="ij")
    image = torch.stack((torch.sin(x + y), torch.cos(x * 1.5), torch.sin(2 * y))) * 0.3 + 0.5
    image[:, side // 3 : side // 2, side // 4 :] *= 0.4
    return op.quantise(image + torch.randn(image.shape, generator=seeded()) * 0.02)[None]


def matrix(source, target, method, antialias=True, in_size=None, out_size=None, start=0):
    lengths = torch.tensor([source]), torch.tensor([target])
    how = torch.tensor([method]), torch.tensor([antialias])
    return op.resize_matrix(*lengths, *how, in_size or source, out_size or target, start)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(4, 40),
    st.integers(1, 40),
    st.sampled_from([op.AREA, op.BILINEAR, op.BICUBIC, op.LANCZOS]),
    st.booleans(),
    st.integers(0, 5),
)
def test_constant_rows_stay_constant_and_only_the_interval_is_read(source, target, method, antialias, start):
    weights = matrix(source, target, method, antialias, in_size=source + 7, out_size=target + 3, start=start)
    line = torch.full((source + 7,), torch.nan)
    line[start : start + source] = 0.7
    used = weights[0, :, start : start + source]
    assert torch.allclose(used @ line[start : start + source], torch.full((target + 3,), 0.7), atol=1e-5)
    assert weights[0, :, :start].abs().sum() == 0 and weights[0, :, start + source :].abs().sum() == 0
    assert (weights[0, target:] == weights[0, target - 1]).all()


@pytest.mark.parametrize(("method", "mode"), [(op.BILINEAR, "bilinear"), (op.BICUBIC, "bicubic")])
@pytest.mark.parametrize("target", [24, 37, 96, 131])
def test_resize_matches_torch_antialias(method, mode, target):
    image = scene()
    weights = matrix(96, target, method)
    expected = F.interpolate(image, size=(target, target), mode=mode, antialias=True)
    assert (op.resize(image, weights, weights) - expected).abs().max() < 1e-4


def test_area_is_the_block_mean_and_lanczos_is_pillows():
    image = scene()
    weights = matrix(96, 24, op.AREA)
    assert torch.allclose(op.resize(image, weights, weights), F.avg_pool2d(image, 4), atol=1e-5)
    grey = image[0, 0]
    expected = np.asarray(Image.fromarray(grey.numpy()).resize((40, 40), Image.Resampling.LANCZOS))
    weights = matrix(96, 40, op.LANCZOS)
    assert np.abs((weights[0] @ grey @ weights[0].T).numpy() - expected).max() < 1e-4


def test_without_antialias_bilinear_samples_two_neighbours():
    weights = matrix(96, 24, op.BILINEAR, antialias=False)[0]
    assert ((weights > 0).sum(1) == 2).all()
    expected = F.interpolate(scene(), size=(24, 24), mode="bilinear")
    assert torch.allclose(op.resize(scene(), weights[None], weights[None]), expected, atol=1e-5)


def kernel(sigma, angle=0.0, exponent=1.0, plateau=False):
    return op.gaussian_kernel(
        torch.tensor([sigma]), torch.tensor([angle]), torch.tensor([exponent]), torch.tensor([plateau])
    )


def test_blur_is_the_direct_convolution_of_each_sample_with_its_own_kernel():
    image = scene(40).repeat(2, 1, 1, 1)
    kernels = torch.cat(
        (kernel([2.5, 0.8], angle=0.5), op.sinc_kernel(torch.tensor([1.3]), torch.tensor([6])))
    )
    padded = F.pad(image, (10, 10, 10, 10), mode="replicate").flatten(0, 1)[None]
    weight = kernels.flip(1, 2).repeat_interleave(3, 0)[:, None]
    expected = F.conv2d(padded, weight, groups=6).view_as(image)
    assert (op.blur(image, kernels) - expected).abs().max() < 1e-5
    assert (expected[0] - expected[1]).abs().max() > 0.01


def test_kernels_sum_to_one_and_have_the_asked_width():
    assert torch.allclose(kernel([1.7, 1.7]).sum(), torch.tensor(1.0))
    grid = (torch.arange(21.0) - 10) ** 2
    assert (kernel([2.0, 1.0])[0].sum(0) @ grid).sqrt() == pytest.approx(2.0, abs=0.01)  # along x
    assert (kernel([2.0, 1.0], angle=torch.pi / 2)[0].sum(1) @ grid).sqrt() == pytest.approx(2.0, abs=0.01)
    assert kernel([0.01, 0.01])[0, 10, 10] == 1
    assert kernel([2.0, 2.0], plateau=True)[0, 10, 0] > 5 * kernel([2.0, 2.0])[0, 10, 0]  # heavy tails
    sinc = op.sinc_kernel(torch.tensor([1.2]), torch.tensor([5]))
    assert sinc.sum() == pytest.approx(1, abs=1e-5) and sinc.min() < 0 and (sinc[0, :5] == 0).all()
    response = torch.fft.fft2(op.sinc_kernel(torch.tensor([1.2]), torch.tensor([10])), s=(64, 64)).abs()[0, 0]
    assert response[5] > 0.85 and response[30] < 0.1  # passes 0.5 rad, stops 2.9 rad


def test_noise_has_the_asked_variance_and_grey_noise_is_equal_over_channels():
    image = torch.full((3, 3, 128, 128), 0.5)
    sigma, gain = torch.tensor([0.02, 0.0, 0.02]), torch.tensor([0.0, 0.002, 0.0])
    residue = op.noise(image, sigma, gain, torch.tensor([False, False, True]), seeded()) - 0.5
    assert residue[0].std() == pytest.approx(0.02, rel=0.05)
    assert residue[1].std() == pytest.approx((0.002 * 0.5) ** 0.5, rel=0.05)
    assert (residue[2, 0] == residue[2, 1]).all() and (residue[0, 0] != residue[0, 1]).any()
    clean = op.noise(image, torch.zeros(3), torch.zeros(3), torch.zeros(3, dtype=torch.bool), seeded())
    assert (clean == image).all()


def psnr(a, b):
    return -10 * torch.log10(((a - b) ** 2).mean()).item()


@pytest.mark.parametrize("side", [96, 75])
@pytest.mark.parametrize("subsample", [False, True])
@pytest.mark.parametrize("quality", [30, 60, 90])
def test_jpeg_is_close_to_pillows(quality, subsample, side):
    image = scene(side)
    ours = op.jpeg(image, torch.tensor([float(quality)]), torch.tensor([subsample]))
    buffer = io.BytesIO()
    pixels = (image[0] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=2 if subsample else 0)
    theirs = torch.tensor(np.asarray(Image.open(buffer))).permute(2, 0, 1)[None] / 255
    assert (ours - theirs).abs().mean() * 255 < 1
    assert (
        psnr(ours, theirs) > psnr(theirs, image) + 3
    )  # far closer to Pillow's result than that is to the truth
    assert psnr(ours, image) == pytest.approx(psnr(theirs, image), abs=0.3)


def test_jpeg_quality_and_subsampling_are_per_sample():
    image = scene().repeat(3, 1, 1, 1)
    quality, subsample = torch.tensor([90.0, 30.0, 90.0]), torch.tensor([False, False, True])
    together = op.jpeg(image, quality, subsample)
    for i in range(3):
        alone = op.jpeg(image[i : i + 1], quality[i : i + 1], subsample[i : i + 1])
        assert (alone - together[i]).abs().max() < 1.5 / 255
    errors = [psnr(result, image[0]) for result in together]
    assert errors[0] > errors[2] > errors[1]
