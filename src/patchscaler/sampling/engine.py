"""The packed sampling loop: every patch of every image, each on its own path.

All paths end in the same last iteration, so the loop runs as often as the longest path has steps: the hard patches
start, the others join. Sorted by steps, the active patches are a prefix. They run in batches of a few fixed sizes,
so that compiled code and CUDA graphs are used again; nothing inside waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from patchscaler.models.patch_dit import PatchDiT
from patchscaler.runtime.memory import halve_on_out_of_memory
from patchscaler.runtime.runner import run_plainly
from patchscaler.sampling.noise import patch_noise
from patchscaler.sampling.schedule import Shortcut, solver_step, start_state

PromptFunction = Callable[[Tensor], Tensor]
Run = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class PatchSet:
    """Patches with all that their results depend on.

    Attributes:
        condition: patches (n, c + s, p, p) of the condition map; the first c channels are y_0.
        start: T (n,), float32.
        steps: N (n,), int64, on the host.
        seed: of the noise (n,), int64.
        row, col: place in their image (n,), int64.
    """

    condition: Tensor
    start: Tensor
    steps: Tensor
    seed: Tensor
    row: Tensor
    col: Tensor

    def __getitem__(self, index: Tensor) -> PatchSet:
        """Select patches by numbers on the host."""
        picked = {}
        for field in fields(self):
            values: Tensor = getattr(self, field.name)
            picked[field.name] = values[index.to(values.device, non_blocking=True)]
        return PatchSet(**picked)


def sample_patches(
    denoiser: PatchDiT,
    make_prompt: PromptFunction,
    patches: PatchSet,
    *,
    shortcut: Shortcut,
    sizes: Sequence[int],
    pack_size: int = 1024,
    run: Run = run_plainly,
    on_step: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Take every patch down its path; patches with no steps keep y_0.

    Args:
        denoiser: predicts x_0.
        make_prompt: prompt tokens (n, L, w) of coarse patches y_0 (n, c, p, p).
        patches: what to sample.
        shortcut: law of the states in mid-path.
        sizes: rising sizes that a batch may have; batches are filled up, and halved when memory runs out. One size
            alone makes results equal to the bit in any company.
        pack_size: most patches whose cached conditions wait in memory together.
        run: runs functions of tensors; see `Runner`.
        on_step: told after each iteration how many patch evaluations are done.

    Returns:
        x_0 (n, c, p, p) in the type of y_0.
    """
    out = patches.condition[:, : denoiser.latent_channels].clone()
    order = torch.argsort(patches.steps, descending=True, stable=True)
    order = order[: int((patches.steps > 0).sum())]
    done = 0
    for index in order.split(pack_size) if len(order) else ():
        pack = _Pack(denoiser, make_prompt, patches, index, shortcut, sizes, run)
        steps = patches.steps[index]
        for remaining in range(int(steps[0]), 0, -1):
            active = int((steps >= remaining).sum())
            pack.advance(active, remaining)
            done += active
            on_step(done)
        out[index.to(out.device, non_blocking=True)] = pack.x[: len(index)].to(out.dtype)
    return out


def cut_into_batches(count: int, sizes: Sequence[int]) -> list[range]:
    """Ranges of `sizes` that cover `count` rows, the largest first; the last may reach beyond.

    A remainder is filled up to the next size if it fills three quarters of it, else it is cut once more.
    """
    batches: list[range] = []
    first = 0
    while first < count:
        left = count - first
        above = next((size for size in sizes if size >= left), sizes[-1])
        below = max((size for size in sizes if size <= left), default=above)
        size = above if 4 * left > 3 * above else below
        batches.append(range(first, first + size))
        first += size
    return batches


class _Pack:
    """State x_t of some patches, with what is computed once for each of them; filled up to whole batches."""

    def __init__(
        self,
        denoiser: PatchDiT,
        make_prompt: PromptFunction,
        patches: PatchSet,
        index: Tensor,
        shortcut: Shortcut,
        sizes: Sequence[int],
        run: Run,
    ) -> None:
        self.sizes, self.run = sizes, run
        self.step = partial(step_batch, denoiser, shortcut)
        batches = cut_into_batches(len(index), sizes)
        filling = index[:1].expand(batches[-1].stop - len(index))
        chosen = patches[torch.cat((index, filling))]
        self.y = chosen.condition[:, : denoiser.latent_channels].contiguous()
        self.start = chosen.start
        self.steps = chosen.steps.to(self.start.device, self.start.dtype, non_blocking=True)
        self.remaining = torch.arange(int(chosen.steps.max()) + 1, device=self.start.device).to(self.start)
        prepare = partial(prepare_batch, denoiser, make_prompt)
        inputs = (chosen.condition, chosen.start, chosen.seed, chosen.row, chosen.col)
        prepared = [run("prepare", prepare, *(part[b.start : b.stop] for part in inputs)) for b in batches]
        states, conditions, prompts = zip(*prepared, strict=True)
        self.x, self.condition, self.prompt = _join(states, 0), _join(conditions, 0), _join(prompts, 2)

    def advance(self, active: int, remaining: int) -> None:
        """One solver step of the first `active` patches, which have `remaining` steps to go."""
        for batch in cut_into_batches(active, self.sizes):
            stop = min(batch.stop, active)
            state = halve_on_out_of_memory(partial(self._advance, remaining), batch)
            self.x[batch.start : stop] = state[: stop - batch.start]

    def _advance(self, remaining: int, batch: range) -> Tensor:
        rows = slice(batch.start, batch.stop)
        inputs = (self.x, self.y, self.condition, self.start, self.steps)
        prompt, left = self.prompt[:, :, rows], self.remaining[remaining]
        return self.run("step", self.step, prompt, left, *(part[rows] for part in inputs))[0]


def prepare_batch(
    denoiser: PatchDiT,
    make_prompt: PromptFunction,
    condition: Tensor,
    start: Tensor,
    seed: Tensor,
    row: Tensor,
    col: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """x_T, condition tokens and prompt cache of patches."""
    y = condition[:, : denoiser.latent_channels]
    state = start_state(y.float(), patch_noise(seed, row, col, y.shape[1:]), start)
    return state, denoiser.condition_tokens(condition), denoiser.prompt_cache(make_prompt(y))


def step_batch(
    denoiser: PatchDiT,
    shortcut: Shortcut,
    prompt: Tensor,
    remaining: Tensor,
    state: Tensor,
    y: Tensor,
    condition: Tensor,
    start: Tensor,
    steps: Tensor,
) -> tuple[Tensor]:
    """x of the following timestep, for patches with `remaining` of their `steps` to go."""
    timestep, following = start * (remaining / steps), start * ((remaining - 1) / steps)
    x = denoiser(state.to(y.dtype), y, condition, prompt, timestep, start)
    return (solver_step(state, x.float(), y.float(), timestep, following, start, shortcut),)


def _join(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=dim)
