"""Has training learnt its photographs by heart: the same degradation on tiles that taught a model and on others.

python benchmarks/generalisation.py TRAIN VAL [--model FOLDER] [--tiles 48] [--path 0.43:1]

Where a longer training lowers the distance of the first and not of the second, more minutes on the same photographs are
lost: more photographs are wanted. The two rows themselves differ in difficulty: compare models, not rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from common import table
from PIL import Image

from patchscaler import PatchScalerPipeline, Plan
from patchscaler.data.degradation import Degradation, DegradationConfig
from patchscaler.evaluation import metrics
from patchscaler.imaging.tensors import levels

CROP = 256
COLUMNS = ["tiles", "plan", "DFD", "detail", "PSNR-Y"]
DEGRADATION = DegradationConfig.from_dict({"clean": 0.0, "light": 0.3})


@torch.inference_mode()
def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of tiles")
    parser.add_argument("--model", default=None)
    parser.add_argument("--tiles", type=int, default=48, help="of each folder, evenly spaced")
    parser.add_argument("--path", default="0.43:1", help="T:N of every patch")
    arguments = parser.parse_args()
    pipeline = PatchScalerPipeline.from_pretrained(arguments.model)
    start, steps = arguments.path.split(":")
    plans = {"restored": Plan.restoration_only(), "sampled": Plan.uniform(float(start), int(steps))}
    judge = metrics.DeepFeatureDistance().to(pipeline.device)
    rows = []
    for folder in arguments.folders:
        files = sorted(file for file in folder.iterdir() if file.suffix in (".webp", ".png", ".jpg"))
        chosen = files[:: max(1, len(files) // arguments.tiles)][: arguments.tiles]
        found = [measure(pipeline, plans, judge, file, seed) for seed, file in enumerate(chosen)]
        for name in plans:
            means = np.mean([values[name] for values in found], axis=0)
            cells = (folder.name, name, f"{means[0]:.4f}", f"{means[1]:.2f}", f"{means[2]:.2f}")
            rows.append(dict(zip(COLUMNS, cells, strict=True)))
    print(f"up to {arguments.tiles} crops each, weights {pipeline.fingerprint}\n")
    print(table(rows, COLUMNS))


def measure(
    pipeline: PatchScalerPipeline,
    plans: dict[str, Plan],
    judge: metrics.DeepFeatureDistance,
    file: Path,
    seed: int,
) -> dict[str, tuple[float, float, float]]:
    """Distance, detail energy and PSNR by plan of the middle of one tile, degraded by its own seed."""
    with Image.open(file) as image:
        whole = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    top, left = ((side - CROP) // 2 for side in whole.shape[1:])
    truth = whole[:, top : top + CROP, left : left + CROP]
    degraded = Degradation(DEGRADATION)(truth[None] / 255, torch.Generator().manual_seed(seed))
    lr = torch.from_numpy(levels(degraded[0], np.uint8)).permute(2, 0, 1) / 255
    found = {}
    for name, plan in plans.items():
        ours = levels(pipeline(lr, plan=plan).image, np.uint8)
        pair = (torch.from_numpy(ours).permute(2, 0, 1)[None] / 255, truth[None] / 255)
        reference = truth.permute(1, 2, 0).numpy()
        found[name] = (
            float(judge(*(x.to(pipeline.device) for x in pair))),
            metrics.detail_energy(ours, reference),
            metrics.psnr_y(ours, reference),
        )
    return found


if __name__ == "__main__":
    main()
