"""What the denoiser's cross-attention does with a prompt: where it looks, and how much that moves its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from patchscaler.models.patch_dit import PatchDiT, PromptBranch


class Look(NamedTuple):
    """Figures (n, ...) of n patches at one cross-attention; means over heads and the patch's tokens.

    Attributes:
        shares: attention on all tokens of each found entry, the best first, and on the null prompt (n, K + 1).
        spread: over how many tokens attention spreads (n,): the exponential of its entropy, from 1 to all L.
        moved: norm of what the block adds over that of the tokens it is added to (n,).
        told: norm of the part of that which the null prompt alone would not give, over the same (n,).
        chosen: norm of the part that would not come with the prompt of another of these patches, over the same (n,);
            nan if there is no other.
        length: L, how many tokens the prompt has.
    """

    shares: Tensor
    spread: Tensor
    moved: Tensor
    told: Tensor
    chosen: Tensor
    length: int


Looks = dict[int, list[Look]]
"""Looks at each cross-attention, by the place of its block in the denoiser, from 1."""


def look(branch: PromptBranch, tokens: Tensor, key_value: tuple[Tensor, Tensor], k: int) -> Look:
    """Look at one cross-attention.

    Args:
        branch: the module.
        tokens: (n, T, w), what its result is added to.
        key_value: of the prompt (n, heads, L, w / heads): k entries of equal length, then the null prompt.
        k: entries in the prompt.
    """
    key, value = key_value
    cross = branch.attention
    query = cross.to_query(branch.norm(tokens)).unflatten(-1, (cross.heads, -1))
    query = cross.query_norm(query).to(key.dtype)
    scores = query.transpose(1, 2).float() @ key.float().mT / key.shape[-1] ** 0.5
    probability = scores.softmax(dim=-1)
    spread = torch.special.entr(probability).sum(dim=-1).exp().mean(dim=(1, 2))
    attention = probability.mean(dim=(1, 2))
    entries = attention[:, :-1].unflatten(1, (k, -1)).sum(dim=2)
    added, null, other = (
        branch.forward(tokens, prompt).float()  # not the call, which may be watched
        for prompt in (
            key_value,
            (key[:, :, -1:], value[:, :, -1:]),
            (key.roll(1, dims=0), value.roll(1, dims=0)),
        )
    )
    size = tokens.float().norm(dim=(1, 2))
    moved, told, chosen = (part.norm(dim=(1, 2)) / size for part in (added, added - null, added - other))
    if len(chosen) == 1:
        chosen = torch.full_like(chosen, torch.nan)
    shares = torch.cat((entries, attention[:, -1:]), dim=1)
    return Look(shares, spread, moved, told, chosen, key.shape[2])


@contextmanager
def watched(denoiser: PatchDiT, k: int, looks: Looks) -> Iterator[None]:
    """While it lasts, each call of the denoiser adds a look at each of its cross-attentions."""
    hooks = []
    for number, block in enumerate(denoiser.blocks, start=1):
        if isinstance(block.cross, PromptBranch):
            after = partial(_after, k, looks.setdefault(number, []))
            hooks.append(block.cross.register_forward_hook(after))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def to_markdown(looks: Looks) -> str:
    """The table of means over all patches, and under it what its columns are."""
    first = next(iter(looks.values()))[0]
    k, length = first.shares.shape[1] - 1, first.length
    entries = " | ".join(f"entry {rank}" for rank in range(1, k + 1))
    lines = [
        f"| cross-attention | {entries} | null prompt | spread | adds | by entries | by which entries |",
        "|---|" + "---:|" * (k + 5),
    ]
    for number, found in looks.items():
        shares, spread, *norms = (
            torch.cat([getattr(each, name) for each in found]).nanmean(dim=0)
            for name in ("shares", "spread", "moved", "told", "chosen")
        )
        cells = [f"{100 * share:.1f} %" for share in shares.tolist()]
        cells += [f"{float(spread):.1f}"]
        cells += [f"{100 * float(norm):.2f} %" for norm in norms]
        lines.append(f"| block {number} | {' | '.join(cells)} |")
    even = " | ".join(f"{100 * share:.1f} %" for share in [(length - 1) / k / length] * k + [1 / length])
    patches = sum(len(each.moved) for each in next(iter(looks.values())))
    lines += [
        f"| uniform | {even} | {length} | | | |",
        "",
        f"Last step of {patches} patches. Shares: of the attention, on the entries as found and on the null prompt."
        " Spread: over how many tokens, the exponential of the entropy of each head's and token's attention."
        " Adds: norm of what attention adds over that of the tokens it adds to. By entries, by which entries: norm of"
        " the part that the null prompt alone, or the prompt of another patch, does not give, over the same.",
    ]
    return "\n".join(lines) + "\n"


def _after(
    k: int,
    looks: list[Look],
    branch: PromptBranch,
    inputs: tuple[Tensor, tuple[Tensor, Tensor]],
    _: Tensor,
) -> None:
    looks.append(look(branch, *inputs, k))
