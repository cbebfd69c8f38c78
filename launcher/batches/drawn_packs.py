"""Packs that are drawn to a size, for dry runs: clips of a run's picture size, or conversations about a long video."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.planning.data_plan import Cursor
from data.streams.chat_layout import ChatLayout, VisualSpan, layout_of
from launcher.config.sections import DataConfig
from models.language.video_lm_config import VideoLMConfig
from parallel.errors import InputError
from parallel.random import key_of
from parallel.sequence.geometry import Geometry, Grid
from parallel.sequence.packed import ASSISTANT, USER, Document

CAPTION = "x" * 255  # of a drawn clip at least: bytes of a long sentence
QUESTION = 64  # text tokens of a drawn conversation that are not said by the model
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


def drawn_clips(data: DataConfig, geometry: Geometry, stream: Any, documents: int | None) -> DrawnPack:
    """Equal clips that fill a pack.

    Args:
        data: of the segment.
        geometry: of codec and model.
        stream: of the segment, for its picture size and its longest caption; None if its dataset is not there.
        documents: so many; as few as can be if not given.

    Raises:
        InputError: a pack has no room for a frame of each.
    """
    y, x = _picture(data, geometry, stream)
    most = data.pack_tokens
    if data.frames is not None:
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
    if stream is not None:
        caption = "x" * max(len(CAPTION), int(stream.source.index.caption_bytes(data.caption).max()))
    made = tuple(Document(f"drawn-{n}", key_of("drawn", n), caption, grid) for n in range(count))
    filled = f"{count * frames * y * x:,} of {data.pack_tokens:,} tokens"
    return DrawnPack(made, (), f"drawn: {_times(count, 'clip')} of {frames:,} x {y} x {x} tokens, {filled}")


def drawn_conversations(model: VideoLMConfig, data: DataConfig, documents: int | None) -> DrawnPack:
    """Equal conversations that fill a pack, each about one long video if the model has a vision tower.

    Raises:
        InputError: a pack has no room for two tokens of each.
    """
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
    kinds = np.where(np.arange(len(words)) < QUESTION, USER, ASSISTANT)
    spans: Sequence[Sequence[VisualSpan]] = [[VisualSpan(0, 0, frames)]] if frames else []
    if frames:  # the position of the video, which its rows replace
        words, kinds = np.append(words, 0), np.append(kinds, ASSISTANT)
    layout = layout_of(words, kinds, np.array([1] if frames else [], np.int64), spans, views, None)
    made = tuple(Document(f"drawn-{n}", key_of("drawn", n), "", (len(layout), 1, 1)) for n in range(count))
    about = f" about a video of {frames:,} frames, {rows:,} rows" if frames else ""
    return DrawnPack(
        made, (layout,) * count, f"drawn: {_times(count, 'conversation')} of {len(layout):,} tokens{about}"
    )


def _picture(data: DataConfig, geometry: Geometry, stream: Any) -> tuple[int, int]:
    """Tokens of a frame along (y, x): of the size that the run asks for, or its first sample has."""
    if data.size is not None:
        _, y, x = geometry.grid(geometry.frames_per_token, *data.size)
        return y, x
    if stream is None:
        return USUAL_PICTURE
    ((first,), _) = stream.packs(Cursor(), 1)
    grid = first.documents[0].grid
    return grid[1], grid[2]


def _count(tokens: int, most: int, documents: int | None) -> tuple[int, int]:
    """Documents of a pack of `tokens`, and tokens of each: as few as may have `most`, or as many as are asked for."""
    if documents is not None:
        return documents, tokens // documents
    return max(1, tokens // most), min(tokens, most)


def _times(count: int, noun: str) -> str:
    return f"one {noun}" if count == 1 else f"{count} {noun}s"
