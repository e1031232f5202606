"""Photographs in and out by libvips: strict on input, atomic on output, nothing dropped in silence."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from patchscaler.errors import InputError
from patchscaler.imaging.alpha import extend_colour
from patchscaler.imaging.colour import ColourSpace, from_srgb, to_plain_srgb, to_srgb, with_depth
from patchscaler.imaging.formats import FORMATS, MAX_INPUT_PIXELS, check_size, sniff_format, writable_format
from patchscaler.imaging.metadata import (
    Metadata,
    attach_metadata,
    exif_fields,
    metadata_losses,
    read_metadata,
)
from patchscaler.imaging.tiff_exif import append_exif, make_directories, read_exif

if TYPE_CHECKING:
    import pyvips


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
        pixels: (h, w, 3) uint8 or uint16, sRGB, upright; continued under transparent places.
        alpha: (h, w) uint8 or uint16, or None.
        space: how the file encodes colour.
        metadata: what goes with the pixels.
        bits: bits a sample of the file, 8 or 16.
        path: the file it came from.
        format: a key of `FORMATS`.
        losses: what the file holds beyond this, one short phrase each, in no output of ours.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    space: ColourSpace
    metadata: Metadata
    bits: int
    path: Path
    format: str
    losses: tuple[str, ...]

    @property
    def opaque(self) -> bool:
        """Whether nothing is transparent."""
        return self.alpha is None or int(self.alpha.min()) == np.iinfo(self.alpha.dtype).max


@dataclass(frozen=True)
class OutputOptions:
    """How outputs are written.

    Attributes:
        strip: write no metadata and no profile; colours become plain sRGB.
        jpeg_quality: 1 to 100.
    """

    strip: bool = False
    jpeg_quality: int = 95


def probe_photo(path: Path, *, max_pixels: int = MAX_INPUT_PIXELS) -> PhotoInfo:
    """Read a file's header without decoding it; raises as `read_photo` does for what the header shows."""
    with _one_line_errors(path):
        name, image = _open(path, max_pixels)
        return PhotoInfo(path, name, image.width, image.height)


def read_photo(path: Path, *, max_pixels: int = MAX_INPUT_PIXELS) -> Photo:
    """Decode a file of one of `FORMATS` completely; its content decides which, not its name.

    The orientation tag is applied, the first frame or page is taken, and colours become sRGB (see
    `patchscaler.imaging.colour` for the way back).

    Raises:
        InputError: no such file, a folder, empty, another format, damaged or cut short, a side under
            `formats.MIN_SIDE`, more than `max_pixels`, or channels or samples that are not pictures'.
    """
    with _one_line_errors(path):
        name, image = _open(path, max_pixels)
        metadata = read_metadata(image)
        losses = _losses(image)
        image = image.copy_memory()  # decodes everything: damage shows here
        bits = 16 if image.format == "ushort" else 8
        alpha = None
        if image.hasalpha():
            alpha = image[image.bands - 1].numpy()
            image = image[: image.bands - 1]
        srgb, space, changed = to_srgb(image)
        pixels = srgb.numpy()
        if alpha is not None:
            alpha = _as_depth(alpha, pixels.dtype)
            pixels = extend_colour(pixels, alpha)
        return Photo(pixels, alpha, space, metadata, bits, path, name, (*changed, *losses))


def check_holds(photo: Photo, path: Path) -> None:
    """Raise InputError if the format of an output would lose the photograph's transparency."""
    name = writable_format(path)
    if not photo.opaque and not FORMATS[name].alpha:
        raise InputError(f"{photo.path}: {name} holds no transparency; write .png, .webp, .tif or .avif")


def output_losses(photo: Photo, path: Path, options: OutputOptions) -> tuple[str, ...]:
    """What of the photograph will not be in an output of that name, one short phrase each; none if told to strip."""
    if options.strip:
        return ()
    name = writable_format(path)
    form = FORMATS[name]
    losses = [*photo.losses, *metadata_losses(photo.metadata, name)]
    if photo.bits > form.bits:
        losses.append(f"16-bit depth (written with {form.bits})")
    if photo.alpha is not None and not form.alpha:
        losses.append("alpha channel (opaque everywhere)")
    return tuple(losses)


def write_photo(
    path: Path,
    colour: pyvips.Image,
    alpha: pyvips.Image | None,
    photo: Photo,
    size: tuple[int, int],
    options: OutputOptions,
    *,
    before_rename: Callable[[Path], None] = lambda path: None,
) -> None:
    """Write an upscaled photograph in the format of the suffix; the file appears whole or not at all.

    Args:
        path: where to.
        colour: enlarged `photo.pixels`, three bands of sRGB.
        alpha: enlarged `photo.alpha`, one band of the same depth, or None.
        photo: where colour space, depth and metadata come from.
        size: width and height to resample to by a Lanczos filter.
        options: how to write.
        before_rename: told the hidden name of the complete file.

    Raises:
        InputError: the suffix is none we write, the format cannot hold the size, or writing fails.
    """
    name = writable_format(path, *size)
    form = FORMATS[name]
    bits = min(photo.bits, form.bits)
    colour = resample(colour, *size)
    image = to_plain_srgb(colour, photo.space) if options.strip else from_srgb(colour, photo.space)
    image = with_depth(image, bits)
    if alpha is not None and form.alpha:
        image = image.bandjoin(with_depth(resample(alpha, *size), bits))
    if not options.strip:
        image = attach_metadata(image, photo.metadata, name)
    exif = photo.metadata.exif
    if name == "TIFF" and exif and not options.strip and (parts := make_directories(exif, *size)):

        def finish(temporary: Path) -> None:
            append_exif(temporary, parts)
            before_rename(temporary)

        _save(path, image, name, options, finish)
    else:
        _save(path, image, name, options, before_rename)


def write_pixels(path: Path, pixels: np.ndarray) -> None:
    """Write (h, w, 3) uint8 sRGB pixels as `write_photo` does, without metadata."""
    import pyvips

    name = writable_format(path, pixels.shape[1], pixels.shape[0])
    image = pyvips.Image.new_from_array(np.ascontiguousarray(pixels), interpretation="srgb")
    _save(path, image, name, OutputOptions(strip=True))


def resample(image: pyvips.Image, width: int, height: int) -> pyvips.Image:
    """Resize with an antialiased Lanczos filter (bicubic where it enlarges) to exactly width x height."""
    if (image.width, image.height) == (width, height):
        return image
    return image.resize(width / image.width, vscale=height / image.height, kernel="lanczos3")


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


def _save(
    path: Path,
    image: pyvips.Image,
    name: str,
    options: OutputOptions,
    before_rename: Callable[[Path], None] = lambda path: None,
) -> None:
    import pyvips

    form = FORMATS[name]
    settings: dict[str, Any] = {**form.options, "keep": "none" if options.strip else "all"}
    if name == "JPEG":
        settings["Q"] = options.jpeg_quality
    if name == "AVIF" and image.format == "ushort":
        settings["bitdepth"] = form.bits
    if name == "TIFF":
        settings["bigtiff"] = (
            image.width * image.height * image.bands * (2 if image.format == "ushort" else 1) > 2**31
        )
    try:
        with atomic_path(path) as temporary:
            getattr(image, form.saver or "")(str(temporary), **settings)
            before_rename(temporary)
    except (OSError, pyvips.Error) as error:
        raise InputError(f"cannot write {path}: {_reason(error)}") from None


def _open(path: Path, max_pixels: int) -> tuple[str, pyvips.Image]:
    """Format and upright image of a file, checked by its header; libvips' formats are not decoded yet."""
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
    loader = FORMATS[name].loader
    if loader.startswith("pillow"):
        from patchscaler.imaging.foreign import open_foreign

        image = open_foreign(path, loader, max_pixels)
    else:
        # The loader is called by its name, so that no other of libvips can be reached through a file's content.
        source = pyvips.Source.new_from_file(str(path))
        image = getattr(pyvips.Image, loader)(source, fail_on="error")
        if name == "TIFF" and (exif := read_exif(path)):
            image = image.copy()
            for kind, field, value in exif_fields(exif):
                image.set_type(kind, field, value)
    check_size(path, image.width, image.height, max_pixels)
    if image.format not in ("uchar", "ushort"):
        raise InputError(f"{path}: samples of type {image.format} are not read; save it with 8 or 16 bits")
    if image.bands - image.hasalpha() not in (1, 3, 4) or image.interpretation == "multiband":
        raise InputError(f"{path}: {image.bands} channels are not read; save it as RGB")
    return name, image.autorot()


def _losses(image: pyvips.Image) -> tuple[str, ...]:
    pages = image.get_n_pages()
    return (f"{pages - 1} of {pages} frames or pages (only the first)",) if pages > 1 else ()


def _as_depth(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Samples of 8 bits as 16 where `dtype` says so."""
    return values.astype(np.uint16) * 257 if values.dtype != dtype and dtype == np.uint16 else values


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
