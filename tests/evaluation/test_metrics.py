import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from patchscaler.evaluation import metrics
from patchscaler.evaluation.colour import ciede2000, srgb_to_lab


def noise(shape, low=0, high=256, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.uint8)


def test_luma_has_studio_swing():
    corners = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0]]], dtype=np.uint8)
    np.testing.assert_allclose(metrics.luma(corners), [[16, 235, 81.481, 144.553]])


def test_psnr_by_hand():
    truth = np.full((16, 16, 3), 100, np.uint8)
    image = truth + np.uint8(5)
    assert metrics.psnr_rgb(image, truth) == pytest.approx(20 * np.log10(255 / 5))
    assert metrics.psnr_y(image, truth) == pytest.approx(20 * np.log10(255 / (5 * 219 / 255)))
    assert metrics.psnr_rgb(truth, image) == metrics.psnr_rgb(image, truth)
    assert metrics.psnr_y(truth, truth) == float("inf")


def test_ssim_of_constants_is_the_luminance_term():
    a, b = np.full((20, 24, 3), 40, np.uint8), np.full((20, 24, 3), 200, np.uint8)
    x, y, c = 16 + 40 * 219 / 255, 16 + 200 * 219 / 255, (0.01 * 255) ** 2
    assert metrics.ssim_y(a, b) == pytest.approx((2 * x * y + c) / (x * x + y * y + c))


def test_ssim_against_explicit_windows():
    a, b = noise((13, 14, 3)), noise((13, 14, 3), seed=1)
    grid = np.arange(11) - 5
    window = np.exp(-(grid[:, None] ** 2 + grid**2) / 4.5)
    window /= window.sum()
    x, y = metrics.luma(a), metrics.luma(b)
    values = []
    for top in range(3):
        for left in range(4):
            p, q = x[top : top + 11, left : left + 11], y[top : top + 11, left : left + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            c1, c2 = 2.55**2, 7.65**2
            values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    assert metrics.ssim_y(a, b) == pytest.approx(np.mean(values))
    assert metrics.ssim_y(a, a) == pytest.approx(1)


def test_detail_energy_tells_blur_from_noise():
    truth = noise((256, 256, 3), 80, 170)
    blurred = np.asarray(Image.fromarray(truth).filter(ImageFilter.GaussianBlur(2)))
    noisy = np.clip(truth.astype(int) + noise(truth.shape, 0, 120, seed=1) - 60, 0, 255).astype(np.uint8)
    assert metrics.detail_energy(truth, truth) == 0
    assert metrics.detail_energy(blurred, truth) < -15
    assert metrics.detail_energy(noisy, truth) > 1


def test_detail_energy_reads_the_band_and_the_ratio():
    """A wave inside the band at half the amplitude loses 6.02 dB; one below the band counts for nothing."""

    def wave(inside, below):
        x = np.arange(256)
        row = 128 + inside * np.cos(2 * np.pi * 40 * x / 128) + below * np.cos(2 * np.pi * 10 * x / 128)
        return np.broadcast_to(row[None, :, None], (256, 256, 3)).round().astype(np.uint8)

    assert metrics.detail_energy(wave(30, 0), wave(60, 0)) == pytest.approx(-6.02, abs=0.1)
    assert metrics.detail_energy(wave(60, 50), wave(60, 0)) == pytest.approx(0, abs=0.1)


def test_detail_energy_uses_the_richer_half_of_the_patches():
    truth = noise((128, 512, 3), 80, 170)
    truth[:, :256] = 100
    image = truth.copy()
    image[:, :256] = noise((128, 256, 3))
    assert metrics.detail_energy(image, truth) == 0
    image[:, 256:] = 100
    assert metrics.detail_energy(image, truth) < -50


def test_detail_errors_are_what_detail_energy_is_the_mean_of():
    truth = noise((256, 384, 3), 80, 170)
    truth[:, :128] = 100  # two of six patches have least detail, and one more is left out
    blurred = np.asarray(Image.fromarray(truth).filter(ImageFilter.GaussianBlur(1)))
    errors = metrics.detail_errors(blurred, truth)
    assert errors.shape == (6,) and (errors == 0).sum() == 3 and not errors[[0, 3]].any()
    assert -errors[errors > 0].mean() == pytest.approx(metrics.detail_energy(blurred, truth))
    assert metrics.detail_errors(truth, blurred).max() > 10, "too much is an error, too"


def test_seam_power_sees_a_grid_of_patches_and_nothing_else():
    smooth = np.asarray(Image.fromarray(noise((512, 512, 3))).filter(ImageFilter.GaussianBlur(2))).astype(int)

    def power(change):
        return metrics.seam_power(np.clip(smooth + change, 0, 255).astype(np.uint8), smooth.astype(np.uint8))

    tiles = np.array([[0, 6, 1, 7], [5, 0, 8, 2], [1, 7, 0, 6], [8, 1, 5, 0]])
    patches = tiles.repeat(128, 0).repeat(128, 1)[..., None]
    assert power(0) == 1
    assert power(patches) > 3
    assert power(np.roll(patches, 40, (0, 1))) > 3, "where the grid begins does not matter"
    assert power(9 - patches) > 3
    assert power(np.tile(tiles, (128, 128))[..., None] // 2) == pytest.approx(1, abs=0.4), (
        "not a grid of patches"
    )
    assert power(tiles.repeat(90, 0).repeat(90, 1)[:, :, None].repeat(2, 0).repeat(2, 1)[:512, :512]) < 2


def test_seam_power_needs_more_than_two_patches():
    image = noise((512, 256, 3))
    assert np.isnan(metrics.seam_power(image, image))


def test_shifted_difference_is_zero_without_a_grid_and_shows_one():
    lr = noise((64, 96, 3))

    def plain(image):
        return image.repeat(4, 0).repeat(4, 1)

    def with_grid(image):
        output = plain(image).astype(int) // 2
        tiles = (np.arange(output.shape[0])[:, None] // 128 + np.arange(output.shape[1]) // 128) % 2
        return (output + 10 * tiles[..., None]).astype(np.uint8)

    def difference(upscale):
        return metrics.shifted_difference(upscale(lr), upscale(metrics.extended(lr, 16)), 64)

    assert difference(plain) == 0
    assert difference(with_grid) == pytest.approx(5, abs=0.5)


def test_colour_shift_sees_a_cast_and_not_texture():
    grey = np.full((64, 70, 3), 128, np.uint8)
    checks = grey.astype(int) + 20 * ((np.indices((64, 70)).sum(axis=0) % 2) * 2 - 1)[..., None]
    assert metrics.colour_shift(grey, grey) == 0
    assert metrics.colour_shift(checks.astype(np.uint8), grey) < 1e-6
    assert metrics.colour_shift(grey + np.array([12, 0, 0], np.uint8), grey) > 2


def test_deep_feature_distance_orders_damage(make_scene):
    judge = metrics.DeepFeatureDistance()
    truth = make_scene(128, 128)
    images = [
        truth,
        *(np.asarray(Image.fromarray(truth).filter(ImageFilter.GaussianBlur(r))) for r in (1, 4)),
    ]
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    same, slight, strong = judge(batch, batch[:1].expand(3, -1, -1, -1)).tolist()
    assert same == 0
    assert 0 < slight < strong


def test_spearman_by_hand():
    assert metrics.spearman(np.array([1, 2, 3, 4]), np.array([10, 20, 25, 900])) == pytest.approx(1)
    assert metrics.spearman(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 and 2, 1, 3.5, 3.5; from their means -1.5, 0, 0, 1.5 and -0.5, -1.5, 1, 1.
    assert metrics.spearman(np.array([1, 2, 2, 3]), np.array([5, 4, 9, 9])) == pytest.approx(2.25 / 4.5)
    assert np.isnan(metrics.spearman(np.array([1, 1]), np.array([1, 2])))


def test_bootstrap_interval_is_the_one_of_theory():
    generator = np.random.default_rng(3)
    other = generator.normal(10, 5, 400)
    gain = generator.normal(0.5, 1, 400)
    mean, low, high = metrics.paired_bootstrap(other + gain, other)
    error = gain.std() / 20
    assert mean == pytest.approx(gain.mean())
    assert low == pytest.approx(gain.mean() - 1.96 * error, abs=0.4 * error)
    assert high == pytest.approx(gain.mean() + 1.96 * error, abs=0.4 * error)
    assert metrics.paired_bootstrap(other + gain, other) == (mean, low, high)
    assert metrics.paired_bootstrap(other + gain, other, seed=1) != (mean, low, high)


def test_bootstrap_covers_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        _, low, high = metrics.paired_bootstrap(generator.normal(1, 1, 40), np.zeros(40), seed=trial)
        hits += low <= 1 <= high
    assert 180 <= hits <= 198


def test_detail_energy_against_the_whole_spectrum():
    """Direct: the full transform of each patch, of an odd size too, the richer half by hand."""
    image, truth = noise((100, 200, 3), 60, 200), noise((100, 200, 3), seed=1)
    for size in (33, 50):
        energies = []
        for y in (metrics.luma(image), metrics.luma(truth)):
            found = []
            for top in range(0, 100 - size + 1, size):
                for left in range(0, 200 - size + 1, size):
                    patch = y[top : top + size, left : left + size]
                    window = np.outer(np.hanning(size), np.hanning(size))
                    power = np.abs(np.fft.fft2((patch - patch.mean()) * window)) ** 2
                    at = np.fft.fftfreq(size)
                    radius = np.sqrt(at[:, None] ** 2 + at**2)
                    found.append(power[(radius >= 0.25) & (radius <= 0.5)].sum())
            energies.append(np.array(found))
        richest = np.argsort(-energies[1])[: len(energies[1]) // 2]
        expected = 10 * np.log10(energies[0][richest] / energies[1][richest]).mean()
        assert metrics.detail_energy(image, truth, size) == pytest.approx(expected, rel=1e-9)


def test_colour_shift_against_blocks_one_by_one():
    image, truth = noise((40, 54, 3)), noise((40, 54, 3), seed=1)
    differences = []
    for top in (0, 16):
        for left in (0, 16, 32):
            a, b = (x[top : top + 16, left : left + 16].reshape(-1, 3).mean(axis=0) for x in (image, truth))
            differences.append(ciede2000(srgb_to_lab(a / 255), srgb_to_lab(b / 255)))
    assert metrics.colour_shift(image, truth) == pytest.approx(np.mean(differences), rel=1e-9)
