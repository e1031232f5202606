"""The difficulty map: where the restoration was unsure, and which patches got more steps for it."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

_WIDTH = 384
_LEGEND = 24
# Five colours of the viridis scale, safe for colour-blind eyes: dark = easy, yellow = hard.
_SCALE = np.array(
    [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=np.float32
)
_NAMES = {1: ("all",), 2: ("simple", "hard"), 3: ("simple", "medium", "hard")}


def group_names(count: int) -> tuple[str, ...]:
    """Names of the patch groups of a plan with `count` of them, simplest first."""
    return _NAMES.get(count) or tuple(f"group {index + 1}" for index in range(count))


def difficulty_map(pixels: np.ndarray, confidence: np.ndarray, groups: np.ndarray, patch: int) -> np.ndarray:
    """Draw 1 - confidence in colour over the grey input, with a frame around each patch that is not simple.

    Args:
        pixels: (h, w, 3) uint8, the input image.
        confidence: (rows of latents, columns of latents) in (0, 1), covering the input.
        groups: (rows of patches, columns of patches), 0 = simplest; a frame is as wide as its group's number.
        patch: step from patch to patch in input pixels.

    Returns:
        (H, W, 3) uint8: the map, a whole multiple of the input's size and at least 384 wide, over its legend.
    """
    height, width = pixels.shape[:2]
    zoom = max(1, -(-_WIDTH // width))
    size = (width * zoom, height * zoom)
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize(size), dtype=np.float32)[..., None]
    difficulty = np.asarray(Image.fromarray(1 - confidence.astype(np.float32)).resize(size))
    canvas = Image.new("RGB", (size[0], size[1] + _LEGEND))
    canvas.paste(Image.fromarray((0.4 * grey + 0.6 * _colour(difficulty)).astype(np.uint8)))
    draw = ImageDraw.Draw(canvas)
    side = patch * zoom
    for row, column in np.argwhere(groups > 0):
        x, y = column * side, row * side
        box = (x + 1, y + 1, min(x + side, size[0]) - 2, min(y + side, size[1]) - 2)
        if box[0] <= box[2] and box[1] <= box[3]:
            draw.rectangle(box, outline="white", width=int(groups[row, column]))
    _draw_legend(canvas, draw, size[1], int(groups.max()) + 1)
    return np.asarray(canvas)


def _colour(difficulty: np.ndarray) -> np.ndarray:
    """Values in [0, 1] of any shape as colours (..., 3) in [0, 255]."""
    stops = np.linspace(0, 1, len(_SCALE))
    return np.stack([np.interp(difficulty, stops, channel) for channel in _SCALE.T], axis=-1)


def _draw_legend(canvas: Image.Image, draw: ImageDraw.ImageDraw, top: int, count: int) -> None:
    ramp = _colour(np.tile(np.linspace(0, 1, 96), (12, 1))).astype(np.uint8)
    draw.text((6, top + 6), "easy", fill="white")
    canvas.paste(Image.fromarray(ramp), (38, top + 6))
    draw.text((140, top + 6), "hard", fill="white")
    for index, name in enumerate(group_names(max(count, 3))[1:], start=1):
        x = 110 + 80 * index
        draw.rectangle((x, top + 6, x + 12, top + 18), outline="white", width=index)
        draw.text((x + 18, top + 6), name, fill="white")
