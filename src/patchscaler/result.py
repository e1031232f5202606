"""What a pipeline call reports while it runs and returns when it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np

Stage = Literal["encode", "restore", "sample", "decode"]
STAGES: tuple[Stage, ...] = ("encode", "restore", "sample", "decode")


class Progress(NamedTuple):
    """State of one stage: `done` of `total` units (patch evaluations in `sample`, latents elsewhere)."""

    stage: Stage
    done: int
    total: int


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class UpscaleResult:
    """One upscaled image with the record of how it was made.

    Attributes:
        image: the x4 image, of the kind that was passed in (PIL image, uint8 array or float tensor).
        confidence: (H/8, W/8) float32 in (0, 1), the restoration confidence C at latent resolution.
        groups: (rows, cols) int8, the group of each patch, 0 = simplest; with a budget the number of its path in
            the plan's `ladder`.
        steps: (rows, cols) int16, the sampler steps (network evaluations) each patch took.
        timings: seconds per stage, keys of `STAGES`; shared by the images of one call.
        seed: the seed that fixed the noise.
    """

    image: Any
    confidence: np.ndarray
    groups: np.ndarray
    steps: np.ndarray
    timings: dict[str, float]
    seed: int

    @property
    def mean_steps(self) -> float:
        """Average sampler steps per patch."""
        return float(self.steps.mean())

    def group_shares(self, count: int) -> list[float]:
        """Share of the patches in each of `count` groups, simplest first; sums to 1."""
        return [float((self.groups == group).mean()) for group in range(count)]
