"""How large an output becomes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from patchscaler.errors import InputError

SCALES = (1.0, 8.0)
"""Smallest and largest output scale; the model gives 4, the rest is resampling."""


@dataclass(frozen=True)
class TargetSize:
    """The size wanted: a scale, or a width, a height, both, or a box to fit; the aspect is kept but for both.

    Attributes:
        scale: output over input; used if nothing else is given.
        width, height: exact sides in pixels; one alone gives the other.
        fit: the largest size of the same aspect within (width, height).

    Raises:
        InputError: more than one way was given, or a side under 1.
    """

    scale: float | None = None
    width: int | None = None
    height: int | None = None
    fit: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check that the wishes agree."""
        sides = self.width is not None or self.height is not None
        if (self.scale is not None) + sides + (self.fit is not None) > 1:
            raise InputError("give a scale, or a width and height, or a box to fit, not several of them")
        if any(side is not None and side < 1 for side in (self.width, self.height, *(self.fit or ()))):
            raise InputError("a side must be 1 pixel or more")
        if self.scale is not None and not SCALES[0] <= self.scale <= SCALES[1]:
            raise InputError(f"the scale must be from {SCALES[0]:g} to {SCALES[1]:g}, not {self.scale:g}")

    def of(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the output of a width x height input, each rounded to the nearest pixel.

        Raises:
            InputError: that is a scale outside `SCALES` on a side.
        """
        wide, high = self._of(width, height)
        for side, wanted in ((width, wide), (height, high)):
            if not math.floor(side * SCALES[0]) <= wanted <= math.ceil(side * SCALES[1]):
                raise InputError(
                    f"{width}x{height} to {wide}x{high} is not {SCALES[0]:g} to {SCALES[1]:g} times as large"
                )
        return wide, high

    def _of(self, width: int, height: int) -> tuple[int, int]:
        if self.fit is not None:
            if self.fit[0] * height <= self.fit[1] * width:
                return self.fit[0], max(1, round(self.fit[0] * height / width))
            return max(1, round(self.fit[1] * width / height)), self.fit[1]
        if self.width is not None or self.height is not None:
            wide = self.width or max(1, round((self.height or 0) * width / height))
            return wide, self.height or max(1, round(wide * height / width))
        scale = 4.0 if self.scale is None else self.scale
        return round(width * scale), round(height * scale)


def parse_box(text: str) -> tuple[int, int]:
    """Width and height of a box written as "WIDTHxHEIGHT".

    Raises:
        InputError: it is not written so.
    """
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise InputError(f"a box is written as WIDTHxHEIGHT, such as 3840x2160, not {text!r}")
    return int(width), int(height)
