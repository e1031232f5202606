"""The one training loop: every stage, on one device or many, with the same command."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast
from torch import Tensor

from patchscaler.data.dataset import TileSet
from patchscaler.data.degradation import Degradation, DegradationConfig
from patchscaler.pipeline import PatchScalerPipeline
from patchscaler.training.checkpoint import has_state, load_state, save_state
from patchscaler.training.recipe import Recipe
from patchscaler.training.stage import Stage
from patchscaler.training.stages import STAGES

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
        The loss of every logged step of this call, averaged over processes.
    """
    accelerator = Accelerator(
        mixed_precision="bf16" if recipe.precision == "bf16" else "no",
        log_with="tensorboard",
        project_dir=output,
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                gradient_as_bucket_view=True, broadcast_buffers=False, static_graph=True
            )
        ],
    )
    accelerator.init_trackers("log")
    device = accelerator.device
    tiles = tiles.to(device)
    degradation = Degradation(DegradationConfig.from_dict(recipe.degradation))
    stage: Stage = STAGES[recipe.stage](pipeline, tiles, degradation, **recipe.options)
    stage.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if pipeline.texture_memory is not None:
        pipeline.texture_memory = pipeline.texture_memory.to(device, torch.float32)
    parameters = dict(stage.trained())
    averages = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=recipe.learning_rate,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=device.type == "cuda",
    )
    step, elapsed = 0, 0.0
    if resume and has_state(output / "state"):
        scalars = load_state(output / "state", parameters, averages, optimizer)
        step, elapsed = int(scalars["step"]), scalars["elapsed"]
    if recipe.compile:
        for part in stage.compiled():
            part.compile(dynamic=False)
    graph = accelerator.prepare_model(stage)
    stage.train()

    generator = torch.Generator(device)
    begin = time.perf_counter() - elapsed
    progress = _progress(recipe, step, begin, accelerator)
    history: list[float] = []
    last = step if stop_after is None else step + stop_after
    mark = (step, time.perf_counter())
    while progress < 1 and (stop_after is None or step < last):
        generator.manual_seed(_step_seed(recipe.seed, step, accelerator.process_index))
        batch = tiles.sample(
            recipe.batch, recipe.crop, generator, texture_share=recipe.texture_share, shrink=recipe.shrink
        )
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step, progress)
        with accelerator.autocast():
            loss, logs = graph(batch, generator)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(list(parameters.values()), recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(recipe.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(averages.values()), [p.detach() for p in parameters.values()], 1 - decay)
        step += 1
        if step % 10 == 0 or recipe.minutes == 0:
            progress = _progress(recipe, step, begin, accelerator)
        if step % recipe.log_every == 0 or progress >= 1:
            values = _gather(accelerator, {"loss": loss, "norm": norm, **logs})
            rate = (
                (step - mark[0]) * recipe.batch * accelerator.num_processes / (time.perf_counter() - mark[1])
            )
            mark = (step, time.perf_counter())
            history.append(values["loss"])
            accelerator.log({**values, "samples_per_second": rate}, step=step)
            if accelerator.is_main_process:
                text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
                _log.info(
                    "%s step %d (%.0f %%)  %s  %.0f samples/s", recipe.stage, step, 100 * progress, text, rate
                )
        if step % recipe.save_every == 0 and progress < 1 and accelerator.is_main_process:
            scalars = {"step": step, "elapsed": time.perf_counter() - begin}
            save_state(output / "state", parameters, averages, optimizer, scalars)
    if accelerator.is_main_process:
        scalars = {"step": step, "elapsed": time.perf_counter() - begin}
        save_state(output / "state", parameters, averages, optimizer, scalars)
        for name, value in parameters.items():
            value.data.copy_(averages[name])
        stage.eval()
        with accelerator.autocast():
            stage.finish()
        record = {
            "stage": recipe.stage,
            "steps": step,
            "minutes": round(scalars["elapsed"] / 60, 1),
            "devices": accelerator.num_processes,
            "batch": recipe.batch * accelerator.num_processes,
            "options": recipe.options,
        }
        pipeline.card["training"] = [*pipeline.card.get("training", []), record]
        pipeline.save_pretrained(output)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return history


def _progress(recipe: Recipe, step: int, begin: float, accelerator: Accelerator) -> float:
    """Share of the run that is done, by steps or by the main process's clock, the same on every process."""
    done = step / recipe.iterations
    if recipe.minutes:
        done = max(done, (time.perf_counter() - begin) / (60 * recipe.minutes))
        if accelerator.num_processes > 1:
            done = float(broadcast(torch.tensor(done, device=accelerator.device)))  # type: ignore[arg-type]
    return min(done, 1.0)


def _step_seed(seed: int, step: int, process: int) -> int:
    return (seed * 1_000_003 + step) * 4096 + process


def _gather(accelerator: Accelerator, values: dict[str, Tensor]) -> dict[str, float]:
    stacked = torch.stack([value.detach().float() for value in values.values()])
    mean = accelerator.reduce(stacked, "mean")
    return dict(zip(values, mean.tolist(), strict=True))  # type: ignore[union-attr]
