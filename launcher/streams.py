"""From the settings of a run to its curriculum: one place, so that everybody trains on, checks and shows the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.curriculum import Curriculum
from data.index import Index
from data.sampling import Sampling
from data.stream import Stream
from launcher.config import DataConfig, RunConfig
from models.schedule import area_of
from parallel.errors import InputError
from parallel.geometry import Geometry, Grid
from parallel.random import key_of


def open_curriculum(config: RunConfig, geometry: Geometry, digests: Sequence[tuple[str, ...]] = ()) -> Curriculum:
    """The streams of a run; reads indexes, no shards.

    Args:
        config: of the run.
        geometry: of its codec and model.
        digests: of the datasets of each segment that has begun: the run stays with these, whatever was added since.

    Raises:
        InputError: a dataset is missing or changed, or does not fit the settings.
    """
    opened: dict[tuple[tuple[Path, ...], tuple[str, ...]], Index] = {}
    streams = []
    for number, data in enumerate(config.data.merged()):
        folders = tuple(data.folders)
        pinned = digests[number] if number < len(digests) else ()
        if pinned and len(pinned) != len(folders):
            found = f"{len(folders)} datasets in segment {number}, {len(pinned)} when it began"
            raise InputError("a segment that has begun keeps its datasets", found, "set data.dataset back")
        if (folders, pinned) not in opened:
            newest = [Index.open(f, d) for f, d in zip(folders, pinned or [None] * len(folders), strict=True)]
            opened[folders, pinned] = Index.join(newest)
        streams.append(_stream(config, data, number, opened[folders, pinned], geometry))
    return Curriculum(config.data.starts, tuple(streams), config.data.packs_per_step)


def _stream(config: RunConfig, data: DataConfig, number: int, index: Index, geometry: Geometry) -> Stream:
    attention, linear = config.model.attention, 6 * config.model.dim

    def cost(grid: Grid) -> float:
        """Of a forward and backward, in units of 12 x dim x depth: see `launcher.rank.flops`; 12 dim^2 per layer."""
        return area_of(attention, grid) + linear * grid[0] * grid[1] * grid[2]

    return Stream(
        index,
        Sampling(geometry, data.frames, data.size, data.stride),
        data.pack_tokens,
        config.seed if number == 0 else key_of(config.seed, "segment", number) >> 1,
        data.window,
        data.packs_per_step,
        data.weights,
        cost,
        data.caption,
        data.workers,
    )
