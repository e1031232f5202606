"""`patchscaler upscale`: photographs in, larger photographs out."""

from __future__ import annotations

import mimetypes
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchscaler.cli.common import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    Precision,
    Quality,
    QuietOption,
    SeedOption,
    print_json,
    progress_bar,
    warn,
)
from patchscaler.errors import InputError

if TYPE_CHECKING:
    from patchscaler.pipeline import PatchScalerPipeline
    from patchscaler.result import ProgressCallback


@dataclass(frozen=True)
class Job:
    """One photograph to upscale: `output` and `map` (or None) are the files to write."""

    source: Path
    output: Path
    map: Path | None
    size: tuple[int, int]


def upscale(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="IN...", help="Photographs (PNG, JPEG, WebP, TIFF) or folders.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="A file, or a folder (made if need be).")
    ],
    scale: Annotated[float, typer.Option(help="1 to 8; the model's x4 result is resampled to it.")] = 4.0,
    quality: Annotated[Quality, typer.Option(help="How many steps to spend.")] = Quality.balanced,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Precision.auto,
    model: ModelOption = None,
    texture: Annotated[bool, typer.Option("--texture/--no-texture", help="Use texture prompts.")] = True,
    map_output: Annotated[
        Path | None,
        typer.Option("--map", metavar="FILE|FOLDER", help="Save the difficulty map as a picture."),
    ] = None,
    output_suffix: Annotated[
        str | None,
        typer.Option(metavar="SUFFIX", help="Format in an output folder, such as png; else the input's."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits whatever else is in the batch; slower.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Upscale photographs.

    Metadata and colour profiles are not written; a line says what was left behind.

    A bad file does not stop the others. Exit code: 0 all done, 2 something failed, 130 interrupted.
    """
    failures: dict[Path, InputError] = {}
    jobs = _plan_jobs(inputs, output, map_output, output_suffix, scale, failures)
    _check_targets(jobs, inputs, overwrite)

    @cache
    def pipeline() -> PatchScalerPipeline:
        from patchscaler.pipeline import PatchScalerPipeline

        return PatchScalerPipeline.from_pretrained(model, device=device, dtype=dtype.value)

    options = {"plan": quality.value, "seed": seed, "texture": texture, "deterministic": deterministic}
    for job in jobs:
        try:
            with progress_bar(job.source.name, shown=not (quiet or as_json)) as progress:
                record = _upscale_one(job, pipeline, options, progress)
        except InputError as error:
            failures[job.source] = error
            continue
        if record["not_kept"]:
            warn(f"{job.source}: not kept in the output: {', '.join(record['not_kept'])}")
        if as_json:
            print_json(record)
        elif not quiet:
            typer.echo(_summary(record))
    for source, error in failures.items():
        warn(str(error))
        if as_json:
            print_json({"input": str(source), "status": "failed", "error": str(error)})
    if failures:
        raise typer.Exit(2)


def _plan_jobs(
    inputs: list[Path],
    output: Path,
    map_output: Path | None,
    output_suffix: str | None,
    scale: float,
    failures: dict[Path, InputError],
) -> list[Job]:
    """Find the inputs, read their headers, name their outputs; files that cannot be read go to `failures`."""
    from patchscaler.imaging.io import FORMATS, probe_photo, scaled_size, writable_format

    scaled_size(1, 1, scale)
    suffix = f".{output_suffix.removeprefix('.')}" if output_suffix else None
    if suffix:
        writable_format(Path(f"photo{suffix}"))
    several = len(inputs) > 1 or inputs[0].is_dir()
    into_folder = _is_folder(output, several)
    maps_into_folder = map_output is not None and _is_folder(map_output, several)
    if not into_folder:
        writable_format(output)
    if map_output is not None and not maps_into_folder:
        writable_format(map_output)

    jobs = []
    for source in _expand(inputs):
        try:
            photo = probe_photo(source)
            size = scaled_size(photo.width, photo.height, scale)
            target = output
            if into_folder:
                own = source.suffix if source.suffix.lower() in FORMATS[photo.format].suffixes else None
                target = output / f"{source.stem}{suffix or own or FORMATS[photo.format].suffixes[0]}"
            writable_format(target, *size)
        except InputError as error:
            failures[source] = error
            continue
        map_path = map_output / f"{target.name}.map.png" if map_output and maps_into_folder else map_output
        jobs.append(Job(source, target, map_path, size))
    return jobs


def _expand(inputs: list[Path]) -> Iterator[Path]:
    """The files named, and the photographs in the folders named, by content or by suffix, sorted by name."""
    from patchscaler.imaging.io import FORMATS, sniff_format

    suffixes = {suffix for form in FORMATS.values() for suffix in form.suffixes}
    for path in inputs:
        if not path.is_dir():
            yield path
            continue
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        photos = [file for file in files if file.suffix.lower() in suffixes or sniff_format(file)]
        if not photos:
            raise InputError(f"{path}: no PNG, JPEG, WebP or TIFF photograph in this folder")
        others = [file.name for file in files if file not in photos and _looks_like_picture(file)]
        if others:
            warn(f"{path}: skipped pictures of formats that are not read: {', '.join(others)}")
        yield from photos


def _looks_like_picture(file: Path) -> bool:
    return (mimetypes.guess_type(file.name)[0] or "").startswith("image/")


def _is_folder(path: Path, several: bool) -> bool:
    """Whether outputs go into the folder `path`, rather than to the one file of that name."""
    from patchscaler.imaging.io import FORMATS

    if path.is_dir():
        return True
    if not several:
        return path.suffix == ""
    if path.exists() or any(path.suffix.lower() in form.suffixes for form in FORMATS.values()):
        raise InputError(f"{path}: several inputs need a folder to go to, this names a file")
    return True


def _check_targets(jobs: list[Job], inputs: list[Path], overwrite: bool) -> None:
    """Refuse outputs that meet each other, an input, or (unless `overwrite`) a file that exists."""
    sources = {job.source.resolve() for job in jobs} | {path.resolve() for path in inputs}
    owners: dict[Path, Path] = {}
    existing = []
    for job in jobs:
        for target in (job.output, job.map):
            if target is None:
                continue
            place = target.resolve()
            if place in sources:
                raise InputError(f"{target} is an input; choose another output")
            if place in owners:
                raise InputError(
                    f"{owners[place]} and {job.source} would both be written to {target}; rename one, or"
                    " upscale them into different folders or formats"
                )
            owners[place] = job.source
            if target.is_dir():
                raise InputError(f"{target}: there is a folder of this name")
            if target.exists():
                existing.append(target)
            _check_folder(target.parent)
    if existing and not overwrite:
        others = f" and {len(existing) - 1} more exist" if len(existing) > 1 else " exists"
        raise InputError(f"{existing[0]}{others} already; --overwrite replaces it")


def _check_folder(folder: Path) -> None:
    """Raise InputError unless files can be made in `folder`, or the folder itself can."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: {nearest} is not a folder that can be written to")


def _upscale_one(
    job: Job,
    pipeline: Callable[[], PatchScalerPipeline],
    options: dict[str, Any],
    progress: ProgressCallback | None,
) -> dict[str, Any]:
    """Read, upscale, resample and write one photograph; returns the record that `--json` prints."""
    from patchscaler.imaging.difficulty import difficulty_map, group_names
    from patchscaler.imaging.io import read_photo, resample, write_photo

    photo = read_photo(job.source)
    model = pipeline()
    begin = time.perf_counter()
    result = model(photo.pixels, **options, progress=progress)
    write_photo(job.output, resample(result.image, *job.size))
    if job.map is not None:
        patch = model.sampling.stride * model.autoencoder.factor // model.scale
        write_photo(job.map, difficulty_map(photo.pixels, result.confidence, result.groups, patch))
    names = group_names(len(model.plans[options["plan"]].paths))
    return {
        "input": str(job.source),
        "status": "done",
        "output": str(job.output),
        "map": str(job.map) if job.map else None,
        "input_size": [photo.pixels.shape[1], photo.pixels.shape[0]],
        "output_size": list(job.size),
        "quality": options["plan"],
        "seed": result.seed,
        "groups": dict(zip(names, result.group_shares(len(names)), strict=True)),
        "mean_steps": result.mean_steps,
        "seconds": round(time.perf_counter() - begin, 3),
        "timings": result.timings,
        "device": str(model.device),
        "weights": model.fingerprint,
        "not_kept": list(photo.losses),
    }


def _summary(record: dict[str, Any]) -> str:
    (width, height), (out_width, out_height) = record["input_size"], record["output_size"]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in record["groups"].items())
    return (
        f"{record['input']} {width}x{height} -> {record['output']} {out_width}x{out_height}: patches"
        f" {shares}; {record['mean_steps']:.1f} steps on average; {record['seconds']:.1f} s on"
        f" {record['device']}; weights {record['weights']}"
    )
