"""The texture stage: the classifier, and at its end the texture memory."""

from __future__ import annotations

import zlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchscaler.data.dataset import Batch, TileSet
from patchscaler.data.degradation import Degradation
from patchscaler.models.texture_classifier import TextureClassifier
from patchscaler.pipeline import PatchScalerPipeline
from patchscaler.storage import key_space, latent_space
from patchscaler.texture_memory import Origin
from patchscaler.texture_selection import MemoryBuilder
from patchscaler.training.losses import contrastive_loss
from patchscaler.training.stage import Logs, Stage, encoders


def held_out(source: str) -> bool:
    """Whether a picture is one of the tenth, by the hash of its name, that never teaches the classifier."""
    return zlib.crc32(source.encode()) % 10 == 0


class TextureStage(Stage):
    """The classifier: a restored patch must find its own clean patch, others of its material, and name its category.

    Pictures that `held_out` names teach it nothing, so that it can be judged on them.

    Args:
        pipeline, tiles, degradation: as in `Stage`.
        temperature: of the contrastive loss.
        category: weight of the category loss.
        entries: size of the texture memory built at the end.
        licences: licence of each source, by prefix, that may enter the memory.
    """

    taught: Tensor

    def __init__(
        self,
        pipeline: PatchScalerPipeline,
        tiles: TileSet,
        degradation: Degradation,
        temperature: float = 0.07,
        category: float = 1.0,
        entries: int = 1024,
        licences: dict[str, str] | None = None,
    ) -> None:
        super().__init__(pipeline, tiles, degradation)
        self.autoencoder = pipeline.autoencoder
        self.restoration = pipeline.restoration
        pipeline.texture_classifier = _with_categories(pipeline.texture_classifier, tiles.category_names)
        self.classifier = pipeline.texture_classifier
        self.temperature, self.category = temperature, category
        self.entries, self.licences = entries, licences or {}
        taught = torch.tensor([not held_out(name) for name in tiles.source_names])
        self.register_buffer("taught", taught, persistent=False)
        self.freeze_all_but(self.classifier)

    def compiled(self) -> list[nn.Module]:
        """Everything."""
        return [*encoders(self.pipeline), self.restoration, self.classifier]

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Logs]:
        """Contrastive and category loss of the patches of the batch that are not held out."""
        _, restored, target = self.restored(batch, generator)
        coarse, clean = self.classifier(self.cut(restored.latent)), self.classifier(self.cut(target))
        taught = self.taught[batch.sources]
        taught = taught | ~taught.any()  # a small set may have none left
        labels = torch.where(taught, batch.categories, -1)
        # The patches of a tile that has a category show one material; those of a photograph need not.
        kin = torch.where(labels >= 0, torch.arange(len(labels), device=labels.device), -1)
        share = len(clean.key) // len(target)
        taught, labels, kin = (x.repeat_interleave(share) for x in (taught, labels, kin))
        contrast = contrastive_loss(coarse.key, clean.key, self.temperature, taught, kin)
        known = (labels >= 0).float()
        wrong = torch.zeros_like(contrast)
        for texture in (coarse, clean):
            each = F.cross_entropy(texture.logits.float(), labels.clamp(min=0), reduction="none")
            wrong = wrong + (each * known).sum() / known.sum().clamp(min=1) / 2
        found = (coarse.key @ clean.key.T).argmax(dim=1) == torch.arange(len(clean.key), device=labels.device)
        right = ((coarse.logits.argmax(1) == labels).float() * known).sum() / known.sum().clamp(min=1)
        logs = {"contrast": contrast, "category": wrong, "recall": found.float().mean(), "accuracy": right}
        return contrast + self.category * wrong, logs

    @torch.no_grad()
    def finish(self) -> None:
        """Build the texture memory from the tiles whose licence allows it; without such tiles there is none."""
        self.pipeline.texture_memory = None  # its keys are the former classifier's
        # `forward`, not the call: what is compiled for the shape of a batch would be compiled again for each of these.
        builder = MemoryBuilder(lambda part: self.classifier.forward(part).key, self.entries)
        for batch in self.tiles.batches(16):
            cut = self.cut(self.autoencoder.encode(batch.images)).unflatten(0, (len(batch.images), -1))
            numbers = zip(batch.sources.tolist(), batch.categories.tolist(), strict=True)
            for own, (source, category) in zip(cut, numbers, strict=True):
                name = self.tiles.source_names[source]
                licence = self._licence(name)
                if licence is not None:
                    known = self.tiles.category_names[category] if category >= 0 else ""
                    builder.add(own, Origin(name, licence, known))
        self.pipeline.texture_memory = builder.build(
            latent_space=latent_space(self.autoencoder), key_space=key_space(self.classifier)
        )

    def _licence(self, source: str) -> str | None:
        return next((licence for prefix, licence in self.licences.items() if source.startswith(prefix)), None)


def _with_categories(classifier: TextureClassifier, categories: tuple[str, ...]) -> TextureClassifier:
    """A new classifier of the same sizes if the tiles have categories that this one does not tell apart."""
    if not categories or tuple(classifier.config["categories"]) == categories:
        return classifier
    sizes = {name: value for name, value in classifier.config.items() if not name.startswith("_")}
    return TextureClassifier(**{**sizes, "categories": categories})
