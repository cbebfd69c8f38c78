"""`Packed`: samples laid end to end as one sequence, and the part of it that this rank holds.

    positions   0        7          12                20
    documents   |---a----|----b-----|-------c---------|      the same list on every rank of a replica
    rank 0      [==============)                             ranges ((0, 10),)
    rank 1                     [======================)      ranges ((10, 20),)

The tokens of a document lie frame by frame, row by row: place p is (p // yx, p // x % y, p % x). Where `tile` is given
they lie tile by tile instead (`Tiling`), so that patterns of tiles are few rectangles; a token keeps its place, and
with it coordinates, noise and data, wherever it lies.

Five per-token fields carry almost everything that the literature does with video transformers: document (who may see
me), coordinates (for rotary embeddings), kind, noise level (0 = clean) and loss weight. The type lies on the ground
because data fills it, models read it and parallelism is about its shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, pairwise
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from parallel.masks.video_patterns import Tiling
from parallel.sequence.geometry import Grid

VIDEO, TEXT = 0, 1  # values of Packed.kind
IGNORED = -100  # the label that torch's losses leave out
USER, ASSISTANT, VISUAL_CODE, SILENCE = range(4)  # what a label is: words of each side, a code, none

Ranges = tuple[tuple[int, int], ...]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Document:
    """One sample of a pack, as every rank of the replica knows it.

    Attributes:
        uid: the sample's id in the index.
        key: 64 bits from (seed, epoch, uid); every random draw about this sample starts here.
        text: its caption.
        grid: tokens along (t, y, x).
        weight: loss weight of each of its tokens; 0 in a ghost pack.
        tile: tokens (t, y, x) of the tiles that its tokens lie in one after the other; None for frame by frame.
    """

    uid: str
    key: int
    text: str
    grid: Grid
    weight: float = 1.0
    tile: Grid | None = field(default=None, repr=False)  # of the model, not of the sample

    @property
    def tokens(self) -> int:
        """Length in the packed sequence."""
        return prod(self.grid)

    def places(self, start: int, stop: int) -> Ints:
        """[stop - start]: which token of the clip, counted frame by frame, lies at each of these positions."""
        return np.arange(start, stop) if self.tile is None else tile_order(self.grid, self.tile)[start:stop]


@dataclass
class Packed:
    """This rank's part of one packed sequence; `tokens` below counts the tokens held here, and may be 0.

    Attributes:
        documents: of the whole pack.
        ranges: global positions held here, in the order of the rows of every tensor.
        values: [tokens, token_dim], clean.
        document: [tokens] int64, index into `documents`.
        position: [tokens] int64, place inside the document: `Document.places`.
        coordinates: [tokens, 3] int64, (t, y, x) inside the document.
        kind: [tokens] int64, VIDEO or TEXT.
        noise_level: [tokens], 0 = clean, 1 = noise.
        weight: [tokens], loss weight.
    """

    documents: tuple[Document, ...]
    ranges: Ranges
    values: Tensor
    document: Tensor
    position: Tensor
    coordinates: Tensor
    kind: Tensor
    noise_level: Tensor
    weight: Tensor

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each document of the whole pack."""
        return tuple(d.tokens for d in self.documents)


def local_spans(lengths: Sequence[int], ranges: Ranges) -> list[tuple[int, int, int]]:
    """Which part of which document lies in `ranges`, in their order: (document, start, stop) inside the document."""
    borders = list(accumulate(lengths, initial=0))
    spans = []
    for first, last in ranges:
        for index, (start, stop) in enumerate(pairwise(borders)):
            low, high = max(first, start), min(last, stop)
            if low < high:
                spans.append((index, low - start, high - start))
    return spans


@lru_cache(maxsize=16)  # clips come in few sizes, and a million tokens take 8 MB
def tile_order(grid: Grid, tile: Grid) -> Ints:
    """[tokens]: the place of the token at each position of a clip in tiles; read-only."""
    order = Tiling(grid, tile).order()
    order.flags.writeable = False
    return order


def to_read(documents: Sequence[Document], ranges: Ranges) -> tuple[Ranges, Ints | None]:
    """What to read of clips that lie frame by frame for the positions `ranges` of a pack.

    Returns:
        Ranges of the pack as if all documents lay frame by frame: those that are held, or, for documents in tiles, from
        the first to the last frame that has a token here; and which of the rows read are held, in the order of `ranges`
        (None if all are, in this order).
    """
    if all(document.tile is None for document in documents):
        return ranges, None
    borders = list(accumulate((document.tokens for document in documents), initial=0))
    wanted, rows, read = [], [np.zeros(0, np.int64)], 0
    for index, start, stop in local_spans([document.tokens for document in documents], ranges):
        places = documents[index].places(start, stop)
        first, last = int(places.min()), int(places.max()) + 1
        wanted.append((borders[index] + first, borders[index] + last))
        rows.append(places - first + read)
        read += last - first
    return tuple(wanted), np.concatenate(rows)


def lay_out(documents: Sequence[Document], ranges: Ranges, values: Tensor) -> Packed:
    """The part `ranges` of a pack of clean video, every per-token field filled from the documents alone.

    Args:
        documents: of the whole pack.
        ranges: global positions held here.
        values: [tokens, token_dim] of exactly these positions; device and dtype of the result follow it.
    """
    spans = local_spans([d.tokens for d in documents], ranges)
    device = values.device
    index = [torch.full((stop - start,), i, device=device) for i, start, stop in spans]
    position = [_places(documents[i], start, stop, device) for i, start, stop in spans]
    coordinates = [
        torch.stack((p // (y * x), p // x % y, p % x), dim=1)
        for p, (_, y, x) in zip(position, (documents[i].grid for i, _, _ in spans), strict=True)
    ]
    weight = [values.new_full((stop - start,), documents[i].weight) for i, start, stop in spans]
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    packed = Packed(
        documents=tuple(documents),
        ranges=ranges,
        values=values,
        document=torch.cat([empty, *index]),
        position=torch.cat([empty, *position]),
        coordinates=torch.cat([empty.reshape(0, 3), *coordinates]),
        kind=torch.full((len(values),), VIDEO, device=device),
        noise_level=values.new_zeros(len(values)),
        weight=torch.cat([values.new_zeros(0), *weight]),
    )
    assert len(packed.document) == len(values), f"{len(values)} rows of values for {len(packed.document)} positions"
    return packed


def _places(document: Document, start: int, stop: int, device: torch.device) -> Tensor:
    if document.tile is None:
        return torch.arange(start, stop, device=device)
    return torch.from_numpy(document.places(start, stop).copy()).to(device)
