"""Training state in safetensors: exact resume on one machine, without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

_FILE = "state.safetensors"


def save_state(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    averages: Mapping[str, Tensor],
    optimizer: Optimizer,
    scalars: Mapping[str, float],
) -> None:
    """Write weights, their averages, the optimiser's moments and a few numbers, atomically."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"weight/{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{name}/{key}"] = value
    tensors |= {f"average/{name}": value for name, value in averages.items()}
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{_FILE}.partial"
    save_file(
        {name: value.cpu().contiguous() for name, value in tensors.items()},
        partial,
        {"scalars": json.dumps(dict(scalars))},
    )
    partial.replace(folder / _FILE)


def load_state(
    folder: Path, parameters: Mapping[str, nn.Parameter], averages: Mapping[str, Tensor], optimizer: Optimizer
) -> dict[str, float]:
    """Put back what `save_state` wrote and return its numbers; the objects must have the same names and shapes."""
    from safetensors import safe_open

    tensors = load_file(folder / _FILE)
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[f"weight/{name}"])
        averages[name].copy_(tensors[f"average/{name}"])
        prefix = f"optimizer/{name}/"
        for key, value in tensors.items():
            if key.startswith(prefix):
                place = "cpu" if value.ndim == 0 and not optimizer.defaults.get("fused") else parameter.device
                optimizer.state[parameter][key.removeprefix(prefix)] = value.to(place)
    with safe_open(folder / _FILE, framework="pt") as content:
        return json.loads(content.metadata()["scalars"])


def has_state(folder: Path) -> bool:
    """Whether there is something to resume."""
    return (folder / _FILE).exists()
