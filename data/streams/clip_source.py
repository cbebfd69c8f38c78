"""`ClipSource`: clips with their captions, each a sample of `data.streams.pack_stream`.

A document is a clip, its tokens those of its grid, and its text the caption. What is read of it are the frames under
the tokens of a rank; or latent frames, of a clip that is stored as latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data.dataset.index import Index, Ints
from data.planning.clip_sampling import Choice, Sampling
from data.planning.fitting import filling, fitting
from data.planning.packing import Floats
from data.streams.clip_reader import ClipReader, OnError, Piece, SampledClip
from data.streams.pack_stream import Pack
from parallel.errors import InputError
from parallel.random import key_of
from parallel.sequence.geometry import Grid
from parallel.sequence.packed import Document, Ranges

CaptionCost = Callable[[Ints, Ints], Floats]  # bytes of captions, tokens of their clips -> what is added to the cost
LEFT_OUT_SHOWN = 3


def tokens_squared(grid: Grid) -> float:
    """The cost of full attention."""
    return float(grid[0] * grid[1] * grid[2]) ** 2


class ClipSource:
    """See `data.streams.pack_stream.SampleSource`; ranges that are read count tokens of the pack.

    Attributes:
        reader: of the clips.
        index: of the clips.
        seed: of the reader.
        lengths: [rows of the index] tokens of each clip; 0 for those left out.
        costs: [rows of the index] of each clip with its caption.
        caption_costs: [rows of the index] what of them the caption is.
    """

    def __init__(
        self,
        reader: ClipReader,
        cost: Callable[[Grid], float] = tokens_squared,
        caption: Choice = "short",
        caption_cost: CaptionCost | None = None,
    ) -> None:
        """Computes every cost; reads nothing.

        Args:
            reader: of the clips.
            cost: of computing a clip of so many tokens along (t, y, x).
            caption: which one, where a sample has two.
            caption_cost: of captions, beside that of the clips; None counts none.
        """
        self.reader, self.caption = reader, caption
        self.index, self.seed, self.lengths = reader.index, reader.seed, reader.lengths
        self.caption_costs = np.zeros(len(self.index))
        if caption_cost is not None:
            sizes = self.index.caption_bytes(caption)
            self.caption_costs = np.where(self.lengths > 0, caption_cost(sizes, self.lengths), 0.0)
        self.costs: Floats = reader.per_grid(cost) + self.caption_costs

    @property
    def sampling(self) -> Sampling:
        """What of a clip is trained on."""
        return self.reader.sampling

    @property
    def digests(self) -> tuple[str, ...]:
        """Identity of the samples of each dataset."""
        return self.index.digests

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """(source file, reason) of clips that do not fill one token."""
        empty = (int(row) for row in np.flatnonzero(self.lengths == 0))
        return [(self.index.file(row), _too_small(self.index, self.sampling, row)) for row in empty]

    def check_lengths(self, pack_tokens: int) -> None:
        """Clips fit into a pack.

        Raises:
            InputError: no clip fills a token, or some clip is longer than a pack.
        """
        lengths = self.lengths[self.lengths > 0]
        if len(lengths) == 0:
            file, reason = self.left_out[0]
            found = f"none of {len(self.lengths)} does; {file}: {reason}"
            raise InputError("a sample fills at least one token", found, self._to_fill())
        if lengths.min() > pack_tokens:
            raise InputError(
                "a pack holds at least the smallest sample",
                f"data.pack_tokens={pack_tokens}, and the samples have {lengths.min()} to {lengths.max()} tokens",
                self._to_fit(pack_tokens),
            )
        if lengths.max() > pack_tokens:
            longer = int((lengths > pack_tokens).sum())
            raise InputError(
                f"a sample fits into a pack of data.pack_tokens={pack_tokens}",
                f"{longer} of {len(self.lengths)} samples are longer, the longest has {lengths.max()} tokens",
                self._to_fit(pack_tokens),
            )

    def document(self, row: int, epoch: int) -> Document:
        """A clip as an epoch sees it."""
        uid = self.index.uid(row)
        return Document(uid, key_of(self.seed, epoch, uid), self.index.caption(row, self.caption), self.layout(row))

    def layout(self, row: int) -> Grid:
        """Tokens of a clip along (t, y, x)."""
        return self.reader.grid(row)

    def clips(self, pack: Pack) -> list[SampledClip]:
        """Those of a pack."""
        return [self.reader.clip_of(row, d.key) for row, d in zip(pack.rows, pack.documents, strict=True)]

    def read(self, pack: Pack, ranges: Ranges, on_error: OnError | None = None) -> list[Piece]:
        """The pieces of documents at these token positions of the pack, in their order: see `SampleSource`."""
        return self.reader.read(self.clips(pack), ranges, on_error)

    def bytes_of(self, pack: Pack, ranges: Ranges) -> int:
        """Bytes that `read` of the same arguments would read from the shards."""
        return self.reader.bytes_of(self.clips(pack), ranges)

    def shards(self) -> dict[Path, int]:
        """The bytes that each tar has at least."""
        return self.index.shards()

    def notes(self) -> Iterator[str]:
        """What is left out, what is shorter than asked, and where there are newer samples."""
        left_out = self.left_out
        if left_out:
            shown = "; ".join(f"{file}: {reason}" for file, reason in left_out[:LEFT_OUT_SHOWN])
            shown += f"; and {len(left_out) - LEFT_OUT_SHOWN:,} more" if len(left_out) > LEFT_OUT_SHOWN else ""
            count = f"{len(left_out):,} of {len(self.index):,} samples are left out"
            yield f"{count}: {shown}. To take more: {self._to_fill()}"
        yield from self.reader.notes()
        for folder, generation in self.index.newer():
            now = f"this run goes on with generation {generation}; add data.segments to use them"
            yield f"{folder} has newer samples: {now}"

    def close(self) -> None:
        """Closes the shards; they open again when they are read."""
        self.reader.close()

    def _to_fit(self, pack_tokens: int) -> str:
        """Settings with which every sample fits, tried on the shapes of the dataset."""
        shapes = _shapes(self.index, np.flatnonzero(self.lengths))
        return ", or ".join(fitting(self.sampling, shapes, pack_tokens, bool(self.reader.latents.any())))

    def _to_fill(self) -> str:
        """Settings with which the clips that are left out fill a token, or what clips that does."""
        shapes = _shapes(self.index, np.flatnonzero(self.lengths == 0))
        return ", or ".join(filling(self.sampling, shapes)) or f"clips of {_least(self.sampling)}"


def _shapes(index: Index, rows: Ints) -> list[tuple[int, int, int]]:
    """(frames, height, width) of these rows, each once."""
    table = np.stack((index.frames[rows], index.height[rows], index.width[rows]))
    return [(int(n), int(y), int(x)) for n, y, x in np.unique(table, axis=1).T]


def _least(sampling: Sampling) -> str:
    """What one token takes."""
    geometry = sampling.geometry
    cell_y, cell_x = (geometry.stride[n] * geometry.patch[n] for n in (1, 2))
    return f"at least {geometry.frames_per_token} frames of {cell_y} x {cell_x} pixels"


def _too_small(index: Index, sampling: Sampling, row: int) -> str:
    least, (height, width) = sampling.geometry.frames_per_token, (index.height[row], index.width[row])
    if not sampling.frames_used(int(index.frames[row])):
        return f"{index.frames[row]} frames at a stride of {sampling.stride} do not fill a token of {least} frames"
    tall, wide = (sampling.geometry.stride[axis] * sampling.geometry.patch[axis] for axis in (1, 2))
    return f"{height} x {width} pixels do not fill a token of {tall} x {wide}"
