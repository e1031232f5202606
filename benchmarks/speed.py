"""Times of the pipeline and its parts beside Real-ESRGAN x4plus' architecture, uint8 to uint8 on the device.

python benchmarks/speed.py [--model FOLDER] [--sizes 128 256 512] [--device cuda] [--compile]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rrdbnet import RRDBNet
from torch import Tensor

from patchscaler import PatchScalerPipeline, Plan

Call = Callable[[Tensor], Tensor]


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--device", default=None)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="also torch.compile the peer (takes a minute)")
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    arguments = parser.parse_args()
    pipeline = PatchScalerPipeline.from_pretrained(arguments.model, device=arguments.device)
    device, dtype = pipeline.device, pipeline.dtype
    plans = {
        "restoration only": Plan.restoration_only(),
        **pipeline.plans,
        "uniform N=4": Plan.uniform(0.9, 4),
    }
    rows = []
    for size in arguments.sizes:
        image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, device=device)
        for name, plan in plans.items():
            result = pipeline(image.float() / 255, plan=plan)

            def upscale(x: Tensor, plan: Plan = plan) -> Tensor:
                return quantise(pipeline(x.float() / 255, plan=plan).image)

            row = measure(upscale, image, arguments.runs)
            parts = [pipeline(image.float() / 255, plan=plan).timings for _ in range(arguments.runs)]
            row |= {part: 1000 * statistics.median(p[part] for p in parts) for part in parts[0]}
            rows.append({"system": f"patchscaler, {name}", "size": size, "steps": result.mean_steps, **row})
        for name, call in peers(device, dtype, arguments.compile, image):
            rows.append({"system": name, "size": size, **measure(call, image, arguments.runs)})
    cuda = device.type == "cuda"
    where = torch.cuda.get_device_name(device) if cuda else f"CPU, {torch.get_num_threads()} threads"
    report = {
        "device": where,
        "dtype": str(dtype),
        "torch": torch.__version__,
        "weights": pipeline.fingerprint,
    }
    print(", ".join(f"{key} {value}" for key, value in report.items()), "\n")
    print(table(rows))
    if arguments.output:
        arguments.output.write_text(json.dumps({**report, "rows": rows}, indent=2))


def peers(device: torch.device, dtype: torch.dtype, compiled: bool, image: Tensor) -> list[tuple[str, Call]]:
    """Bicubic, and the generator with random weights in each way of running it."""
    net = RRDBNet().to(device, dtype)
    net.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]

    def upscale(x: Tensor, network: Callable[[Tensor], Tensor] = net) -> Tensor:
        scaled = (x[None].to(dtype) / 255).contiguous(memory_format=torch.channels_last)
        return quantise(network(scaled)[0])

    calls: list[tuple[str, Call]] = [("bicubic", bicubic), ("RRDBNet, eager", upscale)]
    if device.type == "cuda":
        calls.append(("RRDBNet, CUDA graph", graphed(upscale, image)))
    if compiled:
        fast = torch.compile(net)
        calls.append(("RRDBNet, compiled", lambda x: upscale(x, fast)))
    return calls


def bicubic(x: Tensor) -> Tensor:
    """Plain interpolation."""
    return quantise(torch.nn.functional.interpolate(x[None].float() / 255, scale_factor=4, mode="bicubic")[0])


def graphed(call: Call, image: Tensor) -> Call:
    """The same work as one CUDA graph."""
    static = image.clone()
    with torch.inference_mode():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                call(static)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = call(static)

    def replay(x: Tensor) -> Tensor:
        static.copy_(x)
        graph.replay()
        return out

    return replay


def quantise(image: Tensor) -> Tensor:
    """Float (3, H, W) to uint8 on its device."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


@torch.inference_mode()
def measure(call: Call, image: Tensor, runs: int) -> dict[str, float]:
    """Median milliseconds of the runs after two that warm up, and the most memory in GiB that they took."""
    cuda = image.is_cuda
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(runs + 2):
        if cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call(image)
        if cuda:
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - begin))
    row = {"ms": statistics.median(times[2:])}
    return {**row, "gib": torch.cuda.max_memory_reserved() / 2**30} if cuda else row


def table(rows: list[dict[str, object]]) -> str:
    """The rows in Markdown."""
    columns = ["system", "size", "steps", "ms", "encode", "restore", "sample", "decode", "gib"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        lines.append("| " + " | ".join(f"{c:.2f}" if isinstance(c, float) else str(c) for c in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
