"""How much memory there is, and carrying on when it runs out."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from patchscaler.errors import DeviceError, InputError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_CPU_MESSAGE = "DefaultCPUAllocator: can't allocate memory"


Rows = TypeVar("Rows", Tensor, range)


def halve_on_out_of_memory(run: Callable[[Rows], Tensor], rows: Rows) -> Tensor:
    """`run(rows)`, or, if device memory runs out, the concatenation of its results on halves of the rows.

    Raises:
        torch.OutOfMemoryError: a single row does not fit.
    """
    try:
        return run(rows)
    except RuntimeError as error:
        if not is_out_of_memory(error) or len(rows) == 1:
            raise
    release()
    half = len(rows) // 2
    return torch.cat((halve_on_out_of_memory(run, rows[:half]), halve_on_out_of_memory(run, rows[half:])))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that the device, or the host, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or _CPU_MESSAGE in str(error)


@contextmanager
def out_of_memory_in_one_line() -> Iterator[None]:
    """Turn running out of memory for good into a DeviceError; also a decorator."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            "out of memory even for the smallest part; free some, or use --device cpu"
        ) from None


def release() -> None:
    """Give back what is no longer used; to be called outside the `except` block, whose frames hold tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def spare_memory(device: torch.device, limit: int | None = None) -> int:
    """Bytes that work on `device` may still take: what is free there, within `limit` for all the process has."""
    if device.type == "cuda":
        held, used = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + held - used
    else:
        free, used = _free_on_host(), _used_on_host()
    return max(0, free if limit is None else min(free, limit - used))


def parse_size(text: str) -> int:
    """Bytes of a size such as "3G", "1.5GiB" or "800M" (powers of 1024).

    Raises:
        InputError: it is not written so.
    """
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    unit = number[-1:] if number[-1:] in _UNITS else ""
    try:
        size = int(float(number.removesuffix(unit)) * _UNITS[unit])
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise InputError(f"a size of memory is written as 800M or 3G, not {text!r}")
    return size


def _free_on_host() -> int:
    """Memory that can be had without swapping, within the limit of the control group."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    information = Path("/proc/meminfo")
    if information.exists():
        fields = dict(line.split(":", 1) for line in information.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists():
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    return free


def _used_on_host() -> int:
    """Resident memory of this process; 0 where the system does not tell."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0
