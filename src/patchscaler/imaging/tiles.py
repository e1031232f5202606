"""Cutting a map into tiles that overlap by a halo, and getting smaller ones when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from types import EllipsisType
from typing import NamedTuple

from patchscaler.runtime.memory import is_out_of_memory, release


class Tile(NamedTuple):
    """A rectangle of a map: rows from `top` to before `bottom`, columns from `left` to before `right`."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def where(self) -> tuple[EllipsisType, slice, slice]:
        """What selects the rectangle from a map (..., H, W)."""
        return ..., slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def area(self) -> int:
        """Number of positions; 0 if it ends before it begins."""
        return max(0, self.bottom - self.top) * max(0, self.right - self.left)

    @property
    def side(self) -> int:
        """The longer side."""
        return max(self.bottom - self.top, self.right - self.left)

    def grown(self, halo: int, height: int, width: int) -> Tile:
        """The tile with `halo` positions more on every side, as far as the map reaches."""
        return Tile(
            max(self.top - halo, 0),
            min(self.bottom + halo, height),
            max(self.left - halo, 0),
            min(self.right + halo, width),
        )

    def within(self, outer: Tile) -> Tile:
        """The same rectangle counted from the corner of `outer`."""
        return Tile(
            self.top - outer.top, self.bottom - outer.top, self.left - outer.left, self.right - outer.left
        )

    def times(self, factor: int) -> Tile:
        """The same rectangle on a map `factor` times as fine."""
        return Tile(*(factor * side for side in self))


def cut(area: Tile, side: int) -> list[Tile]:
    """Tiles of at most `side` by `side` that cover `area`, row by row."""
    return [
        Tile(top, min(top + side, area.bottom), left, min(left + side, area.right))
        for top in range(area.top, area.bottom, side)
        for left in range(area.left, area.right, side)
    ]


def run_tiles(height: int, width: int, side: int, step: int, run: Callable[[Tile], None]) -> None:
    """Call `run` for tiles that cover a map; when it runs out of memory, go on with tiles half as wide.

    Args:
        height: of the map.
        width: of the map.
        side: of the first tiles, a multiple of `step`.
        step: tiles begin at multiples of it; the smallest tile.
        run: computes a tile and stores what it made at the very end.

    Raises:
        torch.OutOfMemoryError: the smallest tile does not fit.
    """
    waiting = cut(Tile(0, height, 0, width), side)[::-1]
    while waiting:
        tile = waiting.pop()
        try:
            run(tile)
            continue
        except RuntimeError as error:
            if not is_out_of_memory(error) or tile.side <= step:
                raise
        release()
        half = max(step, -(-tile.side // 2) // step * step)
        waiting = [part for rest in (*waiting, tile) for part in cut(rest, half)[::-1]]
