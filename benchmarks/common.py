"""What the benchmarks share: a photograph of any size, and the clock."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

EXAMPLES = Path(__file__).parent.parent / "examples"


def photograph(size: int, number: int = 0) -> Tensor:
    """A uint8 image (3, size, size) put together from the example photographs, mirrored in turn.

    How many steps a plan takes depends on the picture: noise or a flat area would mean nothing.
    """
    photos = _examples()
    side = min(min(photo.shape[:2]) for photo in photos)
    count = -(-size // side)
    rows = []
    for row in range(count):
        indices = [number + row * count + column for column in range(count)]
        row_photos = [photos[index % len(photos)][:side, :side] for index in indices]
        rows.append(
            np.concatenate([p[:, ::-1] if i % 2 else p for i, p in zip(indices, row_photos, strict=True)], 1)
        )
    pixels = np.concatenate(rows)[:size, :size]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


@functools.cache
def _examples() -> list[np.ndarray]:
    files = sorted(file for file in EXAMPLES.iterdir() if file.suffix in (".png", ".jpg"))
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


Clock = Callable[[], float]


def seconds_of(call: Callable[[], object], device: torch.device, clock: Clock = time.perf_counter) -> float:
    """How long one call takes, by the device's clock if it has one, else by the one given."""
    if device.type != "cuda":
        begin = clock()
        call()
        return clock() - begin
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def repeat(
    call: Callable[[], object],
    device: torch.device,
    runs: int,
    budget: float = 3.0,
    clock: Clock = time.perf_counter,
) -> list[float]:
    """Seconds of up to `runs` calls, of three at least, in about `budget` seconds."""
    times: list[float] = []
    while len(times) < runs and (len(times) < 3 or sum(times) < budget):
        times.append(seconds_of(call, device, clock))
    return times


def typical(times: list[float], device: torch.device) -> float:
    """The median on a GPU; the least on a CPU, which other work may disturb."""
    return statistics.median(times) if device.type == "cuda" else min(times)


def describe(device: torch.device, dtype: torch.dtype) -> str:
    """The machine and the software in one line."""
    if device.type == "cuda":
        where = f"{torch.cuda.get_device_name(device)}, median"
    else:
        where = f"CPU, {torch.get_num_threads()} threads, least of the runs"
    return f"{where}; {str(dtype).removeprefix('torch.')}; torch {torch.__version__}"


def table(rows: list[dict[str, object]], columns: list[str]) -> str:
    """Rows in Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        lines.append("| " + " | ".join(f"{c:.2f}" if isinstance(c, float) else str(c) for c in cells) + " |")
    return "\n".join(lines)
