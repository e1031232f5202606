"""`patchscaler info`: versions, devices and the bundled model's card."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import typer

from patchscaler._version import __version__
from patchscaler.cli.common import JsonOption, print_json
from patchscaler.errors import ModelError


def info(as_json: JsonOption = False) -> None:
    """Show versions, devices and the bundled model."""
    from patchscaler.runtime.device import describe_devices

    packages = ("torch", "diffusers", "pyvips")
    versions = {"patchscaler": __version__, "python": platform.python_version()}
    versions |= {name: version(name) for name in packages}
    devices: list[dict[str, Any]] = describe_devices()
    if as_json:
        print_json({"versions": versions, "devices": devices, "model": _read_card()}, indent=2)
        return
    typer.echo("  ".join(f"{name} {number}" for name, number in versions.items()))
    for device in devices:
        memory = f", {device['memory'] / 2**30:.1f} GiB" if device["memory"] else ""
        typer.echo(f"device {device['device']}: {device['description']}{memory}")
    card = _read_card()
    typer.echo("bundled model:")
    for key, value in card.items():
        typer.echo(f"  {key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")


def _read_card() -> dict[str, Any]:
    """Card of the bundled model.

    Raises:
        ModelError: this installation holds no readable model.
    """
    config = files("patchscaler") / "weights" / "config.json"
    try:
        return json.loads(config.read_text(encoding="utf-8"))["card"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(
            f"no readable bundled model at {config}; reinstall patchscaler or give --model"
        ) from None
