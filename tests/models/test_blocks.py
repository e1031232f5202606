import pytest
import torch
from torch import nn

from patchscaler.models.blocks import PixelShuffle, PixelUnshuffle


@pytest.mark.parametrize("factor", [2, 4])
def test_pixels_are_moved_as_torch_moves_them(factor):
    image = torch.randn(2, 3, 8, 24)
    assert torch.equal(PixelUnshuffle(factor)(image), nn.PixelUnshuffle(factor)(image))
    maps = torch.randn(2, 48, 6, 5)
    assert torch.equal(PixelShuffle(factor)(maps), nn.PixelShuffle(factor)(maps))


@pytest.mark.parametrize(("layer", "shape"), [(PixelShuffle(2), (1, 32, 6, 5)), (PixelUnshuffle(2), (1, 8, 6, 4))])
def test_moved_pixels_stay_channels_last_where_torch_s_would_not(layer, shape):
    """On the meta device torch takes the same path as on a GPU."""
    maps = torch.empty(shape, device="meta").contiguous(memory_format=torch.channels_last)
    assert layer(maps).is_contiguous(memory_format=torch.channels_last)
