"""`patchscaler calibrate`: measure the paths on validation images and write the plans into a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    lr_dir: Annotated[Path, typer.Argument(help="Folder of LR validation images.")],
    hr_dir: Annotated[Path, typer.Argument(help="Folder of the HR images of the same names.")],
    model: Annotated[str, typer.Option(help="Model folder to calibrate; the plans are written into it.")],
    report: Annotated[Path | None, typer.Option(help="Markdown file for the measured table.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most so many images.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    seed: Annotated[int, typer.Option(help="Fixes the noise.")] = 0,
) -> None:
    """Choose the paths of `fast`, `balanced` and `best` by their measured gain."""
    from rich.console import Console
    from rich.progress import Progress

    from patchscaler.evaluation.calibrate import CANDIDATES, read_pairs, to_markdown
    from patchscaler.evaluation.calibrate import calibrate as measure
    from patchscaler.pipeline import PatchScalerPipeline
    from patchscaler.storage import write_plans

    pipeline = PatchScalerPipeline.from_pretrained(model, device=device, dtype=dtype)
    pairs = read_pairs(lr_dir, hr_dir, limit)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("paths", total=len(CANDIDATES) + 1)
        measured = measure(pipeline, pairs, seed=seed, on_path=lambda path: bar.advance(task))
    write_plans(Path(model), measured.plans)
    table = to_markdown(measured)
    if report is not None:
        report.write_text(table)
    Console().print(table, markup=False, highlight=False)
