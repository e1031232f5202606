"""Reference Texture Memory (RTM): sharp texture patches, found by the keys of a texture classifier (section 3.4)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from patchscaler.errors import ModelError
from patchscaler.tensor_files import save_tensors

KeyFunction = Callable[[Tensor], Tensor]
"""Unit-length keys (n, d) of latent patches (n, c, p, p)."""

_FORMAT = "patchscaler texture memory 1"
_ON_HOST = 2**28
"""Values of more bytes than this stay on the host: only what is found travels."""


class Origin(NamedTuple):
    """Where a patch comes from: patches of one image share their source; an unknown category is empty."""

    source: str
    licence: str
    category: str = ""


class Retrieved(NamedTuple):
    """Patches (n, K, c, p, p), their similarities (n, K) in [-1, 1] and the numbers of their entries (n, K)."""

    patches: Tensor
    similarity: Tensor
    entries: Tensor


@dataclass(frozen=True)
class ReferenceTextureMemory:
    """M high-quality latent patches, stored in 8 bits, with their keys and their origin.

    Entries come in the order they were chosen in, so the first of them are themselves a good smaller memory.

    Attributes:
        values: int8 (M, c, p, p); a patch is `values * scales`.
        scales: float (M, c, 1, 1).
        keys: unit-length keys (M, d).
        origins: source, licence and category of each entry.
        latent_space: fingerprint of the autoencoder whose latents these are.
        key_space: fingerprint of the classifier whose keys these are; None if not known.
    """

    values: Tensor
    scales: Tensor
    keys: Tensor
    origins: tuple[Origin, ...]
    latent_space: str
    key_space: str | None = None

    @classmethod
    def of(
        cls,
        patches: Tensor,
        key_of: KeyFunction,
        origins: Sequence[Origin],
        *,
        latent_space: str,
        key_space: str,
    ) -> ReferenceTextureMemory:
        """A memory of these latent patches (n, c, p, p), in this order."""
        patches = patches.float()
        scales = patches.abs().amax(dim=(2, 3), keepdim=True).clamp(min=1e-4) / 127
        values = (patches / scales).round().to(torch.int8)
        empty = cls(values, scales, patches.new_empty(len(patches), 0), tuple(origins), latent_space)
        return empty.with_keys(key_of, key_space)

    @property
    def sources(self) -> tuple[str, ...]:
        """Source of each entry."""
        return tuple(origin.source for origin in self.origins)

    @property
    def licences(self) -> tuple[str, ...]:
        """Licence of each entry."""
        return tuple(origin.licence for origin in self.origins)

    @property
    def categories(self) -> tuple[str, ...]:
        """Category of each entry."""
        return tuple(origin.category for origin in self.origins)

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.keys)

    def __getitem__(self, index: slice) -> ReferenceTextureMemory:
        """A memory of some of the entries."""
        return replace(
            self,
            values=self.values[index],
            scales=self.scales[index],
            keys=self.keys[index],
            origins=self.origins[index],
        )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> ReferenceTextureMemory:
        """The memory on a device, its scales and keys in `dtype`; values that would fill the device stay behind."""
        return replace(
            self,
            values=self.values if self.values.nbytes > _ON_HOST else self.values.to(device),
            scales=self.scales.to(device, dtype),
            keys=self.keys.to(device, dtype),
        )

    def patches(self, index: Tensor | slice) -> Tensor:
        """Latent patches of the entries `index`, of any shape, where the scales are and in their type."""
        if isinstance(index, slice):
            return self.values[index].to(self.scales) * self.scales[index]
        values = self.values[index.to(self.values.device)]
        return values.to(self.scales) * self.scales[index.to(self.scales.device)]

    def with_keys(self, key_of: KeyFunction, key_space: str) -> ReferenceTextureMemory:
        """The same entries with the keys of another classifier."""
        parts = torch.arange(len(self), device=self.scales.device).split(256)
        if not parts:
            return replace(self, key_space=key_space)
        keys = torch.cat([key_of(self.patches(part)) for part in parts])
        return replace(self, keys=keys.to(self.scales.dtype), key_space=key_space)

    def search(
        self,
        queries: Tensor,
        k: int,
        *,
        exclude: Tensor | None = None,
        chunk: int = 65536,
        scores: int = 2**24,
    ) -> Retrieved:
        """The K entries with the largest inner product with each query, exactly.

        Args:
            queries: unit-length keys (n, d).
            k: entries per query, at most `len(self)`.
            exclude: bool (n, M), entries that a query must not find.
            chunk: keys compared at a time.
            scores: most inner products that are held at a time, whatever the numbers of queries and keys.
        """
        queries = queries.to(self.keys.dtype)
        rows = max(1, scores // min(chunk, len(self)))
        hidden = repeat(None) if exclude is None else exclude.split(rows)
        parts = zip(queries.split(rows), hidden, strict=False)
        found = [self._search(part, k, own, chunk) for part, own in parts]
        similarity, index = (torch.cat(part) for part in zip(*found, strict=True))
        return Retrieved(self.patches(index), similarity, index)

    def _search(self, queries: Tensor, k: int, exclude: Tensor | None, chunk: int) -> tuple[Tensor, Tensor]:
        """Similarities and numbers (n, K), best first; the best so far compete with each chunk's own."""
        best, index = queries.new_empty(len(queries), 0), queries.new_empty(len(queries), 0).long()
        for start in range(0, len(self), chunk):
            scores = queries @ self.keys[start : start + chunk].T
            if exclude is not None:
                scores = scores.masked_fill(exclude[:, start : start + chunk], -1.0)
            top = scores.topk(min(k, scores.shape[1]), dim=1)
            best, order = torch.cat((best, top.values), dim=1).sort(dim=1, descending=True, stable=True)
            index = torch.cat((index, top.indices + start), dim=1).gather(1, order)
            best, index = best[:, :k], index[:, :k]
        return best, index

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write one safetensors file; its header holds the origins as JSON."""
        origin = {
            "sources": self.sources,
            "licences": self.licences,
            "categories": self.categories,
            "latent_space": self.latent_space,
            "key_space": self.key_space,
        }
        tensors = {
            "values": self.values.cpu().contiguous(),
            "scales": self.scales.half().cpu().contiguous(),
            "keys": self.keys.half().cpu().contiguous(),
        }
        save_tensors(Path(file), tensors, {"format": _FORMAT, "origin": json.dumps(origin)})

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> ReferenceTextureMemory:
        """Read what `save` wrote; files of version 0.1.0 name neither categories nor the classifier.

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
        categories = origin.get("categories") or [""] * len(origin["sources"])
        origins = zip(origin["sources"], origin["licences"], categories, strict=True)
        return cls(
            **tensors,
            origins=tuple(Origin(*each) for each in origins),
            latent_space=origin["latent_space"],
            key_space=origin.get("key_space"),
        )
