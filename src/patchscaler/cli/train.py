"""`patchscaler train`: one stage of training, on one device or, under a launcher, on many."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchscaler.errors import DeviceError, InputError

if TYPE_CHECKING:
    from patchscaler.training.recipe import Recipe


def train(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="Recipe of the stage, a YAML file as in configs/.")
    ],
    data: Annotated[Path, typer.Option(help="Folder of photos, or one with train/ and textures/ in it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model folder to write.")],
    init: Annotated[
        str, typer.Option(help="Where to start: a model folder or hub id, a preset's name, or `bundled`.")
    ] = "bundled",
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change a field of the recipe; may be repeated."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in the output folder.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Load at most so many images per folder.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and print the resolved recipe, and stop.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train one stage of the model; needs the extra `train`.

    Several GPUs: torchrun --nproc-per-node N -m patchscaler train RECIPE ...
    """
    import logging
    import math
    import os
    from dataclasses import asdict

    import yaml
    from rich.console import Console
    from rich.logging import RichHandler

    from patchscaler.training.recipe import Recipe

    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"unknown device {device!r}; training takes auto, cpu or cuda")
    resolved = Recipe.read(recipe, **dict(_parse_change(text) for text in change or []))
    _check_stage(recipe, resolved)
    if dry_run:
        settings = {"init": init, "data": str(data), "output": str(output), **asdict(resolved)}
        typer.echo(yaml.safe_dump(settings, sort_keys=False).strip())
        return

    import torch

    from patchscaler.data.dataset import TileSet
    from patchscaler.data.drawn import drawn_tiles
    from patchscaler.pipeline import PatchScalerPipeline
    from patchscaler.presets import PRESETS, build
    from patchscaler.training.loop import train as run

    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("no GPU is present: use --device cpu, or install a CUDA build of torch")
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    console = Console(stderr=True, width=300)
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
    tiles = TileSet.load(data, limit=limit)
    if resolved.drawn:
        tiles = TileSet([*tiles.groups, drawn_tiles(math.ceil(resolved.drawn * len(tiles)))])
    run(pipeline, tiles, resolved, output, resume=resume)


def _parse_change(text: str) -> tuple[str, Any]:
    import yaml

    name, found, word = text.partition("=")
    if not (name and found):
        raise InputError(f"--set takes NAME=VALUE, not {text!r}")
    try:
        return name, yaml.safe_load(word)
    except yaml.YAMLError:
        raise InputError(f"--set {text}: {word!r} is not a YAML value") from None


def _check_stage(file: Path, recipe: Recipe) -> None:
    """Refuse a recipe whose stage, or an option of it or of the degradation, is not known."""
    import inspect

    from patchscaler.data.degradation import DegradationConfig
    from patchscaler.training.stages import STAGES

    if recipe.stage not in STAGES:
        raise InputError(f"{file}: no stage {recipe.stage!r}; there are {', '.join(STAGES)}")
    known = list(inspect.signature(STAGES[recipe.stage]).parameters)[3:]  # pipeline, tiles, degradation
    unknown = sorted(set(recipe.options) - set(known))
    if unknown:
        raise InputError(
            f"{file}: the stage {recipe.stage} has no option {unknown[0]!r}; it has {', '.join(known)}"
        )
    DegradationConfig.from_dict(recipe.degradation)
