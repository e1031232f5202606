"""Images larger than memory: what waits between the stages, and where decoded tiles go.

The networks see tiles; what they make of the whole image waits as latents. While an image is a single tile all of
it stays on the device as it is. Otherwise it waits on the host in half precision: half a byte per pixel of the
output for latents and two for the condition map of the compact model.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from patchscaler.imaging.tensors import padded_side, window
from patchscaler.imaging.tiles import Tile
from patchscaler.sampling.patches import fold, grid, unfold

if TYPE_CHECKING:
    import pyvips


class Canvas:
    """One image on its way through the pipeline; all tiles are rectangles of the latent map.

    Args:
        planes: the LR image (3, h, w), as `to_planes` gives it.
        patch_size: side of a patch in latents.
        stride: step from patch to patch in latents.
        lr_per_latent: side of the block of LR pixels that one latent covers.
        seed: of the noise of its patches.

    Attributes:
        height, width: of the latent map, which whole patches cover.
        rows, cols: of patches.
        latent: z_LR (1, c, height, width), while it is needed.
        confidence: C (1, 1, height, width), float32.
        patches: condition patches (rows * cols, c + s, p, p); their first c channels are y_0, later x_0.
    """

    latent: Tensor
    confidence: Tensor
    patches: Tensor

    def __init__(
        self, planes: Tensor, patch_size: int, stride: int, lr_per_latent: int, seed: int = 0
    ) -> None:
        self.planes, self.seed = planes, seed
        self.patch_size, self.stride, self.lr_per_latent = patch_size, stride, lr_per_latent
        self.height, self.width = (
            padded_side(-(-side // lr_per_latent), patch_size, stride) for side in planes.shape[1:]
        )
        self.rows, self.cols = grid(self.height, self.width, patch_size, stride)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the LR image."""
        return self.planes.shape[1], self.planes.shape[2]

    def place(self, side: int, device: torch.device, dtype: torch.dtype) -> tuple[torch.device, torch.dtype]:
        """Where and as what maps wait when tiles have this side."""
        if side >= max(self.height, self.width):
            return device, dtype
        return torch.device("cpu"), torch.float16 if dtype == torch.float32 else dtype

    def lr(self, tile: Tile, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The LR pixels (1, 3, h, w) of a tile, in [0, 1]."""
        part = window(self.planes, tile.times(self.lr_per_latent)).to(device, dtype)
        return part[None].contiguous(memory_format=torch.channels_last)

    def store_patches(self, tile: Tile, condition: Tensor, place: tuple[torch.device, torch.dtype]) -> None:
        """Cut a tile's part of the condition map, which reaches `patch_size - stride` further, into patches."""
        first_row, first_col = tile.top // self.stride, tile.left // self.stride
        cut = unfold(condition, self.patch_size, self.stride)
        rows, cols = grid(condition.shape[2], condition.shape[3], self.patch_size, self.stride)
        if (rows, cols) == (self.rows, self.cols):
            self.patches = cut.to(*place)
            return
        if not hasattr(self, "patches"):
            self.patches = torch.empty(
                (self.rows * self.cols, *cut.shape[1:]), device=place[0], dtype=place[1]
            )
        whole = self.patches.unflatten(0, (self.rows, self.cols))
        whole[first_row : first_row + rows, first_col : first_col + cols] = cut.unflatten(0, (rows, cols)).to(
            *place
        )

    def latents(self, tile: Tile, channels: int) -> Tensor:
        """x_0 (1, c, h, w) of a tile, folded from the patches that touch it."""
        size, stride = self.patch_size, self.stride
        top, left = (max(0, -(-(start - size + 1) // stride)) for start in (tile.top, tile.left))
        bottom = min(self.rows, (tile.bottom - 1) // stride + 1)
        right = min(self.cols, (tile.right - 1) // stride + 1)
        part = self.patches.unflatten(0, (self.rows, self.cols))[top:bottom, left:right, :channels]
        folded = fold(part.flatten(0, 1), bottom - top, right - left, stride)
        return folded[tile.within(Tile(top * stride, 0, left * stride, 0)).where]


class Spool:
    """Decoded pixels (height, width, bands) on disk or in memory, written by tiles, read by libvips.

    Mapping a new file into memory takes the system 15 times as long as storing small pictures in memory.

    Args:
        folder: where the hidden file goes; it is removed at the end of the `with` block.
        shape: (height, width, bands).
        dtype: uint8 or uint16.
        in_memory: keep them in memory instead of a file.
    """

    _pixels: np.ndarray | None

    def __init__(
        self, folder: Path, shape: tuple[int, int, int], dtype: Any, *, in_memory: bool = False
    ) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.path = folder / f".patchscaler-{secrets.token_hex(6)}.part"
        self.in_memory, self._pixels = in_memory, None

    def __enter__(self) -> Spool:
        """Reserve the memory or the file; OSError if the folder cannot hold it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.in_memory:
            self._pixels = np.empty(self.shape, self.dtype)
        else:
            with self.path.open("wb") as file:
                file.truncate(int(np.prod(self.shape)) * self.dtype.itemsize)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the memory back, or remove the file."""
        self._pixels = None
        self.path.unlink(missing_ok=True)

    def __setitem__(self, index: tuple[slice, slice], values: np.ndarray) -> None:
        """Store a tile; only its rows of a file are mapped into memory, and only for now."""
        rows, cols = index
        if self._pixels is not None:
            self._pixels[rows, cols] = values
            return
        width, bands = self.shape[1:]
        offset = rows.start * width * bands * self.dtype.itemsize
        band = np.memmap(self.path, self.dtype, "r+", offset, (rows.stop - rows.start, width, bands))
        band[:, cols] = values

    def image(self) -> pyvips.Image:
        """The pixels as a libvips image of sRGB."""
        import pyvips

        height, width, bands = self.shape
        wide = self.dtype == np.uint16
        interpretation = "rgb16" if wide else "srgb"
        if self._pixels is not None:
            return pyvips.Image.new_from_array(self._pixels, interpretation=interpretation)
        image = pyvips.Image.rawload(
            os.fspath(self.path), width, height, bands, format="ushort" if wide else "uchar",
            interpretation=interpretation,
        )  # fmt: skip
        return image
