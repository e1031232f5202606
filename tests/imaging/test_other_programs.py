"""Files made by ImageMagick, libvips' own program and libheif are read as these programs read them."""

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchscaler.imaging.foreign import as_vips
from patchscaler.imaging.io import probe_photo, read_photo

CLEAR = "( -size 48x32 gradient: ) -alpha off -compose copy_opacity -composite"
MAGICK = {
    "interlaced.png": "-interlace PNG",
    "palette.png": "-colors 16 -type palette PNG8:{}",
    "two-bits.png": "-colorspace gray -depth 2 -type grayscale",
    "deep.png": "-depth 16 -evaluate add 0.3% PNG48:{}",
    "clear.png": CLEAR,
    "clear-palette.png": f"{CLEAR} -colors 30 PNG8:{{}}",
    "deep-grey-clear.png": f"{CLEAR} -colorspace gray -depth 16",
    "progressive.jpg": "-interlace JPEG -sampling-factor 4:2:0",
    "fax.tif": "-monochrome -compress group4",
    "inverted.tif": "-colorspace gray -define quantum:polarity=min-is-white",
    "planar.tif": "-interlace plane -compress lzw",
    "motorola.tif": "-endian MSB -depth 16",
    "clear.tif": f"{CLEAR} -compress none",
    "lossy.webp": "-quality 90",
    "clear.webp": f"{CLEAR} -define webp:lossless=true",
    "rle.bmp": "-compress RLE -colors 16 BMP3:{}",
    "clear.gif": CLEAR,
}
VIPS = {
    "tiled.tif": "bigtiff,tile,tile-width=16,tile-height=16,compression=jpeg",
    "pyramid.tif": "pyramid,tile,subifd",
}


def run(*command: object) -> bytes:
    words = [str(word) for word in command]
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    return subprocess.run(words, capture_output=True, check=True).stdout


def convert(*words: object) -> bytes:
    """Call ImageMagick; version 7 calls the program otherwise, and others share the name."""
    program = "magick" if shutil.which("magick") else "/usr/bin/convert"
    if b"ImageMagick" not in run(program, "-version"):
        pytest.skip("ImageMagick is not installed")
    return run(program, *words)


def by_magick(path: Path) -> np.ndarray:
    """RGBA in 8 bits as ImageMagick reads it, upright."""
    data = convert(f"{path}[0]", "-auto-orient", "-depth", "8", "PNG32:-")
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(int)


def check(path: Path, slack: float) -> None:
    """The same to a level or two, where it can be seen."""
    photo, theirs = read_photo(path), by_magick(path)
    top = np.iinfo(photo.pixels.dtype).max / 255
    assert photo.losses == ()
    visible = theirs[..., 3] > 0
    if photo.alpha is None:
        assert visible.all()
    else:
        assert np.abs(photo.alpha / top - theirs[..., 3]).max() <= 1
    assert np.abs(photo.pixels / top - theirs[..., :3])[visible].max() <= slack


@pytest.mark.parametrize("name", MAGICK)
def test_files_of_imagemagick(tmp_path, picture, name):
    picture.save(tmp_path / "base.png")
    words = MAGICK[name].split()
    target = words.pop().format(tmp_path / name) if "{}" in MAGICK[name] else tmp_path / name
    convert(tmp_path / "base.png", *words, target)
    check(tmp_path / name, slack=2)


@pytest.mark.parametrize("name", VIPS)
def test_files_of_libvips(tmp_path, picture, name):
    picture.save(tmp_path / "base.png")
    run("vips", "copy", tmp_path / "base.png", f"{tmp_path / name}[{VIPS[name]}]")
    check(tmp_path / name, slack=2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_of_exiftool(tmp_path, picture, orientation):
    path = tmp_path / "photo.jpg"
    picture.save(path, quality=95)
    run("exiftool", "-q", "-overwrite_original", "-n", f"-Orientation={orientation}", path)
    info = probe_photo(path)
    assert (info.width, info.height) == ((32, 48) if orientation > 4 else (48, 32))
    check(path, slack=2)


@pytest.mark.parametrize("name", ["photo.heic", "photo.avif"])
def test_files_of_libheif(tmp_path, picture, name):
    if name.endswith("heic"):
        pytest.importorskip("pillow_heif")
    picture.save(tmp_path / "base.png")
    run(
        "heif-enc",
        "-q",
        "95",
        *(["-A"] * name.endswith("avif")),
        tmp_path / "base.png",
        "-o",
        tmp_path / name,
    )
    for _ in range(3):
        photo = read_photo(tmp_path / name)
        assert np.abs(photo.pixels.astype(int) - np.asarray(picture)).mean() < 3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pixels_of_another_library_are_copied(dtype):
    """libvips takes arrays by reference, and these are freed with the file they came from."""
    pixels = np.zeros((16, 16, 3), dtype)
    image = as_vips(pixels, {}, None)
    pixels[:] = 255
    assert image.max() == 0
