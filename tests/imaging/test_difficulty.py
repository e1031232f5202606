import numpy as np
import pytest

from patchscaler.imaging.difficulty import difficulty_map, group_names


def test_map_covers_the_input_and_colours_follow_the_confidence():
    pixels = np.full((64, 96, 3), 128, np.uint8)
    confidence = np.full((32, 48), 0.95, np.float32)
    confidence[:, 24:] = 0.05
    picture = difficulty_map(pixels, confidence, np.zeros((2, 3), np.int8), patch=32)
    assert picture.shape[1] == 4 * 96
    assert picture.shape[0] > 4 * 64
    easy, hard = picture[128, 20].astype(int), picture[128, -20].astype(int)
    assert hard[:2].min() > easy[:2].max()  # yellow against violet
    assert easy[2] > hard[2]


def test_only_patches_beyond_the_simplest_are_framed():
    pixels = np.zeros((64, 384, 3), np.uint8)
    confidence = np.full((32, 192), 0.9, np.float32)
    groups = np.zeros((2, 12), np.int8)
    bare = difficulty_map(pixels, confidence, groups, patch=32)
    groups[1, 2] = 2
    framed = difficulty_map(pixels, confidence, groups, patch=32)
    rows, columns = np.nonzero((bare != framed).any(axis=-1)[:64])
    assert 32 <= rows.min() <= rows.max() < 64
    assert 64 <= columns.min() <= columns.max() < 96


@pytest.mark.parametrize("size", [(8, 8), (9, 33), (500, 8), (8, 500)])
def test_any_size_can_be_drawn(size):
    height, width = size
    confidence = np.full((-(-height // 2), -(-width // 2)), 0.5, np.float32)
    groups = np.ones((-(-height // 32), -(-width // 32)), np.int8)
    picture = difficulty_map(np.zeros((*size, 3), np.uint8), confidence, groups, patch=32)
    assert picture.dtype == np.uint8
    assert picture.shape[1] >= 384
    assert picture.shape[1] % width == 0


def test_names_of_groups():
    assert group_names(3) == ("simple", "medium", "hard")
    assert len(group_names(5)) == len(set(group_names(5))) == 5
