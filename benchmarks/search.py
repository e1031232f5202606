"""Time and memory of the exact search in a texture memory, beside one product of all queries and keys.

python benchmarks/search.py [--keys 1024 65536 1000000] [--queries 256] [--width 128] [--count 3] [--device cuda]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from patchscaler.runtime.device import resolve_device, resolve_dtype
from patchscaler.texture_memory import Origin, ReferenceTextureMemory


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, nargs="+", default=[1024, 65536, 1_000_000])
    parser.add_argument("--queries", type=int, default=256, help="patches; 256 make a 2048x2048 image")
    parser.add_argument("--width", type=int, default=128, help="of a key")
    parser.add_argument("--count", type=int, default=3, help="entries per query")
    parser.add_argument("--device", default=None)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    dtype = resolve_dtype(None, device)
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    print(
        f"{where}, {dtype}, torch {torch.__version__}, {arguments.queries} queries, top {arguments.count}\n"
    )
    print("| keys | search, ms | per query, us | added peak, MiB | one product, ms | added peak, MiB |")
    print("|---:|---:|---:|---:|---:|---:|")
    for count in arguments.keys:
        generator = torch.Generator().manual_seed(0)
        keys = F.normalize(torch.randn(count, arguments.width, generator=generator)).to(device, dtype)
        queries = F.normalize(torch.randn(arguments.queries, arguments.width, generator=generator)).to(
            device, dtype
        )
        patch = torch.zeros(1, 16, 16, 16, dtype=torch.int8)  # one patch stands for all
        scale = torch.ones(1, 16, 1, 1, dtype=dtype, device=device)
        values, scales = (x.expand(count, -1, -1, -1) for x in (patch.to(device), scale))
        memory = ReferenceTextureMemory(values, scales, keys, (Origin("", ""),) * count, "")

        def chunked(memory: ReferenceTextureMemory = memory, queries: Tensor = queries) -> object:
            return memory.search(queries, arguments.count)

        def whole(memory: ReferenceTextureMemory = memory, queries: Tensor = queries) -> object:
            return memory.patches((queries @ memory.keys.T).topk(arguments.count, dim=1).indices)

        ours, peak = measure(chunked, arguments.runs, device)
        other, other_peak = measure(whole, arguments.runs, device)
        each = 1000 * ours / arguments.queries
        print(
            f"| {count:,} | {ours:.1f} | {each:.0f} | {peak / 2**20:.0f} | {other:.1f} | {other_peak / 2**20:.0f} |"
        )


def measure(call: Callable[[], object], runs: int, device: torch.device) -> tuple[float, int]:
    """Median milliseconds after one call to warm up, and bytes by which the peak of memory grew."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = _held(cuda)
    call()
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times), max(0, _held(cuda) - before)


def _held(cuda: bool) -> int:
    """Most bytes held so far."""
    if cuda:
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
