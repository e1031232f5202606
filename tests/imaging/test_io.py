import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from patchscaler.errors import InputError
from patchscaler.imaging.io import (
    FORMATS,
    atomic_path,
    probe_photo,
    read_photo,
    resample,
    scaled_size,
    sniff_format,
    writable_format,
    write_photo,
)

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SUFFIXES = [suffix for form in FORMATS.values() for suffix in form.suffixes]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read_back(tmp_path, picture, suffix):
    path = tmp_path / f"photo{suffix}"
    pixels = np.asarray(picture)
    write_photo(path, pixels)
    photo = read_photo(path)
    tolerance = {"PNG": 0, "TIFF": 0, "JPEG": 2, "WebP": 3}[photo.format]
    assert np.abs(photo.pixels.astype(int) - pixels).mean() <= tolerance
    assert photo.losses == ()
    assert list(tmp_path.iterdir()) == [path]
    with Image.open(path) as other:
        other.load()
        assert other.mode == "RGB"
        assert other.size == picture.size
        assert "icc_profile" not in other.info


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg", "photo.webp", "photo.tif"])
def test_files_of_another_program(tmp_path, picture, name):
    picture.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    photo = read_photo(tmp_path / name)
    assert np.abs(photo.pixels.astype(int) - np.asarray(picture)).mean() < 3
    assert photo.losses == ()


def test_content_decides_not_the_name(tmp_path, picture):
    path = tmp_path / "photo.png"
    picture.save(path, format="JPEG")
    assert sniff_format(path) == probe_photo(path).format == read_photo(path).format == "JPEG"


def test_file_names_are_taken_literally(tmp_path, picture):
    path = tmp_path / "photo[n=3].png"
    write_photo(path, np.asarray(picture))
    assert np.array_equal(read_photo(path).pixels, np.asarray(picture))


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_other_modes_become_rgb(tmp_path, picture, mode):
    converted = picture.convert(mode)
    converted.save(tmp_path / "photo.png")
    photo = read_photo(tmp_path / "photo.png")
    assert np.array_equal(photo.pixels, np.asarray(converted.convert("RGB")))


def test_sixteen_bits_become_eight_and_are_reported(tmp_path):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels * 257).save(tmp_path / "photo.png")
    photo = read_photo(tmp_path / "photo.png")
    assert np.array_equal(photo.pixels[..., 0], levels)
    assert photo.losses == ("16-bit depth (written with 8)",)


def test_cmyk_is_converted_and_reported(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    photo = read_photo(tmp_path / "red.jpg")
    red, green, blue = photo.pixels[8, 8].astype(int)
    assert red > 180 > 80 > max(green, blue)
    assert photo.losses == ("CMYK inks (converted to sRGB)",)


def test_embedded_profile_is_applied_and_reported(tmp_path):
    red_square = Image.new("RGB", (16, 16), (200, 40, 40))
    red_square.save(tmp_path / "same.png", icc_profile=SRGB)
    photo = read_photo(tmp_path / "same.png")
    assert np.abs(photo.pixels.astype(int) - (200, 40, 40)).max() <= 1
    assert photo.losses == ("ICC profile (converted to sRGB)",)

    # A profile whose red is sRGB's green, made by exchanging two tags, must exchange the channels.
    swapped = SRGB.replace(b"rXYZ", b"tmp_").replace(b"gXYZ", b"rXYZ").replace(b"tmp_", b"gXYZ")
    red_square.save(tmp_path / "swapped.png", icc_profile=swapped)
    red, green, _ = read_photo(tmp_path / "swapped.png").pixels[8, 8].astype(int)
    assert abs(green - 200) <= 2
    assert abs(red - 40) <= 2


def test_orientation_is_applied(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "photo.png", exif=exif)
    photo = read_photo(tmp_path / "photo.png")
    info = probe_photo(tmp_path / "photo.png")
    assert np.array_equal(photo.pixels, np.rot90(np.asarray(picture), -1))
    assert (info.width, info.height) == (32, 48)
    assert "EXIF metadata" in photo.losses


def test_opaque_alpha_is_reported(tmp_path, picture):
    picture.convert("RGBA").save(tmp_path / "photo.png")
    photo = read_photo(tmp_path / "photo.png")
    assert np.array_equal(photo.pixels, np.asarray(picture))
    assert photo.losses == ("alpha channel (opaque everywhere)",)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_real_transparency_is_refused(tmp_path, picture, mode):
    image = picture.convert(mode)
    if mode == "P":
        image.save(tmp_path / "photo.png", transparency=image.getpixel((5, 5)))
    else:
        image.putalpha(254)
        image.save(tmp_path / "photo.png")
    with pytest.raises(InputError, match="flatten"):
        read_photo(tmp_path / "photo.png")


@pytest.mark.parametrize("suffix", [".webp", ".tif"])
def test_further_frames_are_reported(tmp_path, picture, suffix):
    path = tmp_path / f"photo{suffix}"
    picture.save(path, save_all=True, append_images=[picture.rotate(180)])
    photo = read_photo(path)
    assert photo.pixels.shape == (32, 48, 3)
    assert photo.losses == ("1 of 2 frames or pages (only the first)",)


def test_print_resolution_is_reported(tmp_path, picture):
    picture.save(tmp_path / "photo.jpg", dpi=(300, 300))
    assert read_photo(tmp_path / "photo.jpg").losses == ("print resolution (300 dpi)",)


def test_float_samples_are_refused(tmp_path, picture):
    picture.convert("F").save(tmp_path / "photo.tif")
    with pytest.raises(InputError, match="samples of type float"):
        read_photo(tmp_path / "photo.tif")


@pytest.mark.parametrize("name", ["photo.bmp", "photo", "photo.png.gz"])
def test_unknown_suffix_is_refused(tmp_path, picture, name):
    with pytest.raises(InputError, match=r"use \.png"):
        write_photo(tmp_path / name, np.asarray(picture))
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
    write_photo(path, np.asarray(picture))
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_unwritable_target_is_one_line(tmp_path, picture):
    (tmp_path / "photo.png").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_photo(tmp_path / "photo.png", np.asarray(picture))
    assert [file.name for file in tmp_path.iterdir()] == ["photo.png"]


@given(st.integers(8, 3000), st.integers(8, 3000), st.floats(1, 8))
def test_scaled_size_is_the_nearest(width, height, scale):
    for side, scaled in zip((width, height), scaled_size(width, height, scale), strict=True):
        assert abs(scaled - side * scale) <= 0.5


@pytest.mark.parametrize("scale", [0.99, 8.01, 0, -4, float("nan"), float("inf")])
def test_scales_out_of_range_are_refused(scale):
    with pytest.raises(InputError, match="1 to 8"):
        scaled_size(100, 100, scale)


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 24), st.integers(8, 24), st.floats(1, 8), st.sampled_from([".png", ".tif"]))
def test_resampled_files_have_the_exact_size(width, height, scale, suffix):
    pixels = np.full((height * 4, width * 4, 3), 77, np.uint8)
    size = scaled_size(width, height, scale)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"photo{suffix}"
        write_photo(path, resample(pixels, *size))
        with Image.open(path) as image:
            assert image.size == size
            assert image.getextrema() == ((77, 77),) * 3


def test_resampling_to_the_same_size_changes_nothing(picture):
    pixels = np.asarray(picture)
    assert np.array_equal(resample(pixels, 48, 32), pixels)
