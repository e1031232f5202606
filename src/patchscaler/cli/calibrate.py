"""`patchscaler calibrate`: measure the paths on validation images and write the plans into a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchscaler.cli.common import DeviceOption, DtypeOption, Precision, SeedOption, counting_bar
from patchscaler.errors import InputError


def calibrate(
    lr_dir: Annotated[Path, typer.Argument(metavar="LR", help="Folder of LR validation images.")],
    hr_dir: Annotated[
        Path, typer.Argument(metavar="HR", help="Folder of the truth, 4 times as large, same names.")
    ],
    model: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Model to calibrate; the plans are written into it.")
    ],
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Markdown file for the measured tables; the chart goes beside it."),
    ] = None,
    paths: Annotated[
        str | None,
        typer.Option(
            metavar="T:N,...", help="Paths to try: where they start and their steps; 9 if not given."
        ),
    ] = None,
    by: Annotated[
        str, typer.Option(help="What steps are to gain: distance (deep features) or detail (its energy).")
    ] = "distance",
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first so many images only.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Precision.auto,
    seed: SeedOption = 0,
) -> None:
    """Choose the paths of `fast`, `balanced` and `best` by their measured gain; needs the extra `train`."""
    if report is not None and report.is_dir():
        raise InputError(f"{report} is a folder; --report names a file")
    if by not in ("distance", "detail"):
        raise InputError(f"--by takes distance or detail, not {by!r}")

    from patchscaler.evaluation.calibrate import CANDIDATES, parse_paths, read_pairs, to_chart, to_markdown
    from patchscaler.evaluation.calibrate import calibrate as measure
    from patchscaler.pipeline import PatchScalerPipeline
    from patchscaler.storage import write_plans

    candidates = CANDIDATES if paths is None else parse_paths(paths)
    pairs = read_pairs(lr_dir, hr_dir, limit)
    pipeline = PatchScalerPipeline.from_pretrained(model.absolute(), device=device, dtype=dtype.value)
    with counting_bar("outputs") as progress:
        measured = measure(pipeline, pairs, measure=by, candidates=candidates, seed=seed, progress=progress)
    write_plans(model, measured.plans)
    tables = to_markdown(measured)
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        chart = report.with_suffix(".svg")
        chart.write_text(to_chart(measured), encoding="utf-8")
        report.write_text(f"{tables}\n![Quality against cost]({chart.name})\n", encoding="utf-8")
    typer.echo(tables)
