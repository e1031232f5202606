"""The image files that are judged: pairs of the same stem in two folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from patchscaler.errors import InputError

_SUFFIXES = frozenset({".png", ".webp", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})


def find_images(folder: Path) -> dict[str, Path]:
    """The images of a folder by stem.

    Raises:
        InputError: no such folder, or two of its images have the same stem.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in _SUFFIXES or file.name.startswith("."):
            continue
        if file.stem in files:
            raise InputError(f"{files[file.stem]} and {file.name} have the same name: keep one")
        files[file.stem] = file
    return files


def common_stems(lr_dir: Path, hr_dir: Path, limit: int | None = None) -> list[str]:
    """Stems of the images in both folders, sorted, the first `limit` of them.

    Raises:
        InputError: there are none.
    """
    stems = sorted(find_images(lr_dir).keys() & find_images(hr_dir).keys())[:limit]
    if not stems:
        raise InputError(f"no image of {lr_dir} has a namesake in {hr_dir}")
    return stems


def read_image(file: Path) -> np.ndarray:
    """Pixels (h, w, 3) uint8 of an 8-bit RGB or grey image.

    Raises:
        InputError: it cannot be read, or is of another kind.
    """
    try:
        with Image.open(file) as image:
            if image.mode not in ("RGB", "L", "P"):
                raise InputError(f"{file} has mode {image.mode}: only 8-bit RGB and grey images are judged")
            return np.array(image.convert("RGB"))
    except OSError as error:
        raise InputError(f"{file} cannot be read as an image") from error


def check_size(file: Path, image: np.ndarray, lr: np.ndarray, scale: int) -> None:
    """Raise InputError unless an image is `scale` times as large as its LR image."""
    (height, width), wanted = image.shape[:2], (lr.shape[0] * scale, lr.shape[1] * scale)
    if (height, width) != wanted:
        raise InputError(f"{file} is {width}x{height}, not {wanted[1]}x{wanted[0]}: {scale} times its LR")
