"""Which patches a texture memory keeps: no flat ones, no near-duplicates, the same share of every category."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchscaler.sampling.patches import unfold
from patchscaler.texture_memory import KeyFunction, Origin, ReferenceTextureMemory

FLAT = 0.5
"""Mean squared step between neighbouring latents, which have deviation 1, under which a quarter of a patch is flat."""
DUPLICATE = 0.9
"""Similarity of keys from which two patches count as the same texture."""
_WAITING = 16384


class MemoryBuilder:
    """Collects candidate patches of any number of pictures in bounded space, and chooses among them.

    Args:
        key_of: keys of patches.
        entries: size of the memory.
        flat, duplicate: see `FLAT` and `DUPLICATE`.
    """

    def __init__(
        self, key_of: KeyFunction, entries: int, *, flat: float = FLAT, duplicate: float = DUPLICATE
    ) -> None:
        self.key_of, self.entries, self.flat, self.duplicate = key_of, entries, flat, duplicate
        self.seen = self.lively = 0
        self._patches: list[Tensor] = []
        self._keys: list[Tensor] = []
        self._origins: list[Origin] = []

    def add(self, patches: Tensor, origin: Origin) -> None:
        """Offer the latent patches (n, c, p, p) of one picture."""
        lively = patches[liveliness(patches) >= self.flat]
        self.seen += len(patches)
        self.lively += len(lively)
        if not len(lively):
            return
        self._patches.append(lively.half())
        self._keys.append(self.key_of(lively).float())
        self._origins += [origin] * len(lively)
        if len(self._origins) >= max(_WAITING, 4 * self.entries):
            self._reduce(max(_WAITING // 2, 2 * self.entries))

    def build(self, *, latent_space: str, key_space: str) -> ReferenceTextureMemory | None:
        """The memory, of fewer entries where there are not enough different ones; None if there is nothing."""
        if not self._origins:
            return None
        self._reduce(self.entries)
        (patches,) = self._patches
        return ReferenceTextureMemory.of(
            patches, self.key_of, self._origins, latent_space=latent_space, key_space=key_space
        )

    def _reduce(self, count: int) -> None:
        keys, patches = torch.cat(self._keys), torch.cat(self._patches)
        chosen = choose(keys, [origin.category for origin in self._origins], count, self.duplicate)
        self._keys, self._patches = [keys[chosen]], [patches[chosen]]
        self._origins = [self._origins[number] for number in chosen.tolist()]


def liveliness(patches: Tensor) -> Tensor:
    """Mean squared step (n,) from latent to neighbouring latent of patches (n, c, p, p), in their flattest quarter."""
    quarters = unfold(patches.float(), patches.shape[-1] // 2, patches.shape[-1] // 2)
    steps = [quarters.diff(dim=axis).square().mean(dim=(1, 2, 3)) for axis in (2, 3)]
    return ((steps[0] + steps[1]) / 2).view(-1, 4).amin(dim=1)


def choose(keys: Tensor, categories: Sequence[str], count: int, duplicate: float = DUPLICATE) -> Tensor:
    """Indices of at most `count` keys (n, d), chosen one by one: farthest-point sampling, by turns of category.

    The category with the fewest chosen so far gives its key that is least similar to all chosen before. A category
    has no more to give when that similarity reaches `duplicate`.
    """
    names = sorted(set(categories))
    number = {name: index for index, name in enumerate(names)}
    label = torch.tensor([number[category] for category in categories], device=keys.device)
    nearest = torch.full((len(keys),), -1.0, device=keys.device)
    filled = dict.fromkeys(range(len(names)), 0)
    chosen: list[int] = []
    while filled and len(chosen) < count:
        turn = min(filled, key=lambda label: filled[label])
        similarity, index = nearest.masked_fill(label != turn, torch.inf).min(dim=0)
        if float(similarity) >= duplicate:
            del filled[turn]
            continue
        filled[turn] += 1
        chosen.append(int(index))
        nearest = torch.maximum(nearest, keys @ keys[index])
        nearest[index] = torch.inf
    return torch.tensor(chosen, device=keys.device)
