"""The layout of a conversation: tokens, what each learns to say, rows of visuals.

    row        u  v  What?  b  A square. e              v one token for a visual
    laid out   u  v v v v v v  What?  b  A square. e    as many as its frames have rows (`visual_tokens.py`)
    labels     .  . . . . . W  h a t ?  A  ...          the token after each; none where a row of a visual comes
    kinds      .  . . . . . asked ...  answered

Of a stream that is watched (VideoLLM-online, Chen et al., arXiv:2406.11816) the last row of each view learns to say
nothing, but that of the last view before an answer, which learns to begin. Views may have their time before them, as
words (Ren et al., TimeChat, arXiv:2312.02051; LITA, arXiv:2403.19046, has tokens of its own for it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data.media.timeline import STILL, Timeline
from parallel.errors import InputError
from parallel.sequence.packed import ASSISTANT, IGNORED, SILENCE, USER
from parallel.sequence.visual_tokens import Views

Ints = npt.NDArray[np.int64]
Times = Callable[[float], Ints]
ROW = -1  # the kind of a row of a visual, which nobody says


@dataclass(frozen=True)
class VisualSpan:
    """A stretch of a clip that a conversation sees.

    Attributes:
        row: of the index of clips.
        first, last: frames of it, counted as taken, [first, last).
        watched: whether silence is learned after each view.
        timeline: when the stored frames of the clip are shown in its source.
        stride: stored frames from one that is taken to the next.
    """

    row: int
    first: int
    last: int
    watched: bool = False
    timeline: Timeline = STILL
    stride: int = 1

    @property
    def frames(self) -> int:
        """How many."""
        return self.last - self.first


@dataclass(frozen=True, eq=False)
class ChatLayout:
    """A conversation as a model sees it.

    Attributes:
        tokens: [tokens]; the token of the place where a row of a visual stands.
        labels: [tokens], IGNORED where nothing is said next.
        kinds: [tokens] of the labels: USER, ASSISTANT, VISUAL_CODE or SILENCE.
        visual: [tokens], whether it is a row of a visual.
        starts: [views] of the rows of each view.
        rows: [views] of each.
        spans: of the visuals, in order; their views are those of `starts`, in order.
    """

    tokens: Ints
    labels: Ints
    kinds: Ints
    visual: npt.NDArray[np.bool_]
    starts: Ints
    rows: Ints
    spans: tuple[VisualSpan, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def before(self, stop: int) -> ChatLayout:
        """The layout of its first tokens; the spans are those of the whole."""
        views = int(np.searchsorted(self.starts, stop))
        return ChatLayout(
            self.tokens[:stop], self.labels[:stop], self.kinds[:stop], self.visual[:stop], self.starts[:views],
            self.rows[:views], self.spans,
        )  # fmt: skip

    @property
    def runs(self) -> tuple[tuple[Literal["words", "frame"], int], ...]:
        """Words, and rows of each view, in order, and how many (`parallel.masks.conversation`)."""
        found: list[tuple[Literal["words", "frame"], int]] = []
        at = 0
        for start, rows in zip(self.starts.tolist(), self.rows.tolist(), strict=True):
            found += [("words", start - at)] if start > at else []
            found.append(("frame", rows))
            at = start + rows
        return tuple(found + ([("words", len(self) - at)] if at < len(self) else []))


def layout_of(
    tokens: Ints,
    kinds: Ints,
    visual_positions: Ints,
    spans: Sequence[Sequence[VisualSpan]],
    views: Views | None,
    silence: int | None,
    times: Times | None = None,
) -> ChatLayout:
    """The layout of a conversation.

    Args:
        tokens, kinds: [row], of each token.
        visual_positions: which of them stand for visuals.
        spans: of each visual, at least one.
        views: of the model; None if there are no visuals.
        silence: the token that says nothing; None if there is none.
        times: the words of a time, which stand before the rows of each view; None for no times.

    Raises:
        InputError: a visual is watched, and there is no such token.
    """
    bounds: list[int] = [*visual_positions.tolist(), len(tokens)]
    first, stops = bounds[0], bounds[1:]
    pieces, said, at = [tokens[:first]], [kinds[:first]], first
    starts, rows, silent, speaks = ([np.zeros(0, np.int64)] for _ in range(4))
    for position, stop, of_visual in zip(visual_positions.tolist(), stops, spans, strict=True):
        for span in of_visual:
            assert views is not None, "conversations with visuals were refused"
            of_span, stamps = views.rows(span.frames), stamps_of(span, views, times)
            sizes = of_span + np.array([len(stamp) for stamp in stamps], np.int64)
            ends = at + sizes.cumsum()
            starts.append(ends - of_span)
            rows.append(of_span)
            for stamp, count in zip(stamps, of_span.tolist(), strict=True):
                pieces += [stamp, np.full(count, tokens[position])]
                said += [np.full(len(stamp), USER), np.full(count, ROW)]
            silent.append(ends[: len(ends) * span.watched] - 1)
            at += int(sizes.sum())
        if of_visual[-1].watched and ASSISTANT in kinds[position + 1 : stop]:
            of_all = np.concatenate(silent[-len(of_visual) :])  # its last clips may show nothing of this stretch
            speaks.append(of_all[-1:])  # after its last view the model begins to speak
        pieces.append(tokens[position + 1 : stop])
        said.append(kinds[position + 1 : stop])
        at += stop - position - 1
    placed, kind = np.concatenate(pieces), np.concatenate(said)
    labels, of_label = np.append(placed[1:], IGNORED), np.append(kind[1:], USER)
    labels[of_label == ROW] = IGNORED
    of_label = np.maximum(of_label, USER)
    begins = np.concatenate(speaks)
    quiet = np.setdiff1d(np.concatenate(silent), begins)
    if len(quiet):
        labels[quiet], of_label[quiet] = _silence(silence), SILENCE
    of_label[begins] = ASSISTANT
    flat = tuple(span for of_visual in spans for span in of_visual)
    return ChatLayout(placed, labels, of_label, kind == ROW, np.concatenate(starts), np.concatenate(rows), flat)


def stamps_of(span: VisualSpan, views: Views, times: Times | None) -> list[Ints]:
    """The words of the time of each view's first frame; none, if there are no times."""
    count = len(views.rows(span.frames))
    if times is None:
        return [np.zeros(0, np.int64)] * count
    frames = (span.first + view * views.temporal_pool for view in range(count))
    return [times(span.timeline.second(frame * span.stride)) for frame in frames]


def times_of(tokenizer: Any) -> Times:
    """Times as the words of a tokenizer: "1.5s"."""

    @lru_cache(maxsize=1 << 16)
    def words(tenths: int) -> Ints:
        return np.asarray(tokenizer(f"{tenths / 10:.1f}s", add_special_tokens=False)["input_ids"], np.int64)

    return lambda seconds: words(round(10 * seconds))


def _silence(found: int | None) -> int:
    if found is None:
        rule = "a stream is learned with a token that says nothing"
        raise InputError(rule, "the tokenizer has none, and no end of text", "add <|silence|> to the tokenizer")
    return found
