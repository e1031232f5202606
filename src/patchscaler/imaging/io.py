"""Photographs in and out by libvips: strict on input, atomic on output, nothing dropped in silence.

Pixels are 8-bit sRGB everywhere. Files are written without a colour profile or metadata: an untagged image is
read as sRGB by convention, and that is what the pixels are.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from patchscaler.errors import InputError

if TYPE_CHECKING:
    import pyvips

MIN_SIDE = 8
"""Shortest side accepted, pixels: the autoencoder sees nothing in less."""

MAX_INPUT_PIXELS = 2**22
"""Largest input, pixels (2048x2048): an image is processed whole, with a stage's features in memory."""

SCALES = (1.0, 8.0)
"""Smallest and largest output scale; the model gives 4, the rest is resampling."""


class _Format(NamedTuple):
    """How one file format is recognised, read and written; `max_side` is its limit in pixels."""

    suffixes: tuple[str, ...]
    signatures: tuple[bytes, ...]
    loader: str
    saver: str
    options: dict[str, object]
    max_side: int


FORMATS = {
    "PNG": _Format((".png",), (b"\x89PNG\r\n\x1a\n",), "pngload_source", "pngsave", {}, 2**31 - 1),
    "JPEG": _Format(
        (".jpg", ".jpeg"),
        (b"\xff\xd8\xff",),
        "jpegload_source",
        "jpegsave",
        {"Q": 95, "subsample_mode": "off", "optimize_coding": True},
        65_535,
    ),
    "WebP": _Format((".webp",), (b"RIFF",), "webpload_source", "webpsave", {"Q": 95}, 16_383),
    "TIFF": _Format(
        (".tif", ".tiff"),
        (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"),
        "tiffload_source",
        "tiffsave",
        {"compression": "deflate", "predictor": "horizontal"},
        2**31 - 1,
    ),
}

_METADATA = {
    "exif-data": "EXIF metadata",
    "xmp-data": "XMP metadata",
    "iptc-data": "IPTC metadata",
    "gainmap-data": "HDR gain map",
    "image-description": "image description",
}


@dataclass(frozen=True)
class PhotoInfo:
    """What a header says: `width` and `height` in pixels as seen upright, `format` a key of `FORMATS`."""

    path: Path
    format: str
    width: int
    height: int


@dataclass(frozen=True)
class Photo:
    """A decoded photograph.

    Attributes:
        pixels: (h, w, 3) uint8, sRGB, upright.
        path: the file it came from.
        format: a key of `FORMATS`.
        losses: what the file holds beyond these pixels, one short phrase each, in no output of ours.
    """

    pixels: np.ndarray
    path: Path
    format: str
    losses: tuple[str, ...]


def probe_photo(path: Path, *, max_pixels: int = MAX_INPUT_PIXELS) -> PhotoInfo:
    """Read a file's header without decoding it; raises as `read_photo` does for what the header shows."""
    with _one_line_errors(path):
        name, image = _open(path, max_pixels)
        return PhotoInfo(path, name, image.width, image.height)


def read_photo(path: Path, *, max_pixels: int = MAX_INPUT_PIXELS) -> Photo:
    """Decode a PNG, JPEG, WebP or TIFF file completely; its content decides which, not its name.

    Embedded profiles are applied, CMYK and grey become sRGB, the orientation tag is applied, 16 bits are
    reduced to 8, and an alpha channel that hides nothing is left out. `Photo.losses` names what this loses.

    Raises:
        InputError: no such file, a folder, empty, another format, damaged or cut short, a side under
            `MIN_SIDE`, more than `max_pixels`, or transparency, other channels or other samples, which
            are not kept yet.
    """
    with _one_line_errors(path):
        name, image = _open(path, max_pixels)
        losses = _losses(image)
        image = image.copy_memory()  # decodes everything: damage shows here
        if image.hasalpha():
            alpha = image[image.bands - 1]
            if alpha.numpy().min() < (255 if alpha.format == "uchar" else 65_535):
                raise InputError(f"{path}: it has transparent pixels; flatten it onto a background first")
            image = image[: image.bands - 1]
        if image.get_typeof("icc-profile-data"):
            image = image.icc_transform(
                "srgb", embedded=True, intent="relative", black_point_compensation=True
            )
        elif image.interpretation == "cmyk":
            image = image.icc_transform("srgb", input_profile="cmyk")
        image = image.colourspace("srgb").cast("uchar")
        return Photo(image.numpy(), path, name, losses)


def write_photo(path: Path, pixels: np.ndarray) -> None:
    """Write (h, w, 3) uint8 sRGB pixels in the format of the suffix; the file appears whole or not at all.

    PNG and TIFF are lossless; JPEG and WebP have quality 95, JPEG with full-resolution colour. No profile and
    no metadata are written.

    Raises:
        InputError: the suffix is none we write, the format cannot hold the size, or writing fails.
    """
    import pyvips

    form = FORMATS[writable_format(path, pixels.shape[1], pixels.shape[0])]
    try:
        with atomic_path(path) as temporary:
            image = pyvips.Image.new_from_array(np.ascontiguousarray(pixels), interpretation="srgb")
            getattr(image, form.saver)(str(temporary), keep="none", **form.options)
    except (OSError, pyvips.Error) as error:
        raise InputError(f"cannot write {path}: {_reason(error)}") from None


def writable_format(path: Path, width: int = 1, height: int = 1) -> str:
    """Key of `FORMATS` for the suffix of an output that is to hold width x height pixels.

    Raises:
        InputError: the suffix is none we write, or the format stops at a smaller size.
    """
    for name, form in FORMATS.items():
        if path.suffix.lower() in form.suffixes:
            if max(width, height) > form.max_side:
                raise InputError(
                    f"{path}: {name} holds at most {form.max_side} pixels a side, this would be"
                    f" {width}x{height}; write .png or .tif"
                )
            return name
    raise InputError(f"{path}: cannot write {path.suffix or 'a file without suffix'}; use {_suffixes()}")


def sniff_format(path: Path) -> str | None:
    """Key of `FORMATS` told by the first bytes of a file, or None; OSError if it cannot be opened."""
    with path.open("rb") as file:
        head = file.read(16)
    for name, form in FORMATS.items():
        if head.startswith(form.signatures) and (name != "WebP" or head[8:12] == b"WEBP"):
            return name
    return None


def scaled_size(width: int, height: int, scale: float) -> tuple[int, int]:
    """Width and height of an output, each rounded to the nearest pixel.

    Raises:
        InputError: the scale is outside `SCALES`.
    """
    if not SCALES[0] <= scale <= SCALES[1]:
        raise InputError(f"the scale must be from {SCALES[0]:g} to {SCALES[1]:g}, not {scale:g}")
    return round(width * scale), round(height * scale)


def resample(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize (h, w, 3) uint8 pixels to (height, width, 3) with an antialiased Lanczos filter."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` at the end, remove it on any error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".patchscaler-{secrets.token_hex(6)}.part")
    try:
        yield temporary
        os.replace(temporary, path)  # noqa: PTH105 - says what it does
    finally:
        temporary.unlink(missing_ok=True)


def _open(path: Path, max_pixels: int) -> tuple[str, pyvips.Image]:
    """Format and upright image of a file, checked by its header; nothing is decoded yet."""
    import pyvips

    if path.is_dir():
        raise InputError(f"{path}: is a folder, not a photograph")
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise InputError(f"{path}: not a regular file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    name = sniff_format(path)
    if name is None:
        raise InputError(f"{path}: not a {', '.join(FORMATS)} image")
    # The loader is called by its name, so that no other of libvips can be reached through a file's content.
    source = pyvips.Source.new_from_file(str(path))
    image: pyvips.Image = getattr(pyvips.Image, FORMATS[name].loader)(source, fail_on="error")
    if min(image.width, image.height) < MIN_SIDE:
        raise InputError(
            f"{path}: {image.width}x{image.height} is too small; each side needs {MIN_SIDE} pixels"
        )
    if image.width * image.height > max_pixels:
        raise InputError(
            f"{path}: {image.width}x{image.height} is too large; at most {max_pixels / 1e6:.1f} megapixels"
        )
    if image.format not in ("uchar", "ushort"):
        raise InputError(f"{path}: samples of type {image.format} are not read; save it with 8 or 16 bits")
    if image.bands - image.hasalpha() not in (1, 3, 4) or image.interpretation == "multiband":
        raise InputError(f"{path}: {image.bands} channels are not read; save it as RGB")
    return name, image.autorot()


def _losses(image: pyvips.Image) -> tuple[str, ...]:
    fields = image.get_fields()
    losses = [label for field, label in _METADATA.items() if field in fields]
    if any(field.startswith("png-comment") for field in fields):
        losses.append("text comments")
    if "icc-profile-data" in fields:
        losses.append("ICC profile (converted to sRGB)")
    elif image.interpretation == "cmyk":
        losses.append("CMYK inks (converted to sRGB)")
    if image.format == "ushort":
        losses.append("16-bit depth (written with 8)")
    if image.hasalpha():
        losses.append("alpha channel (opaque everywhere)")
    if image.get_n_pages() > 1:
        losses.append(f"{image.get_n_pages() - 1} of {image.get_n_pages()} frames or pages (only the first)")
    if round(image.xres * 25.4) not in (25, 72):  # libvips' default, and what untagged files are read as
        losses.append(f"print resolution ({image.xres * 25.4:.0f} dpi)")
    return tuple(losses)


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    import pyvips

    try:
        yield
    except pyvips.Error as error:
        raise InputError(f"{path}: damaged or not readable ({_reason(error)})") from None
    except OSError as error:
        raise InputError(f"{path}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What the system or libvips says, in one line; libvips puts the cause under "unable to call X"."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1].rpartition(": ")[2] if len(lines) > 1 else "bad header"


def _suffixes() -> str:
    return ", ".join(suffix for form in FORMATS.values() for suffix in form.suffixes)
