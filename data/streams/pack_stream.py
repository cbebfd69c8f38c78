"""`PackStream`: the samples of a source become packs, for ever, whatever the samples are.

    source    lengths, costs  --mix, plan-->  rows of each pack  --document-->  Pack     arithmetic, the same everywhere
    pack, positions of this rank  --source.read-->  pieces: frames or latents            from the bytes under them alone

A source (`SampleSource`) knows what a sample is: a clip (`data.streams.clip_source`), a conversation
(`data.streams.chat_source`). The plan, the mix of datasets and the ids of samples are here, once for all of them, so a
new family of models brings a source and nothing else.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from data.planning.data_plan import Bin, Cursor, DataPlan, window_for
from data.planning.mix import mix_of
from data.planning.packing import Floats
from data.planning.permutation import Ints
from data.streams.clip_reader import OnError, Piece
from parallel.errors import InputError
from parallel.sequence.packed import Document, Ranges


@dataclass(frozen=True)
class Pack:
    """One packed sequence before it is read.

    Attributes:
        rows: of the index, one per document.
        documents: what every rank knows of it.
        epochs: of its source, in which each is seen.
        cost: of computing it, in the unit of the source's costs.
    """

    rows: tuple[int, ...]
    documents: tuple[Document, ...]
    epochs: tuple[int, ...]
    cost: float

    @property
    def tokens(self) -> int:
        """Length of the packed sequence."""
        return sum(document.tokens for document in self.documents)


class SampleIndex(Protocol):
    """Samples of one or several datasets in a fixed order; a *row* is a position in it."""

    def __len__(self) -> int:
        """Rows."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """The datasets."""

    @property
    def digests(self) -> tuple[str, ...]:
        """Identity of the samples of each, and their order."""

    @property
    def starts(self) -> tuple[int, ...]:
        """[datasets + 1] the first row of each, and the end."""

    def uid(self, row: int) -> str:
        """The sample's id."""

    def file(self, row: int) -> str:
        """What it was made of, for people."""


class SampleSource(Protocol):
    """Samples of one kind, by row of their index: all that `PackStream` and those who build batches ask of them."""

    @property
    def index(self) -> SampleIndex:
        """Of the samples."""

    @property
    def seed(self) -> int:
        """Of all that is random about a sample, and of their order."""

    @property
    def digests(self) -> tuple[str, ...]:
        """Identity of all that its samples are made of: of its index, and of clips that these are about."""

    @property
    def lengths(self) -> Ints:
        """[rows] tokens of each; 0 for those that are left out."""

    @property
    def costs(self) -> Floats:
        """[rows] of computing each, in any unit."""

    def check_lengths(self, pack_tokens: int) -> None:
        """Raises InputError, with settings that help, if there are no samples or one is longer than a pack."""

    def document(self, row: int, epoch: int) -> Document:
        """What every rank knows of a sample that is not left out, as an epoch sees it; no I/O."""

    def layout(self, row: int) -> object:
        """What masks and positions follow from: a `Grid` of a clip, a `ChatLayout` of a conversation; no shard is
        opened."""

    def read(self, pack: Pack, ranges: Ranges, on_error: OnError | None = None) -> list[Piece]:
        """What this rank needs of a pack: see the source for what its ranges count.

        Args:
            pack: of this source.
            ranges: [start, stop) of positions, in the order in which they are wanted.
            on_error: told of each document that cannot be read, and of why; its frames are then black, its latents 0.

        Raises:
            InputError: there is no `on_error`, and a shard is missing, cut short or changed; names shard, sample and
                part.
        """

    def shards(self) -> dict[Path, int]:
        """The bytes that each file has at least, going by the samples in it."""

    def notes(self) -> Iterator[str]:
        """What a person should know: samples that are left out, clips that are shorter than asked, newer samples."""

    def close(self) -> None:
        """Closes the shards; they open again when they are read."""


Source = TypeVar("Source", bound=SampleSource, covariant=True)


@dataclass(frozen=True)
class PackOptions:
    """How samples are packed.

    Attributes:
        tokens: of a packed sequence, at most.
        packs_per_step: packs of one step are of about the same cost.
        window: samples that are packed together; None chooses.
        weights: of the datasets of the index, by name and in their order; None: each as large as it is.
    """

    tokens: int
    packs_per_step: int = 1
    window: int | None = None
    weights: Mapping[str, float] | None = None

    def check(self) -> None:
        """Raises InputError if a number is not positive."""
        numbers = {"pack_tokens": self.tokens, "window": self.window, "packs_per_step": self.packs_per_step}
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise InputError(f"data.{name} is at least 1", str(value), f"give data.{name} a positive number")


class PackStream(Generic[Source]):
    """Packs of the datasets of a source, or of a mix of them, for ever.

    Attributes:
        source: of the samples.
        options: of the packs.
        plan: which samples make which pack; its sample numbers count the rows that are not left out.
    """

    def __init__(self, source: Source, options: PackOptions) -> None:
        """Plans; reads nothing.

        Raises:
            InputError: an option is no positive number, the source has no samples, or some sample is longer than a
                pack.
        """
        options.check()
        source.check_lengths(options.tokens)
        self.source, self.options = source, options
        self._rows = np.flatnonzero(source.lengths)
        lengths, costs = source.lengths[self._rows], source.costs[self._rows]
        sizes = np.diff(np.searchsorted(self._rows, source.index.starts)).tolist()
        mix = mix_of(sizes, options.weights) if options.weights else mix_of([len(lengths)])
        window = options.window or window_for(lengths, options.tokens, options.packs_per_step)
        self.plan = DataPlan(lengths, costs, mix, options.tokens, options.packs_per_step, source.seed, window)
        self._window_at = lru_cache(maxsize=4)(self.plan.window_at)

    @property
    def index(self) -> SampleIndex:
        """Of the source."""
        return self.source.index

    @property
    def pack_tokens(self) -> int:
        """Of a packed sequence, at most."""
        return self.options.tokens

    def uid(self, sample: int) -> str:
        """The id of a sample of the plan."""
        return self.index.uid(int(self._rows[sample]))

    def dataset_of(self, row: int) -> int:
        """Which dataset of the mix a row of the index is of."""
        return bisect_right(self.index.starts, row) - 1 if len(self.plan.mix.sizes) > 1 else 0

    def packs(self, cursor: Cursor, count: int) -> tuple[list[Pack], Cursor]:
        """The `count` packs from `cursor` on, and the cursor after them; no I/O.

        Raises:
            InputError: the cursor belongs to another dataset or other settings.
        """
        bins, after = self.plan.walk(self._window_at, cursor, count)
        return [self._pack(found) for found in bins], after

    def close(self) -> None:
        """Closes the shards; they open again when they are read."""
        self.source.close()

    def _pack(self, found: Bin) -> Pack:
        rows = [int(self._rows[sample]) for sample in found.samples]
        return pack_of(self.source, rows, found.epochs, float(self.plan.costs[list(found.samples)].sum()))


def pack_of(source: SampleSource, rows: Sequence[int], epochs: Sequence[int], cost: float = 0.0) -> Pack:
    """The pack of any rows of a source that are not left out, each seen in an epoch."""
    documents = tuple(source.document(*at) for at in zip(rows, epochs, strict=True))
    return Pack(tuple(rows), documents, tuple(epochs), cost)
