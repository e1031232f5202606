"""`patchscaler memory`: build a texture memory from pictures, look at it, and measure what it gives."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchscaler.cli.common import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    Precision,
    SeedOption,
    counting_bar,
    warn,
)
from patchscaler.errors import InputError, ModelError

if TYPE_CHECKING:
    from patchscaler.texture_memory import ReferenceTextureMemory

memory = typer.Typer(name="memory", no_args_is_help=True, help="Build, show and measure texture memories.")

FileArgument = Annotated[
    Path | None, typer.Argument(metavar="[FILE]", help="A texture memory; the model's own if none is named.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
MemoryOption = Annotated[
    Path | None, typer.Option("--memory", metavar="FILE", help="Texture memory; else the model's own.")
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Use the first so many images only.")]


@memory.command()
def build(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Folders of sharp pictures, with those below.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File, .safetensors.")],
    entries: Annotated[int, typer.Option(min=1, help="Most patches to keep.")] = 1024,
    licence: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LICENCE|FOLDER=LICENCE",
            help="Licence of all pictures, or of a folder's; may be repeated.",
        ),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Columns file (relative to the CSV's folder), source and licence."),
    ] = None,
    shrink: Annotated[
        float, typer.Option(min=1, help="Shrink pictures by this first; 2 sharpens photos of a camera.")
    ] = 1.0,
    duplicate: Annotated[
        float, typer.Option(min=0, max=1, help="Patches whose keys are this similar count as the same.")
    ] = 0.9,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Precision.auto,
    overwrite: OverwriteOption = False,
) -> None:
    """Build a texture memory for `upscale --memory`.

    Pictures are cut into patches; flat ones and those like another are left out, and all categories get the same
    share. A picture's category is what stands before `__` in its name, else the subfolder it is in. The file passes
    the pictures on, so every picture needs a licence.
    """
    _check_output(output, ".safetensors", overwrite)
    from patchscaler.texture_sources import Licences, build_memory, find_pictures

    pictures = find_pictures(folders, Licences.parse(licence or [], manifest))
    from patchscaler.imaging.io import atomic_path
    from patchscaler.pipeline import PatchScalerPipeline

    pipeline = PatchScalerPipeline.from_pretrained(model, device=device, dtype=dtype.value)
    with counting_bar("pictures") as progress:
        built, counts = build_memory(
            pipeline,
            pictures,
            entries=entries,
            duplicate=duplicate,
            shrink=shrink,
            progress=progress,
            on_skip=warn,
        )
    with atomic_path(output) as partial:
        built.save(partial)
    if len(built) < entries:
        warn(f"{len(built)} entries, not {entries}: there are no more patches that differ enough")
    typer.echo(
        f"{output}: from {len(pictures)} pictures, {counts.seen} patches, {counts.lively} of them not flat"
    )
    typer.echo(_summary(built))


@memory.command()
def show(
    file: FileArgument = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PICTURE", help="Draw a contact sheet.")
    ] = None,
    photo: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PHOTO",
            help="Draw instead which entries this photo's hardest patches retrieve; may be repeated.",
        ),
    ] = None,
    notice: Annotated[
        bool, typer.Option("--notice", help="Print the notice of sources and licences, and nothing else.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Draw at most so many entries.")] = 192,
    patches: Annotated[int, typer.Option(min=1, help="Patches to show of each photo.")] = 4,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Precision.auto,
    overwrite: OverwriteOption = False,
) -> None:
    """Say what a texture memory holds, and draw it."""
    if photo and output is None:
        raise InputError("--photo needs -o PICTURE")
    if output is not None:
        _check_output(output, "", overwrite)
    if notice or output is None:
        held = _load(file, model)
        from patchscaler.texture_notice import notice as text

        typer.echo(text(held).rstrip() if notice else _summary(held))
        return

    from patchscaler.evaluation.prompts import memory_sheet, retrieval_sheet, stacked
    from patchscaler.imaging.io import read_photo, write_pixels
    from patchscaler.imaging.tensors import eight_bits
    from patchscaler.pipeline import PatchScalerPipeline

    taken = [eight_bits(read_photo(path).pixels) for path in photo or ()]
    pipeline = PatchScalerPipeline.from_pretrained(model, device=device, dtype=dtype.value, memory=file)
    if taken:
        sheet = stacked([retrieval_sheet(pipeline, pixels, patches=patches) for pixels in taken])
    else:
        sheet = memory_sheet(pipeline, limit=limit)
    write_pixels(output, sheet)


@memory.command()
def report(
    tiles: Annotated[
        Path, typer.Argument(metavar="TILES", help="Folder of tiles of one size, named CATEGORY__NAME.")
    ],
    model: ModelOption = None,
    file: MemoryOption = None,
    every: Annotated[
        bool, typer.Option("--every", help="Query with every tile, also those that taught the classifier.")
    ] = False,
    limit: LimitOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Precision.auto,
    seed: SeedOption = 0,
) -> None:
    """Measure what the keys find: recall and category accuracy beside two baselines; needs the extra `train`."""
    from patchscaler.evaluation.retrieval import measure_retrieval, to_markdown
    from patchscaler.pipeline import PatchScalerPipeline

    pipeline = PatchScalerPipeline.from_pretrained(model, device=device, dtype=dtype.value, memory=file)
    with counting_bar("tiles") as progress:
        measured = measure_retrieval(pipeline, tiles, every=every, limit=limit, seed=seed, progress=progress)
    typer.echo(to_markdown(measured))


@memory.command()
def ablate(
    lr_dir: Annotated[Path, typer.Argument(metavar="LR", help="Folder of LR images.")],
    hr_dir: Annotated[
        Path, typer.Argument(metavar="HR", help="Folder of the truth, 4 times as large, same names.")
    ],
    model: ModelOption = None,
    file: MemoryOption = None,
    larger: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A larger memory to compare with.")
    ] = None,
    plan: Annotated[
        str,
        typer.Option(
            metavar="NAME|T:N|T:N,T:N,T:N",
            help="The model's plan to sample with; or N steps from T for all patches, or for the simple, medium and"
            " hard ones.",
        ),
    ] = "best",
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="PICTURE", help="Draw the patches that prompts change most, for better and worse."
        ),
    ] = None,
    patches: Annotated[int, typer.Option(min=1, help="Patches to draw of each kind.")] = 4,
    limit: LimitOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Precision.auto,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Measure what texture prompts change, on the same weights and y_0; needs the extra `train`."""
    if picture is not None:
        _check_output(picture, "", overwrite)
    from patchscaler.evaluation.ablation import ablate as measure
    from patchscaler.evaluation.ablation import parse_plan, to_markdown
    from patchscaler.evaluation.prompted import Extremes
    from patchscaler.pipeline import PatchScalerPipeline

    pipeline = PatchScalerPipeline.from_pretrained(model, device=device, dtype=dtype.value, memory=file)
    more = None
    if larger is not None:
        more = PatchScalerPipeline.from_pretrained(
            model, device=device, dtype=dtype.value, memory=larger
        ).texture_memory
    extremes = None if picture is None else Extremes(patches)
    with counting_bar("images") as progress:
        measured = measure(
            pipeline,
            lr_dir,
            hr_dir,
            plan=parse_plan(pipeline, plan),
            larger=more,
            seed=seed,
            limit=limit,
            extremes=extremes,
            progress=progress,
        )
    if picture is not None and extremes is not None:
        from patchscaler.imaging.io import write_pixels

        write_pixels(picture, extremes.sheet(pipeline))
    typer.echo(to_markdown(measured))


def _check_output(output: Path, suffix: str, overwrite: bool) -> None:
    if suffix and output.suffix != suffix:
        raise InputError(f"{output}: name it with the suffix {suffix}")
    if not suffix:
        from patchscaler.imaging.formats import writable_format

        writable_format(output)
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists already; --overwrite replaces it")


def _load(file: Path | None, model: str | None) -> ReferenceTextureMemory:
    from patchscaler.storage import locate, memory_file
    from patchscaler.texture_memory import ReferenceTextureMemory

    if file is None:
        file = memory_file(locate(model))
        if not file.exists():
            raise ModelError("this model has no texture memory")
    return ReferenceTextureMemory.load(file)


def _summary(held: ReferenceTextureMemory) -> str:
    lines = [f"{len(held)} entries of {len(set(held.sources))} pictures, latent space {held.latent_space}"]
    for title, names in (("categories", held.categories), ("licences", held.licences)):
        counts = Counter(names).most_common()
        lines.append(f"{title}: " + ", ".join(f"{name or 'none'} {count}" for name, count in counts))
    return "\n".join(lines)
