"""How frames become tokens: pure arithmetic that data and models must agree on.

A codec turns a clip of [frames, height, width] into latents of [t, y, x] cells; the model's patch turns cells into
tokens. Tokens of one clip are numbered row-major over (t, y, x), so a stretch of token positions is a stretch of
frames, and a rank that holds positions [a, b) needs only the frames of `frames_of(a, b)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from parallel.errors import InputError

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Geometry:
    """Codec strides and patch sizes, both as (t, y, x).

    Attributes:
        channels: of one latent cell.
        stride: frames and pixels per latent cell; (1, 1, 1) for the pixel path.
        patch: latent cells per token.
        causal: the first frame is a latent of its own (Wan, HunyuanVideo): n frames give 1 + (n - 1) // stride_t.
        sliceable: a latent depends on its own frames alone, so that a rank may decode only what it holds.
    """

    channels: int = 3
    stride: Grid = (1, 1, 1)
    patch: Grid = (1, 4, 4)
    causal: bool = False
    sliceable: bool = True

    @property
    def token_dim(self) -> int:
        """Numbers in one token: channels x cells of a patch."""
        return self.channels * prod(self.patch)

    def usable_frames(self, frames: int) -> int:
        """The most frames, at most `frames`, that fill whole tokens in time; 0 if not even one token."""
        stride, patch = self.stride[0], self.patch[0]
        if self.causal:
            cells = 1 + (frames - 1) // stride if frames > 0 else 0
            cells -= cells % patch
            return 0 if cells == 0 else 1 + (cells - 1) * stride
        return frames - frames % (stride * patch)

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Tokens along (t, y, x) of a clip.

        Raises:
            InputError: a size does not fill whole tokens; names the nearest sizes that do.
        """
        cell_y, cell_x = self.stride[1] * self.patch[1], self.stride[2] * self.patch[2]
        usable = self.usable_frames(frames)
        if frames != usable or frames < 1 or height % cell_y or width % cell_x or min(height, width) < 1:
            near_frames = max(usable, self.frames_per_token)
            near_height, near_width = max(1, height // cell_y) * cell_y, max(1, width // cell_x) * cell_x
            raise InputError(
                f"a clip fills whole tokens of {self.frames_per_token} frames x {cell_y} x {cell_x} pixels",
                f"{frames} frames of {height} x {width}",
                f"use {near_frames} frames of {near_height} x {near_width}",
            )
        cells = 1 + (frames - 1) // self.stride[0] if self.causal else frames // self.stride[0]
        return cells // self.patch[0], height // cell_y, width // cell_x

    @property
    def frames_per_token(self) -> int:
        """Frames of the shortest clip that fills one token in time."""
        if self.causal:
            return 1 + (self.patch[0] - 1) * self.stride[0]
        return self.stride[0] * self.patch[0]

    def frames_of(self, grid: Grid, start: int, stop: int) -> tuple[int, int]:
        """Frames [first, last) that the tokens [start, stop) of a clip of `grid` depend on; (0, 0) if none.

        A codec that is not sliceable needs every frame.
        """
        if start >= stop:
            return 0, 0
        t, y, x = grid
        if not self.sliceable:
            cells = t * self.patch[0]
            return 0, 1 + (cells - 1) * self.stride[0] if self.causal else cells * self.stride[0]
        per_token = self.stride[0] * self.patch[0]
        return start // (y * x) * per_token, -(-stop // (y * x)) * per_token
