from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from patchscaler import Path as ShortcutPath
from patchscaler import Plan
from patchscaler.cli import app
from patchscaler.presets import build


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A tiny untrained model whose plans have three groups with thresholds that split what it makes."""
    torch.manual_seed(0)
    pipeline = build("tiny")
    for parameter in pipeline.patch_dit.parameters():  # a new one changes nothing, whatever the noise
        parameter.add_(0.1 * torch.randn_like(parameter))
    confidence = pipeline(photo_pixels(128, 96), plan=Plan.uniform(0.9, 1)).confidence
    quality = [confidence[y : y + 16, x : x + 16].mean() for y in (0, 16, 32) for x in (0, 16, 32, 48)]
    high, low = float(np.quantile(quality, 0.6)), float(np.quantile(quality, 0.3))
    paths = (ShortcutPath(0.43, 1), ShortcutPath(0.66, 2), ShortcutPath(0.9, 4))
    pipeline.plans = {name: Plan((high, low), paths) for name in ("fast", "balanced", "best")}
    pipeline.card = {"name": "tiny", "version": "0"}
    folder = tmp_path_factory.mktemp("model")
    pipeline.save_pretrained(folder)
    return folder


def photo_pixels(width: int, height: int) -> np.ndarray:
    """Smooth on the left, noise on the right: (height, width, 3) uint8."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(0).integers(-60, 60, (height, width)) * (x > width / 2)
    pixels = np.stack([60 + x + noise, 60 + y + noise, 190 - x + noise], axis=-1)
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.fixture
def photo(tmp_path) -> Path:
    """A 128x96 PNG photograph."""
    path = tmp_path / "photo.png"
    Image.fromarray(photo_pixels(128, 96)).save(path)
    return path


@pytest.fixture
def run() -> Callable[..., Result]:
    """Call the command line in this process."""
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def upscale(run, model_folder) -> Callable[..., Result]:
    """Call `patchscaler upscale` with the tiny model on the CPU."""
    return lambda *words: run("upscale", "--model", model_folder, "--device", "cpu", *words)
