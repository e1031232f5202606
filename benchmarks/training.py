"""Milliseconds of a training iteration, by part, on made-up tiles.

python benchmarks/training.py [--stages restoration diffusion finetune] [--batch 32] [--compile] [--profile 15]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from patchscaler import PatchScalerPipeline
from patchscaler.data.dataset import TEXTURE_SIZE, TRAIN_SIZE, Tiles, TileSet
from patchscaler.data.degradation import Degradation, DegradationConfig
from patchscaler.presets import build
from patchscaler.training.recipe import Recipe
from patchscaler.training.stage import Stage
from patchscaler.training.stages import STAGES

CONFIGS = Path(__file__).parents[1] / "configs" / "compact"


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", nargs="+", default=["restoration", "diffusion", "finetune"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--tiles", type=int, default=64)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--preset", default="compact")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", type=int, default=0, metavar="N", help="show the N longest operators")
    arguments = parser.parse_args()
    print("| stage | batch | compiling, s | crops | degradation | whole iteration | samples/s |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.stages:
        measure(name, arguments)


def measure(name: str, arguments: argparse.Namespace) -> None:
    """Print the row of one stage, and what the profiler saw."""
    device = torch.device(arguments.device)
    file = next(CONFIGS.glob(f"*-{name}.yaml"))
    recipe = Recipe.read(file, batch=arguments.batch, crop=arguments.crop)
    tiles = random_tiles(arguments.tiles).to(device)
    degradation = Degradation(DegradationConfig.from_dict(recipe.degradation))
    pipeline: PatchScalerPipeline = build(arguments.preset)
    stage: Stage = STAGES[name](pipeline, tiles, degradation, **recipe.options)
    stage.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    stage.train()
    stage.step = 10**6
    optimizer = torch.optim.AdamW([value for _, value in stage.trained()], fused=device.type == "cuda")
    if arguments.compile:
        for part in stage.compiled():
            part.compile(dynamic=False)
    generator = torch.Generator(device).manual_seed(0)

    def crops() -> Any:
        return tiles.sample(recipe.batch, recipe.crop, generator)

    batch = crops()

    def iterate() -> None:
        drawn = crops()
        with torch.autocast(device.type, torch.bfloat16):
            loss, _ = stage(drawn, generator)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    begin = time.perf_counter()
    for _ in range(3):
        iterate()
    wait(device)
    start = time.perf_counter() - begin
    parts = [
        clock(call, arguments.runs, device)
        for call in (crops, lambda: degradation(batch.images, generator), iterate)
    ]
    figures = " | ".join(f"{part:.1f}" for part in parts)
    print(f"| {name} | {recipe.batch} | {start:.0f} | {figures} | {1000 * recipe.batch / parts[-1]:.0f} |")
    if arguments.profile:
        show(iterate, arguments.profile, device)


def random_tiles(count: int) -> TileSet:
    """Noise in the sizes of photo and texture tiles."""
    sizes: Sequence[tuple[int, tuple[str, ...]]] = ((TRAIN_SIZE, ()), (TEXTURE_SIZE, ("texture",)))
    groups = [
        Tiles(
            torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8),
            tuple(str(number) for number in range(count)),
            torch.arange(count),
            torch.full((count,), len(categories) - 1),
            tuple(f"{size}-{number}" for number in range(count)),
            categories,
        )
        for size, categories in sizes
    ]
    return TileSet(groups)


def clock(call: Callable[[], Any], runs: int, device: torch.device) -> float:
    """Median milliseconds of a call."""
    times = []
    for _ in range(runs):
        wait(device)
        begin = time.perf_counter()
        call()
        wait(device)
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times)


def show(call: Callable[[], Any], rows: int, device: torch.device) -> None:
    """Where the time of a call goes."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities, record_shapes=True) as profiler:
        for _ in range(3):
            call()
        wait(device)
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    averages = profiler.key_averages(group_by_input_shape=True)
    print(averages.table(sort_by=key, row_limit=rows, max_name_column_width=60, max_shapes_column_width=60))


def wait(device: torch.device) -> None:
    """Until the device has nothing more to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
