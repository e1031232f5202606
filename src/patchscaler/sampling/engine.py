"""The packed sampling loop: every patch of every image, each on its own path.

All paths end in the same last iteration, so the loop runs as often as the longest path has steps: the hard patches
start, the others join. Sorted by steps, the active patches are a prefix. No host synchronisation happens inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from patchscaler.models.patch_dit import PatchDiT
from patchscaler.runtime.memory import halve_on_out_of_memory
from patchscaler.sampling.schedule import Shortcut, solver_step, start_state

PromptFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PatchSet:
    """Patches with all that their results depend on.

    Attributes:
        latent: y_0 (n, c, p, p).
        condition: patches (n, c + s, p, p) of the condition map.
        noise: eps (n, c, p, p), float32.
        start: T (n,), float32.
        steps: N (n,), int64, on the host.
    """

    latent: Tensor
    condition: Tensor
    noise: Tensor
    start: Tensor
    steps: Tensor

    def __getitem__(self, index: Tensor | slice) -> PatchSet:
        """Select patches."""
        picked = {}
        for field in fields(self):
            values: Tensor = getattr(self, field.name)
            picked[field.name] = values[index.to(values.device) if isinstance(index, Tensor) else index]
        return PatchSet(**picked)


def sample_patches(
    denoiser: PatchDiT,
    make_prompt: PromptFunction,
    patches: PatchSet,
    *,
    shortcut: Shortcut,
    batch_size: int,
    pack_size: int = 1024,
    fixed_shape: bool = False,
    on_step: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Take every patch down its path; patches with no steps keep y_0.

    Args:
        denoiser: predicts x_0.
        make_prompt: prompt tokens (n, L, w) of coarse patches y_0 (n, c, p, p).
        patches: what to sample.
        shortcut: law of the states in mid-path.
        batch_size: most patches in one call of the denoiser; halved for as long as memory runs out.
        pack_size: most patches whose cached conditions wait in memory together.
        fixed_shape: fill every call up to `batch_size`, so that results are equal to the bit in any company.
        on_step: told after each call how many patch evaluations are done.

    Returns:
        x_0 (n, c, p, p) in the type of y_0.
    """
    out = patches.latent.clone()
    order = torch.argsort(patches.steps, descending=True, stable=True)
    order = order[: int((patches.steps > 0).sum())]
    if not len(order):
        return out
    done = 0
    for pack in order.split(pack_size):
        chosen = patches[pack]
        state = _Pack(denoiser, make_prompt, chosen, shortcut, batch_size, fixed_shape)
        for remaining in range(int(chosen.steps[0]), 0, -1):
            active = int((chosen.steps >= remaining).sum())
            state.advance(active, remaining)
            done += active
            on_step(done)
        out[pack.to(out.device)] = state.x.to(out.dtype)
    return out


class _Pack:
    """State x_t of some patches, with what is computed once for each of them."""

    def __init__(
        self,
        denoiser: PatchDiT,
        make_prompt: PromptFunction,
        patches: PatchSet,
        shortcut: Shortcut,
        batch_size: int,
        fixed_shape: bool,
    ) -> None:
        self.denoiser = denoiser
        self.shortcut: Shortcut = shortcut
        self.batch_size = batch_size
        self.fixed_shape = fixed_shape
        self.y, self.start = patches.latent, patches.start
        self.steps = patches.steps.to(self.start.device)
        self.x = start_state(self.y.float(), patches.noise, self.start)
        count = len(self.start)
        prepared = [self._prepare(make_prompt, patches[rows]) for rows in self._batches(count)]
        self.condition = torch.cat([condition for condition, _ in prepared])[:count]
        self.prompt = torch.cat([prompt for _, prompt in prepared], dim=2)[:, :, :count]

    def _prepare(self, make_prompt: PromptFunction, patches: PatchSet) -> tuple[Tensor, Tensor]:
        prompt = self.denoiser.prompt_cache(make_prompt(patches.latent))
        return self.denoiser.condition_tokens(patches.condition), prompt

    def advance(self, active: int, remaining: int) -> None:
        """One solver step of the first `active` patches, which have `remaining` steps to go."""
        advanced = [self._step(rows, remaining) for rows in self._batches(active)]
        self.x[:active] = torch.cat(advanced)[:active]

    def _batches(self, count: int) -> list[Tensor]:
        rows = torch.arange(count, device=self.start.device)
        if self.fixed_shape and count % self.batch_size:
            rows = torch.cat((rows, rows[:1].expand(self.batch_size - count % self.batch_size)))
        return list(rows.split(self.batch_size))

    def _step(self, rows: Tensor, remaining: int) -> Tensor:
        return halve_on_out_of_memory(lambda part: self._step_batch(part, remaining), rows)

    def _step_batch(self, rows: Tensor, remaining: int) -> Tensor:
        state, y, start = self.x[rows], self.y[rows], self.start[rows]
        timestep = start * (remaining / self.steps[rows])
        following = start * ((remaining - 1) / self.steps[rows])
        x = self.denoiser(
            state.to(y.dtype), y, self.condition[rows], self.prompt[:, :, rows], timestep, start
        )
        return solver_step(state, x.float(), y.float(), timestep, following, start, self.shortcut)
