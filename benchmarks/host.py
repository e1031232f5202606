"""What the host does for a photograph that a GPU enlarges, part by part: what is left when the device takes no time.

python benchmarks/host.py [--size 512] [--suffix jpg] [--runs 15] [--photos 100] [--folder /tmp]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import photograph, table
from PIL import Image

from patchscaler import PatchScalerPipeline
from patchscaler.batch import CallOptions, run_jobs
from patchscaler.imaging.io import OutputOptions, read_photo, write_photo
from patchscaler.imaging.size import TargetSize
from patchscaler.imaging.streaming import Spool
from patchscaler.jobs import plan_jobs
from patchscaler.presets import build


class Instant(PatchScalerPipeline):
    """A pipeline whose device takes no time: every photograph becomes one that was made before."""

    def remember(self, pixels: np.ndarray) -> Instant:
        """Enlarge once what every call will give."""
        self.large = np.zeros([self.scale * side for side in pixels.shape[:2]] + [3], np.uint8)
        (self.result,) = super().__call__([pixels], out=[self.large])
        return self

    def __call__(self, images: Any, *, out: Any = None, **_: Any) -> Any:
        """The same result for each image, its pixels stored as a single tile is."""
        for one in out:
            one[0 : self.large.shape[0], 0 : self.large.shape[1]] = self.large
        return [self.result for _ in images]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--suffix", default="jpg")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--folder", default=None, help="where files go; the system's temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        print(f"{os.cpu_count()} cores")
        print(table(parts(folder, arguments.size, arguments.suffix, arguments.runs), list(_COLUMNS)))
        seconds, processor = folder_run(folder, arguments.size, arguments.suffix, arguments.photos)
        print(
            f"{arguments.photos} photographs with a device that takes no time: {arguments.photos / seconds:.0f}"
            f" a second, {processor / arguments.photos * 1000:.1f} ms of processor time each"
        )


_COLUMNS = ("part", "ms", "ms of its thread", "ms of all threads")


def parts(folder: Path, size: int, suffix: str, runs: int) -> list[dict[str, object]]:
    """Rows of milliseconds, medians: by the clock, and processor time of the calling thread and of the process."""
    source, target = folder / "source.jpg", folder / f"target.{suffix}"
    save(source, size, 0)
    photo = read_photo(source)
    large = np.asarray(Image.open(source).resize((4 * size, 4 * size), Image.Resampling.BICUBIC)).copy()

    def spool(in_memory: bool) -> None:
        with Spool(folder, large.shape, large.dtype, in_memory=in_memory) as pixels:
            pixels[0 : 4 * size, 0 : 4 * size] = large

    def write() -> None:
        with Spool(folder, large.shape, large.dtype, in_memory=True) as pixels:
            pixels[0 : 4 * size, 0 : 4 * size] = large
            write_photo(target, pixels.image(), None, photo, (4 * size, 4 * size), OutputOptions())

    timed: dict[str, Callable[[], object]] = {
        "read": lambda: read_photo(source),
        "store in a file": lambda: spool(False),
        "store in memory": lambda: spool(True),
        f"store, encode and write .{suffix}": write,
    }
    return [dict(zip(_COLUMNS, (name, *clocks(call, runs)), strict=True)) for name, call in timed.items()]


def clocks(call: Callable[[], object], runs: int) -> list[float]:
    """Median milliseconds of a call by three clocks: wall, thread, process."""
    read = (time.perf_counter, time.thread_time, time.process_time)
    call()
    times = []
    for _ in range(runs):
        begin = [clock() for clock in read]
        call()
        times.append([clock() - start for clock, start in zip(read, begin, strict=True)])
    return [1000 * statistics.median(column) for column in zip(*times, strict=True)]


def folder_run(folder: Path, size: int, suffix: str, count: int) -> tuple[float, float]:
    """Seconds, and seconds of processor time, of a folder run once started."""
    source = folder / "in"
    source.mkdir()
    for number in range(count):
        save(source / f"{number:03}.jpg", size, number)
    torch.set_num_threads(1)
    tiny = build("tiny")
    pipeline = Instant(**tiny.networks, sampling=tiny.sampling)  # type: ignore[arg-type]
    pipeline.remember(read_photo(source / "000.jpg").pixels)
    jobs = plan_jobs([source], folder / "out", size=TargetSize(), suffix=f".{suffix}").jobs
    begin, processor = time.perf_counter(), time.process_time()
    for outcome in run_jobs(jobs, [lambda: pipeline], CallOptions(), OutputOptions()):
        if outcome.error:
            raise outcome.error
    return time.perf_counter() - begin, time.process_time() - processor


def save(file: Path, size: int, number: int) -> None:
    """Write a photograph of the examples as JPEG."""
    Image.fromarray(photograph(size, number).permute(1, 2, 0).numpy()).save(file, quality=95)


if __name__ == "__main__":
    main()
