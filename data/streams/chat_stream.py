"""`TalkStream`: packs of conversations, and the frames that they see.

Lengths follow from the index alone, so that packs are planned before a tar is opened, as for clips
(`data.streams.clip_stream`). The frames of all visuals of a pack are one long row of frames, a clip after the other; a
rank reads those that it is dealt.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from data.chat.chat_index import Talks
from data.media.timeline import Timelines
from data.media.video import Frames
from data.planning.data_plan import Cursor, DataPlan, window_for
from data.planning.mix import mix_of
from data.planning.packing import Floats
from data.streams.chat_layout import Laid, Sight, Times, lay, stamps_of
from data.streams.clip_stream import Pack, Stream
from parallel.errors import InputError
from parallel.random import key_of
from parallel.sequence.packed import Document
from parallel.sequence.visual_tokens import Views

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class TalkStream:
    """Packs of talks, or of a mix of them, for ever.

    Attributes:
        index: the talks.
        lengths: [rows] tokens of each, rows of visuals counted.
        plan: which of them make which pack.
        clips: frames of the visuals, one of its tokens a frame; None if no talk has any.
        views: rows of frames.
    """

    def __init__(
        self,
        talks: Talks,
        clips: Stream | None,
        views: Views | None,
        pack_tokens: int,
        seed: int,
        window: int | None = None,
        packs_per_step: int = 1,
        weights: Mapping[str, float] | None = None,
        cost: Callable[[int], float] = lambda tokens: float(tokens) ** 2,
        positions: int | None = None,
        rope: tuple[tuple[str, Any], ...] = (),
        times: Times | None = None,
    ) -> None:
        """Computes every length; reads no frames.

        Args:
            talks: of one folder or of several.
            clips: of the visuals: `data.streams.clip_stream.Stream` whose tokens are frames.
            views: of the model; None if it sees nothing.
            pack_tokens, seed, window, packs_per_step, weights: as of `Stream`.
            cost: of a document of so many tokens.
            positions: that the model knows; None for any number.
            rope: rotary frequencies of the model, where they differ from its own.
            times: words of the time of each view; None for no times.

        Raises:
            InputError: a talk has visuals and the model cannot see, is longer than a pack or than the positions, or
                sees a stretch of time of clips that are cut by chance.
        """
        self.index, self.clips, self.views, self.seed, self.pack_tokens = talks, clips, views, seed, pack_tokens
        self.rope, self.times = rope, times
        self.sights_of = _Sights(talks, clips, views, times)
        self.lengths = talks.lengths + self.sights_of.tokens
        refuse_long(self, positions)
        sizes = np.diff(talks.starts).tolist()
        mix = mix_of(sizes, weights) if weights else mix_of([len(talks)])
        unique, which = np.unique(self.lengths, return_inverse=True)
        costs: Floats = np.array([cost(int(n)) for n in unique], np.float64)[which]
        window = window or window_for(self.lengths, pack_tokens, packs_per_step)
        self.plan = DataPlan(self.lengths, costs, mix, pack_tokens, packs_per_step, seed, window)
        self._window_at = lru_cache(maxsize=4)(self.plan.window_at)

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """None: every talk has a token."""
        return []

    def uid(self, sample: int) -> str:
        """The id of a sample of the plan."""
        return self.index.uid(sample)

    def dataset_of(self, row: int) -> int:
        """Which source of the mix a row is of."""
        return bisect_right(self.index.starts, row) - 1 if len(self.plan.mix.sizes) > 1 else 0

    def packs(self, cursor: Cursor, count: int) -> tuple[list[Pack], Cursor]:
        """As of `Stream`."""
        bins, after = self.plan.walk(self._window_at, cursor, count)
        return [self._pack(b.samples, b.epochs) for b in bins], after

    def laid(self, row: int) -> Laid:
        """The layout of a conversation."""
        silence = self.index.tokenizer["silence"]
        return lay(*self.index.tokens(row), self.sights_of.by_visual(row), self.views, silence, self.times)

    def frames(self, pack: Pack, laid: Sequence[Laid], begin: int, end: int, problems: dict[int, str]) -> list[Frames]:
        """Frames [begin, end) of all that the talks of a pack see, laid end to end, as uint8 [n, height, width, 3].

        Args:
            pack: of this stream.
            laid: its talks.
            begin, end: of the frames.
            problems: by document; those that cannot be read are added, and black here.
        """
        assert self.clips is not None, "talks with visuals have clips"
        sights = [(number, sight) for number, one in enumerate(laid) for sight in one.sights]
        of_pack = self.clips.pack_of([s.row for _, s in sights], [pack.epochs[number] for number, _ in sights])
        ranges, seen, at = [], 0, 0  # frames that are seen, and those of whole clips, so far
        for (_, sight), document in zip(sights, of_pack.documents, strict=True):
            low, high = max(begin - seen, 0), min(end - seen, sight.frames)
            if low < high:
                ranges.append((at + sight.first + low, at + sight.first + high))
            seen, at = seen + sight.frames, at + document.tokens

        def note(number: int, error: InputError) -> None:
            problems[sights[number][0]] = error.value

        pieces = self.clips.read(of_pack, tuple(ranges), note)
        return [piece.frames for piece in pieces if piece.frames is not None]

    def close(self) -> None:
        """Closes the shards of the clips."""
        if self.clips is not None:
            self.clips.close()

    def _pack(self, rows: tuple[int, ...], epochs: tuple[int, ...]) -> Pack:
        documents = tuple(
            Document(
                uid := self.index.uid(row), key_of(self.seed, epoch, uid), self.index.text(row),
                (int(self.lengths[row]), 1, 1),
            )
            for row, epoch in zip(rows, epochs, strict=True)
        )  # fmt: skip
        return Pack(rows, documents, (0,) * len(rows), epochs, float(self.plan.costs[list(rows)].sum()))


class _Sights:
    """The sights of every talk, as columns.

    Attributes:
        tokens: [rows of talks] rows of their visuals.
    """

    def __init__(self, talks: Talks, clips: Stream | None, views: Views | None, times: Times | None) -> None:
        self.talks, self.clips = talks, clips
        visuals = talks.table["visuals"].combine_chunks()
        self.visuals_before = np.append(
            0, pa.compute.list_value_length(visuals).to_numpy(zero_copy_only=False).cumsum()
        )
        flat = visuals.flatten()
        uids = flat.field("clips")
        self.clips_before = np.append(0, pa.compute.list_value_length(uids).to_numpy(zero_copy_only=False).cumsum())
        names = uids.flatten()
        self.tokens = np.zeros(len(talks), np.int64)
        if not len(names):
            return
        if views is None or clips is None:
            row = int(np.flatnonzero(np.diff(self.visuals_before))[0])
            raise InputError(
                "a model that is trained on videos has a vision tower",
                f"{talks.uid(row)} has {talks.file(row)}; model.vision is none",
                "give model.vision, or talks of words alone",
            )
        self.rows = _rows_of(names, clips)
        of_visual = np.repeat(np.arange(len(flat)), np.diff(self.clips_before))
        bounds = [
            flat.field(name).to_numpy(zero_copy_only=False).astype(np.float64)[of_visual] for name in ("begin", "end")
        ]
        self.watched_visuals = flat.field("watched").to_numpy(zero_copy_only=False).astype(bool)
        self.watched = self.watched_visuals[of_visual]
        self.first, self.last = _stretches(clips, self.rows, bounds[0], bounds[1], self.watched)
        self._refuse_empty(of_visual)
        lengths = self.last - self.first
        unique, which = np.unique(lengths, return_inverse=True)
        totals = np.array([views.total(int(n)) for n in unique])[which]
        of_talk = np.repeat(np.arange(len(talks)), np.diff(self.visuals_before))[of_visual]
        np.add.at(self.tokens, of_talk, totals)
        if times is not None:
            refuse_stretches(clips)
            stamps = [sum(map(len, stamps_of(self._sight(i), views, times))) for i in range(len(self.rows))]
            np.add.at(self.tokens, of_talk, stamps)

    def by_visual(self, row: int) -> list[list[Sight]]:
        """The sights of each visual of a talk."""
        first, last = self.visuals_before[row : row + 2]
        return [
            [self._sight(i) for i in range(*self.clips_before[visual : visual + 2])] for visual in range(first, last)
        ]

    def _sight(self, i: int) -> Sight:
        assert self.clips is not None, "talks with visuals have clips"
        row = int(self.rows[i])
        first, last, watched = int(self.first[i]), int(self.last[i]), bool(self.watched[i])
        return Sight(row, first, last, watched, self.clips.index.timeline(row), self.clips.sampling.stride)

    def _refuse_empty(self, of_visual: Ints) -> None:
        seen = np.zeros(len(self.clips_before) - 1, np.int64)
        np.add.at(seen, of_visual, self.last - self.first)
        empty = np.flatnonzero((seen == 0) & ~self.watched_visuals)  # words of a stream may follow each other at once
        if len(empty):
            visual = int(empty[0])
            row = bisect_right(self.visuals_before.tolist(), visual) - 1
            found = f"{self.talks.uid(row)}: visual {visual - int(self.visuals_before[row])} of {self.talks.file(row)}"
            raise InputError("a visual shows a frame at least", found, "mend its begin and end, or data.stride")


def refuse_stretches(clips: Stream) -> None:
    """Times are those of clips that are seen whole.

    Raises:
        InputError: clips are cut by chance.
    """
    if clips.sampling.frames is not None:
        raise InputError(
            "talks about moments see clips whole",
            f"data.frames={clips.sampling.frames} takes a stretch from a random start",
            "leave data.frames out, and use data.stride",
        )


def _rows_of(names: pa.Array, clips: Stream) -> Ints:
    """Rows of the index of clips, by uid."""
    found = pa.compute.index_in(names, value_set=clips.index.table["uid"].combine_chunks())
    if found.null_count:
        missing = names.filter(pa.compute.is_null(found))
        raise InputError(
            "the clips of talks are in their dataset",
            f"{len(missing)} are not, the first is {missing[0].as_py()}",
            "make the talks again: longreel data talks",
        )
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)


def _stretches(clips: Stream, rows: Ints, begin: Floats, end: Floats, watched: Bools) -> tuple[Ints, Ints]:
    """Frames [first, last) of each clip, as taken, whose time in the source is from `begin` on and not after `end`."""
    whole = clips.lengths[rows]
    if np.isnan(begin).all() and np.isnan(end).all():
        return np.zeros_like(whole), whole
    refuse_stretches(clips)
    return Timelines(clips.index.table).between(rows, begin, end, whole, clips.sampling.stride, watched)


def refuse_long(stream: TalkStream, positions: int | None) -> None:
    """A talk fits into a pack, and into the positions of the model.

    Raises:
        InputError: it does not.
    """
    longest = int(stream.lengths.argmax())
    tokens, uid = int(stream.lengths[longest]), stream.index.uid(longest)
    if positions is not None and tokens > positions:
        raise InputError(
            "a conversation is no longer than the positions that the model knows",
            f"{uid}: {tokens:,} tokens, {positions:,} positions",
            "fewer frames (data.frames, data.stride) or rows of each (model.pool, model.merge); or a longer context: "
            f"data.positions={tokens}, with data.rope",
        )
    if tokens > stream.pack_tokens:
        longer = int((stream.lengths > stream.pack_tokens).sum())
        raise InputError(
            f"a sample fits into a pack of data.pack_tokens={stream.pack_tokens}",
            f"{longer} of {len(stream.lengths)} talks are longer, the longest, {uid}, has {tokens} tokens",
            f"data.pack_tokens={tokens}, or fewer frames: data.frames, data.stride",
        )
