import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture() -> Image.Image:
    """A smooth 48x32 RGB picture, so that lossy formats stay close to it."""
    y, x = np.mgrid[0:32, 0:48]
    pixels = np.stack([x * 5, y * 7, 255 - x * 2 - y * 3], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))
