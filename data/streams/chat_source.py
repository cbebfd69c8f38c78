"""`ChatSource`: conversations, each a sample of `data.streams.pack_stream`, and the frames that they see.

Lengths follow from the indexes alone, so that packs are planned before a tar is opened, as for clips. The frames of all
visuals of a pack are one long row of frames, a clip after the other; a rank reads those that it is dealt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.chat.chat_index import ChatIndex
from data.planning.packing import Floats
from data.planning.permutation import Ints
from data.streams.chat_layout import ChatLayout, Times, layout_of
from data.streams.clip_reader import ClipReader, OnError, Piece
from data.streams.pack_stream import Pack
from data.streams.visual_spans import VisualSpans
from parallel.errors import InputError
from parallel.random import key_of
from parallel.sequence.packed import Document, Ranges
from parallel.sequence.visual_tokens import Views


@dataclass(frozen=True)
class ChatOptions:
    """How a model takes conversations.

    Attributes:
        views: rows of frames; None if it sees nothing.
        positions: that it knows; None for any number.
        rope: rotary frequencies, where they differ from its own.
        times: words of the time of each view; None for no times.
    """

    views: Views | None = None
    positions: int | None = None
    rope: tuple[tuple[str, Any], ...] = ()
    times: Times | None = None


class ChatSource:
    """See `data.streams.pack_stream.SampleSource`; ranges that are read count frames of all visuals of the pack.

    Attributes:
        index: of the conversations.
        clips: frames of the visuals, a frame a token; None if no conversation has any.
        options: of the model.
        seed: of the order.
        lengths: [rows] tokens of each, rows of visuals counted.
        costs: [rows].
        spans: of the visuals.
    """

    def __init__(
        self,
        index: ChatIndex,
        clips: ClipReader | None,
        options: ChatOptions,
        seed: int,
        cost: Callable[[int], float] = lambda tokens: float(tokens) ** 2,
    ) -> None:
        """Computes every length; reads no frames.

        Args:
            index: of one folder or of several.
            clips: of the visuals.
            options: of the model.
            seed: of the order; that of `clips`.
            cost: of a document of so many tokens.

        Raises:
            InputError: a conversation has visuals and the model cannot see, is longer than the positions, or sees a
                stretch of time of clips that are cut by chance.
        """
        self.index, self.clips, self.options, self.seed = index, clips, options, seed
        self.spans = VisualSpans(index, clips, options.views, options.times)
        self.lengths: Ints = index.lengths + self.spans.tokens
        self._refuse_positions()
        unique, which = np.unique(self.lengths, return_inverse=True)
        self.costs: Floats = np.array([cost(int(n)) for n in unique], np.float64)[which]

    @property
    def digests(self) -> tuple[str, ...]:
        """Identity of the conversations of each dataset, and of the clips that they are about."""
        return (*self.index.digests, *(digest for _, digest in self.index.clips))

    def check_lengths(self, pack_tokens: int) -> None:
        """Conversations fit into a pack.

        Raises:
            InputError: one does not.
        """
        uid, tokens = self._longest()
        if tokens > pack_tokens:
            longer = int((self.lengths > pack_tokens).sum())
            raise InputError(
                f"a sample fits into a pack of data.pack_tokens={pack_tokens}",
                f"{longer} of {len(self.lengths)} conversations are longer, the longest, {uid}, has {tokens} tokens",
                f"data.pack_tokens={tokens}, or fewer frames: data.frames, data.stride",
            )

    def document(self, row: int, epoch: int) -> Document:
        """A conversation as an epoch sees it: all of it, its frames as `read` takes them."""
        uid = self.index.uid(row)
        return Document(uid, key_of(self.seed, epoch, uid), self.index.text(row), (int(self.lengths[row]), 1, 1))

    def layout(self, row: int) -> ChatLayout:
        """Tokens, labels and rows of visuals of a conversation."""
        silence, options = self.index.tokenizer["silence"], self.options
        tokens = self.index.tokens(row)
        return layout_of(*tokens, self.spans.by_visual(row), options.views, silence, options.times)

    def read(self, pack: Pack, ranges: Ranges, on_error: OnError | None = None) -> list[Piece]:
        """Frames at these positions of all that the conversations of a pack see, laid end to end: see `SampleSource`.

        A clip is seen as its own key says, whatever conversation it is in: two about one clip see the same frames.
        """
        assert self.clips is not None, "conversations with visuals have clips"
        spans = [
            (number, span) for number, row in enumerate(pack.rows) for of in self.spans.by_visual(row) for span in of
        ]
        clips = [self.clips.clip(span.row, pack.epochs[number]) for number, span in spans]
        wanted = []  # of the whole clips, end to end
        for begin, end in ranges:
            seen, at = 0, 0  # frames that are seen, and those of whole clips, so far
            for (_, span), clip in zip(spans, clips, strict=True):
                low, high = max(begin - seen, 0), min(end - seen, span.frames)
                if low < high:
                    wanted.append((at + span.first + low, at + span.first + high))
                seen, at = seen + span.frames, at + clip.tokens

        def of_document(number: int, error: InputError) -> None:
            assert on_error is not None, "errors are raised where nobody is told"
            on_error(spans[number][0], error)

        pieces = self.clips.read(clips, tuple(wanted), of_document if on_error else None)
        return [replace(piece, document=spans[piece.document][0]) for piece in pieces]

    def shards(self) -> dict[Path, int]:
        """The bytes of each file of conversations, and those that each tar of clips has at least."""
        return {**self.index.shards(), **(self.clips.index.shards() if self.clips else {})}

    def notes(self) -> Iterator[str]:
        """What is shorter than asked."""
        if self.clips is not None:
            yield from self.clips.notes()

    def close(self) -> None:
        """Closes the shards of the clips."""
        if self.clips is not None:
            self.clips.close()

    def _longest(self) -> tuple[str, int]:
        """The id of the longest conversation, and its tokens."""
        row = int(self.lengths.argmax())
        return self.index.uid(row), int(self.lengths[row])

    def _refuse_positions(self) -> None:
        uid, tokens = self._longest()
        positions = self.options.positions
        if positions is not None and tokens > positions:
            raise InputError(
                "a conversation is no longer than the positions that the model knows",
                f"{uid}: {tokens:,} tokens, {positions:,} positions",
                "fewer frames (data.frames, data.stride) or tokens of each (model.spatial_pool, "
                f"model.temporal_pool); or a longer context: data.max_positions={tokens}, with data.rope_scaling",
            )
