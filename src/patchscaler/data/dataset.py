"""Training tiles that live on the device as uint8, and vectorised sampling of augmented crops from them."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from patchscaler.data import operators as op
from patchscaler.errors import InputError

TRAIN_SIZE, TEXTURE_SIZE = 512, 256
_SUFFIXES = {".png", ".webp", ".jpg", ".jpeg"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tiles:
    """Square tiles of one size: `images` uint8 (N, 3, size, size) and what is known of each.

    `sources` and `categories` (int64, (N,)) index `source_names` and `category_names`; a category of -1 is
    none. Tiles cut from one image share their source.
    """

    images: Tensor
    names: tuple[str, ...]
    sources: Tensor
    categories: Tensor
    source_names: tuple[str, ...]
    category_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Tiles:
        """The same tiles on a device."""
        images, sources, categories = (t.to(device) for t in (self.images, self.sources, self.categories))
        return replace(self, images=images, sources=sources, categories=categories)


class Batch(NamedTuple):
    """Crops float32 (B, 3, crop, crop) in [0, 1], with the source and category (int64, (B,)) of each."""

    images: Tensor
    sources: Tensor
    categories: Tensor


def load_tiles(folder: Path, size: int, *, limit: int | None = None) -> Tiles:
    """Decode the images under `folder`, sorted by name, of which those not `size` x `size` are skipped.

    Sources come from `MANIFEST.csv` in the folder's parent (columns `file`, as `train/name.webp`, and
    `source`); a file without a row is its own source. In a folder called `textures` the part of a name
    before `__` is its category, less what follows a `-` in it (`photo-volcano__7.webp` is a `photo`). `limit`
    keeps the first files only. Raises InputError when a file cannot be read or nothing is left.
    """

    def whole(image: Image.Image) -> list[np.ndarray]:
        return [np.asarray(image.convert("RGB"))] if image.size == (size, size) else []

    files = _image_files(folder, limit)
    decoded = _decode(files, whole)
    kept = [(file, tiles[0]) for file, tiles in zip(files, decoded, strict=True) if tiles]
    if len(kept) < len(files):
        _log.warning("%s: skipped %d images that are not %d px", folder, len(files) - len(kept), size)
    if not kept:
        raise InputError(f"{folder}: no images of {size} x {size} pixels")
    manifest = _read_manifest(folder.parent / "MANIFEST.csv")
    keys = [f"{folder.name}/{file.relative_to(folder).as_posix()}" for file, _ in kept]
    prefixes = [file.name.partition("__") for file, _ in kept]
    labels = [
        prefix.partition("-")[0] if folder.name == "textures" and mark else None
        for prefix, mark, _ in prefixes
    ]
    return _tiles([array for _, array in kept], keys, [manifest.get(key, key) for key in keys], labels)


def load_photos(folder: Path, *, limit: int | None = None, per_photo: int = 12) -> list[Tiles]:
    """Cut photos of any size into non-overlapping centred tiles, at most `per_photo` spread over each.

    Photos whose short side has 512 px or more give 512-px tiles, smaller ones 256-px tiles, and those below
    256 px are skipped. Every photo is a source of its own. Raises InputError as `load_tiles` does.
    """

    def cut(photo: Image.Image) -> list[np.ndarray]:
        array = np.asarray(ImageOps.exif_transpose(photo).convert("RGB"))
        short = min(array.shape[:2])
        size = TRAIN_SIZE if short >= TRAIN_SIZE else TEXTURE_SIZE
        tops, lefts = (range(side % size // 2, side - size + 1, size) for side in array.shape[:2])
        corners = [(y, x) for y in tops for x in lefts]
        corners = corners[:: -(-len(corners) // per_photo) or 1]
        return [array[y : y + size, x : x + size].copy() for y, x in corners]

    files = _image_files(folder, limit)
    decoded = _decode(files, cut)
    if skipped := sum(not tiles for tiles in decoded):
        _log.warning("%s: skipped %d photos smaller than %d px", folder, skipped, TEXTURE_SIZE)
    groups = []
    for size in (TRAIN_SIZE, TEXTURE_SIZE):
        kept = [
            (array, str(file.relative_to(folder)), number)
            for file, tiles in zip(files, decoded, strict=True)
            for number, array in enumerate(tiles)
            if len(array) == size
        ]
        if kept:
            arrays, sources, numbers = zip(*kept, strict=True)
            names = [f"{source}#{number}" for source, number in zip(sources, numbers, strict=True)]
            groups.append(_tiles(arrays, names, sources, [None] * len(kept)))
    if not groups:
        raise InputError(f"{folder}: no photo has a short side of {TEXTURE_SIZE} pixels or more")
    return groups


class TileSet:
    """Groups of tiles with common source and category tables, and random crops of them.

    `sources` and `categories` (int64, (N,)) run over all groups in order, as `batches` does.
    """

    def __init__(self, groups: Sequence[Tiles]) -> None:
        self.source_names = tuple(sorted({name for group in groups for name in group.source_names}))
        self.category_names = tuple(sorted({name for group in groups for name in group.category_names}))
        self.groups = tuple(self._with_common_ids(group) for group in groups)

    @classmethod
    def load(cls, root: Path, *, limit: int | None = None) -> TileSet:
        """Read `root/train` (512 px) and `root/textures` (256 px), or else cut the photos under `root`.

        `limit` is the number of files read from each folder. Raises InputError.
        """
        folders = [(root / "train", TRAIN_SIZE), (root / "textures", TEXTURE_SIZE)]
        tiles = [load_tiles(folder, size, limit=limit) for folder, size in folders if folder.is_dir()]
        return cls(tiles or load_photos(root, limit=limit))

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def to(self, device: torch.device | str) -> TileSet:
        """The same set on a device."""
        return TileSet([group.to(device) for group in self.groups])

    @property
    def sources(self) -> Tensor:
        """Source ids (N,) of all tiles."""
        return torch.cat([group.sources for group in self.groups])

    @property
    def categories(self) -> Tensor:
        """Category ids (N,) of all tiles, -1 where there is none."""
        return torch.cat([group.categories for group in self.groups])

    def batches(self, size: int) -> Iterator[Batch]:
        """All tiles once, whole and in order, at most `size` at a time; no batch mixes tile sizes."""
        for group in self.groups:
            parts = (t.split(size) for t in (group.images, group.sources, group.categories))
            for images, sources, categories in zip(*parts, strict=True):
                yield Batch(images / 255, sources, categories)

    @torch.no_grad()
    def sample(
        self,
        batch: int,
        crop: int,
        generator: torch.Generator,
        texture_share: float = 0.2,
        shrink: float = 0.3,
    ) -> Batch:
        """Draw crops with random flips and transposition; all randomness is the generator's, on its device.

        A share `texture_share` comes from the groups with categories, where there are both kinds. A share
        `shrink` is an antialiased bicubic 0.5-1x downscale of a larger region, as far as the tile has room.
        Groups of tiles smaller than the crop give nothing; InputError if no group is left.
        """
        device = generator.device
        groups = [group for group in self.groups if group.images.shape[-1] >= crop]
        if not groups:
            raise InputError(f"no tile is large enough for crops of {crop} pixels")
        u, shrunk, factor = torch.rand((3, batch), generator=generator, device=device)
        result, start = None, 0.0
        for group, share in zip(groups, _shares(groups, texture_share), strict=True):
            index = torch.randint(len(group), (batch,), generator=generator, device=device)
            images = _crops(group.images[index], crop, (shrunk < shrink) * (1 - factor), generator)
            drawn = Batch(images, group.sources[index], group.categories[index])
            if result is not None:  # the shares are intervals of u; later groups overwrite from theirs on
                pairs = zip(drawn, result, strict=True)
                drawn = Batch(*(torch.where(op.per_sample(u >= start, a), a, b) for a, b in pairs))
            result, start = drawn, start + share
        assert result is not None
        return result

    def _with_common_ids(self, group: Tiles) -> Tiles:
        def renumber(ids: Tensor, names: Sequence[str], common: Sequence[str]) -> Tensor:
            place = {name: i for i, name in enumerate(common)}
            table = torch.tensor([*(place[name] for name in names), -1], device=ids.device)
            return table[ids]  # -1, no category, reads the last entry

        return replace(
            group,
            sources=renumber(group.sources, group.source_names, self.source_names),
            categories=renumber(group.categories, group.category_names, self.category_names),
            source_names=self.source_names,
            category_names=self.category_names if group.category_names else (),
        )


def _shares(groups: Sequence[Tiles], texture_share: float) -> list[float]:
    """Each group's part of the samples: by tile count among groups with, and without, categories."""
    counts = {kind: sum(len(g) for g in groups if bool(g.category_names) is kind) for kind in (True, False)}
    share = {True: texture_share, False: 1 - texture_share} if all(counts.values()) else {True: 1, False: 1}
    return [share[bool(g.category_names)] * len(g) / counts[bool(g.category_names)] for g in groups]


def _crops(tiles: Tensor, crop: int, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Cut, shrink by 1 - strength / 2 and flip uint8 tiles by one matrix a side and sample; transpose."""
    size, device = tiles.shape[-1], tiles.device
    u, v, *coins = torch.rand((5, len(tiles)), generator=generator, device=device)
    region = (crop / (1 - strength / 2)).round().long().clamp(max=size)
    length, method = torch.full_like(region, crop), torch.full_like(region, op.BICUBIC)
    antialias = torch.ones_like(region, dtype=torch.bool)
    matrices = []
    for place, flip in ((u, coins[0]), (v, coins[1])):
        start = torch.minimum((place * (size - region + 1)).long(), size - region)
        matrix = op.resize_matrix(region, length, method, antialias, size, crop, start)
        matrices.append(torch.where(op.per_sample(flip < 0.5, matrix), matrix.flip(1), matrix))
    with torch.autocast(device.type, enabled=False):
        images = op.resize(tiles.float(), *matrices)  # whole levels: a plain crop is exact
    images = torch.where(op.per_sample(coins[2] < 0.5, images), images.mT, images)
    return (images / 255).clamp_(0, 1)


def _image_files(folder: Path, limit: int | None) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise InputError(f"{folder}: no PNG, WebP or JPEG images found")
    return files[:limit]


def _decode(files: Sequence[Path], cut: Callable[[Image.Image], list[np.ndarray]]) -> list[list[np.ndarray]]:
    def read(file: Path) -> list[np.ndarray]:
        try:
            with Image.open(file) as image:
                return cut(image)
        except OSError as error:
            raise InputError(f"{file}: cannot read this image ({error})") from error

    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, files))


def _read_manifest(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if not {"file", "source"} <= set(rows.fieldnames or ()):
            raise InputError(f"{path}: the columns file and source are needed")
        return {row["file"]: row["source"] for row in rows}


def _tiles(
    arrays: Sequence[np.ndarray], names: Sequence[str], sources: Sequence[str], labels: Sequence[str | None]
) -> Tiles:
    images = torch.empty((len(arrays), 3, *arrays[0].shape[:2]), dtype=torch.uint8)
    for image, array in zip(images, arrays, strict=True):
        image.copy_(torch.tensor(array).permute(2, 0, 1))
    source_names = tuple(sorted(set(sources)))
    category_names = tuple(sorted({label for label in labels if label is not None}))
    source_ids = {name: i for i, name in enumerate(source_names)}
    category_ids: dict[str | None, int] = {name: i for i, name in enumerate(category_names)}
    return Tiles(
        images,
        tuple(names),
        torch.tensor([source_ids[name] for name in sources]),
        torch.tensor([category_ids.get(label, -1) for label in labels]),
        source_names,
        category_names,
    )
