"""Colour: sRGB for the networks, the file's own colour space for the output.

An embedded profile is honoured twice. Pixels are converted to sRGB for the networks, and the result is converted
back, so the output carries the profile it came with. Colours that sRGB cannot show would be clipped on the way;
what the round trip took from the input is enlarged and given back to the output. A profile that is sRGB under
another name changes nothing, so neither conversion is made. CMYK and Lab pictures, and profiles that convert one
way only, become sRGB, which is said.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ImageCms

if TYPE_CHECKING:
    import pyvips

_PROFILE = "icc-profile-data"
_INTENT: dict[str, Any] = {"intent": "relative", "black_point_compensation": True}
_PROBE_SIDE = 8
_SAME = 1.5 / 255


@dataclass(frozen=True)
class ColourSpace:
    """How the pixels of a file encode colour.

    Attributes:
        profile: the file's profile, for the output to carry; None for none, which means sRGB.
        grey: one channel instead of three.
        clipped: what the round trip to sRGB takes from the input, (h, w, bands) int16 in 1/32767 of the
            range; None where pixels need no conversion.
    """

    profile: bytes | None
    grey: bool
    clipped: np.ndarray | None = None


def to_srgb(image: pyvips.Image) -> tuple[pyvips.Image, ColourSpace, list[str]]:
    """A decoded image without alpha as sRGB with three bands, its colour space, and what was not kept.

    The result has 16 bits wherever a profile was converted, so that nothing is rounded twice.
    """
    import pyvips

    profile: Any = image.get(_PROFILE) if image.get_typeof(_PROFILE) else None
    if profile is not None:
        profile = profile[: int.from_bytes(profile[:4], "big")]  # some are padded
    if image.interpretation in ("cmyk", "lab", "labs"):
        return _foreign(image, profile)
    grey = image.bands == 1
    wide = image.format == "ushort"
    plain = image.copy(
        interpretation=("grey16" if wide else "b-w") if grey else ("rgb16" if wide else "srgb")
    )
    if profile is None:
        return _three_bands(plain), ColourSpace(None, grey), []
    if not _converts(profile, grey):
        return _three_bands(plain), ColourSpace(None, grey), ["ICC profile (damaged or of another kind)"]
    if not grey and _is_srgb(profile):
        return plain, ColourSpace(profile, grey), []
    converted = _import(plain, profile).copy_memory()
    try:
        clipped = ((_unit(plain) - _unit(_export(converted, profile))) * 32767).rint().cast("short").numpy()
    except pyvips.Error:
        return converted, ColourSpace(None, False), ["ICC profile (it converts one way only; now sRGB)"]
    return converted, ColourSpace(profile, grey, np.atleast_3d(clipped)), []


def from_srgb(image: pyvips.Image, space: ColourSpace) -> pyvips.Image:
    """An sRGB image, enlarged, in the colour space that the input had; 16 bits if it was converted."""
    import pyvips

    if space.clipped is not None and space.profile is not None:
        own = _export(image, space.profile)
        lost = pyvips.Image.new_from_array(space.clipped).cast("float")
        lost = lost.resize(image.width / lost.width, vscale=image.height / lost.height, kernel="cubic")
        return (own + lost * (65535 / 32767)).rint().cast("ushort").copy(interpretation=own.interpretation)
    if space.grey:
        image = image.bandmean().rint().cast(image.format)
        image = image.copy(interpretation="grey16" if image.format == "ushort" else "b-w")
    return image if space.profile is None else _tagged(image, space.profile)


def to_plain_srgb(image: pyvips.Image, space: ColourSpace) -> pyvips.Image:
    """An sRGB image, enlarged, that needs no profile: for outputs without metadata."""
    return from_srgb(image, ColourSpace(None, space.grey))


def with_depth(image: pyvips.Image, bits: int) -> pyvips.Image:
    """The image in 8 or 16 bits a sample, rounded to the nearest."""
    if (image.format == "ushort") == (bits > 8):
        return image
    grey = image.bands < 3
    if bits > 8:
        return (image.cast("ushort") * 257).cast("ushort").copy(interpretation="grey16" if grey else "rgb16")
    return (image / 257).rint().cast("uchar").copy(interpretation="b-w" if grey else "srgb")


def _foreign(image: pyvips.Image, profile: bytes | None) -> tuple[pyvips.Image, ColourSpace, list[str]]:
    depth = 16 if image.format == "ushort" else 8
    if image.interpretation != "cmyk":
        image = image.colourspace("rgb16" if depth == 16 else "srgb")
        return image, ColourSpace(None, False), ["Lab colours (converted to sRGB)"]
    converted = image.icc_transform(
        "srgb", embedded=profile is not None, input_profile="cmyk", depth=depth, **_INTENT
    )
    converted.remove(_PROFILE)
    return converted, ColourSpace(None, False), ["CMYK inks (converted to sRGB)"]


def _three_bands(image: pyvips.Image) -> pyvips.Image:
    if image.bands == 3:
        return image
    wide = image.format == "ushort"
    return image.bandjoin([image, image]).copy(interpretation="rgb16" if wide else "srgb")


def _converts(profile: bytes, grey: bool) -> bool:
    """Whether a profile is one for grey, or for RGB, that can be used; libvips would go on without, silently.

    libpng is the strictest of the writers, so it is asked too, before the work.
    """
    import pyvips

    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), "L" if grey else "RGB", "RGB")
        _tagged(pyvips.Image.black(1, 1, bands=1 if grey else 3), profile).pngsave_buffer()
    except (OSError, ImageCms.PyCMSError, pyvips.Error):
        return False
    return True


def _is_srgb(profile: bytes) -> bool:
    """Whether converting from the profile moves no colour by more than one level of eight bits."""
    probe = _probe()
    difference: Any = (_unit(_import(probe, profile)) - _unit(probe)).abs().max()
    return float(difference) <= _SAME


def _probe() -> pyvips.Image:
    """Colours from all over the cube of RGB."""
    import pyvips

    levels = np.linspace(0, 255, _PROBE_SIDE).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(_PROBE_SIDE, -1, 3)
    return pyvips.Image.new_from_array(np.ascontiguousarray(cube), interpretation="srgb")


def _import(image: pyvips.Image, profile: bytes) -> pyvips.Image:
    """From the colours of a profile to sRGB in 16 bits."""
    return _untagged(_tagged(image, profile).icc_transform("srgb", embedded=True, depth=16, **_INTENT))


def _export(image: pyvips.Image, profile: bytes) -> pyvips.Image:
    """From sRGB to the colours of a profile in 16 bits."""
    connected = image.icc_import(input_profile="srgb", embedded=False, pcs="lab", **_INTENT)
    return _tagged(connected, profile).icc_export(depth=16, **_INTENT)


def _tagged(image: pyvips.Image, profile: Any) -> pyvips.Image:
    import pyvips

    image = image.copy()
    image.set_type(pyvips.GValue.blob_type, _PROFILE, profile)
    return image


def _untagged(image: pyvips.Image) -> pyvips.Image:
    image = image.copy()
    image.remove(_PROFILE)
    return image


def _unit(image: pyvips.Image) -> pyvips.Image:
    return image / (65535 if image.format == "ushort" else 255)
