"""PatchScaler: patch-adaptive diffusion super-resolution (arXiv 2405.17158)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchscaler._version import __version__

if TYPE_CHECKING:
    from patchscaler.errors import DeviceError, InputError, ModelError, PatchScalerError
    from patchscaler.pipeline import PatchScalerPipeline
    from patchscaler.result import Progress, UpscaleResult
    from patchscaler.sampling.grouping import Path, Plan
    from patchscaler.texture_memory import ReferenceTextureMemory

_HOMES = {
    "DeviceError": "errors",
    "InputError": "errors",
    "ModelError": "errors",
    "PatchScalerError": "errors",
    "PatchScalerPipeline": "pipeline",
    "Path": "sampling.grouping",
    "Plan": "sampling.grouping",
    "Progress": "result",
    "ReferenceTextureMemory": "texture_memory",
    "UpscaleResult": "result",
}

__all__ = [
    "DeviceError",
    "InputError",
    "ModelError",
    "PatchScalerError",
    "PatchScalerPipeline",
    "Path",
    "Plan",
    "Progress",
    "ReferenceTextureMemory",
    "UpscaleResult",
    "__version__",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: torch costs a second, diffusers three."""
    if name not in _HOMES:
        raise AttributeError(f"module 'patchscaler' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"patchscaler.{_HOMES[name]}"), name)
