"""`patchscaler upscale`: photographs in, larger photographs out."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
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
    here_to_stay,
    load_pipeline,
    print_json,
    run_bar,
    warn,
)
from patchscaler.errors import InputError, PatchScalerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from patchscaler.batch import CallOptions
    from patchscaler.imaging.io import OutputOptions
    from patchscaler.jobs import Job, Worklist
    from patchscaler.manifest import Manifest
    from patchscaler.pipeline import PatchScalerPipeline

_STANDARD = Path("-")
_WATCH_SECONDS = 2.0


def upscale(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="IN...", help="Photographs, folders, patterns, or - for stdin.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="OUT", help="A file, a folder (made if need be), or - for stdout."
        ),
    ],
    scale: Annotated[float | None, typer.Option(help="1 to 8, 4 if nothing is said.")] = None,
    width: Annotated[int | None, typer.Option(help="Width of the output, pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Height of the output, pixels.")] = None,
    fit: Annotated[str | None, typer.Option(metavar="WxH", help="The largest size within this box.")] = None,
    quality: Annotated[Quality, typer.Option(help="How many steps to spend.")] = Quality.balanced,
    budget: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="STEPS", help="Mean steps a patch may take, on the hardest first; for --quality."
        ),
    ] = None,
    time_budget: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="Time for a photograph, its files apart; for --quality."),
    ] = None,
    fidelity: Annotated[
        float, typer.Option(min=0, max=1, help="0: most detail; 1: only what the restoration is sure of.")
    ] = 0.0,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    devices: Annotated[
        str | None, typer.Option(metavar="LIST", help="Several devices that share the work: cuda:0,cuda:1.")
    ] = None,
    dtype: DtypeOption = Precision.auto,
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Compile for each size of photograph: a minute once, then faster."),
    ] = False,
    model: ModelOption = None,
    texture: Annotated[bool, typer.Option("--texture/--no-texture", help="Use texture prompts.")] = True,
    memory: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Texture memory to use instead of the model's own."),
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Most memory to hold on the device (with the CPU: in all), such as 3G."
        ),
    ] = None,
    map_output: Annotated[
        Path | None,
        typer.Option("--map", metavar="FILE|FOLDER", help="Save the difficulty map as a picture."),
    ] = None,
    output_suffix: Annotated[
        str | None,
        typer.Option(metavar="SUFFIX", help="Format in an output folder, such as png; else the input's."),
    ] = None,
    jpeg_quality: Annotated[int, typer.Option(min=1, max=100, help="Quality of JPEG outputs.")] = 95,
    strip: Annotated[
        bool, typer.Option("--strip", help="Write no metadata and no profile; colours become sRGB.")
    ] = False,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Folders in folders too.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave outputs that exist, and their inputs.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on with what appears in the folders.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits whatever else is in the batch; slower.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Upscale photographs.

    Depth, transparency, colour profile and metadata are kept; where a format cannot, a line says what was
    left behind. A bad file does not stop the others. A folder run that was killed goes on where it was when
    called again. Exit code: 0 all done, 1 some files failed, 2 nothing could be begun, 130 interrupted.
    """
    with here_to_stay():
        from patchscaler.batch import CallOptions
        from patchscaler.imaging.io import OutputOptions
        from patchscaler.imaging.size import TargetSize, parse_box
        from patchscaler.jobs import plan_jobs
        from patchscaler.runtime.memory import parse_size

    if overwrite and skip_existing:
        raise InputError("--overwrite and --skip-existing exclude each other")
    size = TargetSize(scale, width, height, parse_box(fit) if fit else None)
    limit = parse_size(memory_limit) if memory_limit else None
    call = CallOptions(
        quality.value, seed, texture, deterministic, limit, None, budget, time_budget, fidelity
    )
    names = devices.split(",") if devices else [device]
    run = _Run(
        [load_pipeline(model, name.strip(), dtype.value, compiled=compiled, memory=memory) for name in names],
        call,
        OutputOptions(strip, jpeg_quality),
        overwrite,
        skip_existing,
        as_json,
        quiet,
    )
    suffix = f".{output_suffix.removeprefix('.')}" if output_suffix else None
    with _standard_streams(inputs, output, suffix) as (sources, target):
        if target != output:
            run.quiet, run.as_json = True, False  # stdout is taken
        find = partial(
            plan_jobs, sources, target, size=size, recursive=recursive, map_output=map_output, suffix=suffix
        )
        settings = {
            "size": size.__dict__,
            "model": model,
            "memory": str(memory) if memory else None,
            **call.__dict__,
            **run.output.__dict__,
            "suffix": suffix,
        }
        del settings["memory_limit"], settings["tile"]
        if watch:
            _watch(run, find, target, settings)
        work = find()
        if dry_run:
            _say(work)
        else:
            run.all(work, target, settings)
    if work.failures or run.failed:
        raise typer.Exit(1)


class _Run:
    """One call of the command, with what it says."""

    def __init__(
        self,
        pipelines: list[Callable[[], PatchScalerPipeline]],
        call: CallOptions,
        output: OutputOptions,
        overwrite: bool,
        skip_existing: bool,
        as_json: bool,
        quiet: bool,
    ) -> None:
        self.pipelines, self.call, self.output = pipelines, call, output
        self.overwrite, self.skip_existing, self.as_json, self.quiet = (
            overwrite,
            skip_existing,
            as_json,
            quiet,
        )
        self.failed: dict[Path, PatchScalerError] = {}

    def all(self, work: Worklist, target: Path, settings: dict[str, Any]) -> None:
        """Check, run and report; failures go to `failed`."""
        from patchscaler.jobs import check_targets

        check_targets(work.jobs)
        if work.skipped:
            warn(
                f"skipped pictures of formats that are not read: {', '.join(file.name for file in work.skipped)}"
            )
        with (
            _manifest(target, settings)
            if work.several and work.jobs
            else contextlib.nullcontext() as manifest
        ):
            if manifest:
                manifest.remove_parts(work.jobs)
            todo = self._todo(work.jobs, manifest)
            if len(todo) < len(work.jobs) and not self.quiet:
                warn(f"{len(work.jobs) - len(todo)} of {len(work.jobs)} are there already")
            self._run(todo, manifest)
            for source, error in (*work.failures.items(), *self.failed.items()):
                warn(str(error))
                failure = {"input": str(source), "status": "failed", "error": str(error)}
                if self.as_json:
                    print_json(failure)
                if manifest and source in work.failures:
                    manifest.add(failure)
        done = len(todo) - len(self.failed)
        bad = len(work.failures) + len(self.failed)
        if bad and len(work.jobs) + len(work.failures) > 1:
            warn(f"{bad} of {len(todo) + len(work.failures)} failed, {done} done")

    def _todo(self, jobs: list[Job], manifest: Manifest | None) -> list[Job]:
        from patchscaler.jobs import without_finished

        finished = manifest.is_finished if manifest and not self.overwrite else lambda job: False
        return without_finished(jobs, finished, overwrite=self.overwrite, skip_existing=self.skip_existing)

    def _run(self, jobs: list[Job], manifest: Manifest | None) -> None:
        from patchscaler.batch import run_jobs

        shown = not (self.quiet or self.as_json)
        with run_bar([job.source.name for job in jobs], shown=shown) as bar:
            outcomes = run_jobs(
                jobs,
                self.pipelines,
                self.call,
                self.output,
                record=manifest.add if manifest else lambda record: None,
                progress=bar.stage if bar else None,
            )
            with contextlib.closing(outcomes):
                for outcome in outcomes:
                    if bar:
                        bar.advance()
                    if outcome.error:
                        self.failed[outcome.job.source] = outcome.error
                        if manifest:
                            manifest.add(outcome.record)
                        continue
                    if outcome.record["not_kept"]:
                        warn(
                            f"{outcome.job.source}: not kept in the output: {', '.join(outcome.record['not_kept'])}"
                        )
                    if self.as_json:
                        print_json(outcome.record)
                    elif not self.quiet:
                        typer.echo(_summary(outcome.record))


def _manifest(target: Path, settings: dict[str, Any]) -> Manifest:
    from patchscaler.manifest import Manifest

    return Manifest(target, settings)


def _watch(run: _Run, find: Callable[[], Worklist], target: Path, settings: dict[str, Any]) -> None:
    """Look for photographs every other second, and take those that have stopped growing; until interrupted."""
    from patchscaler.manifest import source_mark

    run.skip_existing = not run.overwrite
    before: dict[Path, list[int]] = {}
    taken: dict[Path, list[int]] = {}
    while True:
        with contextlib.suppress(InputError):  # an empty folder is no error here
            work = find()
            now = {path: source_mark(path) for path in (*(job.source for job in work.jobs), *work.failures)}
            ripe = {
                path for path, mark in now.items() if before.get(path) == mark and taken.get(path) != mark
            }
            before = now
            work.jobs = [job for job in work.jobs if job.source in ripe]
            work.failures = {path: error for path, error in work.failures.items() if path in ripe}
            work.skipped = []
            taken |= {path: now[path] for path in ripe}
            if ripe:
                run.all(work, target, settings)
        time.sleep(_WATCH_SECONDS)


@contextlib.contextmanager
def _standard_streams(
    inputs: list[Path], output: Path, suffix: str | None
) -> Iterator[tuple[list[Path], Path]]:
    """Inputs and output with files in place of "-"; what is written goes to stdout at the end."""
    if _STANDARD not in inputs and output != _STANDARD:
        yield inputs, output
        return
    if len(inputs) > 1:
        raise InputError("- stands for one photograph, and cannot be mixed with others")
    with tempfile.TemporaryDirectory(prefix="patchscaler-") as folder:
        source, target = inputs[0], output
        if source == _STANDARD:
            source = Path(folder) / "stdin"
            source.write_bytes(sys.stdin.buffer.read())
        if output == _STANDARD:
            target = Path(folder) / f"stdout{suffix or '.png'}"
        yield [source], target
        if output == _STANDARD and target.exists():
            sys.stdout.buffer.write(target.read_bytes())
            sys.stdout.buffer.flush()


def _say(work: Worklist) -> None:
    from patchscaler.jobs import check_targets

    check_targets(work.jobs)
    for job in work.jobs:
        (width, height), (wide, high) = job.input_size, job.size
        known = " (exists)" if job.output.exists() else ""
        typer.echo(f"{job.source} {width}x{height} -> {job.output} {wide}x{high}{known}")
    for error in work.failures.values():
        warn(str(error))


def _summary(record: dict[str, Any]) -> str:
    (width, height), (out_width, out_height) = record["input_size"], record["output_size"]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in record["groups"].items())
    return (
        f"{record['input']} {width}x{height} -> {record['output']} {out_width}x{out_height}: patches"
        f" {shares}; {record['mean_steps']:.1f} steps on average; {record['seconds']:.1f} s on"
        f" {record['device']}; weights {record['weights']}"
    )
