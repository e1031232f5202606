"""What texture prompts change: the same weights, the same y_0 and noise, other prompts.

Each image is encoded and restored once; every variant samples its patches from there. Variants are compared with
sampling without prompts, image by image.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path as FilePath

import numpy as np
import torch
from torch import Tensor

from patchscaler.errors import InputError
from patchscaler.evaluation import attention, metrics
from patchscaler.evaluation.attention import Looks, watched
from patchscaler.evaluation.calibrate import read_pairs
from patchscaler.evaluation.files import common_stems
from patchscaler.evaluation.metrics import Interval
from patchscaler.evaluation.prompted import Extremes
from patchscaler.features import feature_distance
from patchscaler.imaging.tensors import levels
from patchscaler.pipeline import PatchScalerPipeline
from patchscaler.sampling.grouping import Path, Plan, assign, patch_quality
from patchscaler.sampling.noise import patch_noise, to_word
from patchscaler.sampling.patches import fold, grid, unfold
from patchscaler.sampling.schedule import solver_step, start_state
from patchscaler.texture_memory import ReferenceTextureMemory

NULL = "no prompt"
SIZES = (64, 256, 1024)
METRICS = ("dfd", "psnr_y", "detail_energy")


@dataclass(frozen=True)
class Scene:
    """What all variants of one image share.

    Attributes:
        latent: y_0 of its patches (n, c, p, p).
        condition: patches (n, c + s, p, p) of the condition map.
        noise: eps (n, c, p, p).
        start, steps: the path (T, N) of each patch (n,).
        group: of each patch (n,).
        clean: encoded truth of each patch (n, c, p, p), for the variants that are not fair.
        seed: of the entries that are drawn.
    """

    latent: Tensor
    condition: Tensor
    noise: Tensor
    start: Tensor
    steps: Tensor
    group: Tensor
    clean: Tensor
    seed: int


Prompt = Callable[[PatchScalerPipeline, Scene], Tensor]
"""Prompt tokens (n, L, w) of the patches of a scene."""


@dataclass(frozen=True)
class Variant:
    """One way to prompt.

    Attributes:
        name: what its row is called.
        prompt: makes the tokens.
        guidance: s in null + s (prompt - null).
    """

    name: str
    prompt: Prompt
    guidance: float = 1.0


@dataclass
class Ablation:
    """What was measured.

    Attributes:
        settings: a line that says of what.
        values: figures of every variant, by metric, one per image; `change` is the distance of its x_0 from that
            without prompts.
        moved: distance of x_0 without prompts from y_0, one per image.
        looks: what cross-attention does with the model's own prompts, in the last step of each patch.
    """

    settings: str
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    moved: list[float] = field(default_factory=list)
    looks: Looks = field(default_factory=dict)

    def gain(self, name: str, metric: str) -> Interval:
        """Mean of variant - no prompt over the images, with its 95 % interval."""
        ours, null = (np.array(self.values[row][metric]) for row in (name, NULL))
        return metrics.paired_bootstrap(ours, null)


def variants(
    pipeline: PatchScalerPipeline, plan: Plan, larger: ReferenceTextureMemory | None = None
) -> list[Variant]:
    """The rows of the ablation under a plan; what would repeat another row is left out."""
    memory = pipeline.texture_memory
    if memory is None or not len(memory):
        raise InputError("this model has no texture memory to measure")
    few = pipeline.sampling.prompt_count
    rows = [
        Variant(NULL, null),
        Variant(f"{few} random entries", partial(retrieved, count=few, order="random")),
        *(Variant(f"top {count}", partial(retrieved, count=count)) for count in sorted({1, few, 8})),
        Variant(f"top {few}, similarity embedding off", partial(retrieved, count=few, modulate=False)),
    ]
    if plan.paths[-1].steps and any(path.steps for path in plan.paths[:-1]):
        hard = len(plan.paths) - 1
        rows.append(Variant(f"top {few}, hard group only", partial(hard_only, count=few, group=hard)))
    for size in SIZES:
        if size < len(memory):
            rows.append(Variant(f"top {few} of {size}", partial(retrieved, count=few, memory=memory[:size])))
    if larger is not None:
        rows.append(Variant(f"top {few} of {len(larger)}", partial(retrieved, count=few, memory=larger)))
    rows += [Variant(f"top {few}, guidance {s:g}", partial(retrieved, count=few), s) for s in (1.5, 2.0, 3.0)]
    rows += [
        Variant("not fair: neighbours' truth", partial(truth, shift=1)),
        Variant("not fair: own truth", partial(truth, shift=0)),
    ]
    return rows


def null(pipeline: PatchScalerPipeline, scene: Scene) -> Tensor:
    """No texture."""
    return pipeline.null_prompt(scene.latent)


def retrieved(
    pipeline: PatchScalerPipeline,
    scene: Scene,
    *,
    count: int,
    memory: ReferenceTextureMemory | None = None,
    order: str = "nearest",
    modulate: bool = True,
) -> Tensor:
    """The nearest entries, or random ones with the similarities they have; or with none told to the encoder."""
    memory = memory or pipeline.texture_memory
    assert memory is not None
    keys, count = pipeline.keys(scene.latent), min(count, len(memory))
    if order == "nearest":
        found = memory.search(keys, count)
        patches, similarity = found.patches, found.similarity
    else:
        generator = torch.Generator().manual_seed(scene.seed)
        index = torch.randint(len(memory), (len(keys), count), generator=generator).to(keys.device)
        patches, similarity = (
            memory.patches(index),
            (memory.keys[index] @ keys[..., None].to(memory.keys))[..., 0],
        )
    return pipeline.texture_encoder(patches, similarity if modulate else None)


def hard_only(pipeline: PatchScalerPipeline, scene: Scene, *, count: int, group: int) -> Tensor:
    """Prompts for the patches of the hard `group`; the null prompt, repeated, for the others."""
    tokens = retrieved(pipeline, scene, count=count)
    hard = (scene.group == group).view(-1, 1, 1)
    return torch.where(hard, tokens, null(pipeline, scene).to(tokens.dtype))


def truth(pipeline: PatchScalerPipeline, scene: Scene, *, shift: int) -> Tensor:
    """The patch that is to be found: the truth of this patch, or of the one `shift` further in the same image."""
    patches = scene.clean.roll(shift, dims=0)
    keys = pipeline.keys(patches)
    similarity = (keys * pipeline.keys(scene.latent)).sum(dim=1, keepdim=True)
    return pipeline.texture_encoder(patches[:, None], similarity)


def sample(
    pipeline: PatchScalerPipeline, scene: Scene, variant: Variant, looks: Looks | None = None
) -> Tensor:
    """x_0 (n, c, p, p) of the patches of a scene: the engine's paths, one number of steps after the other.

    `looks` gets a look at the attention of each patch's last step, if the variant prompts by the model's own count.
    """
    dit, shortcut = pipeline.patch_dit, pipeline.sampling.shortcut
    prompts = [dit.prompt_cache(variant.prompt(pipeline, scene))]
    if variant.guidance != 1:
        prompts.append(dit.prompt_cache(null(pipeline, scene)))
    out = scene.latent.clone()
    for count in sorted(set(scene.steps.tolist()) - {0}):
        rows = (scene.steps == count).nonzero()[:, 0].to(out.device)
        y, start = scene.latent[rows], scene.start[rows]
        condition = dit.condition_tokens(scene.condition[rows])
        state = start_state(y.float(), scene.noise[rows], start)
        for remaining in range(count, 0, -1):
            timestep, following = start * (remaining / count), start * ((remaining - 1) / count)
            last_look = looks if remaining == 1 else None
            with nullcontext() if last_look is None else watched(dit, _found(pipeline), last_look):
                estimates = [
                    dit(state.to(y.dtype), y, condition, prompt[:, :, rows], timestep, start).float()
                    for prompt in prompts
                ]
            x = torch.lerp(estimates[-1], estimates[0], variant.guidance)
            state = solver_step(state, x, y.float(), timestep, following, start, shortcut)
        out[rows] = state.to(out.dtype)
    return out


@torch.inference_mode()
def ablate(
    pipeline: PatchScalerPipeline,
    lr_dir: FilePath,
    hr_dir: FilePath,
    *,
    plan: Plan,
    larger: ReferenceTextureMemory | None = None,
    seed: int = 0,
    limit: int | None = None,
    extremes: Extremes | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Ablation:
    """Measure every variant on the LR files whose stems match in both folders.

    Args:
        pipeline: the model; not changed.
        lr_dir: LR images, whose sides are whole patches and 32 or more.
        hr_dir: their truth, 4 times as large.
        plan: whose groups and paths to sample with.
        larger: a memory of more entries to compare with.
        seed: of the noise and of random entries.
        limit: use the first so many images only.
        extremes: told of every patch, without and with the model's own prompts.
        progress: told how many images of how many are done.

    Raises:
        InputError: nothing matches, a file cannot be read, sizes do not fit, the plan takes no steps or there is no
            memory.
    """
    if not any(path.steps for path in plan.paths):
        raise InputError("this plan takes no steps, so prompts change nothing: give another by --plan")
    rows = variants(pipeline, plan, larger)
    pairs = read_pairs(lr_dir, hr_dir, limit)
    judge = metrics.DeepFeatureDistance().to(pipeline.device)
    described = ", ".join(f"{path.steps} from {path.timestep:g}" for path in plan.paths)
    result = Ablation(
        f"{len(pairs)} images, weights {pipeline.fingerprint}, {str(pipeline.dtype).removeprefix('torch.')} on"
        f" {pipeline.device}, seed {seed}; steps by group: {described}"
    )
    own = f"top {pipeline.sampling.prompt_count}"
    with ThreadPoolExecutor() as pool:
        for done, (name, (lr, hr)) in enumerate(zip(common_stems(lr_dir, hr_dir, limit), pairs, strict=True)):
            scene, area = _scene(pipeline, lr, hr, plan, seed, done)
            sampled = {
                row.name: sample(pipeline, scene, row, result.looks if row.name == own else None)
                for row in rows
            }
            images = {row: _decode(pipeline, patches, area, lr) for row, patches in sampled.items()}
            target = levels(hr, np.uint8)
            _measure(result, images, target, judge, pool)
            result.moved.append(_distance(sampled[NULL], scene.latent))
            for row, patches in sampled.items():
                result.values[row].setdefault("change", []).append(_distance(patches, sampled[NULL]))
            if extremes is not None:
                shown = (_decode(pipeline, scene.latent, area, lr), images[NULL], images[own], target)
                extremes.add_image(pipeline, judge, name, shown, scene.latent)
            if progress is not None:
                progress(done + 1, len(pairs))
    return result


def to_markdown(result: Ablation) -> str:
    """The tables of figures and of attention, and under each what it is of."""
    lines = [
        f"| prompt | DFD | against {NULL} | PSNR-Y, dB | against {NULL} | detail energy, dB | change |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, values in result.values.items():
        dfd, psnr, detail = (float(np.mean(values[metric])) for metric in METRICS)
        gains, change = ["", ""], ""
        if name != NULL:
            gains = [
                "{:+.4f} [{:+.4f}, {:+.4f}]".format(*result.gain(name, metric)) for metric in METRICS[:2]
            ]
            change = f"{100 * sum(values['change']) / max(sum(result.moved), 1e-9):.1f} %"
        cells = (name, f"{dfd:.4f}", gains[0], f"{psnr:.3f}", gains[1], f"{detail:.2f}", change)
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"{result.settings}. In brackets: 95 % interval of 1,000 resamples of the images, paired. Change: distance of"
        f" x_0 from that with {NULL}, as a share of how far that is from y_0.",
    ]
    if result.looks:  # not if all patches of these images are in groups that take no step
        lines += ["", attention.to_markdown(result.looks).rstrip()]
    return "\n".join(lines) + "\n"


def parse_plan(pipeline: PatchScalerPipeline, text: str) -> Plan:
    """A plan of the model by name, or one written as paths.

    Args:
        pipeline: whose plans are known by name.
        text: a name; "T:N", N steps from T everywhere; or "T:N,T:N,T:N" for the simple, medium and hard patches, told
            apart by the thresholds of the model's own plan of three groups.

    Raises:
        InputError: it is none of these, or the model has no plan of three groups.
    """
    if text in pipeline.plans:
        return pipeline.plans[text]
    parts = [part.partition(":") for part in text.split(",")]
    thresholds: tuple[float, ...] | None = ()
    if len(parts) == 3:
        own = (plan.thresholds for plan in pipeline.plans.values())
        thresholds = next((cuts for cuts in own if len(cuts) == 2), None)
        if thresholds is None:
            raise InputError(
                f"--plan {text}: this model has no plan of three groups; run calibrate, or give one T:N"
            )
    try:
        return Plan(thresholds, tuple(Path(float(timestep), int(steps)) for timestep, _, steps in parts))
    except ValueError:
        names = ", ".join(pipeline.plans)
        raise InputError(
            f"--plan {text}: give one of {names}, T:N such as 0.9:4, or three of them such as 0.4:1,0.6:2,0.9:4"
        ) from None


def _scene(
    pipeline: PatchScalerPipeline, lr: Tensor, hr: Tensor, plan: Plan, seed: int, number: int
) -> tuple[Scene, tuple[int, int]]:
    """The patches of the image of this number, and the size of its latent map."""
    size, stride = pipeline.sampling.patch_size, pipeline.sampling.stride
    clean = pipeline.encode(hr[None])
    height, width = clean.shape[2:]
    if any(side < size or (side - size) % stride for side in (height, width)):
        raise InputError(f"an image of {hr.shape[2]}x{hr.shape[1]} is not made of whole patches")
    restored = pipeline.restore(lr[None])
    condition = pipeline.patch_dit.stem(restored, lr[None].to(pipeline.device, pipeline.dtype))
    group = assign(patch_quality(restored.confidence, size, stride), plan.thresholds)
    latent, _, columns = unfold(restored.latent, size, stride), *grid(height, width, size, stride)
    place = torch.arange(len(latent), device=latent.device)
    noise = patch_noise(
        torch.full_like(place, to_word(seed)), place // columns, place % columns, latent.shape[1:]
    )
    starts = torch.tensor([path.timestep for path in plan.paths], device=latent.device)[group]
    steps = torch.tensor([path.steps for path in plan.paths])[group.cpu()]
    condition, clean = unfold(condition, size, stride), unfold(clean, size, stride)
    return Scene(latent, condition, noise, starts, steps, group, clean, seed + number), (height, width)


def _found(pipeline: PatchScalerPipeline) -> int:
    """How many entries the model's own prompts hold."""
    memory = pipeline.texture_memory
    assert memory is not None
    return min(pipeline.sampling.prompt_count, len(memory))


def _decode(pipeline: PatchScalerPipeline, patches: Tensor, area: tuple[int, int], lr: Tensor) -> np.ndarray:
    """The image (H, W, 3) uint8 of the patches of a latent map of this height and width."""
    size, stride = pipeline.sampling.patch_size, pipeline.sampling.stride
    latent = fold(patches, *grid(*area, size, stride), stride)
    return levels(pipeline.decode(latent, lr[None])[0], np.uint8)


def _measure(
    result: Ablation,
    images: dict[str, np.ndarray],
    truth: np.ndarray,
    judge: metrics.DeepFeatureDistance,
    pool: Executor,
) -> None:
    """Add the figures of one image to every variant; what numpy measures is measured beside the features."""
    device = next(judge.parameters()).device
    figures = {
        name: [pool.submit(metric, image, truth) for metric in (metrics.psnr_y, metrics.detail_energy)]
        for name, image in images.items()
    }
    wanted = judge.features(_pixels(truth, device))
    for name, image in images.items():
        distance = float(feature_distance(judge.features(_pixels(image, device)), wanted))
        values = result.values.setdefault(name, {metric: [] for metric in METRICS})
        for metric, figure in zip(
            METRICS, (distance, *(each.result() for each in figures[name])), strict=True
        ):
            values[metric].append(figure)


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).norm())


def _pixels(image: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].to(device) / 255
