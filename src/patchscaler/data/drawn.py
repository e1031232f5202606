"""Training tiles that are drawn instead of photographed: pages of text, windows, line art, smooth ramps."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from patchscaler.data.dataset import TRAIN_SIZE, Tiles

_OVERSIZE = 2  # drawn larger and shrunk, so that edges are smooth
_Colour = tuple[int, int, int]


def drawn_tiles(count: int, *, size: int = TRAIN_SIZE, seed: int = 0) -> Tiles:
    """Tiles of a quarter each: text, windows, line art, ramps. Each is a source of its own and has no category.

    Photographs hold few of these, and what enlarges only photographs well smears type and makes patterns of plain
    surfaces.

    Args:
        count: number of tiles.
        size: side in pixels.
        seed: fixes them all; each depends on its own number only.
    """
    images = torch.empty((count, 3, size, size), dtype=torch.uint8)
    for number in range(count):
        dice = random.Random(f"{seed}/{number}")
        kind = _KINDS[number % len(_KINDS)]
        images[number] = torch.from_numpy(kind(dice, size).copy()).permute(2, 0, 1)
    names = tuple(f"drawn/{number:05d}" for number in range(count))
    return Tiles(images, names, torch.arange(count), torch.full((count,), -1), names)


def _page(dice: random.Random, size: int) -> np.ndarray:
    """Lines of words in some sizes, upright or slightly turned."""
    paper, ink = _pair(dice)
    side = 3 * _OVERSIZE * size // 2  # room to turn
    image = Image.new("RGB", (side, side), paper)
    draw, top = ImageDraw.Draw(image), 0
    while top < side:
        height = _OVERSIZE * dice.choice((11, 13, 16, 20, 26, 36, 56))
        for _ in range(dice.randint(1, 5)):
            _text(draw, dice, (dice.randint(0, height), top), height, ink, side)
            top += int(height * 1.4)
    turned = image.rotate(dice.choice((0, 0, 90, dice.uniform(-12, 12))), Image.Resampling.BICUBIC)
    first = (side - _OVERSIZE * size) // 2
    return _shrunk(turned.crop((first, first, side - first, side - first)), size)


def _window(dice: random.Random, size: int) -> np.ndarray:
    """Boxes in boxes, some with a label, a frame or a chart."""
    side = _OVERSIZE * size
    image = Image.new("RGB", (side, side), _pair(dice)[0])
    draw = ImageDraw.Draw(image)
    for _ in range(dice.randint(12, 40)):
        left, top = dice.randint(-40, side), dice.randint(-40, side)
        width, height = dice.randint(20, side // 2), dice.randint(16, side // 4)
        paper, ink = _pair(dice)
        frame = ink if dice.random() < 0.4 else None
        box = (left, top, left + width, top + height)
        draw.rounded_rectangle(box, dice.choice((0, 0, 8, 20)), paper, frame, dice.choice((2, 4)))
        if dice.random() < 0.6:
            _text(draw, dice, (left + 8, top + 4), _OVERSIZE * dice.randint(10, 22), ink, left + width)
        else:
            for bar in range(left + 8, left + width - 8, 16):
                draw.rectangle((bar, top + height - dice.randint(2, height), bar + 10, top + height), ink)
    return _shrunk(image, size)


def _lines(dice: random.Random, size: int) -> np.ndarray:
    """Circles, polygons, fans and hatchings of thin lines."""
    side = _OVERSIZE * size
    paper, _ = _pair(dice)
    image = Image.new("RGB", (side, side), paper)
    draw = ImageDraw.Draw(image)
    for _ in range(dice.randint(8, 24)):
        ink, width = _pair(dice, paper)[1], _OVERSIZE * dice.choice((1, 1, 2, 3, 6))
        x, y, reach = dice.randint(0, side), dice.randint(0, side), dice.randint(20, side // 3)
        shape = dice.randrange(4)
        if shape == 0:
            for radius in range(reach, 4, -dice.randint(4 * width, 60 + 4 * width)):
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=ink, width=width)
        elif shape == 1:
            corners = [(x + dice.randint(-reach, reach), y + dice.randint(-reach, reach)) for _ in range(5)]
            draw.polygon(corners, ink if dice.random() < 0.3 else None, ink, width)
        elif shape == 2:
            for angle in np.linspace(0, dice.uniform(1, 2 * np.pi), dice.randint(5, 40)):
                draw.line((x, y, x + reach * np.cos(angle), y + reach * np.sin(angle)), ink, width)
        else:
            slope = dice.randint(-reach, reach)
            for step in range(0, reach, dice.randint(3 * width, 12 * width)):
                draw.line((x + step, y, x + step + slope, y + reach), ink, width)
    return _shrunk(image, size)


def _ramp(dice: random.Random, size: int) -> np.ndarray:
    """One colour turning into another, along a line or around a point, in some places with a hard edge."""
    rows, columns = np.mgrid[0:size, 0:size] / size
    angle, centre = dice.uniform(0, 2 * np.pi), (dice.random(), dice.random())
    along = rows * np.sin(angle) + columns * np.cos(angle)
    around = np.hypot(rows - centre[0], columns - centre[1])
    place = dice.choice((along, around)) * dice.choice((1, 1, 3))
    place = place % 1 if dice.random() < 0.5 else np.clip(place, 0, 1)
    first, last = np.array(_colour(dice)), np.array(_colour(dice))
    return (first + place[..., None] * (last - first)).round().astype(np.uint8)


_KINDS: tuple[Callable[[random.Random, int], np.ndarray], ...] = (_page, _window, _lines, _ramp)


def _text(
    draw: ImageDraw.ImageDraw,
    dice: random.Random,
    place: tuple[int, int],
    height: int,
    ink: _Colour,
    end: int,
) -> None:
    """Words of random letters from `place` until `end`."""
    font = _font(height)
    signs = dice.choice(
        (string.ascii_lowercase, string.ascii_letters, string.ascii_uppercase, string.digits + ".,")
    )
    left, top = place
    while left < end:
        word = "".join(dice.choices(signs, k=dice.randint(1, 10)))
        draw.text((left, top), word, ink, font, stroke_width=dice.choice((0, 0, 0, height // 24)))
        left += int(draw.textlength(word + " ", font))


@lru_cache
def _font(height: int) -> Any:
    return ImageFont.load_default(height)


def _pair(dice: random.Random, paper: _Colour | None = None) -> tuple[_Colour, _Colour]:
    """Two colours that can be told apart: black on white half of the time."""
    if paper is None and dice.random() < 0.5:
        white, black = (255, 255, 255), (0, 0, 0)
        return (white, black) if dice.random() < 0.8 else (black, white)
    while True:
        first, last = paper or _colour(dice), _colour(dice)
        if abs(sum(first) - sum(last)) > 150:
            return first, last


def _colour(dice: random.Random) -> _Colour:
    return dice.randint(0, 255), dice.randint(0, 255), dice.randint(0, 255)


def _shrunk(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))
