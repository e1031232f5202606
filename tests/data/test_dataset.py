from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from patchscaler.data.dataset import Tiles, TileSet, load_photos, load_tiles
from patchscaler.errors import InputError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def save(path, width, height=None, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height or width, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def tiles(count=3, size=48, seed=0, labels=()):
    """Tiles whose every pixel names its tile and place: channels are tile, row and column."""
    images = torch.empty((count, 3, size, size), dtype=torch.uint8)
    images[:, 0] = (torch.arange(count) + seed)[:, None, None]
    images[:, 1] = torch.arange(size)[:, None]
    images[:, 2] = torch.arange(size)
    names = tuple(f"{seed + i}" for i in range(count))
    categories = torch.arange(count) % len(labels) if labels else torch.full((count,), -1)
    return Tiles(images, names, torch.arange(count), categories, names, tuple(labels))


def test_load_reads_pixels_in_order_of_names_and_skips_other_sizes(tmp_path, caplog):
    expected = {
        name: save(tmp_path / "train" / name, 32, seed=i) for i, name in enumerate(["b.png", "a.png"])
    }
    save(tmp_path / "train" / "odd.png", 31)
    with caplog.at_level(logging.WARNING):
        loaded = load_tiles(tmp_path / "train", 32)
    assert "skipped 1 " in caplog.text
    assert loaded.names == ("train/a.png", "train/b.png") and loaded.images.shape == (2, 3, 32, 32)
    assert (loaded.images[0].permute(1, 2, 0).numpy() == expected["a.png"]).all()
    assert loaded.sources.tolist() == [0, 1] and loaded.categories.tolist() == [-1, -1]
    assert len(load_tiles(tmp_path / "train", 32, limit=1)) == 1


def test_manifest_joins_tiles_of_one_source_and_textures_have_categories(tmp_path):
    for name in ("train/a__1.png", "train/b.png", "train/c.png", "train/lone.png"):
        save(tmp_path / name, 512)
    for name in ("brick__x.png", "moss__y.png", "brick__z.png", "plain.png"):
        save(tmp_path / "textures" / name, 256)
    (tmp_path / "MANIFEST.csv").write_text(
        "file,source,licence\n"
        'train/a__1.png,photo 1,CC0\ntrain/b.png,"photo, 2",CC0\ntrain/c.png,photo 1,CC0\n'
        "textures/moss__y.png,photo 1,CC0\n"
    )
    tileset = TileSet.load(tmp_path)
    sources = [tileset.source_names[i] for i in tileset.sources.tolist()]
    assert sources[:4] == ["photo 1", "photo, 2", "photo 1", "train/lone.png"]
    assert sources[4:] == ["textures/brick__x.png", "textures/brick__z.png", "photo 1", "textures/plain.png"]
    assert tileset.category_names == ("brick", "moss")
    assert tileset.categories.tolist() == [-1, -1, -1, -1, 0, 0, 1, -1]
    batches = list(tileset.batches(3))
    assert [len(batch.images) for batch in batches] == [3, 1, 3, 1]
    assert torch.equal(torch.cat([batch.sources for batch in batches]), tileset.sources)
    assert torch.equal((batches[2].images * 255).round().byte(), tileset.groups[1].images[:3])


def test_photos_of_any_size_are_cut_into_tiles(tmp_path):
    large = save(tmp_path / "trip" / "large.png", 1100, 600)
    save(tmp_path / "medium.png", 300, 520)
    save(tmp_path / "small.png", 200, 900)
    tileset = TileSet.load(tmp_path)
    assert [tuple(group.images.shape) for group in tileset.groups] == [(2, 3, 512, 512), (2, 3, 256, 256)]
    right = tileset.groups[0].images[1].permute(1, 2, 0).numpy()
    assert (right == large[44 : 44 + 512, 38 + 512 : 38 + 1024]).all()
    assert [tileset.source_names[i] for i in tileset.sources.tolist()] == ["trip/large.png"] * 2 + [
        "medium.png"
    ] * 2
    assert len(load_photos(tmp_path, per_photo=1)[0]) == 1
    assert tileset.sample(4, 128, seeded()).images.shape == (4, 3, 128, 128)


def test_unusable_folders_are_reported(tmp_path):
    with pytest.raises(InputError, match="no PNG"):
        TileSet.load(tmp_path)
    save(tmp_path / "train" / "a.png", 32)
    with pytest.raises(InputError, match="512 x 512"):
        TileSet.load(tmp_path)
    (tmp_path / "train" / "b.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"b\.png"):
        load_tiles(tmp_path / "train", 32)
    (tmp_path / "train" / "b.png").unlink()
    (tmp_path / "MANIFEST.csv").write_text("name,origin\n")
    with pytest.raises(InputError, match="columns"):
        load_tiles(tmp_path / "train", 32)
    with pytest.raises(InputError, match="64 pixels"):
        TileSet([tiles(size=48)]).sample(1, 64, seeded())


def test_unshrunk_crops_are_exact_pieces_in_all_eight_orientations():
    tileset = TileSet([tiles(5, 48)])
    batch = tileset.sample(200, 16, seeded(), shrink=0)
    levels = (batch.images * 255).round().long()
    assert (batch.images * 255 - levels).abs().max() < 1e-4
    assert torch.equal(levels[:, 0], batch.sources[:, None, None].expand(-1, 16, 16))
    assert set(batch.sources.tolist()) == set(range(5)) and (batch.categories == -1).all()
    row, column = levels[:, 1], levels[:, 2]
    down = torch.stack([row[:, 1, 0] - row[:, 0, 0], column[:, 1, 0] - column[:, 0, 0]], 1)
    right = torch.stack([row[:, 0, 1] - row[:, 0, 0], column[:, 0, 1] - column[:, 0, 0]], 1)
    steps = torch.arange(16)
    for plane, i in ((row, 0), (column, 1)):
        affine = plane[:, :1, :1] + down[:, i, None, None] * steps[:, None] + right[:, i, None, None] * steps
        assert torch.equal(plane, affine)
    orientations = torch.cat((down, right), 1)
    assert (orientations.abs().sum(1) == 2).all() and len(orientations.unique(dim=0)) == 8
    corners = row.amin((1, 2))
    assert corners.min() == 0 and corners.max() == 32  # every place of the tile is in reach


def test_shrunk_crops_cover_up_to_twice_the_area_side():
    batch = TileSet([tiles(4, 48)]).sample(200, 16, seeded(), shrink=1)
    extent = (batch.images[:, 1:] * 255).flatten(2)
    extent = (extent.amax(2) - extent.amin(2)).amax(1)
    assert extent.min() < 17 and 27 < extent.max() < 32
    assert (batch.images[:, 0] * 255 - batch.sources[:, None, None]).abs().max() < 1e-3


def test_sample_is_fixed_by_the_generator():
    tileset = TileSet([tiles(5, 48), tiles(3, 32, seed=100, labels=("a", "b"))])
    first, again, other = (tileset.sample(16, 16, seeded(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.images, other.images)


def test_texture_share_and_labels_of_mixed_groups():
    tileset = TileSet([tiles(5, 48), tiles(3, 32, seed=100, labels=("a", "b"))])
    batch = tileset.sample(1000, 8, seeded(), texture_share=0.2)
    textures = batch.categories >= 0
    assert textures.float().mean() == pytest.approx(0.2, abs=0.05)
    tile = (batch.images[:, 0].mean((1, 2)) * 255).round().long()
    assert torch.equal(textures, tile >= 100)
    assert [tileset.source_names[i] for i in batch.sources.tolist()] == [str(i) for i in tile.tolist()]
    assert torch.equal(batch.categories[textures], (tile[textures] - 100) % 2)
    assert (tileset.sample(50, 40, seeded()).categories == -1).all()  # too large for the textures
    assert (tileset.sample(50, 8, seeded(), texture_share=0).categories == -1).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_sampling_does_not_wait_for_the_device():
    tileset = TileSet([tiles(5, 48), tiles(3, 32, seed=100, labels=("a", "b"))]).to("cuda")
    generator = torch.Generator("cuda")
    first = tileset.sample(16, 16, generator.manual_seed(0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = tileset.sample(16, 16, generator.manual_seed(0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
