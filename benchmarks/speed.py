"""Times of the pipeline beside Real-ESRGAN x4plus' architecture and bicubic, uint8 to uint8 on the device.

python benchmarks/speed.py [--sizes 128 256 512 1024] [--batches 1 8] [--compile] [--only REGEX] [--device cpu]
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from common import Clock, describe, photograph, repeat, seconds_of, table, typical
from rrdbnet import RRDBNet
from torch import Tensor

from patchscaler import PatchScalerPipeline, Plan
from patchscaler.errors import DeviceError
from patchscaler.result import STAGES
from patchscaler.runtime.runner import Runner

WARM_UP = 3
"""Calls before the measured ones: as it is, capture, replay."""

System = Callable[[], tuple[Callable[[], object], Runner]]


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument(
        "--compile", action="store_true", help="compiled, too: about a minute for each size and side"
    )
    parser.add_argument("--only", default="", help="systems whose name has this pattern")
    parser.add_argument(
        "--cpu-time", action="store_true", help="on a CPU: processor time of the call, where cores are shared"
    )
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    arguments = parser.parse_args()

    begin = time.perf_counter()
    pipeline = PatchScalerPipeline.from_pretrained(
        arguments.model, device=arguments.device, dtype=arguments.dtype
    )
    device, dtype = pipeline.device, pipeline.dtype
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    loading = time.perf_counter() - begin
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    rows = []
    for size in arguments.sizes:
        for batch in arguments.batches:
            images = [photograph(size, number).to(device) for number in range(batch)]
            for name, system in systems(pipeline, images, arguments.compile):
                if re.search(arguments.only, name):
                    pipeline.runner.reset(device)  # graphs of the row before are not this row's memory
                    row = attempt(system, device, arguments.runs, clock)
                    rows.append({"system": name, "size": size, "batch": batch, **row})
                    print(json.dumps(rows[-1]), flush=True)
    head = f"{describe(device, dtype)}; weights {pipeline.fingerprint}; loading took {loading:.1f} s"
    print(f"\n{head}\n\n{table(rows, COLUMNS)}")
    if arguments.output:
        arguments.output.write_text(json.dumps({"machine": head, "rows": rows}, indent=2) + "\n")


COLUMNS = ["system", "size", "batch", "ms", *STAGES, "steps", "GiB", "first s", "compile s", "capture s"]


def systems(
    pipeline: PatchScalerPipeline, images: list[Tensor], compiled: bool
) -> Iterator[tuple[str, Callable[[], tuple[Callable[[], object], Runner]]]]:
    """Everything that is measured: a name, and what makes the call and the runner that it uses."""
    device = pipeline.device
    longest = max(pipeline.plans["best"].paths, key=lambda path: path.steps)
    uniform = Plan.uniform(0.9, 4) if not longest.steps else Plan.uniform(longest.timestep, longest.steps)
    plans = {
        "restoration only": Plan.restoration_only(),
        **pipeline.plans,
        f"uniform N={uniform.paths[0].steps}": uniform,
    }
    ways = {"": False, ", compiled": True} if compiled else {"": False}
    for name, plan in plans.items():
        for way, compile_it in ways.items():
            yield f"patchscaler, {name}{way}", lambda p=plan, c=compile_it: ours(pipeline, images, p, c)
    if device.type == "cuda":
        limit = 2**50  # with a limit there are no graphs
        yield (
            "patchscaler, balanced, no graph",
            lambda: ours(pipeline, images, plans["balanced"], False, limit),
        )
    yield "bicubic", lambda: (lambda: [bicubic(image) for image in images], Runner(device))
    yield (
        "RRDBNet, contiguous, no graph",
        lambda: peer(pipeline, images, torch.contiguous_format, False, False),
    )
    yield "RRDBNet, no graph", lambda: peer(pipeline, images, torch.channels_last, False, False)
    for way, compile_it in ways.items() if device.type == "cuda" or compiled else ():
        yield (
            f"RRDBNet{way or ', graph'}",
            lambda c=compile_it: peer(pipeline, images, torch.channels_last, c, True),
        )


def ours(
    pipeline: PatchScalerPipeline, images: list[Tensor], plan: Plan, compiled: bool, limit: int | None = None
) -> tuple[Callable[[], object], Runner]:
    """The pipeline with a runner of its own."""
    pipeline.runner = Runner(pipeline.device, compile=compiled)

    def call() -> object:
        pixels = [image.to(pipeline.dtype) / 255 for image in images]
        results = pipeline(pixels, plan=plan, memory_limit=limit)
        outputs = [quantise(result.image) for result in results]
        return results, outputs

    return call, pipeline.runner


def peer(
    pipeline: PatchScalerPipeline,
    images: list[Tensor],
    layout: torch.memory_format,
    compiled: bool,
    graph: bool,
) -> tuple[Callable[[], object], Runner]:
    """The generator with random weights, all images in one batch."""
    device, dtype = pipeline.device, pipeline.dtype
    torch.manual_seed(0)
    net = RRDBNet().to(device, dtype).eval().requires_grad_(False)
    net.to(memory_format=layout)  # type: ignore[call-overload]
    runner = Runner(device, compile=compiled)
    batch = torch.stack(images)

    def upscale(x: Tensor) -> tuple[Tensor]:
        return (quantise(net((x.to(dtype) / 255).contiguous(memory_format=layout))),)

    return lambda: runner("peer", upscale, batch, repeats=graph), runner


def bicubic(image: Tensor) -> Tensor:
    """Plain interpolation."""
    return quantise(
        torch.nn.functional.interpolate(image[None].float() / 255, scale_factor=4, mode="bicubic")
    )


def quantise(pixels: Tensor) -> Tensor:
    """Float in [0, 1] to uint8 on its device."""
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def attempt(system: System, device: torch.device, runs: int, clock: Clock) -> dict[str, object]:
    """What `measure` gives, or why it gives nothing: a row that fails must not cost the others."""
    try:
        return measure(system, device, runs, clock)
    except torch.OutOfMemoryError:
        return {"ms": "out of memory"}
    except (RuntimeError, DeviceError) as error:
        return {"ms": str(error).partition("\n")[0]}


@torch.inference_mode()
def measure(system: System, device: torch.device, runs: int, clock: Clock) -> dict[str, object]:
    """Milliseconds, start-up apart, and the most device memory taken, weights and libraries' own included."""
    cuda = device.type == "cuda"
    gc.collect()
    torch._dynamo.reset()  # nothing compiled for other sizes
    others = 0
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        others = _foreign_memory()
    call, runner = system()
    row: dict[str, object] = {"first s": seconds_of(call, device)}
    for _ in range(WARM_UP - 1 if cuda or runner.compile else 0):
        call()
    row["ms"] = 1000 * typical(repeat(call, device, runs, clock=clock), device)
    result = call()
    row |= {f"{part} s": seconds for part, seconds in runner.seconds.items() if seconds}
    if cuda:
        own = max(0, _foreign_memory() - others)
        row["GiB"] = (torch.cuda.max_memory_reserved() + own) / 2**30
    if isinstance(result, tuple) and isinstance(result[0], list):
        results = [call()[0] for _ in range(3)]  # type: ignore[index]
        steps = torch.cat([torch.from_numpy(each.steps).flatten() for each in results[0]])
        row["steps"] = float(steps.float().mean())
        for stage in STAGES:
            row[stage] = 1000 * typical([each[0].timings[stage] for each in results], device)
    return row


def _foreign_memory() -> int:
    """Bytes in use on the device that the allocator does not know of."""
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


if __name__ == "__main__":
    main()
