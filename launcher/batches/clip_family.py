"""The family of diffusion: clips as latents of a codec, noise and a caption for each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset.index import Index, Ints
from data.planning.clip_sampling import Sampling
from data.planning.packing import Floats
from data.streams.clip_reader import ClipReader
from data.streams.clip_source import ClipSource
from data.streams.curriculum import Curriculum
from data.streams.pack_stream import Pack
from launcher.batches.codec_check import refuse_other_codec
from launcher.batches.dataset_codec import refuse_pixels
from launcher.batches.diffusion_batches import ClipBatchBuilder
from launcher.batches.drawn_packs import drawn_clips
from launcher.batches.family import FAMILIES, FamilySpec, OnRank
from launcher.config.sections import DataConfig
from models.codecs.codec import CodecConfig
from models.codecs.open_codec import open_codec
from models.diffusion.attention_schedule import AttentionPattern, area_of
from models.diffusion.text_encoder import caption_bytes
from models.registry import build_objective
from parallel.sequence.geometry import Geometry, Grid

FREE_BYTES = 256  # of a caption: a sentence or two, next to nothing beside a video


def words_cost(model: Any, sizes: Ints, lengths: Ints) -> Floats:
    """[clips]: what captions add to the costs of their clips: encoding them, and cross attention to their words.

    Up to `FREE_BYTES` of a caption are not counted: clips of one size then cost the same, and keep the order in which
    they come whatever is said of them.

    Args:
        model: that reads them.
        sizes: [clips] bytes of the captions.
        lengths: [clips] tokens of the clips.
    """
    text = getattr(model, "text", None)
    if text is None:
        return np.zeros(len(sizes))

    def cost(size: Ints) -> Floats:
        tokens = text.tokens(size)
        encoding = text.operations(tokens) / (12.0 * model.dim * model.depth)
        return np.asarray(encoding + tokens * (lengths + text.dim), np.float64)

    return cost(sizes) - cost(np.minimum(sizes, FREE_BYTES))


def cost_of(attention: Sequence[AttentionPattern], dim: int, grid: Grid) -> float:
    """Of a forward and backward, in units of 12 x dim x depth: see `training/loop.py`; 12 dim^2 per layer."""
    return area_of(attention, grid) + 6 * dim * grid[0] * grid[1] * grid[2]


def _open_index(folders: Sequence[Path], digests: Sequence[str | None]) -> Index:
    return Index.join([Index.open(folder, digest) for folder, digest in zip(folders, digests, strict=True)])


def _geometry(model: Any, codec: CodecConfig) -> Geometry:
    return open_codec(codec, model.patch).geometry


def _source(
    model: Any, codec: CodecConfig, data: DataConfig, seed: int, geometry: Geometry, index: Index
) -> ClipSource:
    refuse_pixels(codec, data, index)
    sampling = Sampling(geometry, data.frames, data.size, data.stride)
    reader = ClipReader(index, sampling, seed, data.workers)
    return ClipSource(reader, partial(cost_of, model.attention, model.dim), data.caption, partial(words_cost, model))


def _builder(model: Any, objective: Any, codec: CodecConfig, where: OnRank) -> ClipBatchBuilder:
    opened = open_codec(codec, model.patch, where.dtype, where.device)
    learned: Any = build_objective(objective)
    place = where.groups, where.device, where.kernel, where.keep
    return ClipBatchBuilder(opened, learned, model.attention, *place, getattr(model, "text", None))


def _check_data(model: Any, objective: Any, codec: CodecConfig, curriculum: Curriculum) -> None:
    refuse_other_codec(curriculum, open_codec(codec, model.patch))


def _drawn_pack(model: Any, data: DataConfig, geometry: Geometry, stream: Any, documents: int | None) -> Any:
    return drawn_clips(data, geometry, stream, documents)


def _layouts(source: Any, pack: Pack) -> tuple[Any, ...]:
    return ()


FAMILIES.register(
    "diffusion",
    FamilySpec(
        _open_index, _geometry, _source, _builder, _check_data, _drawn_pack, _layouts, caption_bytes, of_latents=True
    ),
)
