"""What a file says about its picture, carried from the input to the output and corrected on the way."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from patchscaler.imaging.tiff_exif import make_directories

if TYPE_CHECKING:
    import pyvips

_LABELS = {
    "exif-data": "EXIF metadata",
    "xmp-data": "XMP metadata",
    "iptc-data": "IPTC metadata",
    "image-description": "image description",
    "gainmap-data": "HDR gain map",
    "png-comment": "text comments",
}
_CARRIED = ("exif-", "xmp-data", "iptc-data", "image-description", "png-comment")
_HELD = {
    "PNG": {"exif-data", "xmp-data", "png-comment"},
    "JPEG": {"exif-data", "xmp-data", "iptc-data"},
    "WebP": {"exif-data", "xmp-data"},
    "TIFF": {"xmp-data", "iptc-data", "image-description"},
    "AVIF": {"exif-data", "xmp-data"},
}
_UNTAGGED = (25, 72)  # dots per inch: libvips' default, and what files without a tag are read as

_XMP_SIZES = {
    0: rb"tiff:ImageWidth|exif:PixelXDimension|tiff:XDimension",
    1: rb"tiff:ImageLength|exif:PixelYDimension|tiff:YDimension",
}


@dataclass(frozen=True)
class Metadata:
    """What goes with the pixels.

    Attributes:
        fields: (type, name, value) of libvips' metadata, EXIF, XMP, IPTC and comments.
        resolution: pixels per millimetre across and down, or None if the file does not tell.
    """

    fields: tuple[tuple[int, str, Any], ...]
    resolution: tuple[float, float] | None

    @property
    def exif(self) -> bytes | None:
        """The EXIF block."""
        return next((value for _, name, value in self.fields if name == "exif-data"), None)

    @property
    def kinds(self) -> set[str]:
        """Keys of `_LABELS` that are present."""
        return {kind for kind in _LABELS for _, name, _ in self.fields if name.startswith(kind)}


def read_metadata(image: pyvips.Image) -> Metadata:
    """The metadata of an image as it was opened."""
    fields = tuple(
        (image.get_typeof(name), name, image.get(name))
        for name in image.get_fields()
        if name.startswith((*_CARRIED, "gainmap-data"))
    )
    tagged = round(image.xres * 25.4) not in _UNTAGGED
    return Metadata(fields, (image.xres, image.yres) if tagged else None)


def attach_metadata(image: pyvips.Image, metadata: Metadata, format: str) -> pyvips.Image:
    """The image with what `format` holds of the metadata: upright, with its own dimensions.

    libvips writes size, resolution and orientation into the EXIF block itself; a thumbnail is left out.
    """
    import pyvips

    across, down = metadata.resolution or (image.xres, image.yres)
    image = image.copy(xres=across, yres=down)
    held = _HELD[format]
    for kind, name, value in metadata.fields:
        if not name.startswith(tuple(held)) and not (name.startswith("exif-") and "exif-data" in held):
            continue
        if name == "xmp-data":
            value = correct_xmp(value, image.width, image.height)
        image.set_type(kind, name, value)  # type: ignore[arg-type]
    image.set_type(pyvips.GValue.gint_type, "orientation", 1)
    return image


def metadata_losses(metadata: Metadata, format: str) -> list[str]:
    """What `format` does not hold, one short phrase each."""
    held = set(_HELD[format])
    if format == "TIFF" and metadata.exif and make_directories(metadata.exif, 1, 1) is not None:
        held.add("exif-data")
    return [_LABELS[kind] for kind in _LABELS if kind in metadata.kinds and kind not in held]


def exif_fields(exif: bytes) -> list[tuple[int, str, Any]]:
    """An EXIF block taken apart into the fields (type, name, value) that libvips' own readers would make."""
    import pyvips

    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, format="JPEG", exif=exif)
    carrier = pyvips.Image.jpegload_buffer(buffer.getvalue())
    names = [name for name in carrier.get_fields() if name.startswith("exif-") and "Orientation" not in name]
    return [(carrier.get_typeof(name), name, carrier.get(name)) for name in names]


def correct_xmp(packet: bytes, width: int, height: int) -> bytes:
    """An XMP packet whose dimensions and orientation are those of the output."""
    for index, names in _XMP_SIZES.items():
        packet = _replace(packet, names, str((width, height)[index]).encode())
    return _replace(packet, rb"tiff:Orientation", b"1")


def _replace(packet: bytes, names: bytes, value: bytes) -> bytes:
    """Set properties that are written as attributes (name="8") or as elements (<name>8</name>)."""
    return re.sub(rb"((?:" + names + rb")\s*(?:=\s*[\"']|>)\s*)\d+", rb"\g<1>" + value, packet)
