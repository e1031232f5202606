"""Which device and which precision: names to torch objects, with one clear line when something is absent."""

from __future__ import annotations

import torch

from patchscaler.errors import DeviceError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str | torch.device | None) -> torch.device:
    """Turn "auto", None, "cpu", "cuda", "cuda:1", "mps" or a torch.device into a device that is present.

    Raises:
        DeviceError: the name is not understood, or that device is not on this machine.
    """
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:0 or mps") from None
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": _has_mps(),
    }
    if not present.get(device.type, False):
        raise DeviceError(f"device {str(device)!r} is not present; found {_found()}")
    return device


def resolve_dtype(name: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Turn "auto", None, "fp32", "bf16", "fp16" or one of these torch dtypes into the dtype to compute in.

    Auto is fp16 on CUDA and fp32 elsewhere: CPUs compute half precision slowly, if at all.

    Raises:
        DeviceError: the name is none of these.
    """
    if name is None or name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    dtype = DTYPES.get(name) if isinstance(name, str) else name
    if dtype is None or dtype not in DTYPES.values():
        raise DeviceError(f"unknown precision {str(name)!r}; use auto, {', '.join(DTYPES)}")
    return dtype


def describe_devices() -> list[dict[str, object]]:
    """One record per device, best first: name to pass as `device`, description, memory in bytes (or None)."""
    devices: list[dict[str, object]] = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {"device": f"cuda:{index}", "description": properties.name, "memory": properties.total_memory}
        )
    if _has_mps():
        devices.append({"device": "mps", "description": "Apple GPU", "memory": None})
    devices.append({"device": "cpu", "description": f"{torch.get_num_threads()} threads", "memory": None})
    return devices


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _found() -> str:
    return ", ".join(str(record["device"]) for record in describe_devices())
