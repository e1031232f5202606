"""Random degradation of high-resolution crops to LR images of a quarter of the side, drawn per sample.

Clean, light and second-order samples are points in one parameter space, so that a whole batch runs
through one fixed chain of batched operators: blur, resize, noise, JPEG; blur, resize to the final size,
noise, then JPEG with a sinc filter before or after it. The second-order law is that of Real-ESRGAN (Wang et
al., arXiv 2107.10833, section 3), with photon noise and without the intermediate second resize.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from patchscaler.data import operators as op
from patchscaler.errors import InputError

SCALE = 4
CLEAN, LIGHT, SECOND_ORDER = range(3)
Range = tuple[float, float]
_Config = TypeVar("_Config", "StageConfig", "DegradationConfig")


@dataclass(frozen=True)
class StageConfig:
    """Chances (0..1) and ranges of one pass of blur, resize, noise and JPEG.

    `sigma` in pixels of the stage's input; `gaussian` noise in 1/255; `poisson` is the standard deviation
    of photon noise at white, in 1/255; `quality` as in libjpeg.
    """

    blur: float = 0.9
    sigma: Range = (0.2, 3.0)
    anisotropic: float = 0.5
    generalised: float = 0.15
    plateau: float = 0.15
    sinc: float = 0.1
    aliased: float = 0.25
    noise: float = 0.9
    gaussian: Range = (0.5, 20.0)
    poisson: Range = (0.5, 24.0)
    poisson_share: float = 0.5
    grey: float = 0.4
    jpeg: float = 1.0
    quality: Range = (30.0, 95.0)
    subsample: float = 0.6


_FIRST = StageConfig()
_LIGHT = StageConfig(
    blur=0.5, sigma=(0.3, 1.6), generalised=0.0, plateau=0.0, sinc=0.0, aliased=0.1, noise=0.5,
    gaussian=(0.5, 4.0), poisson=(0.5, 5.0), jpeg=0.8, quality=(60.0, 95.0),
)  # fmt: skip
_SECOND = StageConfig(blur=0.8, sigma=(0.2, 2.0), noise=0.8, gaussian=(0.5, 12.0), poisson=(0.5, 14.0))


@dataclass(frozen=True)
class DegradationConfig:
    """Shares of `clean` (antialiased bicubic) and `light` samples, the rest second order; and their ranges.

    `resize` bounds the first resize's factor, taken below 1 with chance `shrink`, above with `enlarge`.
    `final_sinc` is the chance of a sinc filter before or after the last JPEG, half of it each.
    """

    clean: float = 0.25
    light: float = 0.35
    light_stage: StageConfig = _LIGHT
    first_stage: StageConfig = _FIRST
    second_stage: StageConfig = _SECOND
    resize: Range = (0.3, 1.5)
    shrink: float = 0.7
    enlarge: float = 0.2
    final_sinc: float = 0.5

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DegradationConfig:
        """Override defaults by a (nested) mapping, as read from YAML. InputError for an unknown name."""
        return _override(cls(), values)


def _override(config: _Config, values: Mapping[str, Any]) -> _Config:
    current = {f.name: getattr(config, f.name) for f in fields(config)}
    if unknown := values.keys() - current.keys():
        raise InputError(f"unknown degradation setting {min(unknown)!r}, known: {', '.join(current)}")
    for name, value in values.items():
        if isinstance(current[name], StageConfig):
            current[name] = _override(current[name], value)
        else:
            current[name] = tuple(map(float, value)) if isinstance(current[name], tuple) else float(value)
    return type(config)(**current)


class StageParameters(NamedTuple):
    """Draws of one stage for a batch, as the operators take them: kernels (B, 21, 21), the rest (B,)."""

    kernel: Tensor
    method: Tensor
    antialias: Tensor
    sigma: Tensor
    gain: Tensor
    grey: Tensor
    coded: Tensor
    quality: Tensor
    subsample: Tensor


class Parameters(NamedTuple):
    """All draws for a batch: `kind` (CLEAN, LIGHT, SECOND_ORDER), two stages, `scale` of the first resize.

    `sinc` (B, 21, 21) is a last filter, used before or after the last JPEG where the masks say so.
    """

    kind: Tensor
    first: StageParameters
    second: StageParameters
    scale: Tensor
    sinc: Tensor
    sinc_before: Tensor
    sinc_after: Tensor


class Degradation:
    """Callable (HR, generator) -> LR; `draw` and `apply` are its two halves, for tests and for replaying."""

    def __init__(self, config: DegradationConfig | None = None) -> None:
        self.config = config or DegradationConfig()

    def __call__(self, hr: Tensor, generator: torch.Generator) -> Tensor:
        """Degrade (B, 3, H, W) in [0, 1] to (B, 3, H/4, W/4) on the levels k / 255.

        H and W are multiples of 4; the generator lives on the images' device and fixes the result.
        """
        return self.apply(hr, self.draw(len(hr), generator), generator)

    def draw(self, batch: int, generator: torch.Generator) -> Parameters:
        """Draw the parameters of `batch` samples on the generator's device."""
        config, dice = self.config, _Dice(batch, generator)
        u = dice.uniform(0, 1)
        kind = (u >= config.clean).long() + (u >= config.clean + config.light).long()
        second_order = kind == SECOND_ORDER
        light = _draw_stage(dice, config.light_stage, kind == LIGHT)
        second = _draw_stage(dice, config.second_stage, second_order)
        pairs = zip(second, light, strict=True)
        u = dice.uniform(0, 1)
        scale = torch.where(u < config.shrink, dice.uniform(config.resize[0], 1), 1.0)
        scale = torch.where(u >= 1 - config.enlarge, dice.uniform(1, config.resize[1]), scale)
        ring, half = dice.uniform(0, 1), config.final_sinc / 2
        return Parameters(
            kind=kind,
            first=_draw_stage(dice, config.first_stage, second_order),
            second=StageParameters(*(torch.where(op.per_sample(second_order, a), a, b) for a, b in pairs)),
            scale=torch.where(second_order, scale, 1.0),
            sinc=_draw_sinc(dice),
            sinc_before=second_order & (ring < half),
            sinc_after=second_order & (ring >= 1 - half),
        )

    @torch.no_grad()
    def apply(self, hr: Tensor, parameters: Parameters, generator: torch.Generator) -> Tensor:
        """Run the chain with given parameters; the generator only feeds the noise."""
        p, sides = parameters, hr.shape[-2:]
        full = [torch.full_like(p.kind, side) for side in sides]
        middle = [(side * p.scale).round().long() for side in sides]
        final = [torch.full_like(p.kind, side // SCALE) for side in sides]
        # Room for the largest enlargement; shorter samples repeat their last row and column.
        canvas = [math.ceil(side * max(1.0, self.config.resize[1]) / 16) * 16 for side in sides]
        with torch.autocast(hr.device.type, enabled=False):
            images = op.blur(hr.float(), p.first.kernel)
            images = _resize(images, p.first, full, middle, canvas)
            images = _jpeg(_noise(images, p.first, generator), p.first)
            images = op.blur(images, p.second.kernel)
            images = _resize(images, p.second, middle, final, [side // SCALE for side in sides])
            images = _noise(images, p.second, generator)
            images = torch.where(op.per_sample(p.sinc_before, images), op.blur(images, p.sinc), images)
            images = _jpeg(images, p.second)
            images = torch.where(op.per_sample(p.sinc_after, images), op.blur(images, p.sinc), images)
            return op.quantise(images)


class _Dice:
    """Named laws over a single call to the random generator, one row of uniform numbers for every draw."""

    def __init__(self, batch: int, generator: torch.Generator) -> None:
        self._rows = iter(torch.rand((80, batch), generator=generator, device=generator.device))

    def uniform(self, low: float, high: float) -> Tensor:
        return low + (high - low) * next(self._rows)

    def chance(self, probability: float) -> Tensor:
        return next(self._rows) < probability

    def integer(self, low: int, high: int) -> Tensor:
        return self.uniform(low, high + 1).long().clamp_(max=high)


def _draw_sinc(dice: _Dice) -> Tensor:
    return op.sinc_kernel(dice.uniform(math.pi / 3, math.pi), dice.integer(3, op.KERNEL_SIZE // 2))


def _draw_stage(dice: _Dice, config: StageConfig, active: Tensor) -> StageParameters:
    """Draw a stage; where not `active` it only resizes, by antialiased bicubic."""
    blurred, noisy = active & dice.chance(config.blur), active & dice.chance(config.noise)
    sigma_u, other = dice.uniform(*config.sigma), dice.uniform(*config.sigma)
    sigma_v = torch.where(dice.chance(config.anisotropic), other, sigma_u)
    shape, zero = dice.uniform(0, 1), torch.zeros_like(sigma_u)
    plateau = shape >= 1 - config.plateau
    exponent = torch.where(shape < config.generalised, dice.uniform(0.5, 4), 1.0)
    exponent = torch.where(plateau, dice.uniform(1, 2), exponent)
    sigma = torch.where(blurred, torch.stack((sigma_u, sigma_v)), 0.01).T  # 0.01 px: the identity
    kernel = op.gaussian_kernel(sigma, dice.uniform(0, math.pi), exponent, plateau & blurred)
    ringing = blurred & dice.chance(config.sinc)
    photon = dice.chance(config.poisson_share)
    return StageParameters(
        kernel=torch.where(op.per_sample(ringing, kernel), _draw_sinc(dice), kernel),
        method=torch.where(active, dice.integer(op.AREA, op.LANCZOS), op.BICUBIC),
        antialias=~(active & dice.chance(config.aliased)),
        sigma=torch.where(noisy & ~photon, dice.uniform(*config.gaussian) / 255, zero),
        gain=torch.where(noisy & photon, (dice.uniform(*config.poisson) / 255) ** 2, zero),
        grey=dice.chance(config.grey),
        coded=active & dice.chance(config.jpeg),
        quality=dice.uniform(*config.quality).round(),
        subsample=dice.chance(config.subsample),
    )


def _resize(
    images: Tensor, stage: StageParameters, source: list[Tensor], target: list[Tensor], canvas: list[int]
) -> Tensor:
    def matrix(axis: int) -> Tensor:
        lengths, sizes = (source[axis], target[axis]), (images.shape[2 + axis], canvas[axis])
        return op.resize_matrix(*lengths, stage.method, stage.antialias, *sizes)

    rows = matrix(0)
    square = images.shape[2] == images.shape[3] and canvas[0] == canvas[1]
    return op.resize(images, rows, rows if square else matrix(1))


def _noise(images: Tensor, stage: StageParameters, generator: torch.Generator) -> Tensor:
    return op.noise(images, stage.sigma, stage.gain, stage.grey, generator)


def _jpeg(images: Tensor, stage: StageParameters) -> Tensor:
    coded = op.jpeg(images, stage.quality, stage.subsample)
    return torch.where(op.per_sample(stage.coded, images), coded, images)
