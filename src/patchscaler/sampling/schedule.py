"""Noise schedule, shortcut start and solver step, as pure functions.

Cosine schedule: sqrt(abar_t) = cos(pi t / 2), sqrt(1 - abar_t) = sin(pi t / 2), t in [0, 1].

The states of a path that starts at T lie on

    x_t = sqrt(abar_t) (x_0 + m (y_0 - x_0)) + sqrt(1 - abar_t) eps,    m = t / T on the bridge, 0 on the plain path.

At T the bridge state is sqrt(abar_T) y_0 + sqrt(1 - abar_T) eps, which is what sampling starts from (paper
equation 5): training and sampling meet the same law. On the plain path that start is the paper's approximation.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

Shortcut = Literal["bridge", "plain"]


def signal(timestep: Tensor) -> Tensor:
    """sqrt(abar_t) of t (n,), shaped (n, 1, 1, 1)."""
    return (timestep * (math.pi / 2)).cos().view(-1, 1, 1, 1)


def noise_level(timestep: Tensor) -> Tensor:
    """sqrt(1 - abar_t) of t (n,), shaped (n, 1, 1, 1)."""
    return (timestep * (math.pi / 2)).sin().view(-1, 1, 1, 1)


def start_state(y: Tensor, eps: Tensor, start: Tensor) -> Tensor:
    """x_T of the shortcut path: y_0 (n, c, p, p) noised to T (n,)."""
    return signal(start) * y + noise_level(start) * eps


def mid_state(
    x: Tensor, y: Tensor, eps: Tensor, timestep: Tensor, start: Tensor, shortcut: Shortcut
) -> Tensor:
    """x_t between x_0 and y_0 on the path that starts at T, for training."""
    return signal(timestep) * _mean(x, y, timestep, start, shortcut) + noise_level(timestep) * eps


def solver_step(
    state: Tensor,
    x: Tensor,
    y: Tensor,
    timestep: Tensor,
    following: Tensor,
    start: Tensor,
    shortcut: Shortcut,
) -> Tensor:
    """One deterministic step from t to the following timestep (DDIM, arXiv 2010.02502, on the path above).

    Args:
        state: x_t (n, c, p, p), float32.
        x: the network's estimate of x_0.
        y: y_0.
        timestep: t (n,), above the following one.
        following: where the step leads (n,), 0 or more.
        start: T (n,), not below t.
        shortcut: law of the path.
    """
    eps = (state - signal(timestep) * _mean(x, y, timestep, start, shortcut)) / noise_level(timestep)
    mean = _mean(x, y, following, start, shortcut)
    return signal(following) * mean + noise_level(following) * eps


def _mean(x: Tensor, y: Tensor, timestep: Tensor, start: Tensor, shortcut: Shortcut) -> Tensor:
    if shortcut == "plain":
        return x
    return x + (timestep / start).view(-1, 1, 1, 1) * (y - x)
