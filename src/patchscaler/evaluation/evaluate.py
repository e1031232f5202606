"""An evaluation run: several ways to upscale the same LR files, measured against the truth and each other."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchscaler.errors import InputError
from patchscaler.evaluation import metrics
from patchscaler.evaluation.contest import Contest, Views
from patchscaler.evaluation.files import check_size, common_stems, find_images, read_image
from patchscaler.evaluation.metrics import Array, Interval
from patchscaler.evaluation.restored_image import RestoredImage
from patchscaler.features import feature_distance
from patchscaler.imaging.difficulty import difficulty_map
from patchscaler.imaging.tensors import from_tensor, to_tensor
from patchscaler.models.autoencoder import upsample
from patchscaler.pipeline import MIN_SIDE, SCALE, PatchScalerPipeline
from patchscaler.result import UpscaleResult
from patchscaler.sampling.grouping import Plan, patch_quality
from patchscaler.sampling.patches import unfold

METRICS = ("psnr_y", "ssim_y", "dfd", "detail_energy", "colour_shift", "colour_drift", "seam_power")
BICUBIC, RESTORATION, UNIFORM, OURS = "bicubic", "restoration only", "uniform", "balanced"
MIN_SIZE = 128
_CROP = 192


@dataclass
class Row:
    """One way to upscale: lists have one entry per image; `steps`, `shares`, `seconds` are empty for peers.

    Attributes:
        name: what the row is called.
        values: the figures of each image, by metric.
        steps: mean sampler steps per patch.
        shares: share of the patches in each group, simplest first.
        seconds: time of the pipeline's stages; encoding and restoring are done once and count in every row.
    """

    name: str
    values: dict[str, list[float]] = field(default_factory=lambda: {metric: [] for metric in METRICS})
    steps: list[float] = field(default_factory=list)
    shares: list[list[float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Means over the images, of seam power the median; None where nothing was measured."""
        result: dict[str, Any] = {metric: _mean(values) for metric, values in self.values.items()}
        seams = [value for value in self.values["seam_power"] if np.isfinite(value)]
        result["seam_power"] = float(np.median(seams)) if seams else None
        result["steps"], result["seconds"] = _mean(self.steps), _mean(self.seconds)
        result["shares"] = np.mean(self.shares, axis=0).tolist() if self.shares else None
        return result


@dataclass(frozen=True)
class Comparison:
    """Mean of balanced - other over the images with its 95 % interval."""

    other: str
    metric: str
    interval: Interval


@dataclass(frozen=True)
class Picture:
    """What a report shows of an image: one crop of LR, of every row and of the truth; the difficulty map."""

    lr: Array
    crops: dict[str, Array]
    difficulty: Array


@dataclass
class Evaluation:
    """What an evaluation measured.

    Attributes:
        settings: model, seed, border, device, precision and folders.
        images: stems of the files.
        rows: bicubic, peers, restoration only, uniform, and the model's plans.
        comparisons: paired bootstraps of `balanced` against every other row.
        correlation: Spearman's, over all patches, of squared latent error with confidence and LR variance.
        reconstruction: mean 8-bit PSNR and detail energy in dB of D(E(truth)), without and with the LR image.
        grid_shift: mean difference in levels between two runs whose patch grids are half a patch apart.
        pictures: crops by image, not part of `to_dict`.
        contests: `balanced` against each peer, crop by crop.
    """

    settings: dict[str, Any]
    images: list[str]
    rows: list[Row]
    comparisons: list[Comparison] = field(default_factory=list)
    correlation: dict[str, float] = field(default_factory=dict)
    reconstruction: dict[str, float] = field(default_factory=dict)
    grid_shift: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)
    contests: list[Contest] = field(default_factory=list)

    def row(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures as JSON values; what is infinite or not a number becomes None."""
        record = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("rows", "pictures")}
        record["comparisons"] = [
            {"other": c.other, "metric": c.metric, **c.interval._asdict()} for c in self.comparisons
        ]
        record["contests"] = [contest.to_dict() for contest in self.contests]
        record["rows"] = [{"summary": row.summary(), **asdict(row)} for row in self.rows]
        return _finite(record)

    def pick(self, count: int) -> list[str]:
        """Images for a report: those that sampling helps most, those it hurts most, and others at random."""
        gain = np.subtract(self.row(RESTORATION).values["dfd"], self.row(OURS).values["dfd"])
        order = [self.images[index] for index in np.argsort(-gain, kind="stable")]
        extremes = min(-(-3 * count // 8), len(order) // 2)
        rest = order[extremes : len(order) - extremes]
        random.Random(0).shuffle(rest)
        worst = order[len(order) - extremes :][::-1]
        return (order[:extremes] + worst + rest)[:count]


@torch.inference_mode()
def evaluate(
    pipeline: PatchScalerPipeline,
    lr_dir: Path,
    hr_dir: Path,
    *,
    peers: Mapping[str, Path] | None = None,
    seed: int = 0,
    border: int = 0,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a pipeline on the LR files whose stems match in both folders.

    Args:
        pipeline: the model; not changed.
        lr_dir: LR images.
        hr_dir: their truth, 4 times as large.
        peers: folders of other methods' outputs for the same stems, by name.
        seed: fixes the noise and the resampling.
        border: HR pixels to leave out on every side; 4 is usual for Set5 and Set14.
        limit: use the first so many images only.
        progress: told how many images of how many are done.

    Raises:
        InputError: nothing matches, a file cannot be read, sizes do not fit, or an image is too small.
    """
    peers = dict(peers or {})
    plans = {
        RESTORATION: Plan.restoration_only(),
        UNIFORM: Plan((), (max(pipeline.plans["best"].paths, key=lambda path: path.steps),)),
        **pipeline.plans,
    }
    taken = sorted(peers.keys() & {BICUBIC, *plans})
    if taken:
        raise InputError(f"a peer cannot be called {taken[0]!r}: a row of the report has that name")
    stems = common_stems(lr_dir, hr_dir, limit)
    low, high = find_images(lr_dir), find_images(hr_dir)
    ready = {name: find_images(folder) for name, folder in peers.items()}
    for name, files in ready.items():
        missing = [stem for stem in stems if stem not in files]
        if missing:
            raise InputError(f"{peers[name]}: no output of {name} for {missing[0]}")

    evaluation = Evaluation(
        settings={
            "model": pipeline.fingerprint,
            "device": str(pipeline.device),
            "dtype": str(pipeline.dtype).removeprefix("torch."),
            "seed": seed,
            "border": border,
            "lr": str(lr_dir),
            "hr": str(hr_dir),
            "peers": {name: str(folder) for name, folder in peers.items()},
            "plans": {name: plan.to_dict() for name, plan in plans.items()},
        },
        images=stems,
        rows=[Row(name) for name in (BICUBIC, *peers, *plans)],
        contests=[Contest(name) for name in peers],
    )
    judge = metrics.DeepFeatureDistance().to(pipeline.device)
    pitch = pipeline.sampling.stride * pipeline.autoencoder.factor
    patches: list[Tensor] = []
    rebuilt: list[dict[str, float]] = []
    shifts: list[dict[str, float]] = []
    for done, stem in enumerate(stems):
        lr, truth = read_image(low[stem]), read_image(high[stem])
        _check_size(high[stem], truth, lr, border)
        outputs = {BICUBIC: _bicubic(lr)}
        for name, files in ready.items():
            outputs[name] = read_image(files[stem])
            _check_size(files[stem], outputs[name], lr, border)
        restored = RestoredImage(pipeline, lr, seed)
        results = {name: restored.upscale(plan) for name, plan in plans.items()}
        outputs |= {name: result.image for name, result in results.items()}
        _measure(evaluation, outputs, truth, judge, border, pitch)
        difficulty = _difficulty(pipeline, lr, results[OURS])
        for contest in evaluation.contests:
            peer, ours = outputs[contest.peer], outputs[OURS]
            contest.add(stem, Views(lr, outputs[BICUBIC], peer, ours, truth, difficulty), judge, border)
        for name, result in results.items():
            _record(evaluation.row(name), result, len(plans[name].paths))
        whole_lr, whole_truth = _whole_patches(pipeline, lr, truth)
        latent = pipeline.encode(whole_truth)
        patches.append(_study_patches(pipeline, lr, restored, latent))
        rebuilt.append(_reconstruct(pipeline, whole_lr, truth, latent))
        shifts.append(_grid_shift(pipeline, lr, {name: plans[name] for name in (RESTORATION, OURS)}, results))
        evaluation.pictures[stem] = _picture(pipeline, lr, truth, outputs, results[OURS], difficulty)
        if progress is not None:
            progress(done + 1, len(stems))

    quality, error, variance = torch.cat(patches, dim=1).numpy()
    evaluation.correlation = {
        "confidence": metrics.spearman(quality, error),
        "lr_variance": metrics.spearman(variance, error),
        "patches": len(error),
    }
    evaluation.reconstruction = {key: _average(record[key] for record in rebuilt) for key in rebuilt[0]}
    evaluation.grid_shift = {key: _average(record[key] for record in shifts) for key in shifts[0]}
    ours = evaluation.row(OURS)
    evaluation.comparisons = [
        Comparison(row.name, metric, _compare(ours, row, metric, seed))
        for row in evaluation.rows
        if row is not ours
        for metric in ("dfd", "psnr_y")
    ]
    return evaluation


def _measure(
    evaluation: Evaluation,
    outputs: Mapping[str, Array],
    truth: Array,
    judge: metrics.DeepFeatureDistance,
    border: int,
    pitch: int,
) -> None:
    """Add the figures of one image to every row."""
    device = next(judge.parameters()).device
    crop = partial(metrics.crop_border, border=border)
    truth, bicubic, reference = crop(truth), crop(outputs[BICUBIC]), crop(outputs[RESTORATION])

    def features(image: Array) -> list[Tensor]:
        return judge.features(to_tensor(image, MIN_SIZE)[None].to(device))

    def measure(image: Array) -> dict[str, float]:
        return {
            "psnr_y": metrics.psnr_y(image, truth),
            "ssim_y": metrics.ssim_y(image, truth),
            "detail_energy": metrics.detail_energy(image, truth),
            "colour_shift": metrics.colour_shift(image, truth),
            "colour_drift": metrics.colour_shift(image, bicubic),
            "seam_power": metrics.seam_power(image, reference, pitch),
        }

    once = {id(image): crop(image) for image in outputs.values()}  # plans may share one
    with ThreadPoolExecutor() as pool:
        figures = {key: pool.submit(measure, image) for key, image in once.items()}
        target = features(truth)
        distances = {key: float(feature_distance(features(image), target)) for key, image in once.items()}
    for name, image in outputs.items():
        for metric, figure in {**figures[id(image)].result(), "dfd": distances[id(image)]}.items():
            evaluation.row(name).values[metric].append(figure)


def _record(row: Row, result: UpscaleResult, groups: int) -> None:
    row.steps.append(result.mean_steps)
    row.shares.append(result.group_shares(groups))
    row.seconds.append(sum(result.timings.values()))


def _study_patches(
    pipeline: PatchScalerPipeline, lr: Array, restored: RestoredImage, truth: Tensor
) -> Tensor:
    """Mean confidence, mean squared latent error and LR luma variance (3, n) of an image's whole patches."""
    size, pixels = pipeline.sampling.patch_size, _lr_pixels(pipeline)
    rows, cols = (side // size * pixels for side in truth.shape[2:])
    whole = lr[:rows, :cols]
    if whole.shape != lr.shape:
        restored = RestoredImage(pipeline, whole)
    error = (restored.latent.to(truth.device).float() - truth.float()).square().mean(dim=1, keepdim=True)
    grey = torch.from_numpy(metrics.luma(whole))[None, None]
    figures = (
        patch_quality(restored.confidence, size, size).cpu(),
        unfold(error, size, size).mean(dim=(1, 2, 3)).cpu(),
        unfold(grey, pixels, pixels).var(dim=(1, 2, 3)).float(),
    )
    return torch.stack(figures)


def _reconstruct(
    pipeline: PatchScalerPipeline, low: Tensor, truth: Array, latent: Tensor
) -> dict[str, float]:
    """8-bit PSNR and detail energy of the autoencoder alone, from the latent (1, c, H, W) of the truth."""
    target = truth[: SCALE * low.shape[2], : SCALE * low.shape[3]]
    figures = {}
    for kind, condition in (("without LR", None), ("with LR", low)):
        image = from_tensor(pipeline.decode(latent, condition)[0], like=target)
        figures[f"psnr_rgb {kind}"] = metrics.psnr_rgb(image, target)
        figures[f"psnr_y {kind}"] = metrics.psnr_y(image, target)
        figures[f"detail {kind}"] = metrics.detail_energy(image, target)
    return figures


def _grid_shift(
    pipeline: PatchScalerPipeline, lr: Array, plans: Mapping[str, Plan], plain: Mapping[str, UpscaleResult]
) -> dict[str, float]:
    """Mean difference between what plans made and what they make when the grid is half a patch off."""
    shift, seed = _lr_pixels(pipeline) // 2, plain[OURS].seed
    shifted = RestoredImage(pipeline, metrics.extended(lr, shift), seed)
    return {
        name: metrics.shifted_difference(plain[name].image, shifted.upscale(plan).image, SCALE * shift)
        for name, plan in plans.items()
    }


def _picture(
    pipeline: PatchScalerPipeline,
    lr: Array,
    truth: Array,
    outputs: Mapping[str, Array],
    result: UpscaleResult,
    difficulty: Array,
) -> Picture:
    """A crop around the place where the restoration was least sure."""
    confidence = torch.from_numpy(result.confidence)[None, None]
    side = min(_CROP, *truth.shape[:2])
    factor = pipeline.autoencoder.factor
    mean = torch.nn.functional.avg_pool2d(confidence, side // factor, stride=1)[0, 0]
    row, column = divmod(int(mean.argmin()), mean.shape[1])
    top, left = row * factor // SCALE, column * factor // SCALE

    def crop(image: Array, scale: int) -> Array:
        return image[top * scale : top * scale + side * scale // SCALE,
                     left * scale : left * scale + side * scale // SCALE].copy()  # fmt: skip

    crops = {name: crop(output, SCALE) for name, output in outputs.items()} | {"truth": crop(truth, SCALE)}
    return Picture(crop(lr, 1), crops, difficulty)


def _difficulty(pipeline: PatchScalerPipeline, lr: Array, result: UpscaleResult) -> Array:
    step = pipeline.sampling.stride * pipeline.autoencoder.factor // SCALE
    return difficulty_map(lr, result.confidence, result.groups, step)


def _lr_pixels(pipeline: PatchScalerPipeline) -> int:
    """Side of a patch in LR pixels."""
    return pipeline.sampling.patch_size * pipeline.autoencoder.factor // SCALE


def _whole_patches(pipeline: PatchScalerPipeline, lr: Array, truth: Array) -> tuple[Tensor, Tensor]:
    pixels = _lr_pixels(pipeline)
    height, width = (side // pixels * pixels for side in lr.shape[:2])
    low, high = lr[:height, :width], truth[: height * SCALE, : width * SCALE]
    return to_tensor(low, pixels)[None], to_tensor(high, pixels)[None]


def _bicubic(lr: Array) -> Array:
    return from_tensor(upsample(to_tensor(lr, MIN_SIDE)[None], SCALE)[0], like=lr)


def _compare(ours: Row, other: Row, metric: str, seed: int) -> Interval:
    a, b = np.array(ours.values[metric]), np.array(other.values[metric])
    return metrics.paired_bootstrap(a, b, seed=seed)


def _check_size(file: Path, image: Array, lr: Array, border: int) -> None:
    check_size(file, image, lr, SCALE)
    height, width = image.shape[:2]
    if min(height, width) - 2 * border < MIN_SIZE:
        raise InputError(f"{file} is {width}x{height}: sides inside the border must be {MIN_SIZE} or more")


def _mean(values: list[float]) -> float | None:
    return _average(values) if values else None


def _average(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
