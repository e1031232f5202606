import torch

from patchscaler.data.dataset import TileSet
from patchscaler.data.drawn import drawn_tiles


def test_each_tile_depends_on_its_own_number_and_the_seed_only():
    four, five, other = drawn_tiles(4, size=64), drawn_tiles(5, size=64), drawn_tiles(4, size=64, seed=1)
    assert torch.equal(four.images, five.images[:4])
    assert all((a != b).any() for a, b in zip(four.images, other.images, strict=True))


def test_drawings_are_rich_and_ramps_are_smooth():
    images = drawn_tiles(40, size=256).images.float()
    steps = torch.maximum(images.diff(dim=2).abs().amax((1, 2, 3)), images.diff(dim=3).abs().amax((1, 2, 3)))
    ramps = torch.arange(40) % 4 == 3
    assert (steps[~ramps] > 60).all()  # text, windows and lines have edges
    smooth = images[ramps].diff(dim=3).abs().flatten(1).median(dim=1).values
    assert (smooth <= 6).all()


def test_drawn_tiles_go_beside_photographs(tiles_folder):
    photos = TileSet.load(tiles_folder)
    both = TileSet([*photos.groups, drawn_tiles(3)])
    assert len(both) == len(photos) + 3
    assert (both.categories[-3:] == -1).all()
    assert [both.source_names[number] for number in both.sources[-3:]] == [f"drawn/{n:05d}" for n in range(3)]
