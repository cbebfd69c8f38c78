"""`ClipReader`: the frames or latents of stored clips that tokens of this rank are made of, and no others.

    row, epoch --key--> SampledClip: grid, first frame      tokens [start, stop) --stored frames--> slices of a shard

Clips are taken in any number, end to end: those of a pack (`data.streams.clip_source`), those that conversations see
(`data.streams.chat_source`), or one that a person asks about (`data.streams.visual_lookup`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from data.dataset import latents_file
from data.dataset.index import Index, Ints
from data.dataset.latents_file import Latents
from data.media.video import Frames
from data.planning.clip_sampling import Sampling
from data.planning.packing import Floats
from data.streams.shard_reader import ShardReader
from parallel.errors import InputError
from parallel.random import key_of
from parallel.sequence.geometry import Grid
from parallel.sequence.packed import Ranges, local_spans

Span = tuple[int, int, int]  # a document's position in the pack, and its tokens [start, stop)
OnError = Callable[[int, InputError], None]  # a document's position in the pack, and why it cannot be read


@dataclass(frozen=True)
class SampledClip:
    """What an epoch sees of a stored clip.

    Attributes:
        row: of the index.
        key: of all that is random about it: 64 bits from (seed, epoch, uid).
        grid: tokens along (t, y, x).
        start: the first stored frame.
    """

    row: int
    key: int
    grid: Grid
    start: int

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.grid[0] * self.grid[1] * self.grid[2]


@dataclass(frozen=True, eq=False)
class Piece:
    """A stretch of one document's tokens and what they are made of: frames or latents.

    Attributes:
        document: position in the pack's documents.
        start, stop: token positions inside the document; of a conversation, inside the clip that it sees.
        first_frame: of `frames`, or latent frame of `latents`, counted in the clip (after stride and start).
        frames: uint8 RGB [n, height, width, 3], cropped to whole tokens; None of a clip that is stored as latents.
        latents: raw means float32 [n, channels, h, w], cropped to whole tokens; None of a clip stored as frames.
    """

    document: int
    start: int
    stop: int
    first_frame: int
    frames: Frames | None
    latents: Latents | None = None


class ClipReader:
    """Clips of an index as a sampling takes them.

    Attributes:
        index: of the clips.
        sampling: what of a clip is taken.
        seed: of where stretches of clips begin.
        latents: [rows of the index] which clips are stored as latents.
        lengths: [rows of the index] tokens of each clip; 0 of those that do not fill one.
        shard_reader: of the bytes.
    """

    def __init__(self, index: Index, sampling: Sampling, seed: int, workers: int = 0) -> None:
        """Computes every length; reads nothing.

        Args:
            index: of one dataset or of several.
            sampling: what of a clip is taken.
            seed: of where stretches begin.
            workers: threads that decode; 0 decodes in the reader's own.

        Raises:
            InputError: no clip at all could be sampled so, or latents cannot.
        """
        sampling.check()
        self.index, self.sampling, self.seed = index, sampling, seed
        self.latents = latents_file.are_latents(index)
        latents_file.check(index, self.latents, sampling)
        self.shard_reader = ShardReader(index, sampling)
        shapes = (index.frames << 32) | (index.height << 16) | index.width
        keys, self._shape = np.unique(shapes, return_inverse=True)  # clips come in few sizes: each is computed once
        self._grids: list[Grid | None] = [
            sampling.grid(key >> 32, (key >> 16) & 0xFFFF, key & 0xFFFF) for key in keys.tolist()
        ]
        self.lengths: Ints = self.per_grid(lambda grid: grid[0] * grid[1] * grid[2]).astype(np.int64)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode") if workers else None

    def per_grid(self, value: Callable[[Grid], float]) -> Floats:
        """[rows of the index] what is true of a clip by its grid alone; 0 of those that do not fill a token."""
        return np.array([value(grid) if grid else 0.0 for grid in self._grids], np.float64)[self._shape]

    def grid(self, row: int) -> Grid:
        """Tokens of a clip along (t, y, x); it fills one."""
        grid = self._grids[int(self._shape[row])]
        assert grid is not None, f"row {row} fills no token"
        return grid

    def clip(self, row: int, epoch: int) -> SampledClip:
        """What an epoch sees of a clip that fills a token; no I/O."""
        return self.clip_of(row, key_of(self.seed, epoch, self.index.uid(row)))

    def clip_of(self, row: int, key: int) -> SampledClip:
        """The same where its key is known."""
        start = self.sampling.start(int(self.index.frames[row]), key_of(key, "start"), bool(self.latents[row]))
        return SampledClip(row, key, self.grid(row), start)

    def read(self, clips: Sequence[SampledClip], ranges: Ranges, on_error: OnError | None = None) -> list[Piece]:
        """The pieces of clips at these positions, in their order.

        Args:
            clips: laid end to end.
            ranges: [start, stop) of their tokens.
            on_error: told of each clip that cannot be read, and of why; its frames are then black, its latents 0.

        Raises:
            InputError: there is no `on_error`, and a shard is missing, cut short or changed; names shard, sample and
                part.
        """
        spans = local_spans([clip.tokens for clip in clips], ranges)
        groups = self._groups(clips, spans)
        mapped = self._threads.map if self._threads else map
        read = mapped(lambda group: self._pieces(clips, [spans[i] for i in group], on_error), groups)
        found = {
            i: piece for group, pieces in zip(groups, read, strict=True) for i, piece in zip(group, pieces, strict=True)
        }
        return [found[i] for i in range(len(spans))]

    def frames(self, row: int, most: int | None = None) -> Frames:
        """What the first epoch sees of a clip that is stored as frames: uint8 RGB [n, height, width, 3].

        Args:
            row: of the index.
            most: its first tokens; None for all.

        Raises:
            InputError: it is stored as latents, or cannot be read.
        """
        clip = self.clip(row, 0)
        (piece,) = self.read([clip], ((0, clip.tokens if most is None else min(most, clip.tokens)),))
        if piece.frames is None:
            found = f"{self.index.uid(row)} of {self.index.file(row)}: latents"
            raise InputError("frames are those of a dataset of frames", found, "give the dataset that was encoded")
        return piece.frames

    def bytes_of(self, clips: Sequence[SampledClip], ranges: Ranges) -> int:
        """Bytes that `read` of the same arguments would read from the shards."""
        spans = local_spans([clip.tokens for clip in clips], ranges)
        together = [[spans[i] for i in group] for group in self._groups(clips, spans)]
        reader = self.shard_reader
        return sum(reader.bytes_of(clips[group[0][0]].row, *self._reach(clips, group)) for group in together)

    def notes(self) -> Iterator[str]:
        """What a person should know: clips that are shorter than asked."""
        longest, frames, stride = int(self.index.frames.max()), self.sampling.frames or 0, self.sampling.stride
        if frames * stride > longest:
            asked = f"data.frames={frames} at data.stride={stride}"
            yield f"{asked} is more than any clip has: clips are taken whole, the longest has {longest} frames"

    def close(self) -> None:
        """Closes the shards; they open again when they are read."""
        self.shard_reader.close()

    def __enter__(self) -> ClipReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "shard_reader"):
            self.close()

    def _groups(self, clips: Sequence[SampledClip], spans: list[Span]) -> list[list[int]]:
        """Positions of spans, those together that share a slice: it is read and decoded once, and what lies between."""
        groups: list[list[int]] = []
        for i in sorted(range(len(spans)), key=lambda i: spans[i]):
            before = spans[groups[-1][-1]] if groups else None
            if before is not None and before[0] == spans[i][0]:
                row, (_, begin, _) = clips[before[0]].row, self._stored(clips, spans[i])
                if self.shard_reader.shares(row, self._stored(clips, before)[2], begin):
                    groups[-1].append(i)
                    continue
            groups.append([i])
        return groups

    def _reach(self, clips: Sequence[SampledClip], spans: list[Span]) -> tuple[int, int]:
        """What is stored under spans of one clip, from the first to the last."""
        stored = [self._stored(clips, span) for span in spans]
        return min(begin for _, begin, _ in stored), max(end for _, _, end in stored)

    def _pieces(self, clips: Sequence[SampledClip], spans: list[Span], on_error: OnError | None) -> list[Piece]:
        """Of spans of one clip that are read together."""
        number, reader = spans[0][0], self.shard_reader
        row, (low, high) = clips[number].row, self._reach(clips, spans)
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
            first, begin, end = self._stored(clips, span)
            part = whole[(begin - low) // step : -(-(end - low) // step)]
            pieces.append(Piece(*span, first, *((None, part) if as_latents else (part, None))))
        return pieces

    def _stored(self, clips: Sequence[SampledClip], span: Span) -> tuple[int, int, int]:
        """What tokens of a clip are made of: the first frame or latent frame, counted as taken, and those stored,
        [begin, end).
        """
        number, start, stop = span
        grid, begin = clips[number].grid, clips[number].start
        if self.latents[clips[number].row]:
            first, last = self.sampling.latent_range(grid, start, stop)
            begin //= self.sampling.geometry.stride[0]
            return first, begin + first, begin + last
        first, last = self.sampling.frame_range(grid, start, stop)
        stride = self.sampling.stride
        return first, begin + first * stride, begin + (last - 1) * stride + 1
