"""Who sees whom in which layer: a schedule of attention patterns over a clip, one for each layer in turn.

    attention:
      - {kind: frame_window, before: 4, after: 4}      layers 0, 2, 4 ...: cost grows with the length, not its square
      - {kind: full}                                    layers 1, 3, 5 ...

Every document of a pack has the pattern for itself; documents never see each other. A pattern is an entry of
`ATTENTION`, registered with one call: its class is its settings, and says the mask of a clip and the order of tokens in
which that mask is a few rectangles. Tokens lie in one order in all layers, so the patterns of a schedule must agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from parallel.errors import InputError
from parallel.masks import mask as masks
from parallel.masks import video_patterns
from parallel.masks.mask import Mask
from parallel.masks.video_patterns import Tiling
from parallel.registries import OneOf, Registry
from parallel.sequence.geometry import Grid
from parallel.setting_effects import State

Lengths = tuple[PositiveInt, PositiveInt, PositiveInt]  # along (t, y, x)
Reach = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
Order = Literal["raster", "frames", "any"]


class AttentionPattern(BaseModel):
    """One pattern: its settings and its masks. A frame is one of tokens: what one step in time of a patch covers.

    Attributes:
        kind: attention pattern, one of the registry.
        order: in which orders of tokens the mask holds: "raster", frame by frame and row by row (or in the tiles that
            `token_tile` asks for); "frames", frame by frame, each in the same order; "any".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    order: ClassVar[Order] = "raster"

    kind: State[str]

    def mask(self, grid: Grid) -> Mask:
        """The mask of one clip of `grid` tokens (t, y, x), over tokens in the order that the pattern asks for."""
        raise NotImplementedError

    def token_tile(self) -> Grid | None:
        """Tokens (t, y, x) of the tiles that tokens lie in one after the other; None for frame by frame."""
        return None


class Full(AttentionPattern):
    """Each token sees all tokens of its clip."""

    order: ClassVar[Order] = "any"

    kind: State[Literal["full"]] = "full"

    def mask(self, grid: Grid) -> Mask:
        """See `AttentionPattern`."""
        return masks.full(grid[0] * grid[1] * grid[2])


class FrameCausal(AttentionPattern):
    """Each token sees its frame as a whole and the frames before it."""

    order: ClassVar[Order] = "frames"

    kind: State[Literal["frame_causal"]] = "frame_causal"

    def mask(self, grid: Grid) -> Mask:
        """See `AttentionPattern`."""
        return video_patterns.frame_causal(grid[0], grid[1] * grid[2])


class FrameWindow(AttentionPattern):
    """Each token sees its frame as a whole and the frames near it.

    Attributes:
        before: frames before its own that a token sees [frames].
        after: frames after its own that a token sees [frames].
        sinks: first frames that all later tokens see [frames].
    """

    order: ClassVar[Order] = "frames"

    kind: State[Literal["frame_window"]] = "frame_window"
    before: State[int] = Field(default=0, ge=0)
    after: State[int] = Field(default=0, ge=0)
    sinks: State[int] = Field(default=0, ge=0)

    def mask(self, grid: Grid) -> Mask:
        """See `AttentionPattern`."""
        return video_patterns.frame_window(grid[0], grid[1] * grid[2], self.before, self.after, self.sinks)


class Spatial(AttentionPattern):
    """Each token sees its frame alone."""

    order: ClassVar[Order] = "frames"

    kind: State[Literal["spatial"]] = "spatial"

    def mask(self, grid: Grid) -> Mask:
        """See `AttentionPattern`."""
        return video_patterns.spatial(grid[0], grid[1] * grid[2])


class Temporal(AttentionPattern):
    """Each token sees its own place in all frames alone."""

    order: ClassVar[Order] = "frames"

    kind: State[Literal["temporal"]] = "temporal"

    def mask(self, grid: Grid) -> Mask:
        """See `AttentionPattern`."""
        return video_patterns.temporal(grid[0], grid[1] * grid[2])


class TiledPattern(AttentionPattern):
    """A pattern of tiles in three dimensions, whose tokens lie one after the other.

    Attributes:
        tile: size of a tile along (t, y, x); tiles at the far edges may be smaller [tokens].
    """

    tile: State[Lengths]

    def token_tile(self) -> Grid | None:
        """See `AttentionPattern`."""
        return self.tile


class Neighbourhood(TiledPattern):
    """Each tile sees the tiles around it (sliding tile attention, arXiv:2502.04507).

    Attributes:
        radius: largest distance along (t, y, x) of tiles that a tile sees [tiles].
    """

    kind: State[Literal["neighbourhood"]] = "neighbourhood"
    radius: State[Reach]

    def mask(self, grid: Grid) -> Mask:
        """See `AttentionPattern`."""
        return video_patterns.neighbourhood(Tiling(grid, self.tile), self.radius)


class CrissCross(TiledPattern):
    """Each tile sees the tiles on the three axes through it (arXiv:1811.11721, in time too)."""

    kind: State[Literal["criss_cross"]] = "criss_cross"

    def mask(self, grid: Grid) -> Mask:
        """See `AttentionPattern`."""
        return video_patterns.criss_cross(Tiling(grid, self.tile))


class Dilated(TiledPattern):
    """Each tile sees the tiles that are multiples of a stride away, on all axes together.

    Attributes:
        stride: distance along (t, y, x) between tiles that see each other [tiles].
    """

    kind: State[Literal["dilated"]] = "dilated"
    stride: State[Lengths]

    def mask(self, grid: Grid) -> Mask:
        """See `AttentionPattern`."""
        return video_patterns.dilated(Tiling(grid, self.tile), self.stride)


class ShiftedWindows(TiledPattern):
    """Each tile sees its window of tiles (Swin, arXiv:2103.14030); windows of layers with another shift mix them.

    Attributes:
        window: size of a window along (t, y, x) [tiles].
        shift: offset along (t, y, x) of the windows of a layer [tiles].
    """

    kind: State[Literal["shifted_windows"]] = "shifted_windows"
    window: State[Lengths]
    shift: State[Reach] = (0, 0, 0)

    def mask(self, grid: Grid) -> Mask:
        """See `AttentionPattern`."""
        return video_patterns.shifted_windows(Tiling(grid, self.tile), self.window, self.shift)


ATTENTION: Registry[type[AttentionPattern]] = Registry("attention pattern", "model.attention")
ATTENTION.register("full", Full)
ATTENTION.register("frame_causal", FrameCausal)
ATTENTION.register("frame_window", FrameWindow)
ATTENTION.register("spatial", Spatial)
ATTENTION.register("temporal", Temporal)
ATTENTION.register("neighbourhood", Neighbourhood)
ATTENTION.register("criss_cross", CrissCross)
ATTENTION.register("dilated", Dilated)
ATTENTION.register("shifted_windows", ShiftedWindows)

Schedule = tuple[Annotated[AttentionPattern, OneOf(ATTENTION, lambda pattern: pattern)], ...]


@lru_cache(maxsize=256)  # clips come in few sizes
def mask_of(pattern: AttentionPattern, grid: Grid) -> Mask:
    """The mask of one clip of `grid` tokens (t, y, x), over tokens in the order that the pattern asks for."""
    return pattern.mask(grid)


def masks_of(schedule: Sequence[AttentionPattern], grids: Sequence[Grid]) -> list[Mask]:
    """Of a pack of clips, the mask of each pattern; equal patterns share one."""
    made = {pattern: masks.stack([mask_of(pattern, grid) for grid in grids]) for pattern in schedule}
    return [made[pattern] for pattern in schedule]


def area_of(schedule: Sequence[AttentionPattern], grid: Grid) -> float:
    """Pairs of a query and a key of one clip, in the mean over layers."""
    return sum(mask_of(pattern, grid).area for pattern in schedule) / len(schedule)


def token_tile(schedule: Sequence[AttentionPattern]) -> Grid | None:
    """The tiles (t, y, x) that tokens lie in one after the other in all layers; None for frame by frame.

    Raises:
        InputError: two patterns ask for different orders.
    """
    tiles = {tile: pattern for pattern in schedule if (tile := pattern.token_tile()) is not None}
    tile = next(iter(tiles), None)
    whole_frames = tile is None or tile[0] == 1
    others = [
        pattern
        for pattern in schedule
        if pattern.token_tile() is None
        and (pattern.order == "raster" or (pattern.order == "frames" and not whole_frames))
    ]
    if tile is not None and (len(tiles) > 1 or others):
        shown = [f"{p.kind} in tiles of {list(t)}" for t, p in tiles.items()]
        if others:
            shown.append(f"{others[0].kind} {'frame by frame' if others[0].order == 'frames' else 'row by row'}")
        remedy = f"tile: {list(tile)} in all patterns of tiles"
        if others and others[0].order == "frames":
            remedy = f"tile: {[1, *tile[1:]]}, whose tiles are of one frame, in all patterns of tiles"
        elif others:
            remedy = f"kind: full instead of {others[0].kind}"
        raise InputError("tokens lie in one order in all layers", f"model.attention: {', '.join(shown)}", remedy)
    return tile
