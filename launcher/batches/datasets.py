"""From the settings of a run to its curriculum: one place, so that everybody trains on, checks and shows the same."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.chat.chat_index import Talks
from data.chat.tokenizers import open_tokenizer
from data.dataset.index import Index, Ints
from data.planning.clip_sampling import Sampling
from data.planning.packing import Floats
from data.streams.chat_layout import times_of
from data.streams.chat_source import ChatOptions, ChatSource
from data.streams.clip_reader import ClipReader
from data.streams.clip_source import ClipSource
from data.streams.curriculum import AnyStream, Curriculum
from data.streams.pack_stream import PackOptions, PackStream
from launcher.batches.dataset_codec import refuse_pixels
from launcher.config.run_config import RunConfig
from launcher.config.sections import DataConfig
from models.codecs.open_codec import open_codec
from models.diffusion.attention_schedule import AttentionConfig, area_of
from models.diffusion.video_dit import VideoDiTConfig
from models.language.hf_config import refuse_rope
from models.language.video_lm import VideoLMConfig
from parallel.errors import InputError
from parallel.random import key_of
from parallel.sequence.geometry import Geometry, Grid

FREE_BYTES = 256  # of a caption: a sentence or two, next to nothing beside a video


def open_curriculum(
    config: RunConfig, digests: Sequence[tuple[str, ...]] = (), geometry: Geometry | None = None
) -> Curriculum:
    """The streams of a run; reads indexes, no shards.

    Args:
        config: of the run.
        digests: of the datasets of each segment that has begun: the run stays with these, whatever was added since.
        geometry: of its codec and model, if it is at hand.

    Raises:
        InputError: a dataset is missing or changed, or does not fit the settings.
    """
    opened: dict[tuple[tuple[Path, ...], tuple[str, ...]], Any] = {}
    kind: Any = Talks if isinstance(config.model, VideoLMConfig) else Index
    geometry = geometry or geometry_of(config)
    streams: list[AnyStream] = []
    for number, data in enumerate(config.data.merged()):
        folders = tuple(data.folders)
        pinned = digests[number] if number < len(digests) else ()
        if pinned and len(pinned) != len(folders):
            found = f"{len(folders)} datasets in segment {number}, {len(pinned)} when it began"
            raise InputError("a segment that has begun keeps its datasets", found, "set data.dataset back")
        if (folders, pinned) not in opened:
            newest = [kind.open(f, d) for f, d in zip(folders, pinned or [None] * len(folders), strict=True)]
            opened[folders, pinned] = kind.join(newest)
        make = _chat_source if kind is Talks else partial(_clip_source, geometry=geometry)
        source = make(config, data, _seed(config, number), opened[folders, pinned])
        options = PackOptions(data.pack_tokens, data.packs_per_step, data.window, data.weights)
        streams.append(PackStream(source, options))
    return Curriculum(config.data.starts, tuple(streams), config.data.packs_per_step)


def geometry_of(config: RunConfig) -> Geometry:
    """How frames become tokens of a run: of its codec and patches; for a model that sees, a frame is a token."""
    if isinstance(config.model, VideoLMConfig):
        views = config.model.views
        pixels = views.pixels if views else 1
        return Geometry(stride=(1, pixels, pixels), patch=(1, 1, 1))
    return open_codec(config.codec, config.model.patch).geometry


def _seed(config: RunConfig, number: int) -> int:
    return config.seed if number == 0 else key_of(config.seed, "segment", number) >> 1


def _cost(attention: Sequence[AttentionConfig], dim: int, grid: Grid) -> float:
    """Of a forward and backward, in units of 12 x dim x depth: see `training/loop.py`; 12 dim^2 per layer."""
    return area_of(attention, grid) + 6 * dim * grid[0] * grid[1] * grid[2]


def words_cost(model: VideoDiTConfig, sizes: Ints, lengths: Ints) -> Floats:
    """[clips]: what captions add to the costs of their clips: encoding them, and cross attention to their words.

    Up to `FREE_BYTES` of a caption are not counted: clips of one size then cost the same, and keep the order in which
    they come whatever is said of them.

    Args:
        model: that reads them.
        sizes: [clips] bytes of the captions.
        lengths: [clips] tokens of the clips.
    """
    text = model.text

    def cost(size: Ints) -> Floats:
        tokens = np.minimum(size, text.max_bytes) + 1.0  # one begins a caption
        encoding = text.operations(tokens) / (12.0 * model.dim * model.depth)
        return np.asarray(encoding + tokens * (lengths + text.dim), np.float64)

    return cost(sizes) - cost(np.minimum(sizes, FREE_BYTES))


def notes_on_words(config: RunConfig, curriculum: Curriculum, first: int = 0) -> list[str]:
    """What a person should know of captions that are longer than the model reads, in segments from `first` on."""
    notes: dict[str, None] = {}
    for stream, data in zip(curriculum.streams[first:], config.data.merged()[first:], strict=True):
        if not isinstance(config.model, VideoDiTConfig) or not isinstance(stream.source, ClipSource):
            continue  # words of talks are tokens of their packs
        sizes, most = stream.source.index.caption_bytes(data.caption), config.model.text.max_bytes
        longer, row = int((sizes > most).sum()), int(sizes.argmax())
        if longer:
            notes[
                f"{longer:,} of {len(sizes):,} captions are read up to their first {most:,} bytes "
                f"(model.text.max_bytes): the longest has {int(sizes[row]):,} ({stream.index.file(row)})"
            ] = None
    return list(notes)


def _clip_source(config: RunConfig, data: DataConfig, seed: int, index: Index, geometry: Geometry) -> ClipSource:
    assert isinstance(config.model, VideoDiTConfig), "clips are for models that draw"
    refuse_pixels(config, data, index)
    sampling = Sampling(geometry, data.frames, data.size, data.stride)
    cost = partial(_cost, config.model.attention, config.model.dim)
    reader = ClipReader(index, sampling, seed, data.workers)
    return ClipSource(reader, cost, data.caption, partial(words_cost, config.model))


def _chat_source(config: RunConfig, data: DataConfig, seed: int, talks: Talks) -> ChatSource:
    model = config.model
    assert isinstance(model, VideoLMConfig), "talks are for models that speak"
    attention, dim = model.attention, model.dim
    refuse_rope({**model.text.rope_parameters, **(data.rope_scaling or {})})
    clips = clips_of(config, data, seed, talks)
    times = times_of(open_tokenizer(str(talks.tokenizer_folder))) if data.timestamps else None
    options = ChatOptions(model.views, data.max_positions or model.positions, data.rope_items, times)
    return ChatSource(talks, clips, options, seed, lambda tokens: _cost(attention, dim, (tokens, 1, 1)))


def clips_of(config: RunConfig, data: DataConfig, seed: int, talks: Talks) -> ClipReader | None:
    """The clips of talks, a frame a token, scaled to what the model sees; None if it sees nothing, or there are none.

    Raises:
        InputError: a dataset of clips is missing or changed, or the settings ask for another size.
    """
    assert isinstance(config.model, VideoLMConfig), "talks are for models that speak"
    views = config.model.views
    if views is None or not talks.clips:
        return None
    side = (views.pixels, views.pixels)
    if data.size not in (None, side):
        found = f"data.size={list(data.size or ())}, the model sees {views.pixels} x {views.pixels}"
        raise InputError("frames have the size that the model sees", found, "leave data.size out")
    clips = Index.join([Index.open(folder, digest) for folder, digest in talks.clips])
    sampling = Sampling(geometry_of(config), data.frames, side, data.stride)
    return ClipReader(clips, sampling, seed, data.workers)
