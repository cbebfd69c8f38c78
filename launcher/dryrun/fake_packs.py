"""What a dry run feeds its step: the first packs of the run's own data, or packs drawn to their size.

the dataset fills `data.pack_tokens`    the packs of the run's first step, by the index alone
it does not, or is not there            one clip of the dataset's picture size, so long that it fills the pack;
                                        for a language model one conversation, about one long video if it sees
--documents N                           N equal ones of that kind
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.streams.chat_layout import ChatLayout, VisualSpan, layout_of
from data.streams.chat_source import ChatSource
from data.streams.clip_source import ClipSource
from data.streams.curriculum import AnyStream, Curriculum, Position
from data.streams.pack_stream import Pack
from launcher.batches.datasets import geometry_of, open_curriculum
from launcher.batches.loader import assign
from launcher.config.run_config import RunConfig
from launcher.config.sections import DataConfig
from launcher.preflight.preflight import LEAST_FILL
from models.language.video_lm import VideoLMConfig
from parallel.errors import InputError
from parallel.mesh import Mesh, Place
from parallel.random import key_of
from parallel.sequence.geometry import Grid
from parallel.sequence.packed import ANSWERED, ASKED, Document

CAPTION = "x" * 255  # of a drawn clip at least: bytes of a long sentence
QUESTION = 64  # words of a drawn conversation that are not said by the model
USUAL_PICTURE = (30, 52)  # tokens of a frame of 480 x 832 pixels, with a VAE of stride 8 and patches of 2


@dataclass(frozen=True)
class DrawnPack:
    """One packed sequence.

    Attributes:
        documents: of it.
        layouts: of a language model.
        words: how it came about, for a person.
    """

    documents: tuple[Document, ...]
    layouts: tuple[ChatLayout, ...]
    words: str

    @property
    def tokens(self) -> int:
        """All of them."""
        return sum(document.tokens for document in self.documents)


def packs_for(config: RunConfig, place: Place, segment: int, documents: int | None = None) -> list[DrawnPack]:
    """The packs of one replica in one step of a segment: at most three, as those between first and last are alike.

    Args:
        config: of the run.
        place: of the rank.
        segment: of the curriculum.
        documents: draw packs of so many equal ones; the run's own data if not given.

    Raises:
        InputError: the data settings cannot work.
    """
    data, mesh = config.data.merged()[segment], mesh_of(config, segment)
    curriculum, words = None, ""
    try:
        curriculum = open_curriculum(config)
    except InputError as error:
        if any(folder.exists() for folder in data.folders):
            raise
        words = f"{error.value}: "
    if curriculum is not None and documents is None:
        mine = assign(_first_packs(curriculum, segment), mesh.replica, place.replica)
        least = min(sum(d.tokens for d in pack.documents) for pack in mine)
        if least >= LEAST_FILL * data.pack_tokens:
            return [_own(curriculum.streams[segment], pack) for pack in [*mine[:2], *mine[2:][-1:]]]
        words = f"the dataset fills {least:,} of {data.pack_tokens:,} tokens: "
    drawn = _drawn(config, data, curriculum, segment, documents)
    return [replace(drawn, words=words + drawn.words)] * min(3, micro_steps_of(config, segment))


def mesh_of(config: RunConfig, segment: int) -> Mesh:
    """Of a segment of the curriculum."""
    own = config.data.segments[segment].mesh if config.data.segments else None
    return (own or config.mesh).mesh()


def micro_steps_of(config: RunConfig, segment: int) -> int:
    """Of a step: as many as the replica with most packs needs."""
    return -(-config.data.packs_per_step // mesh_of(config, segment).replica)


def longest_segment(config: RunConfig) -> int:
    """The one with the longest packs, the first of them."""
    sizes = [data.pack_tokens for data in config.data.merged()]
    return sizes.index(max(sizes))


def _count(tokens: int, most: int, documents: int | None) -> tuple[int, int]:
    """Documents of a pack of `tokens`, and tokens of each: as few as may have `most`, or as many as are asked for."""
    if documents is not None:
        return documents, tokens // documents
    return max(1, tokens // most), min(tokens, most)


def _first_packs(curriculum: Curriculum, segment: int) -> list[Pack]:
    _, packs, _ = curriculum.next_step(Position(step=curriculum.starts[segment]))
    return packs


def _own(stream: AnyStream, pack: Pack) -> DrawnPack:
    source = stream.source
    layouts = tuple(source.layout(row) for row in pack.rows) if isinstance(source, ChatSource) else ()
    tokens = sum(d.tokens for d in pack.documents)
    return DrawnPack(pack.documents, layouts, f"the run's first pack, {len(pack.documents)} samples, {tokens:,} tokens")


def _drawn(
    config: RunConfig, data: DataConfig, curriculum: Curriculum | None, segment: int, documents: int | None
) -> DrawnPack:
    if isinstance(config.model, VideoLMConfig):
        return _conversations(config.model, data, documents)
    y, x = _picture(config, data, curriculum, segment)
    most = data.pack_tokens
    if data.frames is not None:
        geometry = geometry_of(config)
        usable = max(geometry.usable_frames(data.frames), geometry.frames_per_token)
        cells_y, cells_x = (geometry.stride[n] * geometry.patch[n] for n in (1, 2))
        most = geometry.grid(usable, cells_y, cells_x)[0] * y * x
    count, tokens = _count(data.pack_tokens, most, documents)
    frames = tokens // (y * x)
    if not frames:
        found = f"a frame of {y} x {x} tokens, {_times(count, 'clip')} in {data.pack_tokens:,} tokens"
        raise InputError("a pack holds a frame of each of its clips", found, "a larger pack, or fewer --documents")
    grid: Grid = (frames, y, x)
    caption = CAPTION
    if curriculum is not None and isinstance(source := curriculum.streams[segment].source, ClipSource):
        caption = "x" * max(len(CAPTION), int(source.index.caption_bytes(data.caption).max()))
    made = tuple(Document(f"drawn-{n}", key_of("drawn", n), caption, grid) for n in range(count))
    filled = f"{count * frames * y * x:,} of {data.pack_tokens:,} tokens"
    return DrawnPack(made, (), f"drawn: {_times(count, 'clip')} of {frames:,} x {y} x {x} tokens, {filled}")


def _picture(config: RunConfig, data: DataConfig, curriculum: Curriculum | None, segment: int) -> tuple[int, int]:
    """Tokens of a frame along (y, x): of the size that the run asks for, or its first sample has."""
    geometry = geometry_of(config)
    if data.size is not None:
        _, y, x = geometry.grid(geometry.frames_per_token, *data.size)
        return y, x
    if curriculum is None:
        return USUAL_PICTURE
    grid = _first_packs(curriculum, segment)[0].documents[0].grid
    return grid[1], grid[2]


def _conversations(model: VideoLMConfig, data: DataConfig, documents: int | None) -> DrawnPack:
    count, tokens = _count(data.pack_tokens, data.max_positions or model.positions, documents)
    if tokens < 2:
        found = f"{_times(count, 'conversation')} in {data.pack_tokens:,} tokens"
        raise InputError("a conversation has two tokens", found, "a larger data.pack_tokens, fewer --documents")
    views, frames, rows = model.views, 0, 0
    if views is not None:
        most = range(tokens * views.temporal_pool + 1)  # a view has a row at least
        frames = max(0, bisect_right(most, tokens - 2 * QUESTION, key=views.total) - 1)
        rows = views.total(frames)
    words = np.zeros(tokens - rows, np.int64)
    kinds = np.where(np.arange(len(words)) < QUESTION, ASKED, ANSWERED)
    spans: Sequence[Sequence[VisualSpan]] = [[VisualSpan(0, 0, frames)]] if frames else []
    if frames:  # the place of the video, which its rows replace
        words, kinds = np.append(words, 0), np.append(kinds, ANSWERED)
    layout = layout_of(words, kinds, np.array([1] if frames else [], np.int64), spans, views, None)
    made = tuple(Document(f"drawn-{n}", key_of("drawn", n), "", (len(layout), 1, 1)) for n in range(count))
    about = f" about a video of {frames:,} frames, {rows:,} rows" if frames else ""
    return DrawnPack(
        made, (layout,) * count, f"drawn: {_times(count, 'conversation')} of {len(layout):,} tokens{about}"
    )


def _times(count: int, noun: str) -> str:
    return f"one {noun}" if count == 1 else f"{count} {noun}s"
