"""`patchscaler train`: one stage of training, on one device or, under a launcher, on many."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe of the stage, a YAML file as in configs/.")],
    data: Annotated[Path, typer.Option(help="Folder of photos, or one with train/ and textures/ in it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model folder to write.")],
    init: Annotated[
        str, typer.Option(help="Where to start: a model folder or hub id, a preset's name, or `bundled`.")
    ] = "bundled",
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change a field of the recipe: NAME=VALUE, repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in the output folder.")] = False,
    limit: Annotated[int | None, typer.Option(help="Load at most so many images per folder.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the resolved recipe and stop.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train one stage of the model.

    Several GPUs: torchrun --nproc-per-node N -m patchscaler train RECIPE ...
    """
    import logging
    import os
    from dataclasses import asdict

    import yaml
    from rich.console import Console
    from rich.logging import RichHandler

    from patchscaler.errors import DeviceError, InputError
    from patchscaler.training.recipe import Recipe

    changes = {}
    for item in change or []:
        name, found, value = item.partition("=")
        if not found:
            raise InputError(f"--set takes NAME=VALUE, not {item!r}")
        changes[name] = yaml.safe_load(value)
    resolved = Recipe.read(recipe, **changes)
    if dry_run:
        settings = {"init": init, "data": str(data), "output": str(output), **asdict(resolved)}
        Console().print(yaml.safe_dump(settings, sort_keys=False).strip(), markup=False, highlight=False)
        return

    import torch

    from patchscaler.data.dataset import TileSet
    from patchscaler.pipeline import PatchScalerPipeline
    from patchscaler.presets import PRESETS, build
    from patchscaler.training.loop import train as run

    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("no GPU is present: use --device cpu, or install a CUDA build of torch")
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    console = Console(stderr=True, width=200)
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=console, show_path=False)]
    )
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(resolved.seed)
    if init in PRESETS:
        pipeline = build(init)
    else:
        pipeline = PatchScalerPipeline.from_pretrained(
            None if init == "bundled" else init, device="cpu", dtype="fp32"
        )
    run(pipeline, TileSet.load(data, limit=limit), resolved, output, resume=resume)
