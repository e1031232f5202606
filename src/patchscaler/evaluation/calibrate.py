"""Calibration: which path (T, N) pays for which difficulty, measured on validation images.

Every candidate path is run on all patches; each 128-pixel patch of the output is compared with the truth by the deep
feature distance. A group's path for a quality is the cheapest one that keeps that quality's share of the group's best
gain over taking no step at all. A young denoiser that gains nothing is thereby given no steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from patchscaler.errors import InputError
from patchscaler.evaluation.files import check_size, common_stems, find_images, read_image
from patchscaler.evaluation.metrics import DeepFeatureDistance
from patchscaler.imaging.tensors import to_tensor
from patchscaler.pipeline import MIN_SIDE, SCALE, PatchScalerPipeline
from patchscaler.sampling.grouping import Path, Plan, assign, patch_quality
from patchscaler.sampling.patches import unfold

CANDIDATES = tuple(Path(timestep, steps) for steps in (1, 2, 4) for timestep in (0.43, 0.66, 0.9))
KEEP: Mapping[str, float] = {"fast": 0.6, "balanced": 0.9, "best": 1.0}
SHARES = (0.4, 0.35, 0.25)


@dataclass
class Calibration:
    """What calibration measured and chose.

    Attributes:
        quality: mean confidence (n,) of every validation patch.
        distance: deep feature distance (n,) of every patch, by path.
        plans: the chosen plan of each named quality.
        comparison: mean distance at equal mean steps of PGS, uniform, shuffled confidence and LR variance.
    """

    quality: Tensor
    distance: dict[Path, Tensor]
    plans: dict[str, Plan] = field(default_factory=dict)
    comparison: list[dict[str, Any]] = field(default_factory=list)


def calibrate(
    pipeline: PatchScalerPipeline,
    pairs: Sequence[tuple[Tensor, Tensor]],
    *,
    candidates: Sequence[Path] = CANDIDATES,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Measure every candidate path on validation pairs and choose the plans.

    Args:
        pipeline: the model; not changed.
        pairs: LR (3, h, w) and HR (3, 4h, 4w) images in [0, 1]; sides that are whole patches.
        candidates: paths to try, beside taking no step.
        shares: share of the patches in each group, simplest first.
        seed: fixes the noise.
        progress: told how many paths of how many are measured.

    Raises:
        InputError: an image's sides are not whole patches, or its truth is not 4 times as large.
    """
    size = pipeline.sampling.patch_size
    pixels = size * pipeline.autoencoder.factor
    if any(side % (pixels // SCALE) for lr, _ in pairs for side in lr.shape[1:]):
        raise InputError(
            f"calibration images must have sides that are multiples of {pixels // SCALE} LR pixels"
        )
    if any(hr.shape[1:] != (SCALE * lr.shape[1], SCALE * lr.shape[2]) for lr, hr in pairs):
        raise InputError(f"the truth of a calibration image must be {SCALE} times as large as it is")
    judge = DeepFeatureDistance().to(pipeline.device)
    truth = [unfold(hr[None].to(pipeline.device), pixels, pixels) for _, hr in pairs]
    nothing = Path(1.0, 0)
    measured = Calibration(torch.empty(0), {})
    for done, path in enumerate((nothing, *candidates)):
        plan = Plan((), (path,))
        distances, qualities = [], []
        for (lr, _), patches in zip(pairs, truth, strict=True):
            result = pipeline(lr, plan=plan, seed=seed)
            image = (result.image[None].to(pipeline.device) * 255).round() / 255
            distances.append(judge(unfold(image, pixels, pixels), patches).cpu())
            confidence = torch.from_numpy(result.confidence)[None, None]
            qualities.append(patch_quality(confidence, size, size))
        measured.distance[path] = torch.cat(distances)
        measured.quality = torch.cat(qualities)
        if progress is not None:
            progress(done + 1, len(candidates) + 1)
    for name, keep in KEEP.items():
        measured.plans[name] = _choose(measured, shares, keep)
    variance = torch.cat([_lr_variance(lr, pixels // SCALE) for lr, _ in pairs])
    measured.comparison = [_compare(name, plan, measured, variance) for name, plan in measured.plans.items()]
    return measured


def to_markdown(measured: Calibration) -> str:
    """The Pareto table of every path by difficulty, and the comparison at equal mean steps."""
    groups = assign(measured.quality, measured.plans["balanced"].thresholds)
    lines = ["| T | N | all | simple | medium | hard |", "|---|---|---|---|---|---|"]
    for path, distance in measured.distance.items():
        means = [float(distance[groups == group].mean()) for group in range(len(SHARES))]
        parts = ["" if isnan(mean) else f"{mean:.4f}" for mean in means]
        lines.append(
            f"| {path.timestep} | {path.steps} | {float(distance.mean()):.4f} | {' | '.join(parts)} |"
        )
    lines += [
        "",
        "| plan | mean steps | PGS | uniform | shuffled | LR variance |",
        "|---|---|---|---|---|---|",
    ]
    for row in measured.comparison:
        figures = " | ".join(f"{row[key]:.4f}" for key in ("pgs", "uniform", "shuffled", "lr_variance"))
        lines.append(f"| {row['plan']} | {row['steps']:.2f} | {figures} |")
    return "\n".join(lines) + "\n"


def read_pairs(lr_dir: FilePath, hr_dir: FilePath, limit: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """The images that have the same stem in both folders.

    Raises:
        InputError: there are none, one cannot be read, or sizes do not fit.
    """
    low, high = find_images(lr_dir), find_images(hr_dir)
    pairs = []
    for stem in common_stems(lr_dir, hr_dir, limit):
        lr, hr = read_image(low[stem]), read_image(high[stem])
        check_size(high[stem], hr, lr, SCALE)
        pairs.append((to_tensor(lr, MIN_SIDE), to_tensor(hr, MIN_SIDE)))
    return pairs


def _choose(measured: Calibration, shares: Sequence[float], keep: float) -> Plan:
    nothing = Path(1.0, 0)
    plan = Plan.by_quantiles(measured.quality, shares, [nothing] * len(shares))
    groups = assign(measured.quality, plan.thresholds)
    paths = []
    for group in range(len(shares)):
        own = groups == group
        if not own.any():
            paths.append(nothing)
            continue
        mean = {path: float(distance[own].mean()) for path, distance in measured.distance.items()}
        least = min(mean.values())
        enough = mean[nothing] - keep * (mean[nothing] - least)
        paths.append(min((p for p in mean if mean[p] <= enough + 1e-9), key=lambda p: (p.steps, mean[p])))
    return Plan(plan.thresholds, tuple(paths))


def _compare(name: str, plan: Plan, measured: Calibration, variance: Tensor) -> dict[str, Any]:
    """Mean distance when the same numbers of patches take each path, chosen by different orders of difficulty."""
    groups = assign(measured.quality, plan.thresholds)
    by_variance = groups.sort().values[variance.argsort().argsort()]
    shuffled = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(0))]
    steps = float(torch.tensor([path.steps for path in plan.paths]).float()[groups].mean())
    return {
        "plan": name,
        "steps": steps,
        "pgs": _mean_distance(measured, plan, groups),
        "uniform": _uniform_at(measured, steps),
        "shuffled": _mean_distance(measured, plan, shuffled),
        "lr_variance": _mean_distance(measured, plan, by_variance),
    }


def _uniform_at(measured: Calibration, steps: float) -> float:
    """The best uniform sampling at `steps` mean steps: the nearest step counts below and above, mixed."""
    best: dict[int, float] = {}
    for path, distance in measured.distance.items():
        best[path.steps] = min(best.get(path.steps, float("inf")), float(distance.mean()))
    below = max(count for count in best if count <= steps)
    above = min(count for count in best if count >= steps)
    share = 0.0 if above == below else (steps - below) / (above - below)
    return best[below] * (1 - share) + best[above] * share


def _mean_distance(measured: Calibration, plan: Plan, groups: Tensor) -> float:
    table = torch.stack([measured.distance[path] for path in plan.paths])
    return float(table.gather(0, groups[None]).mean())


def _lr_variance(lr: Tensor, size: int) -> Tensor:
    luma = (lr * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=0)
    return unfold(luma[None, None], size, size).var(dim=(1, 2, 3))
