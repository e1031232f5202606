"""Peak memory of `patchscaler upscale` on the CPU, one thread, by GNU time (`apt install time`).

python benchmarks/memory.py [--megapixels 1 4 25] [--model FOLDER | reduced | bundled] [--memory-limit 3G] [--suffix png]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pyvips
import torch

from patchscaler import PatchScalerPipeline, Plan
from patchscaler.models.autoencoder import Autoencoder
from patchscaler.models.patch_dit import PatchDiT
from patchscaler.models.restoration import RestorationModule
from patchscaler.models.texture_classifier import TextureClassifier
from patchscaler.models.texture_encoder import TextureEncoder
from patchscaler.pipeline import SamplingConfig

PHOTO = Path(__file__).parents[1] / "examples" / "coast.png"


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megapixels", type=int, nargs="+", default=[1, 4, 25])
    parser.add_argument("--model", default="reduced")
    parser.add_argument("--memory-limit", default="3G")
    parser.add_argument("--quality", default="fast")
    parser.add_argument("--suffix", default="png")
    arguments = parser.parse_args()
    print("| model | input | output | peak memory | seconds |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = [] if arguments.model == "bundled" else ["--model", arguments.model]
        if arguments.model == "reduced":
            reduced().save_pretrained(folder / "reduced")
            model = ["--model", str(folder / "reduced")]
        for megapixels in arguments.megapixels:
            source, output = folder / f"{megapixels}.jpg", folder / f"{megapixels}.{arguments.suffix}"
            output = output.with_stem(f"{megapixels}-large")
            side = make_photo(source, megapixels)
            command = [sys.executable, "-m", "patchscaler", "upscale", str(source), "-o", str(output), *model]
            command += ["--quality", arguments.quality, "--memory-limit", arguments.memory_limit]
            gibibytes, seconds = measure([*command, "--device", "cpu", "--quiet"])
            large = pyvips.Image.new_from_file(str(output))
            assert (large.width, large.height) == (4 * side, 4 * side)
            print(
                f"| {arguments.model}, {arguments.quality} | {side}x{side} JPEG |"
                f" {4 * side}x{4 * side} {arguments.suffix.upper()} | {gibibytes:.2f} GiB | {seconds:.0f} |",
                flush=True,
            )
            output.unlink()


def reduced() -> PatchScalerPipeline:
    """Networks about a hundred times as fast, untrained, with as many channels waiting between stages as `compact` has."""
    torch.manual_seed(0)
    narrow = (16, 16)
    return PatchScalerPipeline(
        autoencoder=Autoencoder(encoder_widths=narrow, decoder_widths=narrow),
        restoration=RestorationModule(widths=(16, 16, 16)),
        patch_dit=PatchDiT(
            feature_channels=16, width=32, heads=2, depth=2, prompt_width=32, stem_width=16, stem_channels=64
        ),
        texture_classifier=TextureClassifier(widths=narrow, key_width=16),
        texture_encoder=TextureEncoder(width=32, heads=2, depth=1, prompt_width=32),
        sampling=SamplingConfig(),
        plans=dict.fromkeys(("fast", "balanced", "best"), Plan.uniform(0.43, 1)),
        card={"name": "reduced", "version": "0"},
    )


def make_photo(path: Path, megapixels: int) -> int:
    """Write a square JPEG of so many megapixels, an enlarged photograph with noise on it; returns its side."""
    side = round((megapixels * 1e6) ** 0.5)
    photo = pyvips.Image.new_from_file(str(PHOTO))
    photo = photo.resize(side / photo.width, vscale=side / photo.height)
    (photo + pyvips.Image.gaussnoise(side, side, sigma=6)).cast("uchar").jpegsave(str(path), Q=92)
    return side


def measure(command: list[str]) -> tuple[float, float]:
    """Peak resident memory in GiB and seconds of a command."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["/usr/bin/time", "-v", *command], capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    peak = re.search(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)
    wall = re.search(r"Elapsed .*: (?:(\d+):)?(\d+):([\d.]+)\n", done.stderr)
    assert peak and wall
    hours, minutes, seconds = (float(part or 0) for part in wall.groups())
    return int(peak[1]) / 2**20, 3600 * hours + 60 * minutes + seconds


if __name__ == "__main__":
    main()
