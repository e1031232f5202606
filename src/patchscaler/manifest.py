"""The record of a folder run: one JSON line per photograph, enough to go on after the run was killed.

A line is written when the output is complete under its hidden name, just before it gets its own. So after a kill at
any moment each output is whole and known, or absent; a line without its output is dropped by the next run.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from patchscaler.errors import InputError
from patchscaler.imaging.io import atomic_path
from patchscaler.jobs import PART_PATTERN, Job

_NEEDED = {"output", "bytes", "source", "settings"}
NAME = "patchscaler-manifest.jsonl"


class Manifest:
    """The manifest of an output folder, held by one run at a time.

    Args:
        folder: the output folder; made if need be.
        settings: what outputs depend on beside their inputs; an output made with others is not finished.

    Raises:
        InputError: another run writes into the folder.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.settings = json.loads(json.dumps(settings))  # as it is read back
        self.path = folder / NAME
        self._lock = _lock(folder)
        self.records = {record["output"]: record for record in _read(self.path) if self._is_whole(record)}
        self._rewrite()
        self._file = self.path.open("a", encoding="utf-8")

    def __enter__(self) -> Manifest:
        """The manifest itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let another run have the folder."""
        self._file.close()
        self._rewrite()
        if self._lock is not None:
            os.close(self._lock)

    def remove_parts(self, jobs: list[Job]) -> None:
        """Remove what a killed run left under hidden names beside the outputs of these jobs."""
        for folder in {target.parent for job in jobs for target in job.targets}:
            for part in folder.glob(PART_PATTERN):
                part.unlink()

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a record, to the disk itself; keys `input` and `status` are needed, `output` if there is to be one."""
        line: dict[str, Any] = {**record, "settings": self.settings}
        if "output" in record:
            line["output"] = os.path.relpath(record["output"], self.folder)
        self.records[line.get("output", line["input"])] = line
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def is_finished(self, job: Job) -> bool:
        """Whether an earlier run made this output from this very file with these settings."""
        record = self.records.get(os.path.relpath(job.output, self.folder))
        return (
            record is not None
            and record["status"] == "done"
            and record["settings"] == self.settings
            and record["source"] == source_mark(job.source)
            and all(target.exists() for target in job.targets)
        )

    def _is_whole(self, record: Mapping[str, Any]) -> bool:
        output = self.folder / record["output"]
        return output.is_file() and output.stat().st_size == record["bytes"]

    def _rewrite(self) -> None:
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in self.records.values()]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")


def source_mark(source: Path) -> list[int]:
    """What tells that a file was not changed: its size and time."""
    status = source.stat()
    return [status.st_size, status.st_mtime_ns]


def _read(path: Path) -> list[dict[str, Any]]:
    """Records of finished outputs; failures are tried again, and a line that was cut short is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            if isinstance(record, dict) and record.get("status") == "done" and record.keys() >= _NEEDED:
                records.append(record)
    return records


def _lock(folder: Path) -> int | None:
    """Hold a folder until the descriptor is closed or the process ends; None where folders cannot be held."""
    if os.name == "nt":
        return None
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise InputError(f"{folder}: another run is writing into this folder") from None
    return descriptor
