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


class Section(NamedTuple):
    """Cells, in rows filled from the left, under a heading if there is one."""

    title: str
    cells: Sequence[Cell]


def contact_sheet(sections: Sequence[Section], *, columns: int, side: int, lines: int = 0) -> np.ndarray:
    """Draw sections under each other.

    Args:
        sections: what to draw.
        columns: cells in a row.
        side: of a cell's square in pixels; pictures are fitted into it.
        lines: of text under each picture; longer ones are cut.

    Returns:
        (H, W, 3) uint8.
    """
    pitch = (side + _GAP, side + lines * _LINE + _GAP)
    rows = [-(-len(section.cells) // columns) for section in sections]
    width = columns * pitch[0] + _GAP
    heads = [_TITLE if section.title else _GAP for section in sections]
    height = sum(head + count * pitch[1] for head, count in zip(heads, rows, strict=True)) + _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    heading, caption = ImageFont.load_default(15), ImageFont.load_default(11)
    top = 0
    for section, head, count in zip(sections, heads, rows, strict=True):
        draw.text((_GAP, top + 10), section.title, _INK, heading)
        top += head
        for number, cell in enumerate(section.cells):
            left, upper = _GAP + number % columns * pitch[0], top + number // columns * pitch[1]
            picture = _fit(cell.pixels, side)
            sheet.paste(picture, (left, upper))
            for index, line in enumerate(cell.lines[:lines]):
                colour = _INK if index == 0 else _SOFT
                draw.text((left, upper + side + 2 + index * _LINE), _cut(line, caption, side), colour, caption)
        top += count * pitch[1]
    return np.asarray(sheet)


def outlined(pixels: np.ndarray, boxes: Sequence[tuple[int, int]], box: int, side: int) -> np.ndarray:
    """A picture (h, w, 3) fitted into a square of `side`, with numbered squares at (left, top), `box` wide."""
    image = _fit(pixels, side)
    zoom = image.width / pixels.shape[1]
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(16)
    for number, (left, top) in enumerate(boxes, start=1):
        corners = [round(value * zoom) for value in (left, top, left + box, top + box)]
        draw.rectangle(corners, outline=_MARK, width=2)
        draw.text((corners[0] + 5, corners[1] + 2), str(number), _MARK, font, stroke_width=2, stroke_fill=_PAPER)
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
