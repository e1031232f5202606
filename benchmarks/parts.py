"""Work, memory traffic and achieved rates of each part of the pipeline, and the kernels that take the time.

python benchmarks/parts.py [--size 512] [--batch 256] [--compile] [--kernels 12] [--device cuda]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import torch
from common import describe, photograph, repeat, table, typical
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from patchscaler import PatchScalerPipeline
from patchscaler.runtime.runner import Runner
from patchscaler.sampling.engine import prepare_batch, step_batch
from patchscaler.sampling.patches import unfold
from patchscaler.stages import condition_part, decode_part, encode_part, restore_part

Part = tuple[Callable[..., tuple[Tensor, ...]], Sequence[Tensor]]


@torch.inference_mode()
def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256, help="patches in a batch of the denoiser")
    parser.add_argument("--device", default=None)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--kernels", type=int, default=0, help="also print so many kernels of each part")
    parser.add_argument("--parts", nargs="+", default=None)
    arguments = parser.parse_args()
    pipeline = PatchScalerPipeline.from_pretrained(arguments.model, device=arguments.device)
    device, dtype = pipeline.device, pipeline.dtype
    matmul, copy = card(device, dtype, arguments.runs)
    rows, kernels = [], []
    for name, (function, inputs) in parts(pipeline, arguments.size, arguments.batch).items():
        if arguments.parts and name not in arguments.parts:
            continue
        counter = FlopCounterMode(
            display=False, custom_mapping={torch.ops.aten._addmm_activation: _flops_of_product}
        )
        with counter as flops, Traffic() as traffic:
            function(*inputs)
        row: dict[str, object] = {
            "part": name,
            "TFLOP": flops.get_total_flops() / 1e12,
            "GB": traffic.bytes / 1e9,
            "kernels": traffic.calls,
        }
        ways = {"ms as it is": Runner(device), "ms as graph": Runner(device)}
        if arguments.compile:
            ways["ms compiled"] = Runner(device, compile=True)
        for way, runner in ways.items():
            call = partial(runner, name, function, *inputs, repeats=way != "ms as it is")
            for _ in range(3):
                call()
            row[way] = 1000 * typical(repeat(call, device, arguments.runs), device)
        best = min(float(str(row[way])) for way in ways) / 1000
        row["TFLOP/s"] = flops.get_total_flops() / best / 1e12
        row["% of matmul"] = round(100 * flops.get_total_flops() / best / matmul)
        row["% of copy"] = round(100 * traffic.bytes / best / copy)
        rows.append(row)
        if arguments.kernels:
            kernels.append(f"{name}\n{profile(function, inputs, arguments.kernels)}")
    print(
        f"{describe(device, dtype)}; matrix product {matmul / 1e12:.1f} TFLOP/s, copy {copy / 1e9:.0f} GB/s;"
        f" {arguments.size} pixels, {arguments.batch} patches\n"
    )
    print(table(rows, list(rows[0])))
    print("\n" + "\n".join(kernels))


def parts(pipeline: PatchScalerPipeline, size: int, batch: int) -> dict[str, Part]:
    """What a call of the pipeline runs, each with its inputs for one photograph."""
    device, dtype = pipeline.device, pipeline.dtype
    lr = (photograph(size).to(device, dtype) / 255)[None].contiguous(memory_format=torch.channels_last)
    (latent,) = encode_part(pipeline, lr)
    condition = condition_part(pipeline, latent, lr)[1]
    restored = restore_part(pipeline, latent, lr)[1]
    patch_size = pipeline.sampling.patch_size
    patches = unfold(condition, patch_size, pipeline.sampling.stride)
    patches = patches[torch.arange(batch, device=device) % len(patches)]
    start = torch.full((batch,), 0.9, device=device)
    places = [torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(3)]
    prepare = partial(prepare_batch, pipeline.patch_dit, pipeline.make_prompt)
    step = partial(step_batch, pipeline.patch_dit, pipeline.sampling.shortcut)
    state, tokens, prompt = prepare(patches, start, *places)
    steps = torch.full((batch,), 2.0, device=device)
    y = patches[:, : pipeline.autoencoder.latent_channels].contiguous()
    return {
        "encode": (partial(encode_part, pipeline), (lr,)),
        "restore": (partial(restore_part, pipeline), (latent, lr)),
        "restore and condition": (partial(condition_part, pipeline), (latent, lr)),
        "prepare": (prepare, (patches, start, *places)),
        "step": (step, (prompt, steps[0], state, y, tokens, start, steps)),
        "decode": (partial(decode_part, pipeline), (restored, lr)),
    }


def card(device: torch.device, dtype: torch.dtype, runs: int) -> tuple[float, float]:
    """Measured FLOP/s of a large matrix product and bytes/s of a large copy."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    big = torch.empty(2**28 if device.type == "cuda" else 2**25, dtype=torch.uint8, device=device)
    other = torch.empty_like(big)
    seconds = [
        typical(repeat(call, device, runs), device) for call in (lambda: a @ b, lambda: other.copy_(big))
    ]
    return 2 * side**3 / seconds[0], 2 * big.numel() / seconds[1]


class Traffic(TorchDispatchMode):
    """Counts operations that compute, and the bytes of all that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket is not torch.ops.aten.empty:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.itemsize for tensor in tensors)
            self.calls += 1
        return result


def _flops_of_product(bias: torch.Size, a: torch.Size, b: torch.Size, **options: object) -> int:
    """Of a product that torch's counter does not know."""
    return 2 * a[0] * a[1] * b[1]


def profile(function: Callable[..., object], inputs: Sequence[Tensor], rows: int) -> str:
    """The kernels that take the most time."""
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CPU, activity.CUDA]) as profiler:
        for _ in range(3):
            function(*inputs)
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)[:rows]
    lines = [
        f"{event.self_device_time_total / 3000:9.3f} ms {event.count // 3:5d} x  {event.key[:110]}"
        for event in events
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
