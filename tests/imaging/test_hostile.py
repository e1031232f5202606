import io
import os
import struct
import zlib
from functools import cache

import numpy as np
import pytest
import pyvips
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from patchscaler.errors import InputError
from patchscaler.imaging.formats import MAX_INPUT_PIXELS
from patchscaler.imaging.io import OutputOptions, probe_photo, read_photo, write_photo

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))


def encode(format: str, image: Image.Image = NOISE, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels and holds none."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT", b"IEND")
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


FILES = {form: encode(form) for form in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF", "BMP", "GIF")}


def refused(path) -> str:
    with pytest.raises(InputError) as caught:
        read_photo(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"{path}: ")
    return message


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("kept", [0.001, 0.02, 0.1, 0.3, 0.6, 0.9, 0.99])
def test_truncated_files_are_refused(tmp_path, form, kept):
    path = tmp_path / "photo"
    path.write_bytes(FILES[form][: max(1, int(len(FILES[form]) * kept))])
    refused(path)


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 2}])
def test_other_kinds_of_truncated_jpeg_are_refused(tmp_path, options):
    data = encode("JPEG", **options)
    (tmp_path / "photo.jpg").write_bytes(data[: len(data) // 2])
    refused(tmp_path / "photo.jpg")


def test_damaged_png_data_is_refused(tmp_path):
    data = bytearray(FILES["PNG"])
    data[len(data) // 2] ^= 0x55
    (tmp_path / "photo.png").write_bytes(data)
    assert "damaged" in refused(tmp_path / "photo.png")


@cache
def seeds(form: str) -> list[bytes]:
    """Files of the kinds that a format has, each with all the metadata it holds."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Pinhole", 6
    exif[0x8769], exif[0x8825] = {0x9003: "2020:02:03 04:05:06"}, {1: "N", 2: (48.0, 12.0, 30.0)}
    held: dict = {"exif": exif.tobytes(), "icc_profile": SRGB, "xmp": b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"}
    small = NOISE.crop((0, 0, 24, 16))
    grey, wide = small.convert("L"), Image.fromarray(np.asarray(small.convert("L")).astype(np.uint16) * 257)
    clear = small.convert("RGBA")
    clear.putalpha(grey)
    return {
        "PNG": [encode("PNG", image, **held) for image in (small, clear, wide, small.convert("P"))],
        "JPEG": [
            *(encode("JPEG", small, progressive=flag, **held) for flag in (False, True)),
            *(encode("JPEG", image, **held) for image in (grey, small.convert("CMYK"))),
        ],
        "WEBP": [encode("WEBP", clear, lossless=flag, **held) for flag in (False, True)],
        "TIFF": [
            *(encode("TIFF", small, compression=kind, icc_profile=SRGB) for kind in ("tiff_lzw", "jpeg")),
            *(encode("TIFF", image, exif=held["exif"]) for image in (small, wide, clear)),
        ],
        "AVIF": [encode("AVIF", image, **held) for image in (small, clear)],
        "BMP": [encode("BMP", image) for image in (small, grey, small.convert("P"))],
        "GIF": [encode("GIF", small, save_all=True, append_images=[small.rotate(90)])],
    }[form]


@st.composite
def mutated(draw: st.DrawFn, form: str) -> bytes:
    """A file with some of its bytes flipped, set, cut out, doubled or moved, in the header or anywhere."""
    data = bytearray(draw(st.sampled_from(seeds(form))))
    for _ in range(draw(st.integers(1, 4))):
        end = draw(st.sampled_from([64, 512, len(data)]))
        start = draw(st.integers(0, max(1, min(end, len(data)) - 1)))
        kind = draw(st.sampled_from(["flip", "set", "cut", "double", "extreme", "end"]))
        length = draw(st.integers(1, 32))
        if kind == "flip":
            data[start : start + 1] = bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in data[start : start + 1])
        elif kind == "set":
            data[start : start + length] = draw(st.binary(min_size=length, max_size=length))
        elif kind == "extreme":
            data[start : start + 4] = draw(st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"]))
        elif kind == "cut":
            del data[start : start + length]
        elif kind == "double":
            data[start:start] = data[start : start + length]
        else:
            del data[start:]
    return bytes(data)


@pytest.mark.parametrize("form", FILES)
@settings(
    max_examples=int(os.environ.get("PATCHSCALER_MUTATIONS", "100")),
    deadline=30_000,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_mutated_files_are_read_or_refused(tmp_path, form, data):
    """PATCHSCALER_MUTATIONS sets how many of each format; a crash of libvips would end the tests."""
    path = tmp_path / "photo"
    path.write_bytes(data.draw(mutated(form)))
    try:
        photo = read_photo(path, max_pixels=2**20)
    except InputError as error:
        event("refused")
        assert len(str(error).splitlines()) == 1
        return
    event("read")
    assert photo.pixels.dtype in (np.uint8, np.uint16)
    assert photo.pixels.shape[2] == 3
    height, width = photo.pixels.shape[:2]
    colour = pyvips.Image.new_from_array(photo.pixels)
    alpha = None if photo.alpha is None else pyvips.Image.new_from_array(photo.alpha)
    for suffix in (".png", ".tif"):
        target = tmp_path / f"out{suffix}"
        write_photo(target, colour, alpha, photo, (width, height), OutputOptions())
        with Image.open(target) as written:
            assert written.size == (width, height)


def test_huge_dimensions_are_refused_by_the_header(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(png_header(60_000, 60_000))
    assert "too large" in refused(path)
    path.write_bytes(png_header(2**31 - 1, 2**31 - 1))
    refused(path)
    path.write_bytes(png_header(100, 100))
    assert "damaged" in refused(path)


def test_decompression_bomb_is_refused_without_decoding(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encode("PNG", Image.new("1", (20_000, 20_000))))
    with pytest.raises(InputError, match="too large"):
        probe_photo(path)


def test_limit_of_pixels_is_inclusive(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(png_header(2048, MAX_INPUT_PIXELS // 2048))
    assert probe_photo(path).width == 2048
    path.write_bytes(png_header(2048, MAX_INPUT_PIXELS // 2048 + 1))
    with pytest.raises(InputError, match="too large"):
        probe_photo(path)


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 7)])
def test_tiny_images_are_refused(tmp_path, size):
    path = tmp_path / "photo.png"
    path.write_bytes(encode("PNG", Image.new("RGB", size)))
    assert "too small" in refused(path)


def test_smallest_image_is_read(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encode("PNG", Image.new("RGB", (8, 8))))
    assert read_photo(path).pixels.shape == (8, 8, 3)


@pytest.mark.parametrize(
    "content",
    [
        b"just some text, whatever the name says\n",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='64' height='64'/>",
        encode("PPM"),
        encode("ICO"),
        b"RIFF\x24\x00\x00\x00WAVEfmt ",
        b"\x00" * 1000,
    ],
)
def test_other_content_is_refused_whatever_the_name(tmp_path, content):
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    assert "not a PNG, JPEG, WebP, TIFF, AVIF, HEIC, BMP, GIF image" in refused(path)


def test_what_is_no_file_is_refused(tmp_path):
    assert "no such file" in refused(tmp_path / "missing.png")
    assert "is a folder" in refused(tmp_path)
    (tmp_path / "empty.png").touch()
    assert "empty" in refused(tmp_path / "empty.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a regular file" in refused(tmp_path / "pipe.png")
