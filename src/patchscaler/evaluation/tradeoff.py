"""What steps buy: quality against cost, from the distance of every patch on every path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from patchscaler.sampling.grouping import Path

STOPPED = 0.002
"""Relative gain under which uniform sampling counts as no longer improving."""

NEAR = 0.01
"""Relative loss that a cheaper way may have beside it."""


class Point(NamedTuple):
    """Mean steps a patch, mean distance, and the path of each group that gives them."""

    steps: float
    distance: float
    paths: tuple[Path, ...]


def frontier(distance: Mapping[Path, Tensor], groups: Tensor) -> list[Point]:
    """The lowest mean distance for every cost when each group takes a path of its own, cheapest first.

    Args:
        distance: of every patch (n,), by path.
        groups: of every patch (n,), from 0.
    """
    points = [Point(0.0, 0.0, ())]
    for group in range(int(groups.max()) + 1):
        own = groups == group
        share = float(own.double().mean())
        options = [(path, share * float(values[own].mean())) for path, values in distance.items() if share]
        grown = [
            Point(point.steps + share * path.steps, point.distance + value, (*point.paths, path))
            for point in points
            for path, value in options
        ]
        points = _best(grown) or points
    return points


def equal_groups(difficulty: Tensor, count: int) -> Tensor:
    """Group of each patch (n,) when `count` groups of one size follow its difficulty, 0 = simplest."""
    return difficulty.argsort(stable=True).argsort() * count // len(difficulty)


def curves(distance: Mapping[Path, Tensor], quality: Tensor, variance: Tensor) -> dict[str, list[Point]]:
    """Frontiers of uniform sampling, of PGS with two, three and five groups, and of other orders of difficulty."""
    shuffled = torch.randperm(len(quality), generator=torch.Generator().manual_seed(0))
    return {
        "uniform": frontier(distance, torch.zeros_like(shuffled)),
        **{f"{count} groups": frontier(distance, equal_groups(-quality, count)) for count in (2, 3, 5)},
        "3 groups, shuffled": frontier(distance, equal_groups(shuffled, 3)),
        "3 groups, LR variance": frontier(distance, equal_groups(variance, 3)),
    }


def at(curve: Sequence[Point], steps: float) -> float:
    """Distance at any mean steps: a mixture of the neighbouring points."""
    if steps >= curve[-1].steps:
        return curve[-1].distance
    for low, high in pairwise(curve):
        if steps <= high.steps:
            share = (steps - low.steps) / (high.steps - low.steps)
            return low.distance * (1 - share) + high.distance * share
    return curve[0].distance


def end_of_gain(curve: Sequence[Point]) -> Point:
    """The cheapest point after which a curve hardly improves."""
    least = curve[-1].distance
    return next(point for point in curve if point.distance <= least * (1 + STOPPED))


def to_markdown(found: Mapping[str, Sequence[Point]]) -> str:
    """The curves at a few costs, and what PGS saves."""
    costs = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0]
    lines = [
        "| mean steps | " + " | ".join(f"{cost:g}" for cost in costs) + " |",
        "|---|" + "---|" * len(costs),
    ]
    for name, curve in found.items():
        lines.append(f"| {name} | " + " | ".join(f"{at(curve, cost):.4f}" for cost in costs) + " |")
    end = end_of_gain(found["uniform"])
    lines += ["", f"Uniform sampling hardly improves past N = {end.steps:g}: {end.distance:.4f}."]
    near = [point for point in found["3 groups"] if point.distance <= end.distance * (1 + NEAR)]
    if near and end.steps:
        lines.append(
            f"Three groups come within {NEAR:.0%} of that ({near[0].distance:.4f}) at {near[0].steps:.2f} mean steps,"
            f" {near[0].steps / end.steps:.2f} of the cost."
        )
    return "\n".join(lines) + "\n"


def _best(points: Sequence[Point]) -> list[Point]:
    """Those that are better than every cheaper one."""
    kept: list[Point] = []
    for point in sorted(points):
        if not kept or point.distance < kept[-1].distance - 1e-12:
            kept.append(point)
    return kept
