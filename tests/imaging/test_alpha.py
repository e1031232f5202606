import numpy as np
import pyvips
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from patchscaler.imaging.alpha import extend_colour, hold_between_neighbours

SMALL = st.tuples(st.integers(1, 20), st.integers(1, 20))


@given(SMALL.flatmap(lambda shape: arrays.arrays(np.uint8, shape)), st.integers(0, 255))
def test_visible_colour_is_never_touched(alpha, level):
    pixels = np.random.default_rng(level).integers(0, 256, (*alpha.shape, 3), dtype=np.uint8)
    out = extend_colour(pixels, alpha)
    assert np.array_equal(out[alpha > 0], pixels[alpha > 0])


@given(SMALL.flatmap(lambda shape: arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 255]))))
def test_hidden_colour_is_that_of_what_is_visible(alpha):
    pixels = np.zeros((*alpha.shape, 3), np.uint8)
    pixels[alpha > 0] = (200, 30, 90)
    out = extend_colour(pixels, alpha)
    assert (out == ((200, 30, 90) if alpha.any() else 0)).all()


def test_each_side_continues_its_own_colour():
    pixels, alpha = np.zeros((8, 32, 3), np.uint8), np.zeros((8, 32), np.uint8)
    pixels[:, :4], pixels[:, -4:] = (255, 0, 0), (0, 0, 255)
    alpha[:, :4] = alpha[:, -4:] = 255
    out = extend_colour(pixels, alpha)
    assert (out[:, 5] == (255, 0, 0)).all()
    assert (out[:, 26] == (0, 0, 255)).all()


@given(st.integers(8, 20), st.integers(8, 20), st.integers(0, 2**32 - 1))
def test_alpha_stays_between_its_neighbours(height, width, seed):
    generator = np.random.default_rng(seed)
    alpha = generator.choice(np.array([0, 0, 0, 255, 255, 255, 128], np.uint8), (height, width))
    noise = generator.integers(0, 256, (4 * height, 4 * width), dtype=np.uint8)
    held = hold_between_neighbours(pyvips.Image.new_from_array(noise), alpha).numpy()
    framed = np.pad(alpha, 1, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(framed, (3, 3)).reshape(height, width, 9)
    low, high = (part.repeat(4, 0).repeat(4, 1) for part in (windows.min(-1), windows.max(-1)))
    assert ((held >= low) & (held <= high)).all()
    inside = (noise >= low) & (noise <= high)
    assert np.array_equal(held[inside], noise[inside])
