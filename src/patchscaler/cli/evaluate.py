"""`patchscaler evaluate`: measure a model on fixed LR files and write a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchscaler.cli.common import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    Precision,
    SeedOption,
    counting_bar,
)
from patchscaler.errors import InputError

_REPORTS = ("report.html", "report.md", "report.json")


def evaluate(
    lr_dir: Annotated[Path, typer.Argument(metavar="LR", help="Folder of LR images.")],
    hr_dir: Annotated[
        Path, typer.Argument(metavar="HR", help="Folder of the truth, 4 times as large, same names.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for report.html, .md and .json.")],
    model: ModelOption = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="Ready outputs of another method; may be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first so many images only.")] = None,
    border: Annotated[
        int, typer.Option(min=0, help="HR pixels left out on every side; 4 for Set5 and Set14.")
    ] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Precision.auto,
    seed: SeedOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace reports that exist.")] = False,
) -> None:
    """Measure quality against the truth, bicubic and other methods; needs the extra `train`."""
    peers = dict(_parse_peer(text) for text in peer or [])
    existing = [name for name in _REPORTS if (output / name).exists()]
    if existing and not overwrite:
        raise InputError(f"{output / existing[0]} exists already; --overwrite replaces it")
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is not a folder")

    from patchscaler.evaluation.evaluate import evaluate as measure
    from patchscaler.evaluation.report import to_html, to_json, to_markdown
    from patchscaler.pipeline import PatchScalerPipeline

    pipeline = PatchScalerPipeline.from_pretrained(model, device=device, dtype=dtype.value)
    with counting_bar("images") as progress:
        evaluation = measure(
            pipeline,
            lr_dir,
            hr_dir,
            peers=peers,
            seed=seed,
            border=border,
            limit=limit,
            progress=progress,
        )
    output.mkdir(parents=True, exist_ok=True)
    for name, write in zip(_REPORTS, (to_html, to_markdown, to_json), strict=True):
        (output / name).write_text(write(evaluation), encoding="utf-8")
    typer.echo(to_markdown(evaluation))


def _parse_peer(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise InputError(f"--peer {text}: write it as NAME=FOLDER")
    return name, Path(folder)
