"""Which patches a texture memory keeps: no flat ones, no near-duplicates, the same share of every category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from patchscaler.sampling.patches import unfold
from patchscaler.texture_memory import KeyFunction, Origin, ReferenceTextureMemory

FLAT = 0.5
"""Mean squared step between neighbouring latents, which have deviation 1, under which a quarter of a patch is flat."""
DUPLICATE = 0.9
"""Similarity of keys from which two patches count as the same texture."""
_WAITING, _SERVED = 8192, 4096


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
        self._priority: list[Tensor] = []
        self._random = torch.Generator().manual_seed(0)
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
        self._priority.append(torch.rand(len(lively), generator=self._random))
        self._origins += [origin] * len(lively)
        most = max(_WAITING, 4 * self.entries)
        if len(self._origins) > 2 * most:
            self._keep(self._drawn(most))

    def build(self, *, latent_space: str, key_space: str) -> ReferenceTextureMemory | None:
        """The memory, of fewer entries where there are not enough different ones; None if there is nothing."""
        if not self._origins:
            return None
        categories = [origin.category for origin in self._origins]
        self._keep(choose(torch.cat(self._keys), categories, self.entries, self.duplicate))
        (patches,) = self._patches
        return ReferenceTextureMemory.of(
            patches, self.key_of, self._origins, latent_space=latent_space, key_space=key_space
        )

    def _drawn(self, count: int) -> Tensor:
        """A random sample of the candidates, by turns of category; as if drawn from all that were ever offered."""
        priority = torch.cat(self._priority)
        rank, seen = torch.empty_like(priority), Counter[str]()
        for index in priority.argsort().tolist():
            category = self._origins[index].category
            rank[index], seen[category] = seen[category], seen[category] + 1
        return rank.argsort(stable=True)[:count]

    def _keep(self, index: Tensor) -> None:
        for values in (self._patches, self._keys, self._priority):
            whole = torch.cat(values)
            values[:] = [whole[index.to(whole.device)]]
        self._origins = [self._origins[number] for number in index.tolist()]


def liveliness(patches: Tensor) -> Tensor:
    """Mean squared step (n,) from latent to neighbouring latent of patches (n, c, p, p), in their flattest quarter."""
    quarters = unfold(patches.float(), patches.shape[-1] // 2, patches.shape[-1] // 2)
    steps = [quarters.diff(dim=axis).square().mean(dim=(1, 2, 3)) for axis in (2, 3)]
    return ((steps[0] + steps[1]) / 2).view(-1, 4).amin(dim=1)


def choose(keys: Tensor, categories: Sequence[str], count: int, duplicate: float = DUPLICATE) -> Tensor:
    """Indices of at most `count` keys (n, d), chosen one by one, by turns of category.

    The category with the fewest chosen so far gives the key that brings its own keys nearest to what is chosen of them:
    the one that raises the sum of their greatest similarities most (greedy facility location). Keys whose similarity to
    a chosen one is `duplicate` or more are left out.
    """
    members = {
        name: [i for i, own in enumerate(categories) if own == name] for name in sorted(set(categories))
    }
    step = -(-len(keys) // max(_SERVED, 2 * count))  # of a great many keys, so many stand for all
    own = {name: torch.tensor(index, device=keys.device) for name, index in members.items()}
    similarity = {name: keys[index[::step]] @ keys[index].T for name, index in own.items()}
    served = {name: block.new_full((len(block), 1), -1.0) for name, block in similarity.items()}
    filled = dict.fromkeys(members, 0)
    nearest = torch.full((len(keys),), -1.0, device=keys.device)
    chosen: list[int] = []
    while filled and len(chosen) < count:
        turn = min(filled, key=lambda name: filled[name])
        gain = (similarity[turn] - served[turn]).clamp_(min=0).sum(dim=0)
        gain, place = gain.masked_fill(nearest[own[turn]] >= duplicate, -1.0).max(dim=0)
        if float(gain) < 0:
            del filled[turn]
            continue
        filled[turn] += 1
        index = members[turn][int(place)]
        chosen.append(index)
        served[turn] = torch.maximum(served[turn], similarity[turn][:, place, None])
        nearest = torch.maximum(nearest, keys @ keys[index])
        nearest[index] = torch.inf
    return torch.tensor(chosen, device=keys.device)
