"""Sheets of small pictures with captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_PAPER, _INK, _SOFT, _MARK = (24, 24, 26), (236, 236, 238), (150, 150, 158), (255, 214, 10)
_GAP, _LINE, _TITLE = 8, 15, 34


class Cell(NamedTuple):
    """One picture (h, w, 3) uint8 and the lines under it."""

    pixels: np.ndarray
    lines: tuple[str, ...] = ()


def contact_sheet(
    cells: Sequence[Cell], *, columns: int, side: int, lines: int = 0, title: str = ""
) -> np.ndarray:
    """Draw cells in rows that are filled from the left.

    Args:
        cells: what to draw.
        columns: cells in a row.
        side: of a cell's square in pixels; pictures are fitted into it.
        lines: of text under each picture; longer ones are cut.
        title: over all, if there is one.

    Returns:
        (H, W, 3) uint8.
    """
    pitch = (side + _GAP, side + lines * _LINE + _GAP)
    head = _TITLE if title else _GAP
    size = (columns * pitch[0] + _GAP, head + -(-len(cells) // columns) * pitch[1] + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    draw.text((_GAP, 10), title, _INK, ImageFont.load_default(15))
    for number, cell in enumerate(cells):
        left, top = _GAP + number % columns * pitch[0], head + number // columns * pitch[1]
        sheet.paste(_fit(cell.pixels, side), (left, top))
        for index, line in enumerate(cell.lines[:lines]):
            place = (left, top + side + 2 + index * _LINE)
            draw.text(place, _cut(line, font, side), _SOFT if index else _INK, font)
    return np.asarray(sheet)


def outlined(pixels: np.ndarray, boxes: Sequence[tuple[int, int]], box: int, side: int) -> np.ndarray:
    """A picture (h, w, 3) fitted into a square of `side`, with numbered squares at (left, top), `box` wide."""
    image = _fit(pixels, side)
    zoom = image.width / pixels.shape[1]
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(16)
    for number, (left, top) in enumerate(boxes, start=1):
        corners = [round(value * zoom) for value in (left, top, left + box, top + box)]
        draw.rectangle(corners, outline=_MARK, width=2)
        place = (corners[0] + 5, corners[1] + 2)
        draw.text(place, str(number), _MARK, font, stroke_width=2, stroke_fill=_PAPER)
    return np.asarray(image)


def _fit(pixels: np.ndarray, side: int) -> Image.Image:
    image = Image.fromarray(pixels)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return image.resize(size, method)


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, its end replaced by an ellipsis if it is too wide."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
