"""Time and memory of the exact search in a texture memory, beside one product of all keys.

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
    print("| keys | search, ms | per query, us | added peak, MiB | whole product and topk, ms | over it |")
    print("|---:|---:|---:|---:|---:|---:|")
    for count in arguments.keys:
        generator = torch.Generator().manual_seed(0)
        keys = F.normalize(torch.randn(count, arguments.width, generator=generator)).to(device, dtype)
        queries = F.normalize(torch.randn(arguments.queries, arguments.width, generator=generator)).to(
            device, dtype
        )
        memory = ReferenceTextureMemory(
            torch.zeros(1, 16, 16, 16, dtype=torch.int8).expand(
                count, -1, -1, -1
            ),  # one patch stands for all
            torch.ones(1, 16, 1, 1, dtype=dtype, device=device).expand(count, -1, -1, -1),
            keys,
            (Origin("", ""),) * count,
            "",
        )
        ours, peak = measure(lambda m=memory, q=queries: m.search(q, arguments.count), arguments.runs, device)
        whole, _ = measure(
            lambda k=keys, q=queries: (q @ k.T).topk(arguments.count, dim=1), arguments.runs, device
        )
        print(
            f"| {count:,} | {ours:.1f} | {1000 * ours / arguments.queries:.0f} | {peak / 2**20:.0f} | {whole:.1f} |"
            f" {ours / whole:.2f} |"
        )


def measure(call: Callable[[], object], runs: int, device: torch.device) -> tuple[float, int]:
    """Median milliseconds after one call to warm up, and bytes by which the peak of memory grew."""
    cuda = device.type == "cuda"
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
