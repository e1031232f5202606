"""Draws docs/images/kinds.webp: inputs of many kinds, bicubic beside ours and the truth; prints figures.

python benchmarks/kinds.py [--model FOLDER] [-o docs/images/kinds.webp]
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common import table
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from patchscaler import PatchScalerPipeline
from patchscaler.evaluation.metrics import DeepFeatureDistance, luma, psnr_y
from patchscaler.imaging.tensors import from_tensor, to_tensor
from patchscaler.models.autoencoder import upsample

ROOT = Path(__file__).parents[1]
SCALE = 4
LR_SIDE, MARGIN = 96, 16  # of an input, and what of it is not shown on every side
SHOWN = (LR_SIDE - 2 * MARGIN) * SCALE
CAPTION, LINE, GAP = 20, 2, 20
RAMP, AMPLIFIED = "grey ramp", 16
WORDS = (
    "The quick brown fox jumps over the lazy dog. 0123456789 (3.14) A small page of plain text, to be read."
)


class Kind(NamedTuple):
    """An input (96, 96, 3), its truth (384, 384, 3), and whether the two can be compared pixel by pixel."""

    lr: np.ndarray
    truth: np.ndarray
    exact: bool = True


def main() -> None:
    """Make the inputs, enlarge them, write the picture and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "images" / "kinds.webp")
    arguments = parser.parse_args()
    pipeline = PatchScalerPipeline.from_pretrained(arguments.model)
    judge = DeepFeatureDistance()
    blocks, rows, changes = [], [], {}
    for name, kind in kinds().items():
        ours = pipeline(kind.lr, seed=0).image
        bicubic = from_tensor(upsample(to_tensor(kind.lr, 1)[None], SCALE)[0], like=kind.lr)
        change = changes[name] = ours.astype(float) - bicubic
        third = ("truth", kind.truth)
        if name == RAMP:
            third = (
                f"ours - bicubic, x{AMPLIFIED}",
                np.clip(128 + AMPLIFIED * change, 0, 255).astype(np.uint8),
            )
        blocks.append(block((name, bicubic), ("ours", ours), third))
        row: dict[str, object] = {"kind": name}
        if kind.exact:
            row |= compare(bicubic, kind.truth, judge, "bicubic") | compare(ours, kind.truth, judge, "ours")
        rows.append(row | {"change, mean": np.abs(change).mean(), "largest": f"{np.abs(change).max():.0f}"})
    Image.fromarray(sheet(blocks)).save(arguments.output, quality=90, method=6)
    print(f"weights {pipeline.fingerprint}, {pipeline.device}, seed 0, usual quality\n")
    print(table(rows, list(rows[0])))
    grey = middle(changes[RAMP])
    tint = np.abs(grey - grey.mean(axis=-1, keepdims=True)).max()
    print(
        f"\nThe middle of the {RAMP} changes by at most {np.abs(grey).max():.0f} levels;"
        f" a channel by at most {tint:.1f} more or less than the mean of the three."
    )


def compare(image: np.ndarray, truth: np.ndarray, judge: DeepFeatureDistance, name: str) -> dict[str, float]:
    """PSNR-Y and deep feature distance under the name of a method."""
    with torch.inference_mode():
        distance = judge(to_tensor(image, 1)[None], to_tensor(truth, 1)[None])
    return {f"{name}, dB": psnr_y(image, truth), f"{name}, DFD": float(distance)}


def kinds() -> dict[str, Kind]:
    """All inputs by name; the same on every run."""
    shop, burger, coast, garden = (photo(name) for name in ("shop-front", "burger", "coast", "tea-garden"))
    page, drawing, grey = drawn(draw_page), drawn(draw_lines), ramp()
    blurred = np.asarray(Image.fromarray(garden).filter(ImageFilter.GaussianBlur(1.5 * SCALE)))
    return {
        "clean, people and lamps": Kind(shrink(shop), shop),
        "clean, leaves": Kind(shrink(garden), garden),
        "old JPEG: quality 30, 4:2:0": Kind(jpeg(shrink(burger), 30), burger),
        "blur: sigma 1.5": Kind(shrink(blurred), garden),
        "film grain": Kind(grain(shrink(coast)), coast),
        "phone: denoised, sharpened, JPEG 75": Kind(phone(shrink(shop)), shop),
        "screenshot, drawn at its own size": Kind(
            drawn(draw_window, 1), drawn(draw_window, SCALE), exact=False
        ),
        "text, shrunk": Kind(shrink(page), page),
        "line art, shrunk": Kind(shrink(drawing), drawing),
        RAMP: Kind(shrink(grey), grey),
    }


def photo(name: str) -> np.ndarray:
    """One of the photographs (384, 384, 3) kept for this page."""
    return np.asarray(Image.open(ROOT / "benchmarks" / "photos" / f"{name}.webp").convert("RGB"))


def shrink(image: np.ndarray) -> np.ndarray:
    """A quarter of the side, by antialiased bicubic interpolation."""
    return np.asarray(Image.fromarray(image).resize((LR_SIDE, LR_SIDE), Image.Resampling.BICUBIC))


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Through a JPEG file with halved colour resolution."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file).convert("RGB"))


def noise(deviation: float, softness: float) -> np.ndarray:
    """Normal noise (96, 96, 1) in levels; a pixel takes `softness` from each of its neighbours."""
    values = np.random.default_rng(0).normal(size=(LR_SIDE, LR_SIDE, 1))
    for axis in (0, 1):
        values = values + softness * (np.roll(values, 1, axis) + np.roll(values, -1, axis))
    return values * deviation / values.std()


def grain(image: np.ndarray) -> np.ndarray:
    """Grain of one colour, strongest in the middle tones, 12 levels."""
    tone = luma(image)[..., None] / 255
    return np.clip(image + noise(12, 0.3) * 2 * np.sqrt(tone * (1 - tone)), 0, 255).round().astype(np.uint8)


def phone(image: np.ndarray) -> np.ndarray:
    """Noise, taken off by a median, edges sharpened again, then JPEG."""
    noisy = np.clip(image + noise(6, 0), 0, 255).astype(np.uint8)
    smeared = Image.fromarray(noisy).filter(ImageFilter.MedianFilter(3))
    return jpeg(np.asarray(smeared.filter(ImageFilter.UnsharpMask(1, 120, 2))), 75)


def ramp() -> np.ndarray:
    """Grey (384, 384, 3): black to white from the left, fading to a quarter below."""
    rise = np.linspace(0, 1, LR_SIDE * SCALE)
    return np.repeat((255 * rise * (1 - 0.75 * rise[:, None]))[..., None], 3, axis=2).round().astype(np.uint8)


def drawn(draw: Callable[[ImageDraw.ImageDraw, int], None], scale: int = SCALE) -> np.ndarray:
    """What `draw` makes on white, `scale` times as large as an input."""
    image = Image.new("RGB", (LR_SIDE * scale, LR_SIDE * scale), "white")
    draw(ImageDraw.Draw(image), scale)
    return np.asarray(image)


def draw_page(draw: ImageDraw.ImageDraw, scale: int) -> None:
    """Black text of falling size."""
    words, top = WORDS.split(), MARGIN
    for size in (12, 10, 9, 8, 7, 6):
        font = ImageFont.load_default(size * scale)
        line = ""
        while words and draw.textlength(line + words[0], font) < (LR_SIDE - 2 * MARGIN) * scale:
            line += words.pop(0) + " "
        draw.text(((MARGIN + 1) * scale, top * scale), line, "black", font)
        top += size + 2


def draw_window(draw: ImageDraw.ImageDraw, scale: int) -> None:
    """A window with a title bar, a list and a chart."""

    def box(left: int, top: int, right: int, bottom: int, colour: str) -> None:
        first, last = ((left * scale, top * scale), (right * scale - 1, bottom * scale - 1))
        draw.rectangle((first, last), colour)

    def text(left: int, top: int, what: str, colour: str) -> None:
        draw.text((left * scale, top * scale), what, colour, ImageFont.load_default(10 * scale))

    box(0, 0, LR_SIDE, LR_SIDE, "#f0f1f4")
    box(MARGIN, MARGIN, LR_SIDE, MARGIN + 14, "#2b3a67")
    text(MARGIN + 4, MARGIN, "Settings", "white")
    for row, name in enumerate(("Screen", "Sound", "Wires")):
        top = MARGIN + 17 + 15 * row
        box(MARGIN + 2, top, MARGIN + 38, top + 13, "#d5dcf5" if row == 1 else "white")
        text(MARGIN + 4, top, name, "#202020")
    for column, height in enumerate((12, 26, 19, 34)):
        left, colour = MARGIN + 42 + 5 * column, ("#c0392b", "#2e86c1")[column % 2]
        box(left, MARGIN + 56 - height, left + 4, MARGIN + 56, colour)
    box(MARGIN + 41, MARGIN + 56, MARGIN + 63, MARGIN + 57, "black")


def draw_lines(draw: ImageDraw.ImageDraw, scale: int) -> None:
    """Circles, a fan of straight lines, a hatching and a triangle, in three widths and colours."""

    def at(x: float, y: float) -> tuple[float, float]:
        return (MARGIN + x) * scale, (MARGIN + y) * scale

    for radius in range(3, 17, 4):
        draw.ellipse(
            (at(17 - radius, 17 - radius), at(17 + radius, 17 + radius)), outline="black", width=scale
        )
    for angle in np.linspace(0, np.pi / 2, 9):
        draw.line([at(36, 62), at(36 + 26 * np.sin(angle), 62 - 26 * np.cos(angle))], "#1f4e9c", scale)
    for step in range(7):
        draw.line([at(2, 39 + 4 * step), at(31, 36 + 4 * step)], "#b02a2a", scale // 2)
    draw.polygon([at(38, 3), at(61, 8), at(45, 28)], outline="black", width=2 * scale)


def middle(image: np.ndarray) -> np.ndarray:
    """What is shown of an enlarged image."""
    first = MARGIN * SCALE
    return image[first : first + SHOWN, first : first + SHOWN]


def block(*pictures: tuple[str, np.ndarray]) -> np.ndarray:
    """The middles of three pictures side by side, each below its name."""
    canvas = Image.new("RGB", (3 * SHOWN + 2 * LINE, SHOWN + CAPTION), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for column, (name, image) in enumerate(pictures):
        left = column * (SHOWN + LINE)
        canvas.paste(Image.fromarray(middle(image)), (left, CAPTION))
        draw.text((left + 2, 2), name, "black", font)
    return np.asarray(canvas)


def sheet(blocks: list[np.ndarray]) -> np.ndarray:
    """Blocks in two columns."""
    gap = np.full((len(blocks[0]), GAP, 3), 255, np.uint8)
    pairs = zip(blocks[::2], blocks[1::2], strict=True)
    return np.concatenate([np.concatenate((left, gap, right), axis=1) for left, right in pairs])


if __name__ == "__main__":
    main()
