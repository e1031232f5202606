"""Pictures that a texture memory is built from: found, named, licensed, and cut into latent patches."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from patchscaler.errors import InputError
from patchscaler.imaging.io import read_photo
from patchscaler.imaging.tensors import to_tensor
from patchscaler.sampling.patches import unfold
from patchscaler.storage import key_space, latent_space
from patchscaler.texture_memory import Origin, ReferenceTextureMemory
from patchscaler.texture_selection import DUPLICATE, MemoryBuilder

if TYPE_CHECKING:
    from patchscaler.pipeline import PatchScalerPipeline

SUFFIXES = frozenset({".png", ".webp", ".jpg", ".jpeg", ".tif", ".tiff", ".avif", ".heic", ".bmp"})
_REGION = 4
"""Side, in patches, of the regions that a picture is cut into."""


@dataclass(frozen=True)
class Licences:
    """Who may pass a picture on: by its row of a manifest, its folder, or one licence for all.

    Attributes:
        everywhere: licence of every picture that nothing else names; None if there is none.
        folders: licence by folder; the innermost counts.
        rows: source and licence by file.
    """

    everywhere: str | None
    folders: dict[Path, str]
    rows: dict[Path, tuple[str, str]]

    @classmethod
    def parse(cls, given: Sequence[str], manifest: Path | None) -> Licences:
        """From LICENCE or FOLDER=LICENCE each, and a CSV file with the columns file, source and licence.

        Raises:
            InputError: two licences for all, a folder that is none, or a manifest without these columns.
        """
        everywhere, folders = None, {}
        for text in given:
            folder, equals, licence = text.rpartition("=")
            if not licence.strip():
                raise InputError(f"--licence {text}: write LICENCE or FOLDER=LICENCE")
            if not equals:
                if everywhere is not None:
                    raise InputError(
                        f"two licences for all: {everywhere!r} and {licence!r}; use FOLDER=LICENCE"
                    )
                everywhere = licence.strip()
                continue
            if not Path(folder).is_dir():
                raise InputError(f"--licence {text}: {folder} is not a folder")
            folders[Path(folder).resolve()] = licence.strip()
        return cls(everywhere, folders, {} if manifest is None else _read_manifest(manifest))

    def origin(self, file: Path, name: str, category: str) -> Origin:
        """Origin of a picture; InputError if no licence is known for it."""
        place = file.resolve()
        source, licence = self.rows.get(place, (name, ""))
        if not licence:
            named = [self.folders[folder] for folder in place.parents if folder in self.folders]
            licence = named[0] if named else self.everywhere or ""
        if not licence:
            raise InputError(
                f"no licence is known for {file}: a memory passes its pictures on; give --licence or --manifest"
            )
        return Origin(source, licence, category)


def find_pictures(folders: Sequence[Path], licences: Licences) -> list[tuple[Path, Origin]]:
    """The pictures in and below some folders, by name, with what is known of each.

    The category is what stands before `__` in a file's name (of `photo-moss__3.png` only `photo`), else the first
    folder below the one that was named, else, if several were named, that one.

    Raises:
        InputError: a folder is none or holds no picture, or a picture's licence is not known.
    """
    found: dict[Path, tuple[Path, Origin]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder")
        inner = sorted(
            file.relative_to(folder) for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES
        )
        inner = [file for file in inner if not any(part.startswith(".") for part in file.parts)]
        if not inner:
            raise InputError(f"{folder} holds no picture")
        for inside in inner:
            file = folder / inside
            prefix, mark, _ = file.name.partition("__")
            outer = folder.resolve().name if len(folders) > 1 else ""
            category = (
                prefix.partition("-")[0] if mark else inside.parts[0] if len(inside.parts) > 1 else outer
            )
            name = (Path(folder.resolve().name) / inside).as_posix()
            found.setdefault(file.resolve(), (file, licences.origin(file, name, category)))
    return list(found.values())


def build_memory(
    pipeline: PatchScalerPipeline,
    pictures: Sequence[tuple[Path, Origin]],
    *,
    entries: int,
    duplicate: float = DUPLICATE,
    per_picture: int = 12,
    shrink: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
    on_skip: Callable[[str], None] = lambda reason: None,
) -> tuple[ReferenceTextureMemory, MemoryBuilder]:
    """Cut pictures into patches and keep those that stand best for all, the same share of every category.

    Args:
        pipeline: whose latents and keys the memory holds.
        pictures: as `find_pictures` gives them.
        entries: size of the memory; smaller where there are not enough different patches.
        duplicate: similarity of keys from which two patches count as the same texture.
        per_picture: most regions of 4 x 4 patches that are cut from one picture, spread over it.
        shrink: shrink pictures by this factor first; camera photos are sharper at half their size.
        progress: told how many pictures of how many are done.
        on_skip: told in one line of a picture that gives no patch.

    Returns:
        The memory, and its builder with the counts.

    Raises:
        InputError: no picture gave a patch that is not flat.
    """
    size = pipeline.sampling.patch_size
    builder = MemoryBuilder(pipeline.keys, entries, duplicate=duplicate)
    for done, (file, origin) in enumerate(pictures):
        try:
            regions = _regions(file, _read(file, shrink), size * pipeline.autoencoder.factor, per_picture)
        except InputError as error:
            on_skip(f"left out: {error}")
            regions = []
        with torch.inference_mode():
            cut = [unfold(pipeline.encode(region[None]), size, size) for region in regions]
            if cut:
                builder.add(torch.cat(cut), origin)
        if progress is not None:
            progress(done + 1, len(pictures))
    with torch.inference_mode():
        memory = builder.build(
            latent_space=latent_space(pipeline.autoencoder), key_space=key_space(pipeline.texture_classifier)
        )
    if memory is None:
        raise InputError(
            f"no texture found in {len(pictures)} pictures: all patches are flat, or none could be cut"
        )
    return memory, builder


def _read(file: Path, shrink: float) -> Tensor:
    """Pixels (3, h, w) in [0, 1]."""
    import numpy as np
    import pyvips

    pixels = read_photo(file).pixels
    if shrink != 1:
        image = pyvips.Image.new_from_array(np.ascontiguousarray(pixels))
        pixels = image.resize(1 / shrink, kernel="lanczos3").numpy()
    return to_tensor(pixels, 1)


def _regions(file: Path, pixels: Tensor, patch: int, most: int) -> list[Tensor]:
    """Regions of whole patches, at most 4 x 4 each and at most `most` in all, centred and spread over a picture."""
    height, width = pixels.shape[1:]
    if min(height, width) < patch:
        raise InputError(f"{file}: {width}x{height} is smaller than a patch of {patch}x{patch} pixels")
    sides = [min(_REGION, side // patch) * patch for side in (height, width)]
    tops, lefts = (
        range(length % side // 2, length - side + 1, side)
        for length, side in zip((height, width), sides, strict=True)
    )
    corners = [(top, left) for top in tops for left in lefts]
    spread = corners[:: -(-len(corners) // most)]
    return [pixels[:, top : top + sides[0], left : left + sides[1]] for top, left in spread]


def _read_manifest(path: Path) -> dict[Path, tuple[str, str]]:
    """Source and licence by file; files are given relative to the manifest's folder."""
    if not path.is_file():
        raise InputError(f"{path}: no such manifest")
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if not {"file", "source", "licence"} <= set(rows.fieldnames or ()):
            raise InputError(f"{path}: the columns file, source and licence are needed")
        return {
            (path.parent / row["file"]).resolve(): (row["source"], row["licence"].strip()) for row in rows
        }
