"""Training state in safetensors: exact resume on one machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from patchscaler.tensor_files import save_tensors

_STATE = "state.safetensors"
_ADVERSARY = "adversary.safetensors"


@dataclass
class TrainingState:
    """All that a step depends on beside its seed.

    Attributes:
        parameters: what learns, by name.
        averages: moving averages of the parameters that are shipped.
        buffers: other tensors that change in training.
        optimizer: its moments belong to `parameters`.
    """

    parameters: Mapping[str, nn.Parameter]
    averages: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    optimizer: Optimizer

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether there is something to resume."""
        return (folder / _STATE).exists()

    def save(self, folder: Path, **scalars: float) -> None:
        """Write everything and a few numbers, atomically."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"weight/{name}"] = parameter.detach()
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer/{name}/{key}"] = value
        tensors |= {f"average/{name}": value for name, value in self.averages.items()}
        tensors |= {f"buffer/{name}": value for name, value in self.buffers.items()}
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / _STATE, tensors, {"scalars": json.dumps(scalars)})

    def load(self, folder: Path) -> dict[str, float]:
        """Put back what `save` wrote and return its numbers; names and shapes must be the same."""
        tensors = load_file(folder / _STATE)
        for name, parameter in self.parameters.items():
            parameter.data.copy_(tensors[f"weight/{name}"])
            prefix = f"optimizer/{name}/"
            for key, value in tensors.items():
                if key.startswith(prefix):
                    on_host = value.ndim == 0 and not self.optimizer.defaults.get("fused")
                    place = "cpu" if on_host else parameter.device
                    self.optimizer.state[parameter][key.removeprefix(prefix)] = value.to(place)
        for name, average in self.averages.items():
            average.copy_(tensors[f"average/{name}"])
        for name, buffer in self.buffers.items():
            buffer.copy_(tensors[f"buffer/{name}"])
        with safe_open(folder / _STATE, framework="pt") as content:
            return json.loads(content.metadata()["scalars"])


def save_adversary(folder: Path, adversary: nn.Module) -> None:
    """Write the adversary beside a model, for the next run to start from."""
    _write(folder / _ADVERSARY, adversary.state_dict(), {"format": "pt"})


def load_adversary(folder: Path, adversary: nn.Module) -> None:
    """Start from the adversary beside a model, if there is one."""
    if (folder / _ADVERSARY).exists():
        adversary.load_state_dict(load_file(folder / _ADVERSARY))


def _write(file: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    partial = file.with_suffix(".partial")
    save_tensors(partial, {name: value.cpu().contiguous() for name, value in tensors.items()}, header)
    partial.replace(file)
