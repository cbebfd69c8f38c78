"""Modulation: one row of scale and shift for each stretch of tokens that share a document and a noise level.

    document     a a a a b b b b b        rows of the table
    noise level  0 0 7 7 4 4 4 4 4        (a, 0)  (a, 7)  (b, 4)
    stretches    |---|---|-------|

A million tokens of one clip under plain flow need one row; a noise level for each frame needs one row a frame. Neither
direction builds a [tokens, dim] table: the forward pass writes stretch by stretch, the backward pass sums stretch by
stretch, in the order of the tokens (deterministic, unlike atomic adds). The price is some small kernels for each
stretch (`models.layers.fused`), so levels that alternate from token to token are right but slow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.layers.fused import Spans
from parallel.device_stream import Send, here
from parallel.masks.rectangles import Ints


@dataclass(frozen=True, eq=False)
class Stretches:
    """Runs of neighbouring local tokens with the same document and noise level; none if no token is held.

    Attributes:
        spans: rows [start, stop) of each.
        document: [stretches] int64, index of the document.
        level: [stretches] float64, the noise level.
    """

    spans: tuple[tuple[int, int], ...]
    document: Tensor
    level: Tensor

    @classmethod
    def of(cls, document: Ints, level: npt.NDArray[np.float64], send: Send = here) -> Stretches:
        """The stretches of tokens with `document` [tokens] and `level` [tokens], both on the host: nothing waits."""
        if not len(document):
            return cls((), send(torch.from_numpy(document)), send(torch.from_numpy(level)))
        changes = np.flatnonzero((document[1:] != document[:-1]) | (level[1:] != level[:-1])) + 1
        first = np.append(0, changes)
        spans = tuple(zip(first.tolist(), [*changes.tolist(), len(document)], strict=True))
        return cls(spans, send(torch.from_numpy(document[first])), send(torch.from_numpy(level[first])))

    def rows(self, first: int = 0, last: int | None = None) -> Spans:
        """Those of the tokens [first, last), counted from there; each with its row of the tables."""
        last = max((stop for _, stop in self.spans), default=0) if last is None else last
        return tuple(
            (row, max(start, first) - first, min(stop, last) - first)
            for row, (start, stop) in enumerate(self.spans)
            if max(start, first) < min(stop, last)
        )
