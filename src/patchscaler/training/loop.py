"""The one training loop: every stage, on one device or many, with the same command."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from patchscaler.data.dataset import TileSet
from patchscaler.data.degradation import Degradation, DegradationConfig
from patchscaler.errors import InputError
from patchscaler.pipeline import PatchScalerPipeline
from patchscaler.training.checkpoint import TrainingState, load_adversary, save_adversary
from patchscaler.training.recipe import Recipe
from patchscaler.training.stage import Stage
from patchscaler.training.stages import STAGES
from patchscaler.training.step import OptimiserStep

_log = logging.getLogger(__name__)


def train(
    pipeline: PatchScalerPipeline,
    tiles: TileSet,
    recipe: Recipe,
    output: Path,
    *,
    resume: bool = False,
    stop_after: int | None = None,
) -> list[float]:
    """Train one stage and save the pipeline, with the averaged weights, into `output`.

    Batches, degradations and noise are drawn from a generator seeded anew by (seed, step, process), so a resumed run
    goes on exactly as if it had never stopped.

    Args:
        pipeline: where to start from; its networks are trained in place.
        tiles: training tiles; moved to the device whole.
        recipe: which stage, and how.
        output: model folder, with the training state beside it in `state/`.
        resume: go on from `output/state` if it is there.
        stop_after: stop, with a checkpoint, after so many steps of this call.

    Returns:
        The losses that were logged in this call. What is logged is the mean of the steps since the line before, over
        all processes.

    Raises:
        InputError: the recipe wants a network anew that there is not, or options that do not go together.
    """
    accelerator = Accelerator(
        mixed_precision="bf16" if recipe.precision == "bf16" else "no",
        log_with="tensorboard",
        project_dir=output,
    )
    accelerator.init_trackers("log")
    device = accelerator.device
    _renew(pipeline, recipe.fresh)
    tiles = tiles.to(device)
    degradation = Degradation(DegradationConfig.from_dict(recipe.degradation))
    stage: Stage = STAGES[recipe.stage](pipeline, tiles, degradation, **recipe.options)
    stage.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if pipeline.texture_memory is not None:
        pipeline.texture_memory = pipeline.texture_memory.to(device, torch.float32)
    if stage.adversary is not None and pipeline.folder is not None:
        load_adversary(pipeline.folder, stage.adversary)
    parameters = dict(stage.trained())
    for value in parameters.values():
        value.data.copy_(broadcast(value.data))  # type: ignore[arg-type]
    averaged = {name: value for name, value in parameters.items() if not name.startswith("adversary.")}
    kept = stage.state_dict().keys()
    state = TrainingState(
        parameters,
        {name: value.detach().clone() for name, value in averaged.items()},
        {name: value for name, value in stage.named_buffers() if name in kept},
        _optimizer(stage, recipe, device),
    )
    elapsed = 0.0
    if resume and state.exists(output / "state"):
        scalars = state.load(output / "state")
        stage.step, elapsed = int(scalars["step"]), scalars["elapsed"]
    if recipe.compile and device.type == "cuda":
        for part in stage.compiled():
            part.compile(dynamic=False)
    stage.train()

    take = OptimiserStep(stage, tiles, recipe, state, accelerator)
    begin = time.perf_counter() - elapsed
    progress = _progress(recipe, stage.step, begin, accelerator)
    history: list[float] = []
    last = recipe.iterations if stop_after is None else stage.step + stop_after
    mark, total = (stage.step, time.perf_counter()), torch.zeros((), device=device)
    while progress < 1 and stage.step < last:
        logs = take(progress)
        total = total + torch.stack([value.detach().float() for value in logs.values()])
        stage.step += 1
        if stage.step % 10 == 0 or recipe.minutes == 0 or accelerator.num_processes == 1:
            progress = _progress(recipe, stage.step, begin, accelerator)
        if stage.step % recipe.log_every == 0 or progress >= 1:
            means = accelerator.reduce(total / (stage.step - mark[0]), "mean")
            values = dict(zip(logs, means.tolist(), strict=True))  # type: ignore[union-attr]
            seconds = time.perf_counter() - mark[1]
            rate = (stage.step - mark[0]) * recipe.batch * accelerator.num_processes / seconds
            mark, total = (stage.step, time.perf_counter()), torch.zeros((), device=device)
            history.append(values["loss"])
            accelerator.log({**values, "samples_per_second": rate}, step=stage.step)
            if accelerator.is_main_process:
                text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
                line = "%s step %d (%.0f %%)  %s  %.0f samples/s"
                _log.info(line, recipe.stage, stage.step, 100 * progress, text, rate)
        if stage.step % recipe.save_every == 0 and progress < 1 and accelerator.is_main_process:
            state.save(output / "state", step=stage.step, elapsed=time.perf_counter() - begin)
    if accelerator.is_main_process:
        elapsed = time.perf_counter() - begin
        state.save(output / "state", step=stage.step, elapsed=elapsed)
        for name, value in averaged.items():
            value.data.copy_(state.averages[name])
        stage.eval()
        with accelerator.autocast():
            stage.finish()
        record = {
            "stage": recipe.stage,
            "steps": stage.step,
            "minutes": round(elapsed / 60, 1),
            "devices": accelerator.num_processes,
            "batch": recipe.batch * accelerator.num_processes,
            "options": recipe.options,
        }
        pipeline.card["training"] = [*pipeline.card.get("training", []), record]
        pipeline.save_pretrained(output)
        if stage.adversary is not None:
            save_adversary(output, stage.adversary)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return history


def _renew(pipeline: PatchScalerPipeline, names: Sequence[str]) -> None:
    """Give networks the weights that their constructors give; InputError for a name that is none of theirs."""
    for name in names:
        network = pipeline.networks.get(name)
        if not isinstance(network, ModelMixin):
            raise InputError(f"no network {name!r} can begin anew; there are {', '.join(pipeline.networks)}")
        setattr(pipeline, name, type(network).from_config(network.config))  # type: ignore[attr-defined]


def _optimizer(stage: Stage, recipe: Recipe, device: torch.device) -> torch.optim.AdamW:
    """AdamW, each pace a group; the adversary at twice the rate and without momentum."""
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, value in stage.trained():
        group = ("adversary", 2.0) if name.startswith("adversary.") else ("model", stage.pace(name))
        groups.setdefault(group, []).append(value)
    cuda = device.type == "cuda"
    settings = [
        {
            "name": name if pace >= 1 else f"{name}_{pace:g}",
            "params": values,
            "pace": pace,
            "betas": (0.0, recipe.betas[1]) if name == "adversary" else recipe.betas,
            "lr": torch.zeros((), device=device) if cuda else 0.0,  # set before each step
        }
        for (name, pace), values in groups.items()
    ]
    return torch.optim.AdamW(settings, weight_decay=recipe.weight_decay, fused=cuda, capturable=cuda)


def _progress(recipe: Recipe, step: int, begin: float, accelerator: Accelerator) -> float:
    """Share of the run that is done, by steps or by the main process's clock, the same on every process."""
    done = step / recipe.iterations
    if recipe.minutes:
        done = max(done, (time.perf_counter() - begin) / (60 * recipe.minutes))
        if accelerator.num_processes > 1:
            done = float(broadcast(torch.tensor(done, device=accelerator.device)))  # type: ignore[arg-type]
    return min(done, 1.0)
