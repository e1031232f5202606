"""Draws docs/images/transparency.jpg: soft and hard edges, enlarged, over white, black and magenta.

python benchmarks/transparency.py [--model FOLDER] [-o docs/images/transparency.jpg]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

ROOT = Path(__file__).parents[1]
SIDE, FINER, SCALE = 96, 8, 4


def main() -> None:
    """Make two pictures, enlarge them by the command, put them over three backgrounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "images" / "transparency.jpg")
    arguments = parser.parse_args()
    model = ["--model", arguments.model] if arguments.model else []
    alpha = shapes()
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    flat = np.where(np.arange(SIDE)[:, None, None] < SIDE // 2, (230, 120, 30), (40, 90, 200))
    photo = np.asarray(Image.open(ROOT / "examples" / "burger.png").convert("RGB").crop((16, 16, 112, 112)))
    hidden = {"flat": (flat, noise), "photo": (photo, np.array([0, 255, 0]))}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, (colour, under) in hidden.items():
            source, large = Path(scratch) / f"{name}.png", Path(scratch) / f"{name}-large.png"
            pixels = np.where(alpha[..., None] > 0, colour, under)
            Image.fromarray(np.dstack([pixels, alpha]).astype(np.uint8)).save(source)
            command = [sys.executable, "-m", "patchscaler", "upscale", str(source), "-o", str(large), *model]
            subprocess.run(command, check=True)
            rows.append(over_backgrounds(Image.open(large)))
            if name == "flat":
                size = (SCALE * SIDE, SCALE * SIDE)
                rows.insert(0, over_backgrounds(Image.open(source).resize(size, Image.Resampling.NEAREST)))
    Image.fromarray(np.concatenate(rows)).save(arguments.output, quality=85, subsampling=0)


def shapes() -> np.ndarray:
    """Alpha (96, 96): a disc, a triangle and a thin line with hard edges, a disc with a soft one."""
    hard = Image.new("L", (SIDE * FINER, SIDE * FINER))
    draw = ImageDraw.Draw(hard)
    draw.ellipse((60, 60, 420, 420), fill=255)
    draw.polygon([(480, 60), (720, 120), (560, 330)], fill=255)
    draw.line([(60, 520), (700, 460)], fill=255, width=14)
    soft = Image.new("L", hard.size)
    ImageDraw.Draw(soft).ellipse((380, 380, 680, 680), fill=255)
    soft = soft.filter(ImageFilter.GaussianBlur(40))
    small = [np.asarray(part.resize((SIDE, SIDE), Image.Resampling.LANCZOS)) for part in (hard, soft)]
    return np.maximum(*small)


def over_backgrounds(picture: Image.Image) -> np.ndarray:
    """An RGBA picture over white, black and magenta, side by side: (h, 3 w, 3)."""
    parts = []
    for colour in ("white", "black", "magenta"):
        background = Image.new("RGBA", picture.size, colour)
        background.alpha_composite(picture.convert("RGBA"))
        parts.append(np.asarray(background.convert("RGB")))
    return np.concatenate(parts, axis=1)


if __name__ == "__main__":
    main()
