"""`Stream`: an index and a sampling become packs, and packs become the frames or latents that one rank needs.

`packs` is arithmetic and the same everywhere. `read` takes the token positions that this rank holds and touches only
the samples under them, and of those only what the tokens depend on: frames, or for a clip that is stored as latents,
latent frames.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data.dataset import latents_file
from data.dataset.index import Index, Ints
from data.dataset.latents_file import Latents
from data.media.video import Frames
from data.planning.clip_sampling import Choice, Sampling
from data.planning.data_plan import Bin, Cursor, DataPlan, window_for
from data.planning.fitting import filling, fitting
from data.planning.mix import mix_of
from data.planning.packing import Floats
from data.streams.reader import Reader
from parallel.errors import InputError
from parallel.random import key_of
from parallel.sequence.geometry import Grid
from parallel.sequence.packed import Document, Ranges, local_spans

__all__ = ["Pack", "Piece", "Sampling", "Stream"]


Span = tuple[int, int, int]  # a document's position in the pack, and its tokens [start, stop)


@dataclass(frozen=True, eq=False)
class Piece:
    """A stretch of one document's tokens and what they are made of: frames or latents.

    Attributes:
        document: position in the pack's documents.
        start, stop: token positions inside the document.
        first_frame: of `frames`, or latent frame of `latents`, counted in the document (after stride and start).
        frames: uint8 RGB [n, height, width, 3], cropped to whole tokens; None of a clip that is stored as latents.
        latents: raw means float32 [n, channels, h, w], cropped to whole tokens; None of a clip stored as frames.
    """

    document: int
    start: int
    stop: int
    first_frame: int
    frames: Frames | None
    latents: Latents | None = None


@dataclass(frozen=True)
class Pack:
    """One packed sequence before it is read.

    Attributes:
        rows: of the index, one per document.
        documents: what every rank knows of it.
        starts: the first stored frame of each.
        epochs: of its source, in which each is seen.
        cost: of computing it, in the unit of the stream's `cost`.
    """

    rows: tuple[int, ...]
    documents: tuple[Document, ...]
    starts: tuple[int, ...]
    epochs: tuple[int, ...]
    cost: float

    @property
    def tokens(self) -> int:
        """Length of the packed sequence."""
        return sum(document.tokens for document in self.documents)


Words = Callable[[Ints, Ints], Floats]  # bytes of captions, tokens of their clips -> what the words add to the cost


def tokens_squared(grid: Grid) -> float:
    """The cost of full attention."""
    return float(grid[0] * grid[1] * grid[2]) ** 2


class Stream:
    """Packs of a dataset, or of a mix of datasets, for ever, and their frames or latents.

    Attributes:
        lengths: [rows of the index] tokens of each sample; 0 for those left out.
        latents: [rows of the index] which samples are stored as latents.
        of_words: [rows of the index] what of the cost of each sample its caption is.
        plan: which samples make which pack; its sample numbers count the rows that are not left out.
        reader: of the shards.
    """

    def __init__(
        self,
        index: Index,
        sampling: Sampling,
        pack_tokens: int,
        seed: int,
        window: int | None = None,
        packs_per_step: int = 1,
        weights: Mapping[str, float] | None = None,
        cost: Callable[[Grid], float] = tokens_squared,
        caption: Choice = "short",
        workers: int = 0,
        words: Words | None = None,
    ) -> None:
        """Computes every length; reads nothing.

        Args:
            index: of one dataset or of several.
            sampling: what of a clip is trained on.
            pack_tokens: of a packed sequence.
            seed: of all that is random.
            window: samples that are packed together; None chooses.
            packs_per_step: packs of one step are of about the same cost.
            weights: of the datasets of the index, by name and in their order; None: each as large as it is.
            cost: of computing a document of so many tokens along (t, y, x).
            caption: which one, where a sample has two.
            workers: threads that decode; 0 decodes in the reader's own.
            words: cost of captions, beside that of the clips; None counts none.

        Raises:
            InputError: no sample fills a token, some sample is longer than a pack, or latents cannot be sampled so.
        """
        sampling.check()
        for name, value in (("pack_tokens", pack_tokens), ("window", window), ("packs_per_step", packs_per_step)):
            if value is not None and value < 1:
                raise InputError(f"data.{name} is at least 1", str(value), f"give data.{name} a positive number")
        self.index, self.sampling, self.pack_tokens, self.seed, self.caption = (
            index,
            sampling,
            pack_tokens,
            seed,
            caption,
        )
        self.latents = latents_file.are_latents(index)
        latents_file.check(index, self.latents, sampling)
        self.reader = Reader(index, sampling)
        self.lengths, costs = _per_row(index, sampling, cost)
        self.of_words = np.zeros(len(costs))
        if words is not None:
            self.of_words = np.where(self.lengths > 0, words(index.caption_bytes(caption), self.lengths), 0.0)
        costs = costs + self.of_words
        self._rows = np.flatnonzero(self.lengths)
        lengths = self.lengths[self._rows]
        _check_lengths(self, lengths)
        sizes = np.diff(np.searchsorted(self._rows, index.starts)).tolist()
        mix = mix_of(sizes, weights) if weights else mix_of([len(lengths)])
        window = window or window_for(lengths, pack_tokens, packs_per_step)
        self.plan = DataPlan(lengths, costs[self._rows], mix, pack_tokens, packs_per_step, seed, window)
        self._window_at = lru_cache(maxsize=4)(self.plan.window_at)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode") if workers else None

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """(source file, reason) of samples that do not fill one token."""
        empty = (int(row) for row in np.flatnonzero(self.lengths == 0))
        return [(self.index.file(row), _too_small(self.index, self.sampling, row)) for row in empty]

    def uid(self, sample: int) -> str:
        """The id of a sample of the plan."""
        return self.index.uid(int(self._rows[sample]))

    def dataset_of(self, row: int) -> int:
        """Which source of the mix a row of the index is of."""
        return bisect_right(self.index.starts, row) - 1 if len(self.plan.mix.sizes) > 1 else 0

    def packs(self, cursor: Cursor, count: int) -> tuple[list[Pack], Cursor]:
        """The `count` packs from `cursor` on, and the cursor after them; no I/O.

        Raises:
            InputError: the cursor belongs to another dataset or other settings.
        """
        bins, after = self.plan.walk(self._window_at, cursor, count)
        return [self._pack(b) for b in bins], after

    def read(
        self, pack: Pack, ranges: Ranges, on_error: Callable[[int, InputError], None] | None = None
    ) -> list[Piece]:
        """The pieces of documents at these global positions, in their order.

        Args:
            pack: of this stream.
            ranges: global token positions held here.
            on_error: told of each document that cannot be read, and of why; its frames are then black, its latents 0.

        Raises:
            InputError: there is no `on_error`, and a shard is missing, cut short or changed; names shard, sample and
                part.
        """
        spans = local_spans([document.tokens for document in pack.documents], ranges)
        groups = self._groups(pack, spans)
        mapped = self._threads.map if self._threads else map
        read = mapped(lambda group: self._pieces(pack, [spans[i] for i in group], on_error), groups)
        found = {
            i: piece for group, pieces in zip(groups, read, strict=True) for i, piece in zip(group, pieces, strict=True)
        }
        return [found[i] for i in range(len(spans))]

    def bytes_of(self, pack: Pack, ranges: Ranges) -> int:
        """Bytes that `read` of the same arguments would read from the shards."""
        spans = local_spans([document.tokens for document in pack.documents], ranges)
        together = [[spans[i] for i in group] for group in self._groups(pack, spans)]
        return sum(self.reader.bytes_of(pack.rows[group[0][0]], *self._reach(pack, group)) for group in together)

    def close(self) -> None:
        """Closes the shards; they open again when they are read."""
        self.reader.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "reader"):
            self.close()

    def pack_of(self, rows: Sequence[int], epochs: Sequence[int], cost: float = 0.0) -> Pack:
        """The pack of any rows of the index that are not left out, each seen in an epoch."""
        documents = tuple(self._document(*at) for at in zip(rows, epochs, strict=True))
        starts = tuple(self._start(*at) for at in zip(rows, documents, strict=True))
        return Pack(tuple(rows), documents, starts, tuple(epochs), cost)

    def _pack(self, found: Bin) -> Pack:
        rows = [int(self._rows[sample]) for sample in found.samples]
        return self.pack_of(rows, found.epochs, float(self.plan.costs[list(found.samples)].sum()))

    def _start(self, row: int, document: Document) -> int:
        return self.sampling.start(int(self.index.frames[row]), key_of(document.key, "start"), bool(self.latents[row]))

    def _document(self, row: int, epoch: int) -> Document:
        index, uid = self.index, self.index.uid(row)
        grid = self.sampling.grid(int(index.frames[row]), int(index.height[row]), int(index.width[row]))
        assert grid is not None, f"row {row} was left out"
        return Document(uid, key_of(self.seed, epoch, uid), index.caption(row, self.caption), grid)

    def _groups(self, pack: Pack, spans: list[Span]) -> list[list[int]]:
        """Positions of spans, those together that share a slice: it is read and decoded once, and what lies between."""
        groups: list[list[int]] = []
        for i in sorted(range(len(spans)), key=lambda i: spans[i]):
            before = spans[groups[-1][-1]] if groups else None
            if before is not None and before[0] == spans[i][0]:
                row, (_, begin, _) = pack.rows[before[0]], self._stored(pack, spans[i])
                if self.reader.shares(row, self._stored(pack, before)[2], begin):
                    groups[-1].append(i)
                    continue
            groups.append([i])
        return groups

    def _reach(self, pack: Pack, spans: list[Span]) -> tuple[int, int]:
        """What is stored under spans of one document, from the first to the last."""
        stored = [self._stored(pack, span) for span in spans]
        return min(begin for _, begin, _ in stored), max(end for _, _, end in stored)

    def _pieces(self, pack: Pack, spans: list[Span], on_error: Callable[[int, InputError], None] | None) -> list[Piece]:
        """Of spans of one document that are read together."""
        number, reader = spans[0][0], self.reader
        row, (low, high) = pack.rows[number], self._reach(pack, spans)
        as_latents = bool(self.latents[row])
        try:
            whole = reader.latents(row, low, high) if as_latents else reader.frames(row, low, high)
        except InputError as error:
            if on_error is None:
                raise
            on_error(number, error)
            whole = reader.zeros(row, low, high) if as_latents else reader.black(row, low, high)
        step, pieces = 1 if as_latents else self.sampling.stride, []
        for span in spans:
            first, begin, end = self._stored(pack, span)
            part = whole[(begin - low) // step : -(-(end - low) // step)]
            pieces.append(Piece(*span, first, *((None, part) if as_latents else (part, None))))
        return pieces

    def _stored(self, pack: Pack, span: Span) -> tuple[int, int, int]:
        """What tokens of a document are made of: the first frame or latent frame, counted as taken, and those stored,
        [begin, end).
        """
        number, start, stop = span
        grid, begin = pack.documents[number].grid, pack.starts[number]
        if self.latents[pack.rows[number]]:
            first, last = self.sampling.latent_range(grid, start, stop)
            begin //= self.sampling.geometry.stride[0]
            return first, begin + first, begin + last
        first, last = self.sampling.frame_range(grid, start, stop)
        stride = self.sampling.stride
        return first, begin + first * stride, begin + (last - 1) * stride + 1


def _per_row(index: Index, sampling: Sampling, cost: Callable[[Grid], float]) -> tuple[Ints, Floats]:
    """Tokens and cost of each row; clips come in few sizes, so each is computed once."""
    key = (index.frames << 32) | (index.height << 16) | index.width
    keys, which = np.unique(key, return_inverse=True)
    grids = [sampling.grid(key >> 32, (key >> 16) & 0xFFFF, key & 0xFFFF) for key in keys.tolist()]
    lengths = np.array([grid[0] * grid[1] * grid[2] if grid else 0 for grid in grids], np.int64)
    costs = np.array([cost(grid) if grid else 0.0 for grid in grids], np.float64)
    return lengths[which], costs[which]


def _check_lengths(stream: Stream, lengths: Ints) -> None:
    tokens, total = stream.pack_tokens, len(stream.lengths)
    if len(lengths) == 0:
        file, reason = stream.left_out[0]
        found = f"none of {total} does; {file}: {reason}"
        raise InputError("a sample fills at least one token", found, to_fill(stream))
    if lengths.min() > tokens:
        raise InputError(
            "a pack holds at least the smallest sample",
            f"data.pack_tokens={tokens}, and the samples have {lengths.min()} to {lengths.max()} tokens",
            _remedy(stream),
        )
    if lengths.max() > tokens:
        longer = int((lengths > tokens).sum())
        raise InputError(
            f"a sample fits into a pack of data.pack_tokens={tokens}",
            f"{longer} of {total} samples are longer, the longest has {lengths.max()} tokens",
            _remedy(stream),
        )


def _remedy(stream: Stream) -> str:
    """Settings with which every sample fits, tried on the shapes of the dataset."""
    rows = np.flatnonzero(stream.lengths)
    found = fitting(stream.sampling, _shapes(stream.index, rows), stream.pack_tokens, bool(stream.latents.any()))
    return ", or ".join(found)


def _shapes(index: Index, rows: Ints) -> list[tuple[int, int, int]]:
    """(frames, height, width) of these rows, each once."""
    table = np.stack((index.frames[rows], index.height[rows], index.width[rows]))
    return [(int(n), int(y), int(x)) for n, y, x in np.unique(table, axis=1).T]


def _least(sampling: Sampling) -> str:
    """What one token takes."""
    geometry = sampling.geometry
    cell_y, cell_x = (geometry.stride[n] * geometry.patch[n] for n in (1, 2))
    return f"at least {geometry.frames_per_token} frames of {cell_y} x {cell_x} pixels"


def to_fill(stream: Stream) -> str:
    """Settings with which the samples that are left out fill a token, or what clips that does."""
    shapes = _shapes(stream.index, np.flatnonzero(stream.lengths == 0))
    return ", or ".join(filling(stream.sampling, shapes)) or f"clips of {_least(stream.sampling)}"


def _too_small(index: Index, sampling: Sampling, row: int) -> str:
    least, (height, width) = sampling.geometry.frames_per_token, (index.height[row], index.width[row])
    if not sampling.frames_used(int(index.frames[row])):
        return f"{index.frames[row]} frames at a stride of {sampling.stride} do not fill a token of {least} frames"
    tall, wide = (sampling.geometry.stride[axis] * sampling.geometry.patch[axis] for axis in (1, 2))
    return f"{height} x {width} pixels do not fill a token of {tall} x {wide}"
