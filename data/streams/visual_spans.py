"""`VisualSpans`: which frames of which clips each conversation sees, as columns over all of them.

    visuals of a conversation   "a.mp4" from 2 to 4 s        clips of it    [uid, uid]
    spans                       row 7, frames [16, 24)       row 8, frames [0, 8)

Everything follows from the index of conversations and that of clips, so that lengths are known before a frame is read.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from data.chat.chat_index import ChatIndex
from data.media.timeline import Timelines
from data.planning.packing import Floats
from data.streams.chat_layout import Times, VisualSpan, stamps_of
from data.streams.clip_reader import ClipReader
from parallel.errors import InputError
from parallel.sequence.visual_tokens import Views

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class VisualSpans:
    """The spans of every conversation.

    Attributes:
        tokens: [rows of conversations] rows of their visuals, and words of times before them.
    """

    def __init__(self, index: ChatIndex, clips: ClipReader | None, views: Views | None, times: Times | None) -> None:
        """Reads no frames.

        Args:
            index: of conversations.
            clips: that they see, a frame a token; None if they see none.
            views: of the model; None if it sees nothing.
            times: see `data.streams.chat_layout.layout_of`.

        Raises:
            InputError: there are visuals and the model sees nothing, a clip is not there, a visual shows no frame, or
                seconds are asked of clips that are cut by chance.
        """
        self.index, self.clips = index, clips
        visuals = index.table["visuals"].combine_chunks()
        self.visuals_before = _ends(visuals)
        flat = visuals.flatten()
        uids = flat.field("clips")
        self.clips_before = _ends(uids)
        names = uids.flatten()
        self.tokens = np.zeros(len(index), np.int64)
        if not len(names):
            return
        if views is None or clips is None:
            row = int(np.flatnonzero(np.diff(self.visuals_before))[0])
            raise InputError(
                "a model that is trained on videos has a vision tower",
                f"{index.uid(row)} has {index.file(row)}; model.vision is none",
                "give model.vision, or conversations of words alone",
            )
        self.rows = _rows_of(names, clips)
        of_visual = np.repeat(np.arange(len(flat)), np.diff(self.clips_before))
        bounds = [
            flat.field(name).to_numpy(zero_copy_only=False).astype(np.float64)[of_visual] for name in ("begin", "end")
        ]
        self.watched_visuals = flat.field("watched").to_numpy(zero_copy_only=False).astype(bool)
        self.watched = self.watched_visuals[of_visual]
        self.first, self.last = _frames_between(clips, self.rows, bounds[0], bounds[1], self.watched)
        self._refuse_empty(of_visual)
        lengths = self.last - self.first
        unique, which = np.unique(lengths, return_inverse=True)
        totals = np.array([views.total(int(n)) for n in unique])[which]
        of_sample = np.repeat(np.arange(len(index)), np.diff(self.visuals_before))[of_visual]
        np.add.at(self.tokens, of_sample, totals)
        if times is not None:
            refuse_random_segments(clips)
            stamps = [sum(map(len, stamps_of(self._span(i), views, times))) for i in range(len(self.rows))]
            np.add.at(self.tokens, of_sample, stamps)

    def by_visual(self, row: int) -> list[list[VisualSpan]]:
        """The spans of each visual of a conversation."""
        first, last = self.visuals_before[row : row + 2]
        return [
            [self._span(i) for i in range(*self.clips_before[visual : visual + 2])] for visual in range(first, last)
        ]

    def _span(self, i: int) -> VisualSpan:
        assert self.clips is not None, "conversations with visuals have clips"
        row = int(self.rows[i])
        first, last, watched = int(self.first[i]), int(self.last[i]), bool(self.watched[i])
        return VisualSpan(row, first, last, watched, self.clips.index.timeline(row), self.clips.sampling.stride)

    def _refuse_empty(self, of_visual: Ints) -> None:
        seen = np.zeros(len(self.clips_before) - 1, np.int64)
        np.add.at(seen, of_visual, self.last - self.first)
        empty = np.flatnonzero((seen == 0) & ~self.watched_visuals)  # words of a stream may follow each other at once
        if len(empty):
            visual = int(empty[0])
            row = bisect_right(self.visuals_before.tolist(), visual) - 1
            found = f"{self.index.uid(row)}: visual {visual - int(self.visuals_before[row])} of {self.index.file(row)}"
            raise InputError("a visual shows a frame at least", found, "mend its begin and end, or data.stride")


def refuse_random_segments(clips: ClipReader) -> None:
    """Times are those of clips that are seen whole.

    Raises:
        InputError: clips are cut by chance.
    """
    if clips.sampling.frames is not None:
        raise InputError(
            "conversations about moments see clips whole",
            f"data.frames={clips.sampling.frames} takes a stretch from a random start",
            "leave data.frames out, and use data.stride",
        )


def _ends(lists: pa.Array) -> Ints:
    """[lists + 1] where each begins in the flat array, and the end."""
    return np.append(0, pa.compute.list_value_length(lists).to_numpy(zero_copy_only=False).cumsum())


def _rows_of(names: pa.Array, clips: ClipReader) -> Ints:
    """Rows of the index of clips, by uid."""
    found = pa.compute.index_in(names, value_set=clips.index.table["uid"].combine_chunks())
    if found.null_count:
        missing = names.filter(pa.compute.is_null(found))
        raise InputError(
            "the clips of conversations are in their dataset",
            f"{len(missing)} are not, the first is {missing[0].as_py()}",
            "make the chat dataset again: longreel data chat",
        )
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)


def _frames_between(clips: ClipReader, rows: Ints, begin: Floats, end: Floats, watched: Bools) -> tuple[Ints, Ints]:
    """Frames [first, last) of each clip, as taken, whose time in the source is from `begin` on and not after `end`."""
    whole = clips.lengths[rows]
    if np.isnan(begin).all() and np.isnan(end).all():
        return np.zeros_like(whole), whole
    refuse_random_segments(clips)
    return Timelines(clips.index.table).between(rows, begin, end, whole, clips.sampling.stride, watched)
