"""EXIF in TIFF files, which libvips neither reads nor writes: a TIFF file's own tags and two directories."""

from __future__ import annotations

import struct
from pathlib import Path

from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

_TEXTS = (271, 272, 305, 306, 315, 33432)  # maker, model, software, date, artist, copyright
_DIRECTORIES = (0x8769, 0x8825)  # EXIF and GPS
_WIDTH, _HEIGHT = 0xA002, 0xA003
_ASCII, _LONG = 2, 4
_DAMAGED = (OSError, ValueError, TypeError, KeyError, SyntaxError, struct.error, Image.DecompressionBombError)


def read_exif(path: Path) -> bytes | None:
    """The EXIF block that the tags of a TIFF file amount to, or None if it has none that can be read."""
    try:
        with Image.open(path, formats=["TIFF"]) as picture:
            found = picture.getexif()
            kept = Image.Exif()
            for tag in _TEXTS:
                if tag in found:
                    kept[tag] = found[tag]
            for tag in _DIRECTORIES:
                if directory := found.get_ifd(tag):
                    kept[tag] = dict(directory)
            return kept.tobytes() if len(kept) else None
    except _DAMAGED:
        return None


def make_directories(exif: bytes, width: int, height: int) -> dict[int, ImageFileDirectory_v2 | bytes] | None:
    """Texts and directories of an EXIF block by tag, with the size of the output; None if it is damaged."""
    try:
        block = Image.Exif()
        block.load(exif)
        parts: dict[int, ImageFileDirectory_v2 | bytes] = {
            tag: str(block[tag]).encode() + b"\0" for tag in _TEXTS if tag in block
        }
        for tag in _DIRECTORIES:
            if found := block.get_ifd(tag):
                directory = ImageFileDirectory_v2(prefix=b"II")
                for name, value in found.items():
                    directory[name] = value
                if tag == _DIRECTORIES[0]:
                    directory[_WIDTH], directory[_HEIGHT] = width, height
                directory.tobytes(8)
                parts[tag] = directory
        return parts
    except _DAMAGED:
        return None


def append_exif(path: Path, parts: dict[int, ImageFileDirectory_v2 | bytes]) -> None:
    """Give a TIFF file, little-endian and not "big", as libvips writes it, what `make_directories` returned.

    The first directory is written anew behind the pixels, the old one is left where it is.
    """
    with path.open("r+b") as file:
        file.seek(4)
        (first,) = struct.unpack("<I", file.read(4))
        file.seek(first)
        (count,) = struct.unpack("<H", file.read(2))
        table = file.read(12 * count + 4)
        entries = {
            struct.unpack_from("<H", table, 12 * i)[0]: table[12 * i : 12 * i + 12] for i in range(count)
        }
        for tag, part in parts.items():
            file.seek(0, 2)
            place = file.tell() + file.tell() % 2
            file.seek(place)
            if isinstance(part, bytes):
                value = struct.pack("<I", place) if len(part) > 4 else part.ljust(4, b"\0")
                entries[tag] = struct.pack("<HHI", tag, _ASCII, len(part)) + value
                file.write(part)
            else:
                entries[tag] = struct.pack("<HHII", tag, _LONG, 1, place)
                file.write(part.tobytes(place))
        file.seek(0, 2)
        place = file.tell() + file.tell() % 2
        file.seek(place)
        file.write(
            struct.pack("<H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + table[-4:]
        )
        file.seek(4)
        file.write(struct.pack("<I", place))
