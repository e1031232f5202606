"""A training recipe: how one stage is run, read from YAML."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from patchscaler.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """How one stage is trained.

    Attributes:
        stage: a key of `stages.STAGES`.
        options: arguments of the stage's constructor.
        fresh: networks that begin anew instead of where `--init` left them, such as patch_dit.
        degradation: fields of `DegradationConfig` that differ from its defaults.
        iterations: optimiser steps, at most.
        minutes: wall-clock minutes, at most; 0 sets no limit.
        batch: crops per process and step.
        crop: side of a crop in pixels.
        texture_share: share of the crops cut from texture tiles.
        shrink: share of the crops that are shrunk by up to 2 first.
        drawn: how many tiles of text, windows, line art and ramps to draw for each tile of the data.
        learning_rate: peak of AdamW's learning rate; constant between warm-up and decay.
        warmup: steps of linear warm-up.
        decay: share of the run at its end over which the learning rate falls to 0.
        betas: AdamW's.
        weight_decay: AdamW's.
        clip: largest norm of the gradient.
        ema: decay of the moving average of the weights, which is what gets saved.
        precision: "bf16" or "fp32".
        compile: run the networks through `torch.compile`, where there is a GPU.
        graphs: replay steps as CUDA graphs, where there is a GPU.
        log_every, save_every: steps between log lines and between checkpoints.
        seed: fixes batches, degradations and noise.
    """

    stage: str
    options: dict[str, Any] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    degradation: dict[str, Any] = field(default_factory=dict)
    iterations: int = 1000
    minutes: float = 0.0
    batch: int = 32
    crop: int = 256
    texture_share: float = 0.2
    shrink: float = 0.3
    drawn: float = 0.0
    learning_rate: float = 3e-4
    warmup: int = 200
    decay: float = 0.25
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool = False
    graphs: bool = True
    log_every: int = 50
    save_every: int = 1000
    seed: int = 0

    def rate(self, step: int, progress: float) -> float:
        """Learning rate: linear warm-up over steps, then constant, then linear decay over the end of the run."""
        return self.learning_rate * min(
            1.0, (step + 1) / max(self.warmup, 1), (1 - progress) / max(self.decay, 1e-9)
        )

    @classmethod
    def read(cls, file: str | os.PathLike[str], **changes: Any) -> Recipe:
        """Read a recipe from YAML, with some fields changed.

        Raises:
            InputError: the file cannot be read, names an unknown field or has a value of another kind.
        """
        try:
            values = {**yaml.safe_load(Path(file).read_text()), **changes}
        except (OSError, yaml.YAMLError, TypeError, ValueError) as error:
            raise InputError(f"cannot read the recipe {file}: {str(error).splitlines()[0]}") from error
        kinds = get_type_hints(cls)
        if unknown := sorted(str(name) for name in values if name not in kinds):
            raise InputError(f"the recipe {file} has unknown fields: {', '.join(unknown)}")
        if "stage" not in values:
            raise InputError(f"the recipe {file} names no stage")
        return cls(**{name: _as_kind(name, value, kinds[name]) for name, value in values.items()})


def _as_kind(name: str, value: Any, kind: Any) -> Any:
    """A value from YAML, which reads 1e-4 as text, as the kind of its field."""
    origin = get_origin(kind) or kind
    with suppress(TypeError, ValueError):
        if kind is float:
            return float(value)
        if kind is int and float(value).is_integer():
            return int(float(value))
        if origin is tuple:
            first, second = map(float, value)
            return first, second
        if value in get_args(kind) if origin is Literal else kind is not int and isinstance(value, origin):
            return value
    raise InputError(f"the recipe's {name} cannot be {value!r}")
