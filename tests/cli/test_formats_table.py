"""The table of docs/photographs.md: what each output keeps of each input, measured.

PATCHSCALER_WRITE_TABLES=1 writes it anew.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
from PIL import Image
from PIL.PngImagePlugin import PngInfo

PAGE = Path(__file__).parents[2] / "docs" / "photographs.md"
BEGIN, END = "<!-- formats -->\n", "<!-- /formats -->"
OUTPUTS = {"PNG": "png", "TIFF": "tif", "JPEG": "jpg", "WebP": "webp", "AVIF": "avif"}
SIZE = (24, 16)
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'\
><rdf:Description xmlns:dc='http://purl.org/dc/elements/1.1/' dc:source='a walk'/></rdf:RDF></x:xmpmeta>"
SAID = {
    "profile": ("ICC profile", "CMYK inks"),
    "EXIF": ("EXIF metadata",),
    "XMP": ("XMP metadata",),
    "frames": ("frames or pages",),
    "inks": ("CMYK inks",),
    "alpha": ("alpha channel",),
    "dpi": ("resolution",),
}
"""What the command says when something is gone."""


@dataclass(frozen=True)
class Input:
    """A file to upscale: `holds` says what is in it beside pixels."""

    kind: str
    suffix: str
    mode: str
    bits: int
    holds: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.kind} {self.mode} {self.bits}.{self.suffix}".replace(" ", "-")


ALL = ("profile", "EXIF", "XMP", "dpi")
INPUTS = [
    Input("PNG", "png", "RGB", 8, ALL),
    Input("PNG", "png", "RGB", 16, ALL),
    Input("PNG", "png", "RGBA", 8, (*ALL, "alpha")),
    Input("PNG", "png", "RGBA", 16, (*ALL, "alpha")),
    Input("PNG", "png", "grey", 8, ALL[1:]),
    Input("PNG", "png", "grey", 16, ALL[1:]),
    Input("PNG", "png", "grey+alpha", 8, (*ALL[1:], "alpha")),
    Input("PNG", "png", "palette", 8, ALL),
    Input("PNG", "png", "palette+alpha", 8, (*ALL, "alpha")),
    Input("JPEG", "jpg", "RGB", 8, ALL),
    Input("JPEG", "jpg", "grey", 8, ALL[1:]),
    Input("JPEG", "jpg", "CMYK", 8, (*ALL[1:], "inks")),
    Input("WebP", "webp", "RGB", 8, ALL[:3]),
    Input("WebP", "webp", "RGBA", 8, (*ALL[:3], "alpha")),
    Input("TIFF", "tif", "RGB", 8, ALL),
    Input("TIFF", "tif", "RGB", 16, ("profile", "XMP", "dpi")),
    Input("TIFF", "tif", "RGBA", 16, ("profile", "XMP", "dpi", "alpha")),
    Input("TIFF", "tif", "grey", 16, ALL[1:]),
    Input("TIFF", "tif", "CMYK", 8, (*ALL[1:], "inks")),
    Input("AVIF", "avif", "RGB", 8, ALL[:3]),
    Input("AVIF", "avif", "RGB", 10, ALL[:3]),
    Input("AVIF", "avif", "RGBA", 8, (*ALL[:3], "alpha")),
    Input("BMP", "bmp", "RGB", 8, ("dpi",)),
    Input("GIF", "gif", "palette", 8, ("frames",)),
    Input("HEIC", "heic", "RGB", 8, ALL[:3]),
]


def pixels(item: Input) -> np.ndarray:
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]] / 32
    bands = [x] if item.mode.startswith("grey") else [x, y, 1 - x]
    if item.mode.endswith(("A", "alpha")):
        bands.append(0.3 + y)
    return (np.stack(bands, axis=-1).squeeze() * (2**16 - 1)).astype(np.uint16)


def exif_block(xmp: bytes | None = None) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0110], exif[0x8769] = "Pinhole", {0x9003: "2020:02:03 04:05:06"}
    loaded = Image.Exif()  # Pillow cannot write some formats from a block that was never read
    loaded.load(exif.tobytes())
    if xmp:
        loaded[700] = xmp
    return loaded


def make(item: Input, folder: Path) -> None:
    """By Pillow where it can write such a file; colours of 16 bits and AVIF of 10 by libvips."""
    path = folder / item.name
    held: dict[str, Any] = {
        "profile": {"icc_profile": pyvips.Image.profile_load("p3")},
        "EXIF": {"exif": exif_block()},
        "XMP": {"xmp": XMP},
        "dpi": {"dpi": (300, 300)},
    }
    if item.bits > 8 and item.mode != "grey":
        image = pyvips.Image.new_from_array(pixels(item), interpretation="rgb16").copy(xres=11.81, yres=11.81)
        carrier = pyvips.Image.new_from_file(str(folder / "PNG-RGB-8.png"))
        for field in carrier.get_fields():
            if field.startswith(("exif-", "xmp-", "icc-")):
                image.set_type(carrier.get_typeof(field), field, carrier.get(field))
        options = {"bitdepth": 10} if item.kind == "AVIF" else {}
        image.write_to_file(str(path), **options)
        return
    if item.bits > 8:
        image = Image.fromarray(pixels(item))
    else:
        image = Image.fromarray((pixels(item) >> 8).astype(np.uint8))
        modes = {"CMYK": "CMYK", "palette": "P"}
        image = image.convert(modes[item.mode]) if item.mode in modes else image
        image = image.quantize(64) if item.mode == "palette+alpha" else image
    options = {key: value for name in item.holds if name in held for key, value in held[name].items()}
    if item.kind == "PNG" and "xmp" in options:
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", options.pop("xmp").decode())
    if item.kind == "TIFF":
        options["exif"] = exif_block(xmp=options.pop("xmp"))
    if "frames" in item.holds:
        options |= {"save_all": True, "append_images": [image.rotate(180)]}
    image.save(path, **options)


def kept(item: Input, path: Path) -> tuple[int, set[str]]:
    """Bits a sample and what is in an output."""
    image = pyvips.Image.new_from_file(str(path))
    assert (image.width, image.height) == (4 * SIZE[0], 4 * SIZE[1])
    fields = image.get_fields()
    found = set()
    bits = image.get("bits-per-sample") if "bits-per-sample" in fields else 8
    if "icc-profile-data" in fields and image.get("icc-profile-data") == pyvips.Image.profile_load("p3"):
        found.add("profile")
    with Image.open(path) as picture:
        exif = picture.getexif()
        if exif.get(0x0110) == "Pinhole" and exif.get_ifd(0x8769).get(0x9003) == "2020:02:03 04:05:06":
            found.add("EXIF")
        assert exif.get(0x0112, 1) == 1
        if round(float(exif.get(0x011A, 0))) == 300:
            found.add("dpi")
    if "xmp-data" in fields and b"a walk" in image.get("xmp-data"):
        found.add("XMP")
    if round(image.xres * 25.4) == 300:
        found.add("dpi")
    if image.hasalpha():
        found.add("alpha")
    grey = item.mode.startswith("grey") and path.suffix not in (".webp", ".avif")  # these have no grey
    assert image.bands - image.hasalpha() == (1 if grey else 3)
    return (16 if image.format == "ushort" and bits > 12 else bits), found


def cell(item: Input, output: Path, record: dict[str, Any]) -> str:
    if record["status"] == "failed":
        assert "alpha" in item.holds, record
        assert "holds no transparency" in record["error"]
        return "refused"
    bits, found = kept(item, output)
    lost = [name for name in item.holds if name not in found]
    said = "; ".join(record["not_kept"])
    for name in lost:
        assert any(phrase in said for phrase in SAID[name]), f"{output.name}: {name}, {said!r}"
    changes = [f"{bits} bit"] * (bits < item.bits) + [f"no {name}" for name in lost]
    assert bits >= min(item.bits, 16) or "depth" in said, f"{output.name}: {bits}"
    return ", ".join(changes) or "all"


def test_the_table_of_formats_is_what_is_measured(upscale, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    inputs = [item for item in INPUTS if item.kind != "HEIC" or has_heic()]
    for item in inputs:
        make(item, folder)
    rows = {item: [] for item in inputs}
    for suffix in OUTPUTS.values():
        result = upscale(folder, "-o", tmp_path / suffix, "--output-suffix", suffix, "--json")
        records = {Path(line["input"]).name: line for line in map(json.loads, result.stdout.splitlines())}
        for item in inputs:
            output = (tmp_path / suffix / item.name).with_suffix(f".{suffix}")
            rows[item].append(cell(item, output, records[item.name]))
    names = {"inks": "CMYK inks"}
    lines = [
        f"| {item.kind} | {item.bits} bit {item.mode} |"
        f" {', '.join(names.get(name, name) for name in item.holds if name != 'alpha')} | {' | '.join(cells)} |"
        for item, cells in rows.items()
    ]
    head = ["input", "samples", "holds", *OUTPUTS]
    table = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines]
    page = PAGE.read_text()
    start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    if os.environ.get("PATCHSCALER_WRITE_TABLES"):
        PAGE.write_text(page[:start] + "\n".join(table) + "\n" + page[end:])
        return
    shown = page[start:end].splitlines()
    assert [line for line in shown if has_heic() or not line.startswith("| HEIC")] == table


def has_heic() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True
