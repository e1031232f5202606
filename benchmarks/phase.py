"""Feature distances of restored images at every phase of the features' strides: a model that plays to one phase shows.

Below them: the deviation, in levels of 255, of the error's mean over all places of one phase of the latent grid.

python benchmarks/phase.py LR HR [--model FOLDER] [--limit 8]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from patchscaler import PatchScalerPipeline, Plan
from patchscaler.evaluation.calibrate import read_pairs
from patchscaler.features import TAPS, EfficientNetFeatures, feature_distance

SHIFTS = range(9)


@torch.inference_mode()
def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lr", type=Path)
    parser.add_argument("hr", type=Path)
    parser.add_argument("--model", default=None)
    parser.add_argument("--limit", type=int, default=8)
    arguments = parser.parse_args()
    pipeline = PatchScalerPipeline.from_pretrained(arguments.model)
    networks = {variant: EfficientNetFeatures(variant).to(pipeline.device) for variant in TAPS}
    pairs = read_pairs(arguments.lr, arguments.hr, arguments.limit)
    distances, pitch = {variant: torch.zeros(len(SHIFTS)) for variant in TAPS}, pipeline.autoencoder.factor
    pattern = 0.0
    for lr, hr in pairs:
        image = pipeline(lr, plan=Plan.restoration_only()).image
        images = torch.stack((image.to(pipeline.device), hr.to(pipeline.device)))
        pattern += 255 * float(repeated(images[0].float() - images[1], pitch).std(correction=0)) / len(pairs)
        for variant, network in networks.items():
            for shift in SHIFTS:
                stop = (images.shape[-1] - 8) // 32 * 32 + shift
                ours, truth = (
                    network(x[None, :, shift:stop, shift:stop]) for x in (images[0].float(), images[1])
                )
                distances[variant][shift] += float(feature_distance(ours, truth)) / len(pairs)
    print(f"{len(pairs)} images, weights {pipeline.fingerprint}\n")
    print("| shift, pixels | " + " | ".join(map(str, SHIFTS)) + " |")
    print("|---" * (len(SHIFTS) + 1) + "|")
    for variant, values in distances.items():
        print(f"| {variant} | " + " | ".join(f"{value:.3f}" for value in values.tolist()) + " |")
    print(f"\npattern of {pitch} pixels: {pattern:.2f} levels")


def repeated(error: torch.Tensor, pitch: int) -> torch.Tensor:
    """Mean error (pitch, pitch) of (3, H, W) at each phase of a grid, over colours and places."""
    height, width = (side // pitch * pitch for side in error.shape[1:])
    return error[:, :height, :width].unflatten(2, (-1, pitch)).unflatten(1, (-1, pitch)).mean(dim=(0, 1, 3))


if __name__ == "__main__":
    main()
