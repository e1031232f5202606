import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from patchscaler.errors import InputError
from patchscaler.imaging.formats import MAX_INPUT_PIXELS
from patchscaler.imaging.io import probe_photo, read_photo

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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from(sorted(FILES)),
    place=st.floats(0, 1, exclude_max=True),
    flips=st.binary(min_size=1, max_size=8),
)
def test_mutated_files_are_read_or_refused(tmp_path, form, place, flips):
    data = bytearray(FILES[form])
    start = int(place * len(data))
    for index, flip in enumerate(flips):
        data[(start + index) % len(data)] ^= flip
    path = tmp_path / "photo"
    path.write_bytes(data)
    try:
        photo = read_photo(path)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert photo.pixels.dtype == np.uint8
        assert photo.pixels.ndim == 3
        assert photo.pixels.shape[2] == 3


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
