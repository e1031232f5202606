"""What an upscaled photograph keeps of the file it came from."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from patchscaler.imaging.io import read_photo


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".avif"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_sticker_keeps_its_edge(upscale, tmp_path, mode, suffix):
    """A disc of one colour over black: no black in the edge, opaque inside, clear outside."""
    y, x = np.mgrid[0:48, 0:48]
    alpha = (np.clip(18 - np.hypot(x - 24, y - 24), 0, 1) * 255).astype(np.uint8)
    colour = (220, 60, 40) if mode == "RGBA" else (200,)
    pixels = np.where(alpha[..., None] > 0, np.array(colour, np.uint8), 0)
    sticker = Image.fromarray(np.dstack([pixels, alpha]).astype(np.uint8), mode)
    sticker.save(tmp_path / "in.png")
    photo = read_photo(tmp_path / "in.png")
    assert (photo.pixels == photo.pixels[24, 24]).all(), "nothing black under the edge"
    result = upscale(tmp_path / "in.png", "-o", tmp_path / f"out{suffix}")
    assert result.exit_code == 0, result.output
    out = read_photo(tmp_path / f"out{suffix}")
    assert out.alpha is not None
    assert out.alpha.shape == (192, 192)
    slack = 0 if suffix in (".png", ".tif", ".webp") else 3
    assert out.alpha[88:104, 88:104].min() >= 255 - slack
    assert out.alpha[:16].max() <= slack


def test_transparency_is_never_lost_to_a_format_without_it(upscale, tmp_path):
    Image.new("RGBA", (16, 16), (9, 9, 9, 200)).save(tmp_path / "in.png")
    result = upscale(tmp_path / "in.png", "-o", tmp_path / "out.jpg")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "JPEG holds no transparency; write .png" in line
    assert not (tmp_path / "out.jpg").exists()


def test_opaque_alpha_may_be_left_out(upscale, tmp_path):
    Image.new("RGBA", (16, 16), (9, 9, 9, 255)).save(tmp_path / "in.png")
    result = upscale(tmp_path / "in.png", "-o", tmp_path / "out.jpg")
    assert result.exit_code == 0
    assert "alpha channel (opaque everywhere)" in result.stderr


XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:exif="http://ns.adobe.com/exif/1.0/" tiff:Orientation="6" tiff:ImageWidth="48" dc:source="a walk">
<exif:PixelYDimension>32</exif:PixelYDimension></rdf:Description></rdf:RDF></x:xmpmeta>"""


@pytest.fixture
def camera_photo(tmp_path) -> Path:
    """A 48x32 JPEG held upright by its orientation tag, with a position, a date, a profile and 300 dpi."""
    exif = Image.Exif()
    exif[0x0110], exif[0x0112] = "Pinhole", 6
    exif[0x8769] = {0x9003: "2020:02:03 04:05:06", 0xA002: 48, 0xA003: 32}
    exif[0x8825] = {1: "N", 2: (48.0, 12.0, 30.0)}
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = tmp_path / "camera.jpg"
    Image.new("RGB", (48, 32), (90, 120, 60)).save(
        path, exif=exif, icc_profile=profile, xmp=XMP, dpi=(300, 300)
    )
    return path


def exiftool(path: Path) -> dict[str, object]:
    if shutil.which("exiftool") is None:
        pytest.skip("exiftool is not installed")
    done = subprocess.run(["exiftool", "-json", "-G0", "-a", "-n", path], capture_output=True, check=True)
    return json.loads(done.stdout)[0]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".avif", ".tif"])
def test_another_program_finds_the_metadata(upscale, camera_photo, tmp_path, suffix):
    output = tmp_path / f"out{suffix}"
    result = upscale(camera_photo, "-o", output)
    assert result.exit_code == 0, result.output
    found = exiftool(output)
    assert (found["File:ImageWidth"] if "File:ImageWidth" in found else found[_size(found)]) == 128
    assert found["EXIF:Model"] == "Pinhole"
    assert found["EXIF:DateTimeOriginal"] == "2020:02:03 04:05:06"
    assert found["EXIF:GPSLatitude"] == pytest.approx(48 + 12 / 60 + 30 / 3600)
    assert found.get("EXIF:Orientation", 1) == 1
    assert (found["EXIF:ExifImageWidth"], found["EXIF:ExifImageHeight"]) == (128, 192)
    assert found["XMP:Source"] == "a walk"
    assert (found["XMP:Orientation"], found["XMP:ImageWidth"]) == (1, 128)
    assert found["XMP:ExifImageHeight"] == 192
    assert found["ICC_Profile:ProfileDescription"] == "sRGB built-in"
    assert found["EXIF:XResolution"] == 300
    assert "not kept" not in result.stderr


def _size(found: dict[str, object]) -> str:
    return next(name for name in found if name.endswith(":ImageWidth") and not name.startswith("XMP"))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".avif", ".tif"])
def test_strip_leaves_nothing(upscale, camera_photo, tmp_path, suffix):
    result = upscale(camera_photo, "-o", tmp_path / f"out{suffix}", "--strip")
    assert result.exit_code == 0, result.output
    assert "not kept" not in result.stderr
    found = exiftool(tmp_path / f"out{suffix}")
    kinds = {name.partition(":")[0] for name in found}
    assert not kinds & {"XMP", "ICC_Profile", "IPTC"}
    assert not {"EXIF:Model", "EXIF:GPSLatitude"} & set(found)


def test_damaged_exif_is_no_word_on_stderr(upscale, tmp_path, recwarn):
    """A tag that is longer than the block; libraries warn of such things in lines of their own."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\xff\xff\0\0\x1a\0\0\0\0\0\0\0"
    Image.new("RGB", (16, 16)).save(tmp_path / "in.jpg", exif=exif)
    result = upscale(tmp_path / "in.jpg", "-o", tmp_path / "out.tif")
    assert result.exit_code == 0, result.output
    assert [warning for warning in recwarn if "PIL" in warning.filename] == []


def test_what_a_format_cannot_hold_is_said(upscale, tmp_path):
    image = Image.fromarray(np.full((16, 16), 9, np.uint16))
    image.save(tmp_path / "in.png")
    result = upscale(tmp_path / "in.png", "-o", tmp_path / "out.jpg")
    assert result.exit_code == 0
    assert "not kept in the output: 16-bit depth (written with 8)" in result.stderr


def test_jpeg_quality_sets_the_size(upscale, photo, tmp_path):
    sizes = []
    for quality in (10, 60, 100):
        assert upscale(photo, "-o", tmp_path / f"{quality}.jpg", "--jpeg-quality", quality).exit_code == 0
        sizes.append((tmp_path / f"{quality}.jpg").stat().st_size)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 3


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (["--scale", "2.5"], (320, 240)),
        (["--width", "300"], (300, 225)),
        (["--height", "300"], (400, 300)),
        (["--fit", "300x300"], (300, 225)),
        (["--width", "200", "--height", "200"], (200, 200)),
    ],
)
def test_sizes_are_exact(upscale, photo, tmp_path, words, size):
    result = upscale(photo, "-o", tmp_path / "out.png", *words)
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "out.png").size == size
