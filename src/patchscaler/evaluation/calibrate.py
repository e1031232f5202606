"""Calibration: which path (T, N) pays for which difficulty, measured on validation images.

Every candidate path is run on all patches; each 128-pixel patch of the output is compared with the truth, by the deep
feature distance or by the detail that it lacks. A step has a price, which depends on the quality: each group takes the
path whose gain over no step at all exceeds the price of its steps by most. A young denoiser that gains nothing is
thereby given no steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path as FilePath
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from patchscaler.errors import InputError
from patchscaler.evaluation import metrics, tradeoff
from patchscaler.evaluation.chart import line_chart
from patchscaler.evaluation.files import check_size, common_stems, find_images, read_image
from patchscaler.evaluation.metrics import DeepFeatureDistance
from patchscaler.evaluation.restored_image import RestoredImage
from patchscaler.features import feature_distance
from patchscaler.imaging.tensors import to_tensor
from patchscaler.pipeline import MIN_SIDE, SCALE, PatchScalerPipeline
from patchscaler.sampling.grouping import Path, Plan, assign, patch_quality
from patchscaler.sampling.patches import unfold

CANDIDATES = tuple(Path(timestep, steps) for steps in (1, 2, 4) for timestep in (0.43, 0.66, 0.9))
Measure = Literal["distance", "detail"]
"""What of a patch is to become less: its deep feature distance, or the dB of detail that it lacks or has too much."""

PRICES: Mapping[Measure, Mapping[str, float]] = {
    "distance": {"fast": 0.01, "balanced": 0.001, "best": 0.0},
    "detail": {"fast": 0.2, "balanced": 0.1, "best": 0.01},
}
"""What a step must gain, as a share of the measure without sampling."""

SHARES = (0.4, 0.35, 0.25)

Judge = Callable[[Tensor, int], Callable[[Tensor], Tensor]]
"""Takes the truth (3, H, W) and the side of a patch, and gives what measures the patches (n,) of an image beside it."""


@dataclass
class Calibration:
    """What calibration measured and chose.

    Attributes:
        quality: mean confidence (n,) of every validation patch.
        distance: the measure (n,) of every patch, by path; lower is better.
        measure: which it is.
        variance: of the LR pixels under every patch (n,).
        image: number of the image (n,) that every patch is of.
        plans: the chosen plan of each named quality.
        comparison: mean distance at equal mean steps of PGS, uniform, shuffled confidence and LR variance.
    """

    quality: Tensor
    distance: dict[Path, Tensor]
    variance: Tensor
    image: Tensor
    measure: Measure = "distance"
    plans: dict[str, Plan] = field(default_factory=dict)
    comparison: list[dict[str, Any]] = field(default_factory=list)


@torch.inference_mode()
def calibrate(
    pipeline: PatchScalerPipeline,
    pairs: Sequence[tuple[Tensor, Tensor]],
    *,
    measure: Measure = "distance",
    candidates: Sequence[Path] = CANDIDATES,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Measure every candidate path on validation pairs and choose the plans.

    Args:
        pipeline: the model; not changed.
        pairs: LR (3, h, w) and HR (3, 4h, 4w) images in [0, 1]; sides that are whole patches.
        measure: by what paths are chosen.
        candidates: paths to try, beside taking no step.
        shares: share of the patches in each group, simplest first.
        seed: fixes the noise.
        progress: told how many outputs of how many are measured, one of each path for each image.

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
    judge = _by_detail if measure == "detail" else _by_distance(pipeline.device)
    paths = tuple(dict.fromkeys((Path(1.0, 0), *candidates)))
    distances: dict[Path, list[Tensor]] = {path: [] for path in paths}
    qualities = []
    for number, (lr, hr) in enumerate(pairs):
        lost = judge(hr, pixels)
        restored = RestoredImage(pipeline, lr, seed)
        qualities.append(patch_quality(restored.confidence, size, size).cpu())
        for done, path in enumerate(paths):
            result = restored.upscale(Plan((), (path,)))
            distances[path].append(lost((result.image * 255).round() / 255))
            if progress is not None:
                progress(number * len(paths) + done + 1, len(pairs) * len(paths))
    variance = [_lr_variance(lr, pixels // SCALE) for lr, _ in pairs]
    measured = Calibration(
        torch.cat(qualities),
        {path: torch.cat(found) for path, found in distances.items()},
        torch.cat(variance),
        torch.cat([torch.full((len(own),), number) for number, own in enumerate(variance)]),
        measure,
    )
    for name, price in PRICES[measure].items():
        measured.plans[name] = choose(measured, shares, price)
    measured.comparison = [_compare(name, plan, measured) for name, plan in measured.plans.items()]
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
    if measured.image.max() > 0:
        lines += [
            "",
            "PGS less the others, on images that did not choose its paths (negative is better):",
            "",
        ]
        lines += ["| plan | uniform | shuffled | LR variance |", "|---|---|---|---|"]
        for name, gaps in held_out(measured).items():
            cells = [f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]" for gap in gaps.values()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    found = tradeoff.curves(measured.distance, measured.quality, measured.variance)
    return "\n".join(lines) + "\n\n" + tradeoff.to_markdown(found)


def to_chart(measured: Calibration) -> str:
    """Quality against cost as an SVG picture."""
    found = tradeoff.curves(measured.distance, measured.quality, measured.variance)
    points = {name: [(point.steps, point.distance) for point in curve] for name, curve in found.items()}
    label = "deep feature distance" if measured.measure == "distance" else "detail off by, dB"
    return line_chart(points, "mean steps a patch", f"{label}, lower is better")


def parse_paths(text: str) -> tuple[Path, ...]:
    """Paths of a list such as "0.43:1,0.9:2", each T and N.

    Raises:
        InputError: it is not written so, or T is not in (0, 1], or N is under 1.
    """
    try:
        pairs = [word.split(":") for word in text.split(",")]
        paths = tuple(Path(float(timestep), int(steps)) for timestep, steps in pairs)
    except ValueError:
        raise InputError(f"paths are written as T:N,T:N, such as 0.43:1,0.9:2, not {text!r}") from None
    for path in paths:
        if not 0 < path.timestep <= 1 or path.steps < 1:
            raise InputError(f"{path.timestep:g}:{path.steps} is no path: T is in (0, 1], N is 1 or more")
    return paths


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


def choose(measured: Calibration, shares: Sequence[float], price: float) -> Plan:
    """The plan whose groups take the path of the least distance, with the price of its steps.

    A path counts only if its gain over no step exceeds that price by two standard errors: of many paths one is a
    little better by chance.
    """
    nothing = Path(1.0, 0)
    plan = Plan.by_quantiles(measured.quality, shares, [nothing] * len(shares))
    groups = assign(measured.quality, plan.thresholds)
    paths = []
    for group in range(len(shares)):
        own = groups == group
        if not own.any():
            paths.append(nothing)
            continue
        plain, cost = measured.distance[nothing][own], {nothing: 0.0}
        for path, distance in measured.distance.items():
            lost = distance[own] - plain + price * path.steps * plain.mean()
            if float(lost.mean()) + 2 * _standard_error(lost, measured.image[own]) < 0:
                cost[path] = float(lost.mean())
        paths.append(min(cost, key=lambda path: (cost[path], path.steps)))
    return Plan(plan.thresholds, tuple(paths))


def _standard_error(values: Tensor, image: Tensor) -> float:
    """That of the mean of `values` (n,), if images (n,) are drawn and not patches; 0 if there is one image alone."""
    sums = torch.bincount(image, values - values.mean())[image.unique()]
    return (
        0.0
        if len(sums) < 2
        else float(sums.square().sum() * len(sums) / (len(sums) - 1)) ** 0.5 / len(values)
    )


def held_out(
    measured: Calibration,
    shares: Sequence[float] = SHARES,
    prices: Mapping[str, float] | None = None,
) -> dict[str, dict[str, metrics.Interval]]:
    """Distance of PGS less that of its rivals at equal mean steps, on images that chose none of the paths.

    Plans are chosen on every other image and judged on the rest, both ways round; intervals by resampling images.

    Returns:
        For each quality the interval against `uniform`, `shuffled` and `lr_variance`; negative is better.
    """
    images = int(measured.image.max()) + 1
    found = {}
    for name, price in (prices or PRICES[measured.measure]).items():
        gaps: dict[str, list[float]] = {}
        for half in (0, 1):
            mine, other = (_part(measured, measured.image % 2 == side) for side in (half, 1 - half))
            plan = choose(other, shares, price)
            values = _rivals(plan, mine, other)
            for number in range(half, images, 2):
                own = mine.image == number
                for rival in ("uniform", "shuffled", "lr_variance"):
                    gap = float((values["pgs"][own] - values[rival][own]).mean())
                    gaps.setdefault(rival, []).append(gap)
        found[name] = {
            rival: metrics.paired_bootstrap(np.array(gap), np.zeros(len(gap))) for rival, gap in gaps.items()
        }
    return found


def _part(measured: Calibration, where: Tensor) -> Calibration:
    distance = {path: values[where] for path, values in measured.distance.items()}
    return Calibration(
        measured.quality[where], distance, measured.variance[where], measured.image[where], measured.measure
    )


def _compare(name: str, plan: Plan, measured: Calibration) -> dict[str, Any]:
    values = {rival: float(each.mean()) for rival, each in _rivals(plan, measured, measured).items()}
    groups = assign(measured.quality, plan.thresholds)
    return {"plan": name, "steps": float(_steps_of(plan, groups).mean()), **values}


def _rivals(plan: Plan, measured: Calibration, chosen_on: Calibration) -> dict[str, Tensor]:
    """Distance of every patch when as many take each path, chosen by different orders of difficulty."""
    groups = assign(measured.quality, plan.thresholds)
    by_variance = groups.sort().values[measured.variance.argsort().argsort()]
    shuffled = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(0))]
    table = torch.stack([measured.distance[path] for path in plan.paths])
    return {
        "pgs": table.gather(0, groups[None])[0],
        "uniform": _uniform_at(float(_steps_of(plan, groups).mean()), measured, chosen_on),
        "shuffled": table.gather(0, shuffled[None])[0],
        "lr_variance": table.gather(0, by_variance[None])[0],
    }


def _steps_of(plan: Plan, groups: Tensor) -> Tensor:
    return torch.tensor([path.steps for path in plan.paths]).float()[groups]


def _uniform_at(steps: float, measured: Calibration, chosen_on: Calibration) -> Tensor:
    """Uniform sampling at `steps` mean steps: the best paths of the step counts below and above, mixed."""
    best: dict[int, Path] = {}
    for path in sorted(chosen_on.distance, key=lambda path: float(chosen_on.distance[path].mean())):
        best.setdefault(path.steps, path)
    below = max(count for count in best if count <= steps)
    above = min(count for count in best if count >= steps)
    share = 0.0 if above == below else (steps - below) / (above - below)
    return measured.distance[best[below]] * (1 - share) + measured.distance[best[above]] * share


def _by_distance(device: torch.device) -> Judge:
    judge = DeepFeatureDistance().to(device)

    def judged(truth: Tensor, pixels: int) -> Callable[[Tensor], Tensor]:
        features = judge.features(unfold(truth[None].to(device), pixels, pixels))

        def lost(image: Tensor) -> Tensor:
            patches = unfold(image[None].to(device), pixels, pixels)
            return feature_distance(judge.features(patches), features).cpu()

        return lost

    return judged


def _by_detail(truth: Tensor, pixels: int) -> Callable[[Tensor], Tensor]:
    def eight_bit(image: Tensor) -> np.ndarray:
        return (image.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()

    reference = eight_bit(truth)

    def lost(image: Tensor) -> Tensor:
        return torch.from_numpy(metrics.detail_errors(eight_bit(image), reference, pixels)).float()

    return lost


def _lr_variance(lr: Tensor, size: int) -> Tensor:
    luma = (lr * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=0)
    return unfold(luma[None, None], size, size).var(dim=(1, 2, 3))
