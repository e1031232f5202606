"""Time per stage, and reports of how far each stage is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from patchscaler.result import Progress, ProgressCallback, Stage


class Tick:
    """Counts the units of one stage."""

    def __init__(self, stage: Stage, total: int, report: ProgressCallback | None) -> None:
        self.stage: Stage = stage
        self.total, self.report, self.done = total, report, 0
        self.to(0)

    def __call__(self, units: int) -> None:
        """Count what was done."""
        self.to(self.done + units)

    def to(self, done: int) -> None:
        """Set and report what is done."""
        self.done = done
        if self.report is not None:
            self.report(Progress(self.stage, done, self.total))


class Clock:
    """Seconds per stage, with the device's queue drained at the end of each."""

    def __init__(self, device: torch.device, report: ProgressCallback | None) -> None:
        self.device, self.report = device, report
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, stage: Stage, total: int) -> Iterator[Tick]:
        """Time one stage of `total` units."""
        begin = time.perf_counter()
        yield Tick(stage, total, self.report)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] = round(time.perf_counter() - begin, 4)
