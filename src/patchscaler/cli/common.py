"""Options and output that the commands share."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from rich.progress import Progress as Bar

    from patchscaler.pipeline import PatchScalerPipeline
    from patchscaler.result import Progress


LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
"""Addresses that only this machine reaches."""


class Quality(str, Enum):
    """Named plans of a model."""

    fast = "fast"
    balanced = "balanced"
    best = "best"


class Precision(str, Enum):
    """Names of the dtypes to compute in."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="FOLDER|HUB_ID", help="Model to use instead of the bundled one."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
DtypeOption = Annotated[
    Precision, typer.Option("--dtype", help="Precision; auto is fp16 on a GPU, fp32 on the CPU.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Fixes the noise, and with it the result.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and errors only.")]


def load_pipeline(
    model: str | None, device: str, dtype: str, *, compiled: bool = False, memory: Path | None = None
) -> Callable[[], PatchScalerPipeline]:
    """A function that loads a pipeline when it is first called."""

    @functools.cache
    def load() -> PatchScalerPipeline:
        with here_to_stay():
            from patchscaler.pipeline import PatchScalerPipeline

            return PatchScalerPipeline.from_pretrained(
                model, device=device, dtype=dtype, compile=compiled, memory=memory
            )

    return load


@contextlib.contextmanager
def here_to_stay() -> Iterator[None]:
    """Do not look for garbage among what is made within, now or later: modules and weights are kept to the end.

    A start of half a million objects takes Python half a second of looking through them, and its end as much again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def warn(message: str) -> None:
    """Print one line on stderr."""
    typer.echo(f"patchscaler: {message}", err=True)


def print_json(record: Mapping[str, object], *, indent: int | None = None) -> None:
    """Print one JSON object on stdout."""
    typer.echo(json.dumps(record, ensure_ascii=False, indent=indent))


class RunBar:
    """Photographs done of all, their rate and the time left, over the stage of the one in work."""

    def __init__(self, bar: Bar, names: Sequence[str]) -> None:
        self.bar, self.names, self.done, self.begin = bar, names, 0, time.monotonic()
        self.run = bar.add_task("", total=len(names), visible=len(names) > 1)
        self.task = bar.add_task("read", total=None)

    def advance(self) -> None:
        """Count a photograph."""
        self.done += 1
        rate = self.done / (time.monotonic() - self.begin)
        self.bar.update(self.run, completed=self.done, description=f"{rate:.2f} images/s")

    def stage(self, progress: Progress) -> None:
        """Show how far a stage is."""
        self.bar.update(self.task, description=progress.stage, completed=progress.done, total=progress.total)


@contextlib.contextmanager
def counting_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A callback that draws how many of how many are done, on stderr and only on a terminal."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def run_bar(names: Sequence[str], *, shown: bool) -> Iterator[RunBar | None]:
    """A bar on stderr for a run over photographs; None unless shown on a terminal."""
    if not (shown and names and sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        yield RunBar(bar, names)
