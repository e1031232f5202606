"""Time per stage, and reports of how far each stage is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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
    """Seconds per stage. On CUDA the device's own clock is read, at the end: no stage waits for the one before."""

    def __init__(self, device: torch.device, report: ProgressCallback | None) -> None:
        self.device, self.report = device, report
        self._spans: dict[str, Callable[[], float]] = {}

    @contextmanager
    def stage(self, stage: Stage, total: int) -> Iterator[Tick]:
        """Time one stage of `total` units."""
        if self.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            stream = torch.cuda.current_stream(self.device)
            begin.record(stream)
            yield Tick(stage, total, self.report)
            end.record(stream)
            self._spans[stage] = lambda: begin.elapsed_time(end) / 1000
        else:
            start = time.perf_counter()
            yield Tick(stage, total, self.report)
            span = time.perf_counter() - start
            self._spans[stage] = lambda: span

    def read(self) -> dict[str, float]:
        """Seconds of every stage, after waiting for what is queued."""
        _wait(self.device)
        return {stage: round(span(), 5) for stage, span in self._spans.items()}


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call from an idle device until it is idle again; on a GPU of a second one, when all is loaded."""
    seconds = 0.0
    for _ in range(2 if device.type == "cuda" else 1):
        _wait(device)
        begin = time.perf_counter()
        call()
        _wait(device)
        seconds = time.perf_counter() - begin
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
