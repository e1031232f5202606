from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from patchscaler import PatchScalerPipeline, Plan
from patchscaler import Path as ShortcutPath
from patchscaler.evaluation.evaluate import Evaluation, evaluate
from patchscaler.presets import build


class Folders(NamedTuple):
    """LR images, their truth, and another method's outputs."""

    lr: Path
    hr: Path
    peer: Path


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth on the left, texture on the right: (height, width, 3) uint8."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(seed).normal(0, 40, (height, width)) * (x > width / 2)
    waves = 40 * np.sin(x / (2 + seed)) * np.cos(y / 5)
    pixels = np.stack(
        [128 + waves + noise, 60 + y * 100 / height + noise, 190 - x * 90 / width + waves], axis=-1
    )
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.fixture
def make_scene() -> Callable[..., np.ndarray]:
    """The function `scene`."""
    return scene


def write_folders(root: Path) -> Folders:
    """Two pairs, 64x64 and 80x70 in LR, and a peer that returns the truth."""
    found = Folders(*(root / name for name in Folders._fields))
    for folder in found:
        folder.mkdir()
    for index, (height, width) in enumerate(((64, 64), (80, 70))):
        truth = Image.fromarray(scene(4 * height, 4 * width, index))
        truth.save(found.hr / f"image{index}.webp", lossless=True)
        truth.save(found.peer / f"image{index}.png")
        truth.resize((width, height), Image.Resampling.BICUBIC).save(found.lr / f"image{index}.png")
    return found


@pytest.fixture
def folders(tmp_path) -> Folders:
    """Fresh folders that a test may damage."""
    return write_folders(tmp_path)


@pytest.fixture(scope="session")
def pipeline() -> PatchScalerPipeline:
    """A tiny untrained model with two groups that both get patches, the hard one sampled."""
    torch.manual_seed(0)
    tiny = build("tiny")
    for network in (tiny.patch_dit, tiny.restoration):  # new ones change nothing
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    confidence = torch.from_numpy(tiny(scene(64, 64), plan=Plan.restoration_only()).confidence)
    middle = float(confidence.unfold(0, 16, 16).unfold(1, 16, 16).mean(dim=(2, 3)).median())
    plan = Plan((middle,), (ShortcutPath(0.4, 1), ShortcutPath(0.9, 2)))
    tiny.plans = {"fast": Plan.restoration_only(), "balanced": plan, "best": Plan.uniform(0.9, 3)}
    return tiny


@pytest.fixture(scope="session")
def evaluation(pipeline, tmp_path_factory) -> Evaluation:
    """One evaluation of the tiny model, with a perfect peer under two names; not to be changed."""
    folders = write_folders(tmp_path_factory.mktemp("images"))
    peers = {"oracle": folders.peer, "<b>odd|name</b>": folders.peer}
    return evaluate(pipeline, folders.lr, folders.hr, peers=peers)
