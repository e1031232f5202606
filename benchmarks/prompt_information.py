"""Does what is retrieved tell of the texture that is lost: how well its statistics are predicted with and without it.

python benchmarks/prompt_information.py LR HR [--model FOLDER] [--memory FILE] [--size 16] [--limit 64]

The texture of a latent patch in numbers: the logarithm of the mean squared difference of neighbours, of each channel,
down and across. Those of the true patch are predicted linearly from those of the restored one and its confidence, then
from the entries' as well, by ridge regression on images that are left out of the fit. No denoiser, no prompt encoder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from common import table
from torch import Tensor

from patchscaler import PatchScalerPipeline
from patchscaler.evaluation import metrics
from patchscaler.evaluation.calibrate import read_pairs
from patchscaler.sampling.grouping import patch_quality
from patchscaler.sampling.patches import unfold
from patchscaler.texture_memory import ReferenceTextureMemory

FOLDS, RIDGE = 8, 10.0
COLUMNS = ["known besides the restored patch", "R2", "gain, 95 %"]


@torch.inference_mode()
def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("lr", type=Path)
    parser.add_argument("hr", type=Path)
    parser.add_argument("--model", default=None)
    parser.add_argument("--memory", type=Path, default=None, help="instead of the model's own")
    parser.add_argument("--size", type=int, default=None, help="side of a patch in latents; else the model's")
    parser.add_argument("--limit", type=int, default=None)
    arguments = parser.parse_args()
    pipeline = PatchScalerPipeline.from_pretrained(arguments.model)
    memory = pipeline.texture_memory
    if arguments.memory is not None:
        memory = ReferenceTextureMemory.load(arguments.memory)
    assert memory is not None
    size, count = arguments.size or pipeline.sampling.patch_size, pipeline.sampling.prompt_count
    generator = torch.Generator().manual_seed(0)
    known: dict[str, list[Tensor]] = {}
    pairs = read_pairs(arguments.lr, arguments.hr, arguments.limit)
    for lr, hr in pairs:
        restored = pipeline.restore(lr[None])
        y, x = (unfold(latent, size, size) for latent in (restored.latent, pipeline.encode(hr[None])))
        found = memory.search(pipeline.keys(y), count)
        drawn = memory.patches(torch.randint(len(memory), (len(y), count), generator=generator))
        sure = patch_quality(restored.confidence, size, size).log()[:, None]
        texts = {
            "": torch.cat((texture(y), sure.cpu()), dim=1),
            "truth": texture(x),
            f"{count} random entries": mean_texture(drawn),
            f"top {count} of {len(memory)}": mean_texture(found.patches),
            "the truth of the next patch": texture(x.roll(1, dims=0)),
        }
        for name, values in texts.items():
            known.setdefault(name, []).append(values)
    truth = known.pop("truth")
    base = errors(truth, [known[""]])
    spread = errors(truth, [])
    rows: list[dict[str, object]] = [
        dict(zip(COLUMNS, ("nothing", f"{1 - base.mean() / spread.mean():.3f}", ""), strict=True))
    ]
    for name, values in list(known.items())[1:]:
        found_errors = errors(truth, [known[""], values])
        gain = metrics.paired_bootstrap(base / spread.mean(), found_errors / spread.mean())
        cells = (
            name,
            f"{1 - found_errors.mean() / spread.mean():.3f}",
            "{:+.4f} [{:+.4f}, {:+.4f}]".format(*gain),
        )
        rows.append(dict(zip(COLUMNS, cells, strict=True)))
    print(f"{len(pairs)} images, weights {pipeline.fingerprint}\n")
    print(table(rows, COLUMNS))


def texture(patches: Tensor) -> Tensor:
    """Statistics (n, 2 c) of latent patches (n, c, p, p)."""
    steps = (patches.float().diff(dim=axis).square().mean(dim=(2, 3)) for axis in (2, 3))
    return (torch.cat(list(steps), dim=1) + 1e-4).log().cpu()


def mean_texture(entries: Tensor) -> Tensor:
    """Mean statistics (n, 2 c) of entries (n, k, c, p, p)."""
    return texture(entries.flatten(0, 1)).unflatten(0, entries.shape[:2]).mean(dim=1)


def errors(truth: list[Tensor], known: list[list[Tensor]]) -> np.ndarray:
    """Mean squared error of each image's statistics, predicted by a fit to images of the other folds."""
    number, found = torch.arange(len(truth)) % FOLDS, np.zeros(len(truth))
    inputs = [
        torch.cat((torch.ones(len(values), 1), *(part[i] for part in known)), dim=1).double()
        for i, values in enumerate(truth)
    ]
    for fold in range(FOLDS):
        fitted, target = (
            torch.cat([part[i] for i in range(len(truth)) if number[i] != fold]) for part in (inputs, truth)
        )
        centre, scale = fitted.mean(0), fitted.std(0).clamp(min=1e-6)
        centre[0], scale[0] = 0, 1  # the constant
        mean, deviation = target.mean(0), target.std(0)
        a, b = (fitted - centre) / scale, ((target - mean) / deviation).double()
        weights = torch.linalg.solve(a.T @ a + RIDGE * torch.eye(a.shape[1], dtype=a.dtype), a.T @ b)
        for i in range(len(truth)):
            if number[i] == fold:
                guess = (inputs[i] - centre) / scale @ weights
                found[i] = float(((truth[i] - mean) / deviation - guess).square().mean())
    return found


if __name__ == "__main__":
    main()
