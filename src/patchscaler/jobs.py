"""Which photographs to upscale, and where each goes: found, named and checked before any work."""

from __future__ import annotations

import glob
import mimetypes
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from patchscaler.errors import InputError
from patchscaler.imaging.formats import FORMATS, sniff_format, writable_format
from patchscaler.imaging.io import probe_photo
from patchscaler.imaging.size import TargetSize

MAP_SUFFIX = ".map.png"
PART_PATTERN = ".patchscaler-*.part"


@dataclass(frozen=True)
class Job:
    """One photograph to upscale.

    Attributes:
        source: the file to read.
        output: the file to write.
        map: the file for the difficulty map, or None.
        input_size: width and height as seen upright.
        size: width and height of the output.
    """

    source: Path
    output: Path
    map: Path | None
    input_size: tuple[int, int]
    size: tuple[int, int]

    @property
    def targets(self) -> tuple[Path, ...]:
        """The files to write."""
        return (self.output,) if self.map is None else (self.output, self.map)


@dataclass
class Worklist:
    """What there is to do.

    Attributes:
        jobs: one for each photograph that can be read.
        failures: why the others cannot, by file.
        skipped: pictures of formats that are not read.
        several: whether more than one file was asked for, and the outputs go into a folder.
    """

    jobs: list[Job] = field(default_factory=list)
    failures: dict[Path, InputError] = field(default_factory=dict)
    skipped: list[Path] = field(default_factory=list)
    several: bool = False


def plan_jobs(
    inputs: Iterable[Path],
    output: Path,
    *,
    size: TargetSize,
    recursive: bool = False,
    map_output: Path | None = None,
    suffix: str | None = None,
) -> Worklist:
    """Find the inputs, read their headers, name their outputs.

    Args:
        inputs: files, folders or patterns such as `photos/*.jpg`.
        output: a file for one input, else a folder; the tree below an input folder is kept.
        size: of the outputs.
        recursive: look into folders below the input folders.
        map_output: as `output`, for the difficulty maps.
        suffix: of the outputs in a folder, such as ".png"; None keeps the input's where it can be written.

    Raises:
        InputError: nothing found, or `output` cannot hold what was found.
    """
    named = list(_expand_patterns(inputs))
    several = len(named) > 1 or named[0].is_dir()
    into_folder = is_folder(output, several)
    maps_into_folder = map_output is not None and is_folder(map_output, several)
    if suffix:
        writable_format(Path(f"photo{suffix}"))
    if not into_folder:
        writable_format(output)
    if map_output is not None and not maps_into_folder:
        writable_format(map_output)
    work = Worklist(several=several)
    for source, relative in _find(
        named, recursive, [output, *([map_output] if map_output else [])], work.skipped
    ):
        try:
            photo = probe_photo(source)
            wanted = size.of(photo.width, photo.height)
            target = output
            if into_folder:
                target = output / relative.with_suffix(suffix or _own_suffix(source, photo.format))
            writable_format(target, *wanted)
        except InputError as error:
            work.failures[source] = error
            continue
        chart = map_output
        if map_output is not None and maps_into_folder:
            chart = map_output / relative.with_name(target.name + MAP_SUFFIX)
        work.jobs.append(Job(source, target, chart, (photo.width, photo.height), wanted))
    return work


def check_targets(jobs: list[Job]) -> None:
    """Refuse outputs that meet each other or an input, and folders that cannot be written to.

    Raises:
        InputError: which they are.
    """
    sources = {job.source.resolve() for job in jobs}
    owners: dict[Path, Path] = {}
    for job in jobs:
        for target in job.targets:
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
    for folder in {target.parent for job in jobs for target in job.targets}:
        _check_folder(folder)


def without_finished(
    jobs: list[Job],
    is_finished: Callable[[Job], bool],
    *,
    overwrite: bool,
    skip_existing: bool,
) -> list[Job]:
    """The jobs still to do: without those an earlier run finished, and, if told, without those that exist.

    Raises:
        InputError: an output exists that no earlier run of the same kind wrote, and nothing says what to do.
    """
    waiting = [job for job in jobs if not is_finished(job)]
    existing = [target for job in waiting for target in job.targets if target.exists()]
    if overwrite or not existing:
        return waiting
    if skip_existing:
        return [job for job in waiting if not job.output.exists()]
    others = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
    raise InputError(
        f"{existing[0]}{others} exists already; --overwrite replaces it, --skip-existing leaves it"
    )


def is_folder(path: Path, several: bool) -> bool:
    """Whether outputs go into the folder `path`, rather than to the one file of that name.

    Raises:
        InputError: there are several, and it names a file.
    """
    if path.is_dir():
        return True
    if not several:
        return path.suffix == ""
    if path.exists() or any(path.suffix.lower() in form.suffixes for form in FORMATS.values()):
        raise InputError(f"{path}: several inputs need a folder to go to, this names a file")
    return True


def _expand_patterns(inputs: Iterable[Path]) -> Iterator[Path]:
    for path in inputs:
        if path.exists() or not glob.has_magic(str(path)):
            yield path
            continue
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 - absolute ones too
        if not found:
            raise InputError(f"{path}: no file of such a name")
        yield from found


def _find(
    named: list[Path], recursive: bool, outputs: list[Path], skipped: list[Path]
) -> Iterator[tuple[Path, Path]]:
    """Photographs by content or by suffix, with their names in the output folder; outputs are not searched."""
    suffixes = {suffix for form in FORMATS.values() for suffix in form.suffixes}
    barred = {output.resolve() for output in outputs}
    for path in named:
        if not path.is_dir():
            yield path, Path(path.name)
            continue
        found = False
        for file in sorted(_files(path, recursive, barred - {path.resolve()})):
            if file.suffix.lower() in suffixes or sniff_format(file):
                found = True
                yield file, file.relative_to(path)
            elif (mimetypes.guess_type(file.name)[0] or "").startswith("image/"):
                skipped.append(file)
        if not found:
            raise InputError(
                f"{path}: no photograph in this folder{'' if recursive else '; --recursive looks deeper'}"
            )


def _files(folder: Path, recursive: bool, barred: set[Path]) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if recursive and not entry.is_symlink() and entry.resolve() not in barred:
                yield from _files(entry, recursive, barred)
        elif entry.is_file():
            yield entry


def _own_suffix(source: Path, format: str) -> str:
    """The input's suffix if it tells the truth and can be written, else the usual one, or PNG's."""
    form = FORMATS[format]
    if form.saver is None:
        return ".png"
    return source.suffix if source.suffix.lower() in form.suffixes else form.suffixes[0]


def _check_folder(folder: Path) -> None:
    """Raise InputError unless files can be made in `folder`, or the folder itself can."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: {nearest} is not a folder that can be written to")
