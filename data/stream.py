"""`Stream`: an index and a sampling become packs, and packs become the frames that one rank needs.

`packs` is arithmetic and the same everywhere. `read` takes the token positions that this rank holds and touches only
the samples under them: one `pread` by offset per sample, its hash checked, and only the frames that those tokens
depend on are decoded. Frames are converted and scaled one by one, so a slice is bit for bit that slice of the whole.

Price: about 0.7 ms for a clip of 8 frames of 32 x 32 on one core, of which opening the mp4 is a fifth.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data import plan, video
from data.index import Index, Ints
from data.plan import WINDOW, Bin, Cursor
from data.sampling import Sampling
from data.shards import digest_bytes
from data.video import Frames
from parallel.errors import InputError
from parallel.packed import Document, Ranges, local_spans
from parallel.random import key_of

__all__ = ["Pack", "Piece", "Sampling", "Stream"]

OPEN_FILES = 256
CACHE_BYTES = 128 << 20  # of decoded frames, in each rank


@dataclass(frozen=True, eq=False)
class Piece:
    """A stretch of one document's tokens and the frames that they depend on.

    Attributes:
        document: position in the pack's documents.
        start, stop: token positions inside the document.
        first_frame: of `frames`, counted in the document (after stride and start).
        frames: uint8 RGB [n, height, width, 3], cropped to whole tokens.
    """

    document: int
    start: int
    stop: int
    first_frame: int
    frames: Frames


@dataclass(frozen=True)
class Pack:
    """One packed sequence before it is read.

    Attributes:
        rows: of the index, one per document.
        documents: what every rank knows of it.
        starts: the first stored frame of each.
    """

    rows: tuple[int, ...]
    documents: tuple[Document, ...]
    starts: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Length of the packed sequence."""
        return sum(document.tokens for document in self.documents)


class Stream:
    """Packs of a dataset for ever, and their frames.

    Attributes:
        lengths: [rows of the index] tokens of each sample; 0 for those left out.
        left_out: (uid, reason) of samples that do not fill one token.
    """

    def __init__(self, index: Index, sampling: Sampling, pack_tokens: int, seed: int, window: int = WINDOW) -> None:
        """Computes every length; reads nothing.

        Raises:
            InputError: no sample fills a token, or some sample is longer than a pack.
        """
        sampling.check()
        for name, value in (("pack_tokens", pack_tokens), ("window", window)):
            if value < 1:
                raise InputError(f"data.{name} is at least 1", str(value), f"give data.{name} a positive number")
        self.index, self.sampling, self.pack_tokens, self.seed, self.window = index, sampling, pack_tokens, seed, window
        self.lengths = _lengths(index, sampling)
        empty = (int(row) for row in np.flatnonzero(self.lengths == 0))
        self.left_out = [(index.uid(row), _too_small(index, sampling, row)) for row in empty]
        self._rows = np.flatnonzero(self.lengths)
        _check_lengths(self, self.lengths[self._rows])
        self._order = lru_cache(maxsize=2)(lambda epoch: plan.epoch_order(len(self._rows), seed, epoch))
        self._bins = lru_cache(maxsize=4)(self._window_bins)
        self._files: OrderedDict[str, int] = OrderedDict()
        self._cache: OrderedDict[tuple[int, int, int], Frames] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()  # a reader may run ahead in a thread of its own

    def packs(self, cursor: Cursor, count: int) -> tuple[list[Pack], Cursor]:
        """The `count` packs from `cursor` on, and the cursor after them; no I/O.

        Raises:
            InputError: the cursor belongs to another dataset or other settings.
        """
        bins, after = plan.walk(self._bins, len(self._rows), self.window, cursor, count)
        return [self._pack(b) for b in bins], after

    def read(self, pack: Pack, ranges: Ranges) -> list[Piece]:
        """The pieces of documents at these global positions, in their order.

        Args:
            pack: of this stream.
            ranges: global token positions held here.

        Raises:
            InputError: a shard is missing, cut short or changed; names shard, sample and part.
        """
        spans = local_spans([document.tokens for document in pack.documents], ranges)
        return [self._piece(pack, number, start, stop) for number, start, stop in spans]

    def close(self) -> None:
        """Closes the shards; they open again when they are read."""
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()

    def _window_bins(self, epoch: int, at: int) -> Sequence[Bin]:
        lengths = self.lengths[self._rows]
        return plan.window_bins(lengths, self.pack_tokens, self.seed, epoch, at, self.window, self._order(epoch))

    def _pack(self, found: Bin) -> Pack:
        rows = tuple(int(self._rows[sample]) for sample in found.samples)
        documents = tuple(self._document(row, found.epoch) for row in rows)
        frames = (int(self.index.frames[row]) for row in rows)
        starts = tuple(self.sampling.start(f, key_of(d.key, "start")) for f, d in zip(frames, documents, strict=True))
        return Pack(rows, documents, starts)

    def _document(self, row: int, epoch: int) -> Document:
        index, uid = self.index, self.index.uid(row)
        grid = self.sampling.grid(int(index.frames[row]), int(index.height[row]), int(index.width[row]))
        assert grid is not None, f"row {row} was left out"
        return Document(uid, key_of(self.seed, epoch, uid), index.caption(row), grid)

    def _piece(self, pack: Pack, number: int, start: int, stop: int) -> Piece:
        first, last = self.sampling.frame_range(pack.documents[number].grid, start, stop)
        begin = pack.starts[number] + first * self.sampling.stride
        end = pack.starts[number] + (last - 1) * self.sampling.stride + 1
        return Piece(number, start, stop, first, self._decoded(pack.rows[number], begin, end))

    def _decoded(self, row: int, begin: int, end: int) -> Frames:
        """Frames as trained on; small clips come again and again, so the latest stay in memory."""
        key = (row, begin, end)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        frames = self._decode(row, begin, end)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = frames
                self._cached_bytes += frames.nbytes
            while self._cached_bytes > CACHE_BYTES:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return frames

    def _decode(self, row: int, begin: int, end: int) -> Frames:
        sampling, data = self.sampling, self._part(row)
        stored = int(self.index.height[row]), int(self.index.width[row])
        try:
            frames = video.decode(data, begin, end, sampling.stride, sampling.scaled(*stored))
        except InputError as error:
            raise _bad_part(self.index, row, error.value) from error
        height, width = sampling.crop(*stored)
        top, left = (frames.shape[1] - height) // 2, (frames.shape[2] - width) // 2
        cropped = frames[:, top : top + height, left : left + width]
        return cropped if cropped.shape == frames.shape else cropped.copy()  # a view would keep the rest

    def _part(self, row: int) -> bytes:
        part = self.index.part(row)
        try:
            with self._lock:  # held while reading, so that no other thread closes the file
                data = os.pread(self._file(self.index.shard(row)), part.size, part.offset)
        except OSError as error:
            raise _bad_part(self.index, row, error.strerror or str(error)) from error
        if len(data) != part.size:
            raise _bad_part(self.index, row, f"cut short: {len(data)} of {part.size} bytes")
        if digest_bytes(data) != part.hash:
            raise _bad_part(self.index, row, f"BLAKE3 {digest_bytes(data)}, the index says {part.hash}")
        return data

    def _file(self, shard: str) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
        else:
            self._files[shard] = os.open(self.index.folder / shard, os.O_RDONLY)
            if len(self._files) > OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        return self._files[shard]


def _lengths(index: Index, sampling: Sampling) -> Ints:
    """Tokens of each row; clips come in few sizes, so each is computed once."""
    sizes, which = np.unique(np.stack((index.frames, index.height, index.width), axis=1), axis=0, return_inverse=True)
    return np.array([sampling.length(*map(int, size)) for size in sizes], np.int64)[which.reshape(-1)]


def _check_lengths(stream: Stream, lengths: Ints) -> None:
    tokens, total = stream.pack_tokens, len(stream.lengths)
    if len(lengths) == 0:
        uid, reason = stream.left_out[0]
        raise InputError(
            "a sample fills at least one token", f"none of {total} does; {uid}: {reason}", "use longer or larger clips"
        )
    if lengths.min() > tokens:
        raise InputError(
            "a pack holds at least the smallest sample",
            f"data.pack_tokens={tokens}, and the samples have {lengths.min()} to {lengths.max()} tokens",
            _remedy(stream, lengths),
        )
    if lengths.max() > tokens:
        longer = int((lengths > tokens).sum())
        raise InputError(
            f"a sample fits into a pack of data.pack_tokens={tokens}",
            f"{longer} of {total} samples are longer, the longest has {lengths.max()} tokens",
            _remedy(stream, lengths),
        )


def _remedy(stream: Stream, lengths: Ints) -> str:
    """More tokens, or fewer frames: as many as fit for the sample with the most tokens per frame."""
    index, sampling, geometry = stream.index, stream.sampling, stream.sampling.geometry
    larger = f"data.pack_tokens={lengths.max()}"
    grids = [
        sampling.grid(*size)
        for size in {
            (int(index.frames[r]), int(index.height[r]), int(index.width[r])) for r in np.flatnonzero(stream.lengths)
        }
    ]
    rows = stream.pack_tokens // max(grid[1] * grid[2] for grid in grids if grid)  # tokens in time that fit
    frames = 0
    if rows:
        cells = rows * geometry.patch[0]
        frames = 1 + (cells - 1) * geometry.stride[0] if geometry.causal else cells * geometry.stride[0]
    return f"{larger}, or data.frames={frames}" if frames else f"{larger}, or a smaller data.size"


def _too_small(index: Index, sampling: Sampling, row: int) -> str:
    least, (height, width) = sampling.geometry.frames_per_token, (index.height[row], index.width[row])
    if not sampling.frames_used(int(index.frames[row])):
        return f"{index.frames[row]} frames at a stride of {sampling.stride} do not fill a token of {least} frames"
    return f"{height} x {width} pixels do not fill a token"


def _bad_part(index: Index, row: int, reason: str) -> InputError:
    return InputError(
        "every part of a sample is as it was written",
        f"shard {index.folder / index.shard(row)}, sample {index.uid(row)}, part {index.media(row)}: {reason}",
        "restore the shard from a copy, or delete the dataset and prepare it again",
    )
