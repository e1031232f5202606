"""Colours of the output follow the input, whatever space it is in."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms

from patchscaler.evaluation.colour import ciede2000, srgb_to_lab
from patchscaler.imaging.io import OutputOptions, read_photo, write_photo

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def s15(value: float) -> bytes:
    return round(value * 65536).to_bytes(4, "big", signed=True)


def matrix_profile(red, green, blue, gamma: float) -> bytes:
    """An RGB profile (ICC version 2) of three D50 colorants and a gamma."""
    tags = {
        b"desc": b"desc" + bytes(4) + (5).to_bytes(4, "big") + b"wide\0" + bytes(78),
        b"wtpt": b"XYZ " + bytes(4) + s15(0.9642) + s15(1.0) + s15(0.8249),
    }
    for name, colour in zip((b"rXYZ", b"gXYZ", b"bXYZ"), (red, green, blue), strict=True):
        tags[name] = b"XYZ " + bytes(4) + b"".join(map(s15, colour))
    for name in (b"rTRC", b"gTRC", b"bTRC"):
        tags[name] = (
            b"curv" + bytes(4) + (1).to_bytes(4, "big") + round(gamma * 256).to_bytes(2, "big") + bytes(2)
        )
    return _assemble(b"RGB ", tags)


def grey_profile(gamma: float) -> bytes:
    return _assemble(
        b"GRAY",
        {
            b"desc": b"desc" + bytes(4) + (5).to_bytes(4, "big") + b"grey\0" + bytes(78),
            b"wtpt": b"XYZ " + bytes(4) + s15(0.9642) + s15(1.0) + s15(0.8249),
            b"kTRC": b"curv"
            + bytes(4)
            + (1).to_bytes(4, "big")
            + round(gamma * 256).to_bytes(2, "big")
            + bytes(2),
        },
    )


def _assemble(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    offset, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + (offset + len(body)).to_bytes(4, "big") + len(data).to_bytes(4, "big")
        body += data
    rest = len(tags).to_bytes(4, "big") + table + body
    head = (
        (128 + len(rest)).to_bytes(4, "big") + b"lcms" + bytes.fromhex("02400000") + b"mntr" + space + b"XYZ "
    )
    head += bytes(12) + b"acsp" + bytes(28) + s15(0.9642) + s15(1.0) + s15(0.8249)
    return head + bytes(128 - len(head)) + rest


P3 = matrix_profile((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841), 2.2)
PROPHOTO = matrix_profile((0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249), 1.8)


@pytest.fixture
def colours() -> np.ndarray:
    """Every corner of the cube and much between, in 8x8 blocks: (64, 128, 3) uint8."""
    levels = np.array([0, 70, 160, 255], np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(4, 16, 3)
    return np.concatenate([cube, cube[::-1]], axis=0).repeat(8, axis=0).repeat(8, axis=1)


def through(source: Path, target: Path, options: OutputOptions | None = None) -> np.ndarray:
    """Read, enlarge x4 by nearest neighbour, write; the target's pixels as they are encoded."""
    photo = read_photo(source)
    colour = pyvips.Image.new_from_array(photo.pixels).zoom(4, 4)
    alpha = None if photo.alpha is None else pyvips.Image.new_from_array(photo.alpha).zoom(4, 4)
    height, width = photo.pixels.shape[:2]
    write_photo(target, colour, alpha, photo, (4 * width, 4 * height), options or OutputOptions())
    return pyvips.Image.new_from_file(str(target)).numpy()


def middles(pixels: np.ndarray, side: int) -> np.ndarray:
    return pixels[side // 2 :: side, side // 2 :: side]


@pytest.mark.parametrize("profile", [P3, PROPHOTO, SRGB], ids=["p3", "prophoto", "srgb"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_profile_is_carried_and_no_colour_is_clipped(tmp_path, colours, profile, suffix):
    Image.fromarray(colours).save(tmp_path / f"in{suffix}", icc_profile=profile)
    out = through(tmp_path / f"in{suffix}", tmp_path / f"out{suffix}")
    assert pyvips.Image.new_from_file(str(tmp_path / f"out{suffix}")).get("icc-profile-data") == profile
    assert np.abs(middles(out, 32).astype(int) - middles(colours, 8)).max() <= 1


def test_networks_see_srgb(tmp_path, colours):
    Image.fromarray(colours).save(tmp_path / "in.png", icc_profile=P3)
    pixels = read_photo(tmp_path / "in.png").pixels
    assert pixels.dtype == np.uint16
    grey = middles(colours, 8)
    neutral = (grey.max(-1) == grey.min(-1)) & (grey.max(-1) > 0)
    spread = np.ptp(middles(pixels, 8)[neutral].astype(int), axis=-1) / 257
    assert spread.max() <= 2, "grey stays grey"
    orange = np.zeros((16, 16, 3), np.uint8) + np.array([200, 120, 90], np.uint8)
    Image.fromarray(orange).save(tmp_path / "in.png", icc_profile=P3)
    red, _, blue = read_photo(tmp_path / "in.png").pixels[8, 8] / 257
    assert red > 202, "the same numbers mean a stronger colour in a wider space"
    assert blue < 88


def test_stripped_output_is_plain_srgb(tmp_path, colours):
    Image.fromarray(colours).save(tmp_path / "in.png", icc_profile=P3)
    out = through(tmp_path / "in.png", tmp_path / "out.png", OutputOptions(strip=True))
    fields = pyvips.Image.new_from_file(str(tmp_path / "out.png")).get_fields()
    assert "icc-profile-data" not in fields
    expected = np.rint(read_photo(tmp_path / "in.png").pixels / 257)
    assert np.abs(middles(out, 32) - middles(expected, 8)).max() <= 1


def test_a_grey_profile_is_carried(tmp_path):
    ramp = np.arange(0, 256, 4, dtype=np.uint8)[None].repeat(16, 0).repeat(4, 1)
    Image.fromarray(ramp).save(tmp_path / "in.png", icc_profile=grey_profile(1.8))
    out = through(tmp_path / "in.png", tmp_path / "out.png")
    image = pyvips.Image.new_from_file(str(tmp_path / "out.png"))
    assert image.bands == 1
    assert image.get("icc-profile-data") == grey_profile(1.8)
    assert np.abs(out[32, 8::16].astype(int) - ramp[8, 2::4]).max() <= 1


LONG = (1 << 24).to_bytes(4, "big") + SRGB[4:]


@pytest.mark.parametrize(
    "profile", [b"no profile at all", SRGB[:200], P3, LONG], ids=["text", "cut", "of RGB", "longer than it is"]
)
def test_an_unusable_profile_is_reported(tmp_path, profile):
    mode = "L" if profile == P3 else "RGB"
    Image.new(mode, (16, 16)).save(tmp_path / "in.tif", icc_profile=profile)
    assert read_photo(tmp_path / "in.tif").losses == ("ICC profile (damaged or of another kind)",)


def test_what_pads_a_profile_is_left_out(tmp_path):
    """Cameras do that; libpng would refuse such a profile when all the work is done."""
    Image.new("RGB", (16, 16)).save(tmp_path / "in.jpg", icc_profile=P3 + bytes(64))
    assert read_photo(tmp_path / "in.jpg").losses == ()
    through(tmp_path / "in.jpg", tmp_path / "out.png")
    assert pyvips.Image.new_from_file(str(tmp_path / "out.png")).get("icc-profile-data") == P3


def test_cmyk_becomes_srgb_and_is_reported(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    photo = read_photo(tmp_path / "red.jpg")
    red, green, blue = photo.pixels[8, 8].astype(int)
    assert red > 180 > 80 > max(green, blue)
    assert photo.losses == ("CMYK inks (converted to sRGB)",)


@pytest.mark.parametrize("mode", ["L", "I;16", "1"])
def test_grey_stays_grey(tmp_path, mode):
    levels = np.arange(256).reshape(16, 16)
    pixels = (levels * 257).astype(np.uint16) if mode == "I;16" else levels.astype(np.uint8)
    image = Image.fromarray(pixels) if mode != "1" else Image.fromarray(pixels > 100)
    image.save(tmp_path / "in.png")
    out = through(tmp_path / "in.png", tmp_path / "out.png")
    assert out.ndim == 2
    assert out.dtype == (np.uint16 if mode == "I;16" else np.uint8)
    expected = (levels > 100) * 255 if mode == "1" else pixels
    assert np.array_equal(middles(out, 4), expected)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_stay_sixteen_bits(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 65536, (16, 24, 3), dtype=np.uint16)
    pyvips.Image.new_from_array(pixels, interpretation="rgb16").write_to_file(str(tmp_path / f"in{suffix}"))
    out = through(tmp_path / f"in{suffix}", tmp_path / f"out{suffix}")
    assert out.dtype == np.uint16
    assert np.array_equal(middles(out, 4), pixels)


def test_sixteen_bits_as_another_program_reads_them(tmp_path):
    pixels = np.full((16, 16, 3), (1000, 30000, 64001), np.uint16)
    pyvips.Image.new_from_array(pixels, interpretation="rgb16").write_to_file(str(tmp_path / "in.png"))
    through(tmp_path / "in.png", tmp_path / "out.tif")
    command = ["convert", tmp_path / "out.tif", "-depth", "16", "rgb:-"]
    try:
        raw = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("ImageMagick is not installed")
    assert np.frombuffer(raw, "<u2")[:3].tolist() == [1000, 30000, 64001]


def test_low_frequency_colour_follows_the_input(pipeline, tmp_path, colours):
    """The image averaged over 32x32 pixels, against the input's: what a change of colour space would move."""
    Image.fromarray(colours).save(tmp_path / "in.png", icc_profile=P3)
    photo = read_photo(tmp_path / "in.png")
    colour = pyvips.Image.new_from_array(photo.pixels).resize(4, kernel="cubic")
    write_photo(tmp_path / "out.png", colour, None, photo, (512, 256), OutputOptions())
    ours, theirs = read_photo(tmp_path / "out.png").pixels, photo.pixels

    def average(pixels: np.ndarray, side: int) -> np.ndarray:
        height, width = pixels.shape[0] // side, pixels.shape[1] // side
        return pixels.reshape(height, side, width, side, 3).mean(axis=(1, 3)) / 65535

    difference = ciede2000(srgb_to_lab(average(ours, 32)), srgb_to_lab(average(theirs, 8)))
    assert difference.mean() < 1
