"""The file formats: how each is recognised, read and written, and what it can hold."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from patchscaler.errors import InputError

MIN_SIDE = 8
"""Shortest side accepted, pixels: the autoencoder sees nothing in less."""

MAX_INPUT_PIXELS = 2**27
"""Largest input, pixels (134 megapixels): what is larger is taken for a decompression bomb."""


class Format(NamedTuple):
    """One file format.

    Attributes:
        suffixes: of its files, the usual one first.
        signatures: what its files begin with, after `offset` bytes.
        loader: libvips' reader, or the name of the library that reads it instead.
        saver: libvips' writer; None for a format that is only read.
        options: of the writer.
        max_side: largest side of an output, pixels.
        bits: most bits a sample that is written.
        alpha: whether it holds transparency.
    """

    suffixes: tuple[str, ...]
    signatures: tuple[bytes, ...]
    offset: int
    loader: str
    saver: str | None = None
    options: dict[str, object] = {}  # noqa: RUF012 - shared, never changed
    max_side: int = 0
    bits: int = 8
    alpha: bool = True


_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_HEIC = (b"ftypheic", b"ftypheix", b"ftypheim", b"ftypheis", b"ftypmif1", b"ftypmsf1")

FORMATS = {
    "PNG": Format(
        (".png",), (b"\x89PNG\r\n\x1a\n",), 0, "pngload_source", "pngsave", max_side=2**31 - 1, bits=16
    ),
    "JPEG": Format(
        (".jpg", ".jpeg"),
        (b"\xff\xd8\xff",),
        0,
        "jpegload_source",
        "jpegsave",
        {"Q": 95, "subsample_mode": "off"},
        max_side=65_535,
        alpha=False,
    ),
    "WebP": Format(
        (".webp",),
        (b"WEBP",),
        8,
        "webpload_source",
        "webpsave",
        {"Q": 95, "alpha_q": 100, "exact": True},
        max_side=16_383,
    ),
    "TIFF": Format(
        (".tif", ".tiff"),
        _TIFF,
        0,
        "tiffload_source",
        "tiffsave",
        {"compression": "deflate", "predictor": "horizontal"},
        max_side=2**31 - 1,
        bits=16,
    ),
    "AVIF": Format(
        (".avif",),
        (b"avif",),
        8,
        "heifload_source",
        "heifsave",
        {"compression": "av1", "Q": 85, "effort": 4, "subsample_mode": "off"},
        max_side=16_384,
        bits=12,
    ),
    "HEIC": Format((".heic", ".heif"), _HEIC, 4, "pillow_heif"),
    "BMP": Format((".bmp",), (b"BM",), 0, "pillow"),
    "GIF": Format((".gif",), (b"GIF87a", b"GIF89a"), 0, "gifload_source"),
}


def sniff_format(path: Path) -> str | None:
    """Key of `FORMATS` told by the first bytes of a file, or None; OSError if it cannot be opened."""
    with path.open("rb") as file:
        head = file.read(64)
    if head[4:8] == b"ftyp" and b"avif" in head:  # the brand may stand behind a more general one
        return "AVIF"
    for name, form in FORMATS.items():
        if head.startswith(form.signatures, form.offset):
            return name
    return None


def writable_format(path: Path, width: int = 1, height: int = 1) -> str:
    """Key of `FORMATS` for the suffix of an output that is to hold width x height pixels.

    Raises:
        InputError: the suffix is none we write, or the format stops at a smaller size.
    """
    for name, form in FORMATS.items():
        if form.saver and path.suffix.lower() in form.suffixes:
            if max(width, height) > form.max_side:
                raise InputError(
                    f"{path}: {name} holds at most {form.max_side} pixels a side, this would be"
                    f" {width}x{height}; write .png or .tif"
                )
            return name
    written = ", ".join(suffix for form in FORMATS.values() if form.saver for suffix in form.suffixes)
    raise InputError(f"{path}: cannot write {path.suffix or 'a file without suffix'}; use {written}")


def check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    """Raise InputError for an input that is too small or too large."""
    if min(width, height) < MIN_SIDE:
        raise InputError(f"{path}: {width}x{height} is too small; each side needs {MIN_SIDE} pixels")
    if width * height > max_pixels:
        raise InputError(f"{path}: {width}x{height} is too large; at most {max_pixels / 1e6:.1f} megapixels")
