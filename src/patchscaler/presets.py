"""Sizes of the networks, as data: every preset is one set of constructor arguments of one architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from patchscaler._version import __version__
from patchscaler.errors import ModelError

if TYPE_CHECKING:
    from patchscaler.models.kl_autoencoder import KLAutoencoder
    from patchscaler.pipeline import PatchScalerPipeline

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # The bundled model: own autoencoder, patches that do not overlap.
    "compact": {
        "autoencoder": {},
        "restoration": {},
        "patch_dit": {},
        "texture_classifier": {},
        "texture_encoder": {},
        "sampling": {"patch_size": 16, "stride": 16, "shortcut": "bridge", "prompt_count": 3},
    },
    # The paper's figures: Stable Diffusion's latents, 64x64 for 512x512 pixels, patches of 16 at stride 8.
    "paper": {
        "restoration": {"latent_channels": 4, "widths": (192, 288, 384)},
        "patch_dit": {"latent_channels": 4, "feature_channels": 192, "width": 768, "heads": 12, "depth": 12,
                      "prompt_every": 1, "prompt_width": 768},
        "texture_classifier": {"latent_channels": 4},
        "texture_encoder": {"latent_channels": 4, "width": 384, "heads": 6, "prompt_width": 768},
        "sampling": {"patch_size": 16, "stride": 8, "shortcut": "plain", "prompt_count": 3},
    },
    # For tests: seconds on one core.
    "tiny": {
        "autoencoder": {"latent_channels": 4, "encoder_widths": (16, 16), "encoder_blocks": (1, 1),
                        "decoder_widths": (16, 16), "decoder_blocks": (1, 1)},
        "restoration": {"latent_channels": 4, "widths": (16, 16), "blocks": (1, 1)},
        "patch_dit": {"latent_channels": 4, "feature_channels": 16, "width": 32, "heads": 2, "depth": 2,
                      "prompt_width": 32, "stem_width": 16, "stem_channels": 8},
        "texture_classifier": {"latent_channels": 4, "widths": (16, 16), "key_width": 16},
        "texture_encoder": {"latent_channels": 4, "width": 32, "heads": 2, "depth": 1, "prompt_width": 32},
        "sampling": {"patch_size": 16, "stride": 16, "shortcut": "bridge", "prompt_count": 3},
    },
}  # fmt: skip


def build(preset: str, autoencoder: KLAutoencoder | None = None) -> PatchScalerPipeline:
    """An untrained pipeline of a preset, without a texture memory.

    Args:
        preset: a key of `PRESETS`.
        autoencoder: the frozen autoencoder of the `paper` preset; the others make their own.

    Raises:
        ModelError: no such preset, or `paper` without an autoencoder.
    """
    from patchscaler.models.autoencoder import Autoencoder
    from patchscaler.models.patch_dit import PatchDiT
    from patchscaler.models.restoration import RestorationModule
    from patchscaler.models.texture_classifier import TextureClassifier
    from patchscaler.models.texture_encoder import TextureEncoder
    from patchscaler.pipeline import PatchScalerPipeline, SamplingConfig

    if preset not in PRESETS:
        raise ModelError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    sizes = PRESETS[preset]
    if autoencoder is None and "autoencoder" not in sizes:
        raise ModelError(f"the preset {preset!r} needs an autoencoder: pass a KLAutoencoder")
    return PatchScalerPipeline(
        autoencoder=autoencoder or Autoencoder(**sizes["autoencoder"]),
        restoration=RestorationModule(**sizes["restoration"]),
        patch_dit=PatchDiT(**sizes["patch_dit"]),
        texture_classifier=TextureClassifier(**sizes["texture_classifier"]),
        texture_encoder=TextureEncoder(**sizes["texture_encoder"]),
        sampling=SamplingConfig(**sizes["sampling"]),
        card={"name": f"patchscaler-{preset}", "version": __version__, "training": []},
    )
