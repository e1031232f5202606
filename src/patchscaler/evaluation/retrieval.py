"""What keys find: a restored patch should find its own clean patch, and texture of its own category.

The memory that is searched holds all entries of the pipeline's memory and all clean patches of the tiles. Beside the
keys of the texture classifier two baselines are searched in the same way: latents themselves, and features of an
ImageNet network on the decoded patches. Each representation is made unit length, so inner products compare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from patchscaler.data.dataset import TEXTURE_SIZE, load_tiles
from patchscaler.data.degradation import Degradation
from patchscaler.errors import InputError
from patchscaler.features import EfficientNetFeatures
from patchscaler.pipeline import PatchScalerPipeline
from patchscaler.sampling.patches import unfold
from patchscaler.training.texture import held_out

DEPTHS = (1, 3, 10)
CLASSIFIER = "texture classifier"


@dataclass(frozen=True)
class Found:
    """What one representation finds for one kind of query; shares in [0, 1].

    Attributes:
        keys: the representation.
        query: "clean" or "restored".
        own: at 1, 3 and 10, its own clean patch; 1 by nature for clean queries.
        source: at 1, 3 and 10, another patch of its source, its own patch left out.
        category: the best entry of another source, of those whose category is known, is of its category.
        head: the classifier names its category; None for the baselines.
    """

    keys: str
    query: str
    own: tuple[float, ...]
    source: tuple[float, ...]
    category: float
    head: float | None = None


@dataclass(frozen=True)
class RetrievalReport:
    """All that was measured.

    Attributes:
        model: version of the weights.
        tiles: how many tiles queried.
        unseen: whether a training of this version left these tiles out.
        queries, searched: patches that searched, and that were searched.
        chance: share of these entries that are of the query's category.
        rows: one for each representation and kind of query.
    """

    model: str
    tiles: int
    unseen: bool
    queries: int
    searched: int
    chance: float
    rows: list[Found]


@torch.inference_mode()
def measure_retrieval(
    pipeline: PatchScalerPipeline,
    folder: Path,
    *,
    every: bool = False,
    limit: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> RetrievalReport:
    """Search with the patches of texture tiles.

    Args:
        pipeline: whose keys, restoration and memory are measured.
        folder: tiles of 256 x 256 pixels called `CATEGORY__NAME`; their sources are in the `MANIFEST.csv` beside it.
        every: query with all tiles; else with those that the training stage holds out.
        limit: use the first so many tiles only.
        seed: of the degradation.
        progress: told how many tiles of how many are done.

    Raises:
        InputError: no such tiles, or none of them is held out.
    """
    tiles = load_tiles(folder, TEXTURE_SIZE, limit=limit)
    asked = torch.tensor([every or held_out(tiles.source_names[number]) for number in tiles.sources.tolist()])
    if not asked.any():
        raise InputError(f"no tile of {folder} is held out from training; --every queries with all of them")
    size, degradation = pipeline.sampling.patch_size, Degradation()
    clean, coarse = [], []
    for number, image in enumerate(tiles.images):
        pixels = image[None] / 255
        clean.append(unfold(pipeline.encode(pixels), size, size).cpu())
        if asked[number]:
            lr = degradation(pixels, torch.Generator().manual_seed(seed + number))
            coarse.append(unfold(pipeline.restore(lr).latent, size, size).cpu())
        if progress is not None:
            progress(number + 1, len(tiles))
    sources, categories, own = (
        values.repeat_interleave(len(clean[0])) for values in (tiles.sources, tiles.categories, asked)
    )
    patches, restored, own = torch.cat(clean), torch.cat(coarse), own.nonzero()[:, 0]
    memory = pipeline.texture_memory
    if memory is not None and len(memory):
        patches = torch.cat((patches, memory.patches(slice(None)).cpu()))
        sources = torch.cat((sources, _numbers(memory.sources, tiles.source_names)))
        categories = torch.cat((categories, _numbers(memory.categories, tiles.category_names)))

    same = sources[own][:, None] == sources
    right = categories[own][:, None] == categories
    elsewhere = ~same & (categories >= 0)
    head_names = tuple(pipeline.texture_classifier.config["categories"])
    wanted = _numbers(tiles.category_names, head_names)[categories[own]]
    rows = []
    for name, represent in _representations(pipeline).items():
        base = _each(represent, patches)
        for kind, queries in (("clean", patches[own]), ("restored", restored)):
            found = _judge(name, kind, _each(represent, queries) @ base.T, own, same, elsewhere, right)
            if name == CLASSIFIER:
                logits = _each(
                    lambda part: pipeline.texture_classifier(part).logits, queries.to(pipeline.device)
                )
                found = replace(found, head=_share(logits.argmax(dim=1) == wanted))
            rows.append(found)
    chance = float(((right & elsewhere).sum(dim=1) / elsewhere.sum(dim=1)).mean())
    return RetrievalReport(
        pipeline.fingerprint, int(asked.sum()), not every, len(own), len(patches), chance, rows
    )


def to_markdown(report: RetrievalReport) -> str:
    """The table, and under it what it is of."""
    lines = [
        "| keys | query | own patch @1 / 3 / 10 | same source @1 / 3 / 10 | category of the best | category by head |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in report.rows:
        own = "" if row.query == "clean" else _percent(row.own)
        head = "" if row.head is None else _percent((row.head,))
        figures = f"{own} | {_percent(row.source)} | {_percent((row.category,))} | {head}"
        lines.append(f"| {row.keys} | {row.query} | {figures} |")
    kind = "held out in training" if report.unseen else "all there are, not held out"
    lines += [
        "",
        f"{report.queries} patches of {report.tiles} tiles ({kind}) search {report.searched} patches; weights"
        f" {report.model}. Same source: another patch of the query's picture. Category: of the best patch of another"
        f" picture; chance {_percent((report.chance,))}.",
    ]
    return "\n".join(lines) + "\n"


def _representations(pipeline: PatchScalerPipeline) -> dict[str, Callable[[Tensor], Tensor]]:
    """Unit vectors (n, d) of latent patches, by name."""
    features = EfficientNetFeatures("lite0").to(pipeline.device)

    def decoded(part: Tensor) -> Tensor:
        taps = features(pipeline.decode(part).float().clamp(0, 1))
        return torch.cat([F.normalize(tap.mean(dim=(2, 3)), dim=1) for tap in taps], dim=1) / len(taps) ** 0.5

    return {
        CLASSIFIER: pipeline.keys,
        "latent": lambda part: F.normalize(part.float().flatten(1), dim=1),
        "EfficientNet-Lite0": decoded,
    }


def _judge(
    keys: str, query: str, scores: Tensor, own: Tensor, same: Tensor, elsewhere: Tensor, right: Tensor
) -> Found:
    """Judge scores (n, M).

    Args:
        keys: name of the representation.
        query: kind of the queries.
        scores: inner products of queries and entries.
        own: number of each query's own patch (n,).
        same: entries of the query's source (n, M).
        elsewhere: entries of other sources whose category is known.
        right: entries of the query's category.
    """
    mine = scores.gather(1, own[:, None])
    above = (scores > mine).sum(dim=1)
    others = scores.scatter(1, own[:, None], -2.0)
    kin = others.masked_fill(~same, -2.0).amax(dim=1, keepdim=True)
    before = (others > kin).sum(dim=1)
    best = scores.masked_fill(~elsewhere, -2.0).argmax(dim=1, keepdim=True)
    return Found(
        keys,
        query,
        tuple(_share(above < depth) for depth in DEPTHS),
        tuple(_share(before < depth) for depth in DEPTHS),
        _share(right.gather(1, best)),
    )


def _each(represent: Callable[[Tensor], Tensor], patches: Tensor) -> Tensor:
    return torch.cat([represent(part).float().cpu() for part in patches.split(64)])


def _numbers(names: Sequence[str], known: Sequence[str]) -> Tensor:
    """Places (n,) of names among known ones; -1 for others."""
    place = {name: number for number, name in enumerate(known)}
    return torch.tensor([place.get(name, -1) for name in names])


def _share(hits: Tensor) -> float:
    return float(hits.float().mean())


def _percent(shares: Sequence[float]) -> str:
    return " / ".join(f"{100 * share:.1f}" for share in shares) + " %"
