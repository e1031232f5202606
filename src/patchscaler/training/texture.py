"""The texture stage: the classifier, and at its end the texture memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchscaler.data.dataset import Batch, TileSet
from patchscaler.data.degradation import Degradation
from patchscaler.models.texture_classifier import TextureClassifier
from patchscaler.pipeline import PatchScalerPipeline
from patchscaler.storage import latent_space
from patchscaler.texture_memory import ReferenceTextureMemory
from patchscaler.training.losses import contrastive_loss
from patchscaler.training.stage import Logs, Stage, encoders


class TextureStage(Stage):
    """The classifier: a restored patch must find its own clean patch, and name its category.

    Args:
        pipeline, tiles, degradation: as in `Stage`.
        temperature: of the contrastive loss.
        category: weight of the category loss.
        entries: size of the texture memory built at the end.
        licences: licence of each source, by prefix, that may enter the memory.
    """

    def __init__(
        self,
        pipeline: PatchScalerPipeline,
        tiles: TileSet,
        degradation: Degradation,
        temperature: float = 0.07,
        category: float = 0.2,
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
        self.freeze_all_but(self.classifier)

    def compiled(self) -> list[nn.Module]:
        """Everything."""
        return [*encoders(self.pipeline), self.restoration, self.classifier]

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Logs]:
        """Contrastive and category loss of all patches of the batch."""
        _, restored, target = self.restored(batch, generator)
        coarse, clean = self.classifier(self.cut(restored.latent)), self.classifier(self.cut(target))
        contrast = contrastive_loss(coarse.key, clean.key, self.temperature)
        labels = batch.categories.repeat_interleave(len(clean.key) // len(target))
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
        patches: list[Tensor] = []
        sources: list[str] = []
        licences: list[str] = []
        for batch in self.tiles.batches(16):
            names = [self.tiles.source_names[number] for number in batch.sources.tolist()]
            granted = [self._licence(name) for name in names]
            cut = self.cut(self.autoencoder.encode(batch.images)).unflatten(0, (len(names), -1))
            for own, name, licence in zip(cut, names, granted, strict=True):
                if licence is not None:
                    patches.append(own)
                    sources += [name] * len(own)
                    licences += [licence] * len(own)
        if not patches:
            return
        self.pipeline.texture_memory = ReferenceTextureMemory.build(
            torch.cat(patches),
            lambda part: self.classifier(part).key,
            sources,
            licences,
            entries=self.entries,
            latent_space=latent_space(self.autoencoder),
        )

    def _licence(self, source: str) -> str | None:
        return next((licence for prefix, licence in self.licences.items() if source.startswith(prefix)), None)


def _with_categories(classifier: TextureClassifier, categories: tuple[str, ...]) -> TextureClassifier:
    """A new classifier of the same sizes if the tiles have categories that this one does not tell apart."""
    if not categories or tuple(classifier.config["categories"]) == categories:
        return classifier
    sizes = {name: value for name, value in classifier.config.items() if not name.startswith("_")}
    return TextureClassifier(**{**sizes, "categories": categories})
