"""Formats that libvips' wheel does not read: BMP by Pillow, HEIC by pillow-heif if it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from patchscaler.errors import InputError
from patchscaler.imaging.formats import check_size
from patchscaler.imaging.metadata import exif_fields

if TYPE_CHECKING:
    import pyvips


def open_foreign(path: Path, library: str, max_pixels: int) -> pyvips.Image:
    """A file decoded by `library` ("pillow" or "pillow_heif"), as libvips would have opened it.

    Raises:
        InputError: it is damaged, too small or too large, or the library is not installed.
    """
    try:
        return _open_bmp(path, max_pixels) if library == "pillow" else _open_heic(path, max_pixels)
    except ImportError:
        raise InputError(
            f"{path}: reading HEIC needs one package more: pip install 'patchscaler[heic]'"
        ) from None
    except (ValueError, SyntaxError, EOFError, RuntimeError, OSError, Image.DecompressionBombError):
        raise InputError(f"{path}: damaged or not readable") from None


def _open_bmp(path: Path, max_pixels: int) -> pyvips.Image:
    with Image.open(path, formats=["BMP"]) as picture:
        width, height = picture.size
        check_size(path, width, height, max_pixels)
        dpi = picture.info.get("dpi")
        mode = {"1": "L", "P": "RGB"}.get(picture.mode, picture.mode)
        return as_vips(np.asarray(picture.convert(mode)), {}, dpi)


def _open_heic(path: Path, max_pixels: int) -> pyvips.Image:
    import pillow_heif

    picture = pillow_heif.open_heif(path, convert_hdr_to_8bit=False)
    width, height = picture.size
    check_size(path, width, height, max_pixels)
    pixels = np.asarray(picture)
    info = picture.info
    fields = {"icc-profile-data": info.get("icc_profile"), "xmp-data": info.get("xmp")}
    return as_vips(pixels, fields, None, exif=info.get("exif"))


def as_vips(
    pixels: np.ndarray, blobs: dict[str, Any], dpi: tuple[float, float] | None, exif: bytes | None = None
) -> pyvips.Image:
    """A libvips image of (h, w[, c]) pixels with metadata in the fields its own readers would use."""
    import pyvips

    # An array is taken by reference, and `copy_memory` alone would pass it on: `copy` makes it a thing to compute.
    image = pyvips.Image.new_from_array(np.ascontiguousarray(pixels)).copy().copy_memory()
    wide = pixels.dtype == np.uint16
    kinds = ("grey16", "rgb16") if wide else ("b-w", "srgb")
    image = image.copy(interpretation=kinds[image.bands > 2])
    for kind, name, value in exif_fields(exif) if exif else ():  # the pixels are upright already
        image.set_type(kind, name, value)
    for name, value in blobs.items():
        if value:
            image.set_type(pyvips.GValue.blob_type, name, value)
    if dpi:
        image = image.copy(xres=dpi[0] / 25.4, yres=dpi[1] / 25.4)
    return image
