"""`Sampling`: how a stored clip becomes tokens. Pure arithmetic, so that lengths are known before anything is read.

stored     0 1 2 3 4 5 6 7 8 9         10 frames
stride 2   0   2   4   6   8           frames start, start + stride, ...
frames 3       2   4   6               a random stretch, its start drawn from (seed, epoch, uid)
size       scaled until it covers (height, width), the overhang cut off evenly

A clip that is stored as latents (`data.latents`) is counted in the frames that were encoded, so it has the tokens that
it would have if it were encoded now. Its stride is 1 and its size the stored one. Where a codec sees the past, a
stretch starts with the first frame always: later ones would have other latents if the clip began with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from parallel.errors import InputError
from parallel.random import uniform
from parallel.sequence.geometry import Geometry, Grid

Size = tuple[int, int]
Choice = Literal["short", "long"]  # of captions


@dataclass(frozen=True)
class Sampling:
    """What of a stored clip is trained on.

    Attributes:
        geometry: of codec and patches.
        frames: at most this many frames per sample, from a random start; None = the whole clip.
        size: (height, width) to scale and crop to; None = as stored, cropped to whole tokens.
        stride: take every stride-th frame.
    """

    geometry: Geometry
    frames: int | None = None
    size: Size | None = None
    stride: int = 1

    def check(self) -> None:
        """Raises InputError if no clip at all could be sampled so."""
        if self.stride < 1:
            raise InputError("the stride is at least 1", str(self.stride), "data.stride=1")
        if self.frames is not None and not self.geometry.usable_frames(self.frames):
            least = self.geometry.frames_per_token
            raise InputError(
                f"a sample has at least {least} frames", f"data.frames={self.frames}", f"data.frames={least}"
            )
        if self.size is not None:
            self.geometry.grid(self.geometry.frames_per_token, *self.size)

    def length(self, frames: int, height: int, width: int) -> int:
        """Tokens of a clip of that size; 0 if it does not fill one."""
        grid = self.grid(frames, height, width)
        return prod(grid) if grid else 0

    def grid(self, frames: int, height: int, width: int) -> Grid | None:
        """Tokens along (t, y, x); None if the clip does not fill one."""
        used, (crop_height, crop_width) = self.frames_used(frames), self.crop(height, width)
        if not used or not crop_height or not crop_width:
            return None
        return self.geometry.grid(used, crop_height, crop_width)

    def frames_used(self, frames: int) -> int:
        """How many frames of a clip of `frames` are taken."""
        available = -(-frames // self.stride)
        return self.geometry.usable_frames(available if self.frames is None else min(self.frames, available))

    def start(self, frames: int, key: int, latents: bool = False) -> int:
        """The first stored frame that is taken.

        Args:
            frames: of the stored clip.
            key: of the document.
            latents: whether it is stored as latents.
        """
        if self.frames is None or (latents and not self.geometry.sliceable):
            return 0
        choices = frames - ((self.frames_used(frames) - 1) * self.stride + 1) + 1
        return int(uniform(key) * choices)

    def crop(self, height: int, width: int) -> Size:
        """(height, width) of the frames that are taken."""
        if self.size is not None:
            return self.size
        cell_y = self.geometry.stride[1] * self.geometry.patch[1]
        cell_x = self.geometry.stride[2] * self.geometry.patch[2]
        return height - height % cell_y, width - width % cell_x

    def scaled(self, height: int, width: int) -> Size:
        """(height, width) of the whole stored frame before the crop: the smallest that covers it, shape kept."""
        if self.size is None:
            return height, width
        scale = max(self.size[0] / height, self.size[1] / width)
        return max(self.size[0], round(height * scale)), max(self.size[1], round(width * scale))

    def frame_range(self, grid: Grid, start: int, stop: int) -> tuple[int, int]:
        """Frames [first, last) of the sample, counted as taken, that its tokens [start, stop) depend on."""
        first, last = self.geometry.frames_of(grid, start, stop)
        cells = grid[0] * self.geometry.patch[0]
        whole = 1 + (cells - 1) * self.geometry.stride[0] if self.geometry.causal else cells * self.geometry.stride[0]
        return min(first, whole), min(last, whole)

    def latent_range(self, grid: Grid, start: int, stop: int) -> tuple[int, int]:
        """Latent frames [first, last) of the sample, counted as taken, that its tokens [start, stop) are made of."""
        (_, y, x), patch = grid, self.geometry.patch[0]
        return start // (y * x) * patch, -(-stop // (y * x)) * patch
