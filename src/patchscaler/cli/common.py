"""Options and output that the commands share."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from patchscaler.result import Progress, ProgressCallback


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


def warn(message: str) -> None:
    """Print one line on stderr."""
    typer.echo(f"patchscaler: {message}", err=True)


def print_json(record: Mapping[str, object], *, indent: int | None = None) -> None:
    """Print one JSON object on stdout."""
    typer.echo(json.dumps(record, ensure_ascii=False, indent=indent))


@contextlib.contextmanager
def counting_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A callback that draws how many of how many are done, on stderr and only on a terminal."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def progress_bar(label: str, *, shown: bool) -> Iterator[ProgressCallback | None]:
    """A callback that draws the stages of one pipeline call on stderr; None unless shown on a terminal."""
    if not shown or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn(escape(label)), TextColumn("{task.description:<7}"), BarColumn())
    console = Console(stderr=True)
    with Bar(*columns, MofNCompleteColumn(), TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("read", total=None)

        def report(progress: Progress) -> None:
            bar.update(task, description=progress.stage, completed=progress.done, total=progress.total)

        yield report
