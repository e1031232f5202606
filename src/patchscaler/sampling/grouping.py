"""Patch-adaptive group sampling (PGS): from confidence to each patch's path (paper section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patchscaler.sampling.patches import unfold


@dataclass(frozen=True)
class Path:
    """A shortcut path: noise y_0 to `timestep` T in (0, 1], take `steps` N back; N = 0 keeps y_0 as it is."""

    timestep: float
    steps: int


@dataclass(frozen=True)
class Plan:
    """Groups of patches and their paths.

    Attributes:
        thresholds: falling; a patch of mean confidence q is in the first group whose threshold q exceeds.
        paths: one per group, simplest first; one more than thresholds.
    """

    thresholds: tuple[float, ...]
    paths: tuple[Path, ...]

    def __post_init__(self) -> None:
        """Check the shape of the plan; ValueError if it makes no sense."""
        if len(self.paths) != len(self.thresholds) + 1:
            raise ValueError("a plan needs one path more than thresholds")
        if list(self.thresholds) != sorted(self.thresholds, reverse=True):
            raise ValueError("thresholds must fall from the simplest group to the hardest")
        if any(path.steps < 0 or not 0 < path.timestep <= 1 for path in self.paths):
            raise ValueError("a path needs a timestep in (0, 1] and steps of 0 or more")

    @classmethod
    def uniform(cls, timestep: float, steps: int) -> Plan:
        """Every patch takes the same path."""
        return cls((), (Path(timestep, steps),))

    @classmethod
    def restoration_only(cls) -> Plan:
        """No sampling: the image is D(y_0)."""
        return cls.uniform(1.0, 0)

    @classmethod
    def by_quantiles(cls, quality: Tensor, shares: Sequence[float], paths: Sequence[Path]) -> Plan:
        """Thresholds that give each group its share of the patches whose mean confidences are `quality`.

        Args:
            quality: mean confidences (n,) of validation patches.
            shares: share of each group, simplest first, of sum 1.
            paths: path of each group.
        """
        cuts = 1 - torch.tensor(shares, dtype=torch.float64).cumsum(0)[:-1]
        thresholds = torch.quantile(quality.double(), cuts.clamp(0, 1))
        return cls(tuple(round(float(value), 4) for value in thresholds), tuple(paths))

    @property
    def samples(self) -> bool:
        """Whether any patch may take a step."""
        return any(path.steps for path in self.paths)

    def ladder(self) -> tuple[Path, ...]:
        """The paths by rising steps, from none on; of those with equally many, the hardest group's."""
        by_steps = {0: Path(1.0, 0)} | {path.steps: path for path in self.paths}
        return tuple(by_steps[steps] for steps in sorted(by_steps))

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return {
            "thresholds": list(self.thresholds),
            "paths": [{"timestep": path.timestep, "steps": path.steps} for path in self.paths],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        """The inverse of `to_dict`."""
        return cls(tuple(values["thresholds"]), tuple(Path(**path) for path in values["paths"]))


def patch_quality(confidence: Tensor, size: int, stride: int) -> Tensor:
    """Mean confidence q (n,) of each patch of C (B, 1, H, W)."""
    return unfold(confidence.float(), size, stride).mean(dim=(1, 2, 3))


def assign(quality: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Group (n,) int64 of each patch, 0 = simplest: the number of thresholds that q does not exceed."""
    cuts = torch.tensor(thresholds, dtype=quality.dtype, device=quality.device)
    return (quality[:, None] <= cuts).sum(dim=1)


def spend(quality: Tensor, plan: Plan, budget: float) -> Tensor:
    """Spend an average of at most `budget` steps a patch, on the hardest patches first.

    Each gets the steps that its group has in the plan, or a simpler one if those are more; what is left over after
    all have theirs raises the hardest to the most steps. A harder patch never gets fewer steps than a simpler one,
    and no patch loses steps when the budget grows.

    Args:
        quality: mean confidence (n,) of the patches of one image.
        plan: its groups and paths.
        budget: mean steps, 0 or more.

    Returns:
        For each patch (n,) the number of its path in `plan.ladder()`.
    """
    steps = torch.tensor([path.steps for path in plan.ladder()])
    of_group = torch.tensor([path.steps for path in plan.paths]).cummax(0).values
    order = quality.argsort(stable=True)
    wanted = torch.searchsorted(steps, of_group)[assign(quality[order], plan.thresholds)]
    levels = torch.zeros_like(order)
    left = min(math.floor(budget * len(order) + 1e-6), int(steps[-1]) * len(order))
    for goal in (wanted, torch.full_like(order, len(steps) - 1)):
        spent = (steps[goal] - steps[levels]).cumsum(0)
        served = int((spent <= left).sum())
        levels[:served] = goal[:served]
        left -= int(spent[served - 1]) if served else 0
        if served < len(order):
            affordable = int(steps[levels[served]]) + left
            levels[served] = torch.searchsorted(steps, affordable, right=True) - 1
            break
    return torch.empty_like(levels).scatter_(0, order, levels)
