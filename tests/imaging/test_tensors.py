import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from patchscaler.imaging.tensors import from_tensor, padded_side, to_tensor, window
from patchscaler.imaging.tiles import Tile


@pytest.mark.parametrize(
    ("sides", "stride", "padded"),
    [((20, 33), 16, (32, 48)), ((20, 33), 8, (24, 40)), ((16, 32), 16, (16, 32)), ((10, 9), 16, (16, 16))],
)
def test_images_are_reflected_until_windows_cover_them(sides, stride, padded):
    pixels = torch.rand(3, *sides)
    expected = F.pad(pixels, (0, padded[1] - sides[1], 0, padded[0] - sides[0]), mode="reflect")
    assert padded == tuple(padded_side(side, 16, stride) for side in sides)
    assert torch.equal(window(pixels, Tile(0, padded[0], 0, padded[1])), expected)


def test_reflection_goes_on_where_an_image_is_smaller_than_half_a_window():
    row = torch.tensor([[[0.0, 0.5, 1.0]] * 3])
    assert window(row, Tile(0, 8, 0, 8))[0, 0].tolist() == [0, 0.5, 1, 0.5, 0, 0.5, 1, 0.5]


def test_every_level_survives_the_way_there_and_back():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.stack([levels, levels.T, levels[::-1]], axis=-1)
    assert np.array_equal(from_tensor(to_tensor(image, 8), image), image)


def test_the_pixels_are_copied():
    image = np.zeros((8, 8, 3), np.uint8)
    pixels = to_tensor(image, 8)
    image[:] = 255
    assert not pixels.any()


def test_a_read_only_or_flipped_array_is_taken_without_a_warning():
    image = np.full((8, 8, 3), 255, np.uint8)
    image.setflags(write=False)
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert to_tensor(image, 8).eq(1).all()
            assert to_tensor(image[:, ::-1], 8).eq(1).all()
    finally:
        torch.set_warn_always(False)
