"""An attention pattern from outside of the packages: each frame sees itself and the frames after it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from models.diffusion.attention_schedule import ATTENTION, AttentionPattern, Order
from parallel.masks import video_patterns
from parallel.masks.mask import Mask
from parallel.sequence.geometry import Grid
from parallel.setting_effects import State


class FrameFuture(AttentionPattern):
    """Each token sees its frame as a whole and the frames after it.

    Attributes:
        ahead: how many frames after its own a token sees [frames].
    """

    order: ClassVar[Order] = "frames"

    kind: State[Literal["frame_future"]] = "frame_future"
    ahead: State[int] = Field(default=1, ge=0)

    def mask(self, grid: Grid) -> Mask:
        """See `AttentionPattern`."""
        return video_patterns.frame_window(grid[0], grid[1] * grid[2], 0, self.ahead)


ATTENTION.register("frame_future", FrameFuture)
