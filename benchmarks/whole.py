"""Whole processes: one photograph cold, and a folder of them, beside what the device alone would take.

python benchmarks/whole.py [--model FOLDER] [--photos 100] [--size 512] [--device cuda] [--quality balanced]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import describe, photograph, repeat, typical
from PIL import Image

from patchscaler import PatchScalerPipeline


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None)
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quality", default="balanced")
    arguments = parser.parse_args()
    options = ["--device", arguments.device, "--quality", arguments.quality]
    if arguments.model is not None:
        options += ["--model", arguments.model]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in", Path(folder) / "out"
        source.mkdir()
        for number in range(arguments.photos):
            pixels = photograph(arguments.size, number).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(source / f"{number:03}.jpg", quality=95)
        first = source / "000.jpg"
        cold = command("upscale", str(first), "-o", str(Path(folder) / "one.jpg"), *options)[0]
        again = command("upscale", str(first), "-o", str(Path(folder) / "two.jpg"), *options)[0]
        seconds, records = command("upscale", str(source), "-o", str(target), "--json", *options)
        nothing = command("--help")[0]
    # A record's clock starts when its photograph does: the first tells when loading was over.
    work = sum(record["seconds"] for record in records)
    device_only = alone(arguments)
    rate = (arguments.photos - 1) / (seconds - cold)
    print(
        f"one photograph: {cold:.2f} s, again {again:.2f} s; --help {nothing:.2f} s\n"
        f"{arguments.photos} photographs: {seconds:.2f} s, of them {work:.2f} s in overlapping photographs\n"
        f"photographs a second once started: {rate:.1f} by the command, {1 / device_only:.1f} by the device alone:"
        f" {rate * device_only:.0%}"
    )


def alone(arguments: argparse.Namespace) -> float:
    """Seconds of one photograph, uint8 to uint8 on the device, mean over those of the folder."""
    pipeline = PatchScalerPipeline.from_pretrained(arguments.model, device=arguments.device)
    device, dtype = pipeline.device, pipeline.dtype
    print(describe(device, dtype), pipeline.fingerprint)
    photos = [photograph(arguments.size, number).to(device) for number in range(5)]

    def call() -> None:
        for photo in photos:
            image = pipeline(photo.to(dtype) / 255, plan=arguments.quality).image
            (image * 255).round().to(torch.uint8)

    for _ in range(3 if device.type == "cuda" else 0):
        call()
    return typical(repeat(call, device, 10), device) / len(photos)


def command(*words: str) -> tuple[float, list[dict[str, float]]]:
    """Seconds of a `patchscaler` process from start to end, and the JSON objects that it prints."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "patchscaler", *words], check=True, capture_output=True, text=True
    )
    seconds = time.perf_counter() - begin
    return seconds, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


if __name__ == "__main__":
    main()
