"""Model folders: config.json, one folder of safetensors per network, the texture memory."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from patchscaler.errors import ModelError
from patchscaler.sampling.grouping import Plan
from patchscaler.tensor_files import save_tensors
from patchscaler.texture_memory import ReferenceTextureMemory

NETWORKS = ("autoencoder", "restoration", "patch_dit", "texture_classifier", "texture_encoder")
BUNDLED = Path(__file__).parent / "weights"
_KIND = "PatchScalerPipeline"
_LOADING = threading.Lock()  # diffusers patches torch while it builds a network: one thread at a time
_MEMORY = "texture_memory.safetensors"


def locate(source: str | os.PathLike[str] | None) -> Path:
    """The folder of a model: as given, the bundled one, or a snapshot of a hub repository.

    Raises:
        ModelError: there is none.
    """
    if source is None:
        folder = BUNDLED
    elif Path(source).exists() or str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        folder = Path(source)
    else:
        folder = _snapshot(str(source))
    if not (folder / "config.json").is_file():
        raise ModelError(f"no model in {folder}: a model folder holds config.json and its networks")
    return folder


def load(folder: Path) -> dict[str, Any]:
    """The constructor arguments of a pipeline saved in `folder`, on the CPU; `sampling` as a dict.

    Raises:
        ModelError: a part is missing, broken or of another kind.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        if config["_class_name"] != _KIND:
            raise ModelError(f"{folder} holds a {config['_class_name']}, not a {_KIND}")
        parts: dict[str, Any] = {
            "sampling": config["sampling"],
            "plans": {name: Plan.from_dict(plan) for name, plan in config["plans"].items()},
            "card": config["card"],
        }
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise ModelError(f"{folder / 'config.json'} is not the config of a patchscaler model") from error
    for name in NETWORKS:
        parts[name] = _load_network(folder / name, name)
    _check_fit(folder, parts)
    memory = folder / _MEMORY
    if memory.exists():
        parts["texture_memory"] = fit_memory(
            ReferenceTextureMemory.load(memory), parts["autoencoder"], parts["texture_classifier"]
        )
    return parts


def save(
    folder: Path,
    config: Mapping[str, Any],
    networks: Mapping[str, nn.Module],
    memory: ReferenceTextureMemory | None,
) -> None:
    """Write a model folder, the networks in half precision and config.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, network in networks.items():
        _save_network(network, folder / name)
    (folder / _MEMORY).unlink(missing_ok=True)
    if memory is not None:
        memory.save(folder / _MEMORY)
    _write_config(folder, {"_class_name": _KIND, **config})


def write_plans(folder: Path, plans: Mapping[str, Plan]) -> None:
    """Replace the plans in the config.json of a model folder, and nothing else."""
    config = json.loads((folder / "config.json").read_text())
    config["plans"] = {name: plan.to_dict() for name, plan in plans.items()}
    _write_config(folder, config)


def memory_file(folder: Path) -> Path:
    """Where a model folder keeps its texture memory, if it has one."""
    return folder / _MEMORY


def latent_space(autoencoder: nn.Module) -> str:
    """A name for the latents of an autoencoder: the hash of all that shapes them, in half precision."""
    return _hash({name: value for name, value in autoencoder.state_dict().items() if "decoder" not in name})


def key_space(classifier: nn.Module) -> str:
    """A name for the keys of a texture classifier, in the same way."""
    return _hash({name: value for name, value in classifier.state_dict().items() if "to_logits" not in name})


def fit_memory(
    memory: ReferenceTextureMemory, autoencoder: nn.Module, classifier: nn.Module
) -> ReferenceTextureMemory:
    """The memory with the keys of this classifier, made again if they are another's.

    Raises:
        ModelError: the memory holds latents of another autoencoder.
    """
    if memory.latent_space != latent_space(autoencoder):
        raise ModelError(
            "this texture memory was built with another autoencoder: build it again for this model"
        )
    own = key_space(classifier)
    if memory.key_space in (None, own):
        return memory
    dtype = next(classifier.parameters()).dtype
    with torch.inference_mode():
        return memory.with_keys(lambda patches: classifier(patches.to(dtype)).key, own)


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.detach().half().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_fit(folder: Path, parts: Mapping[str, Any]) -> None:
    """Refuse networks of different models in one folder with a ModelError."""
    autoencoder = parts["autoencoder"]
    latent = {"latent_channels": autoencoder.latent_channels}
    fold = {"lr_fold": autoencoder.factor // 4}  # the scale
    expected = {
        "restoration": latent | fold,
        "patch_dit": latent | fold | {"feature_channels": parts["restoration"].config["widths"][0]},
        "texture_classifier": latent,
        "texture_encoder": latent | {"prompt_width": parts["patch_dit"].config["prompt_width"]},
    }
    for name, values in expected.items():
        for key, value in values.items():
            if (found := parts[name].config[key]) != value:
                raise ModelError(
                    f"the {name} in {folder / name} is of another model: its {key} is {found}, not {value}"
                )


def _load_network(folder: Path, name: str) -> nn.Module:
    from patchscaler.models.autoencoder import Autoencoder
    from patchscaler.models.patch_dit import PatchDiT
    from patchscaler.models.restoration import RestorationModule
    from patchscaler.models.texture_classifier import TextureClassifier
    from patchscaler.models.texture_encoder import TextureEncoder

    kinds: dict[str, dict[str, Any]] = {
        "autoencoder": {"Autoencoder": Autoencoder},
        "restoration": {"RestorationModule": RestorationModule},
        "patch_dit": {"PatchDiT": PatchDiT},
        "texture_classifier": {"TextureClassifier": TextureClassifier},
        "texture_encoder": {"TextureEncoder": TextureEncoder},
    }
    try:
        kind = json.loads((folder / "config.json").read_text())["_class_name"]
        if kind == "AutoencoderKL":  # it imports most of diffusers' models, which takes a second
            from patchscaler.models.kl_autoencoder import KLAutoencoder

            kinds["autoencoder"][kind] = KLAutoencoder
        if kind not in kinds[name]:
            raise ValueError(f"no such network: {kind}")
        if not any(folder.glob("*.safetensors")):
            raise ValueError("no safetensors there")
        with _LOADING:
            network = kinds[name][kind].from_pretrained(folder, use_safetensors=True, local_files_only=True)
        if absent := [key for key, value in network.state_dict().items() if value.is_meta]:
            raise ValueError(f"no weights for {absent[0]}")
        return network
    except (KeyError, TypeError, ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the {name} in {folder} is missing or broken: {_first_line(error)}") from error


def _save_network(network: nn.Module, folder: Path) -> None:
    """Save a half-precision copy, so that the network in use keeps its precision."""
    state: dict[str, Tensor] = {
        name: value.detach().to("cpu", torch.float16).contiguous()
        for name, value in network.state_dict().items()
    }
    vae = getattr(network, "vae", None)
    if vae is not None:
        network, state = vae, {name.removeprefix("vae."): value for name, value in state.items()}
    folder.mkdir(exist_ok=True)
    config = json.loads(network.to_json_string())  # type: ignore[operator]
    config.pop("_name_or_path", None)  # where it was once loaded from
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_tensors(folder / "diffusion_pytorch_model.safetensors", state, {"format": "pt"})


def _snapshot(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"cannot get the model {repository}: {_first_line(error)}") from error


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    partial = folder / "config.json.partial"
    partial.write_text(json.dumps(config, indent=2) + "\n")
    partial.replace(folder / "config.json")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
