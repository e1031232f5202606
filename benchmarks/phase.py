"""Feature distances of restored images at every phase of the features' strides: a model that plays to one phase shows.

Below them, in levels of 255: what of the error repeats with the grid of latents, by the lattice loss over whole images.

python benchmarks/phase.py LR HR [--model FOLDER] [--limit 8]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from patchscaler import PatchScalerPipeline, Plan
from patchscaler.evaluation.calibrate import read_pairs
from patchscaler.features import TAPS, EfficientNetFeatures, feature_distance
from patchscaler.training.losses import lattice_loss

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
        whole = lattice_loss(images[:1].float(), images[1:], pitch, window=max(images.shape))
        pattern += 255 * float(whole) / len(pairs)
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


if __name__ == "__main__":
    main()
