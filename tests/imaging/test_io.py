from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchscaler.errors import InputError
from patchscaler.imaging.formats import FORMATS, sniff_format, writable_format
from patchscaler.imaging.io import (
    atomic_path,
    probe_photo,
    read_photo,
    write_pixels,
)

SUFFIXES = [suffix for form in FORMATS.values() if form.saver for suffix in form.suffixes]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read_back(tmp_path, picture, suffix):
    path = tmp_path / f"photo{suffix}"
    pixels = np.asarray(picture)
    write_pixels(path, pixels)
    photo = read_photo(path)
    tolerance = {"PNG": 0, "TIFF": 0, "JPEG": 2, "WebP": 3, "AVIF": 3}[photo.format]
    assert np.abs(photo.pixels.astype(int) - pixels).mean() <= tolerance
    assert photo.losses == ()
    assert photo.alpha is None
    assert list(tmp_path.iterdir()) == [path]
    with Image.open(path) as other:
        other.load()
        assert other.mode == "RGB"
        assert other.size == picture.size


@pytest.mark.parametrize(
    "name", ["photo.png", "photo.jpg", "photo.webp", "photo.tif", "photo.avif", "photo.bmp", "photo.gif"]
)
def test_files_of_another_program(tmp_path, picture, name):
    picture.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    photo = read_photo(tmp_path / name)
    limit = 12 if name.endswith("gif") else 3
    assert np.abs(photo.pixels.astype(int) - np.asarray(picture)).mean() < limit
    assert photo.losses == ()


def test_content_decides_not_the_name(tmp_path, picture):
    path = tmp_path / "photo.png"
    picture.save(path, format="JPEG")
    assert sniff_format(path) == probe_photo(path).format == read_photo(path).format == "JPEG"


def test_file_names_are_taken_literally(tmp_path, picture):
    path = tmp_path / "photo[n=3].png"
    write_pixels(path, np.asarray(picture))
    assert np.array_equal(read_photo(path).pixels, np.asarray(picture))


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_other_modes_become_rgb(tmp_path, picture, mode):
    converted = picture.convert(mode)
    converted.save(tmp_path / "photo.png")
    photo = read_photo(tmp_path / "photo.png")
    assert np.array_equal(photo.pixels, np.asarray(converted.convert("RGB")))


def test_orientation_is_applied(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "photo.png", exif=exif)
    photo = read_photo(tmp_path / "photo.png")
    info = probe_photo(tmp_path / "photo.png")
    assert np.array_equal(photo.pixels, np.rot90(np.asarray(picture), -1))
    assert (info.width, info.height) == (32, 48)


@pytest.mark.parametrize("suffix", [".webp", ".tif"])
def test_further_frames_are_reported(tmp_path, picture, suffix):
    path = tmp_path / f"photo{suffix}"
    picture.save(path, save_all=True, append_images=[picture.rotate(180)])
    photo = read_photo(path)
    assert photo.pixels.shape == (32, 48, 3)
    assert photo.losses == ("1 of 2 frames or pages (only the first)",)


def test_float_samples_are_refused(tmp_path, picture):
    picture.convert("F").save(tmp_path / "photo.tif")
    with pytest.raises(InputError, match="samples of type float"):
        read_photo(tmp_path / "photo.tif")


@pytest.mark.parametrize("name", ["photo.bmp", "photo", "photo.png.gz"])
def test_unknown_suffix_is_refused(tmp_path, picture, name):
    with pytest.raises(InputError, match=r"use \.png"):
        write_pixels(tmp_path / name, np.asarray(picture))
    assert list(tmp_path.iterdir()) == []


def test_size_beyond_the_format_is_refused():
    assert writable_format(Path("photo.webp"), 16_383, 100) == "WebP"
    with pytest.raises(InputError, match="16383"):
        writable_format(Path("photo.webp"), 100, 16_384)
    assert writable_format(Path("photo.png"), 100, 70_000) == "PNG"


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_failed_write_leaves_nothing_and_keeps_what_was_there(tmp_path, failure):
    path = tmp_path / "photo.png"
    path.write_bytes(b"before")
    with pytest.raises(failure), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise failure
    assert [file.name for file in tmp_path.iterdir()] == ["photo.png"]
    assert path.read_bytes() == b"before"


def test_write_makes_the_folder_and_respects_the_umask(tmp_path, picture):
    path = tmp_path / "new" / "folder" / "photo.png"
    write_pixels(path, np.asarray(picture))
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_unwritable_target_is_one_line(tmp_path, picture):
    (tmp_path / "photo.png").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_pixels(tmp_path / "photo.png", np.asarray(picture))
    assert [file.name for file in tmp_path.iterdir()] == ["photo.png"]
