"""Reference Texture Memory (RTM): sharp texture patches, found by the keys of a texture classifier (section 3.4)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from patchscaler.errors import ModelError

_FORMAT = "patchscaler texture memory 1"


class Retrieved(NamedTuple):
    """Patches (n, K, c, p, p), their similarities (n, K) in [-1, 1] and the numbers of their entries (n, K)."""

    patches: Tensor
    similarity: Tensor
    entries: Tensor


@dataclass(frozen=True)
class ReferenceTextureMemory:
    """M high-quality latent patches, stored in 8 bits, with their keys and their origin.

    Attributes:
        values: int8 (M, c, p, p); a patch is `values * scales`.
        scales: float (M, c, 1, 1).
        keys: unit-length keys (M, d).
        sources: origin of each entry; entries cut from one image share it.
        licences: licence of each entry.
        latent_space: fingerprint of the autoencoder whose latents these are.
    """

    values: Tensor
    scales: Tensor
    keys: Tensor
    sources: tuple[str, ...]
    licences: tuple[str, ...]
    latent_space: str

    @classmethod
    def build(
        cls,
        patches: Tensor,
        key_of: Callable[[Tensor], Tensor],
        sources: Sequence[str],
        licences: Sequence[str],
        *,
        entries: int,
        latent_space: str,
    ) -> ReferenceTextureMemory:
        """Choose `entries` of the latent patches (n, c, p, p), far apart in key space, and store them.

        Flat patches, the quarter with the least variance, are left out unless there would be too few.
        """
        variance = patches.float().var(dim=(2, 3)).mean(dim=1)
        lively = variance.argsort(descending=True)[: max(entries, 3 * len(patches) // 4)]
        keys = torch.cat([key_of(part) for part in patches[lively].split(1024)]).float()
        chosen = farthest_points(keys, entries)
        picked = lively[chosen]
        kept = patches[picked].float()
        scales = kept.abs().amax(dim=(2, 3), keepdim=True).clamp(min=1e-4) / 127
        index: list[int] = picked.tolist()
        return cls(
            (kept / scales).round().to(torch.int8),
            scales,
            keys[chosen],
            tuple(sources[i] for i in index),
            tuple(licences[i] for i in index),
            latent_space,
        )

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.keys)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> ReferenceTextureMemory:
        """The memory on a device, its scales and keys in `dtype`."""
        return ReferenceTextureMemory(
            self.values.to(device),
            self.scales.to(device, dtype),
            self.keys.to(device, dtype),
            self.sources,
            self.licences,
            self.latent_space,
        )

    def search(
        self, queries: Tensor, k: int, *, exclude: Tensor | None = None, chunk: int = 65536
    ) -> Retrieved:
        """The K entries with the largest inner product with each query, exactly.

        Args:
            queries: unit-length keys (n, d).
            k: entries per query, at most `len(self)`.
            exclude: bool (n, M), entries that a query must not find.
            chunk: keys compared at a time; a memory of any size is searched in bounded space.
        """
        queries = queries.to(self.keys.dtype)
        best: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(self), chunk):
            scores = queries @ self.keys[start : start + chunk].T
            if exclude is not None:
                scores = scores.masked_fill(exclude[:, start : start + chunk], -1.0)
            top = scores.topk(min(k, scores.shape[1]), dim=1)
            best.append((top.values, top.indices + start))
        similarity, order = torch.cat([values for values, _ in best], dim=1).topk(k, dim=1)
        index = torch.cat([indices for _, indices in best], dim=1).gather(1, order)
        return Retrieved(self.values[index].to(self.scales.dtype) * self.scales[index], similarity, index)

    def source_ids(self) -> dict[str, int]:
        """A number for each source."""
        return {source: number for number, source in enumerate(dict.fromkeys(self.sources))}

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write one safetensors file; sources and licences go into its header."""
        origin = {"sources": self.sources, "licences": self.licences, "latent_space": self.latent_space}
        tensors = {
            "values": self.values.cpu().contiguous(),
            "scales": self.scales.half().cpu().contiguous(),
            "keys": self.keys.half().cpu().contiguous(),
        }
        save_file(tensors, Path(file), {"format": _FORMAT, "origin": json.dumps(origin)})

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> ReferenceTextureMemory:
        """Read what `save` wrote.

        Raises:
            ModelError: the file is missing, broken or no texture memory.
        """
        try:
            with safe_open(Path(file), framework="pt") as content:
                header = content.metadata() or {}
                if header.get("format") != _FORMAT:
                    raise ModelError(f"{file} is not a texture memory of this version of patchscaler")
                tensors = {name: content.get_tensor(name) for name in ("values", "scales", "keys")}
        except (OSError, SafetensorError) as error:
            raise ModelError(f"cannot read the texture memory {file}: {error}") from error
        origin = json.loads(header["origin"])
        return cls(
            **tensors,
            sources=tuple(origin["sources"]),
            licences=tuple(origin["licences"]),
            latent_space=origin["latent_space"],
        )


def farthest_points(keys: Tensor, count: int) -> Tensor:
    """Indices (count,) of keys (n, d) chosen one by one, each the least similar to those before it."""
    chosen = torch.empty(min(count, len(keys)), dtype=torch.int64, device=keys.device)
    nearest = torch.full((len(keys),), -2.0, device=keys.device)
    chosen[0] = 0
    for position in range(1, len(chosen)):
        nearest = torch.maximum(nearest, keys @ keys[chosen[position - 1]])
        chosen[position] = nearest.argmin()
    return chosen
