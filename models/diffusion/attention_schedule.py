"""Who sees whom in which layer: a schedule of patterns over the frames of a clip, one for each layer in turn.

    attention:
      - {kind: frame_window, before: 4, after: 4}      layers 0, 2, 4 ...: cost grows with the length, not its square
      - {kind: full}                                    layers 1, 3, 5 ...

Every document of a pack has the pattern for itself; documents never see each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from parallel.masks import mask as masks
from parallel.masks import video_patterns
from parallel.masks.mask import Mask
from parallel.sequence.geometry import Grid
from parallel.setting_effects import State


class AttentionConfig(BaseModel):
    """One pattern. Frames are frames of tokens: what one step in time of a patch covers.

    Attributes:
        kind: "full"; "frame_causal" sees its own frame and the past; "frame_window" sees frames near it; "spatial" sees
            its own frame alone; "temporal" its own place in all frames alone.
        before: frames before its own that a token of a frame_window sees [frames].
        after: frames after its own that a token of a frame_window sees [frames].
        sinks: first frames that all tokens of a frame_window see [frames].
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: State[Literal["full", "frame_causal", "frame_window", "spatial", "temporal"]] = "full"
    before: State[int] = Field(default=0, ge=0)
    after: State[int] = Field(default=0, ge=0)
    sinks: State[int] = Field(default=0, ge=0)


@lru_cache(maxsize=256)  # clips come in few sizes
def mask_of(pattern: AttentionConfig, grid: Grid) -> Mask:
    """The mask of one clip of `grid` tokens (t, y, x)."""
    frames, tokens = grid[0], grid[1] * grid[2]
    if pattern.kind == "frame_causal":
        return video_patterns.frame_causal(frames, tokens)
    if pattern.kind == "frame_window":
        return video_patterns.frame_window(frames, tokens, pattern.before, pattern.after, pattern.sinks)
    if pattern.kind == "spatial":
        return video_patterns.spatial(frames, tokens)
    if pattern.kind == "temporal":
        return video_patterns.temporal(frames, tokens)
    return masks.full(frames * tokens)


def masks_of(schedule: Sequence[AttentionConfig], grids: Sequence[Grid]) -> list[Mask]:
    """Of a pack of clips, the mask of each pattern; equal patterns share one."""
    made = {pattern: masks.stack([mask_of(pattern, grid) for grid in grids]) for pattern in schedule}
    return [made[pattern] for pattern in schedule]


def area_of(schedule: Sequence[AttentionConfig], grid: Grid) -> float:
    """Pairs of a query and a key of one clip, in the mean over layers."""
    return sum(mask_of(pattern, grid).area for pattern in schedule) / len(schedule)
