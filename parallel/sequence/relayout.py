"""Re-layout: rows of tokens from one way of holding them to another, by one all-to-all.

Both ways name positions of one sequence for each sequence rank (`Split.ranges`), in any order and in ranges of any
size, so that one function serves

    space-major <-> time-major     by_place() holds some places of all frames, where attention over time is local
    one part of a model to another a vision tower that holds whole images, a language model that holds stretches
    labels                         `next_tokens`: the label of a rank's last token lies on another rank
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.device_stream import Send, stream_for
from parallel.errors import InputError
from parallel.masks.rectangles import Ints
from parallel.mesh import Groups
from parallel.sequence.packed import IGNORED, Ranges
from parallel.sequence.sharding import Split, contiguous


@dataclass(frozen=True, eq=False)
class Move:
    """What one rank sends and receives.

    Attributes:
        send: rows, those for rank 0 first, in the order in which it holds them.
        send_counts: of each rank.
        receive: [rows] where each row that arrives belongs.
        receive_counts: of each rank.
        rows: held before.
    """

    send: Tensor
    send_counts: tuple[int, ...]
    receive: Tensor
    receive_counts: tuple[int, ...]
    rows: int

    def to(self, send: Send) -> Move:
        """The same with its rows where those that move are; `send` puts a tensor of the host there."""
        return replace(self, send=send(self.send), receive=send(self.receive))


def move_for(have: Sequence[Ranges], want: Sequence[Ranges], rank: int) -> Move:
    """The move of one sequence rank.

    Args:
        have: positions of each rank, each position once.
        want: positions of each rank; a position may be wanted by several ranks, or by none.
        rank: of the sequence, of this process.

    Raises:
        InputError: a position is held twice, or is wanted and held by nobody.
    """
    held, wanted = [_positions(r) for r in have], [_positions(r) for r in want]
    size = 1 + max((int(p.max()) for p in (*held, *wanted) if len(p)), default=0)
    owner, row = np.full(size, -1), np.zeros(size, np.int64)
    for number, positions in enumerate(held):
        if len(np.unique(positions)) < len(positions) or (owner[positions] >= 0).any():
            raise InputError("each position is held by one rank", f"rank {number} holds one again", "mend the ranges")
        owner[positions], row[positions] = number, np.arange(len(positions))
    for number, positions in enumerate(wanted):
        if (owner[positions] < 0).any():
            first = int(positions[owner[positions] < 0][0])
            raise InputError(
                "a position that is wanted is held",
                f"rank {number} wants {first}, which nobody holds",
                "mend the ranges",
            )
    sends = [row[p[owner[p] == rank]] for p in wanted]
    sources = owner[wanted[rank]]
    return Move(
        send=torch.from_numpy(np.concatenate(sends)),
        send_counts=tuple(len(s) for s in sends),
        receive=torch.from_numpy(np.argsort(sources, kind="stable")),
        receive_counts=tuple(np.bincount(sources, minlength=len(held)).tolist()),
        rows=len(held[rank]),
    )


def relayout(x: Tensor, move: Move, groups: Groups) -> Tensor:
    """The rows that are wanted here: [wanted, ...] of [held, ...]. Collective over the ranks of the replica.

    The move is on the device of `x` (`Move.to`): neither forward nor backward sends anything from the host.

    Raises:
        InputError: there are other rows than the move was made for.
    """
    if len(x) != move.rows:
        raise InputError("a move is given the rows that it was made for", f"{len(x)}, not {move.rows}", "make another")
    moved: Tensor = _Relayout.apply(x, move, groups)  # type: ignore[no-untyped-call]
    return moved


def by_place(frames: int, tokens: int, ranks: int) -> Split:
    """Each rank holds some of the `tokens` places of all frames, place by place: attention over time is local there.

    Rows of a rank are `places x frames`, so that its mask is `packed([frames] * places)`.
    """
    held = []
    for ranges in contiguous(tokens, ranks).ranges:
        places = [place for start, stop in ranges for place in range(start, stop)]
        held.append(tuple((f * tokens + p, f * tokens + p + 1) for p in places for f in range(frames)))
    return Split(tuple(held))


def next_tokens(tokens: Tensor, lengths: Sequence[int], split: Split, groups: Groups) -> Tensor:
    """Labels for next-token prediction: the token after each one, -100 after the last of a document. Collective.

    Args:
        tokens: [held] int64, this rank's.
        lengths: of the documents of the whole packed sequence.
        split: of the sequence over the ranks of the replica.
        groups: of this rank.

    Raises:
        InputError: the lengths are not those of the sequence, or tokens are not int64.
    """
    total = sum(lengths)
    held = sum(split.tokens(rank) for rank in range(len(split.ranges)))
    if held != total or tokens.dtype != torch.int64:
        rule = "labels are of int64 tokens, and documents make up the sequence"
        raise InputError(
            rule, f"{tokens.dtype}; lengths of {total} for {held} positions", "give all lengths, and int64"
        )
    after = tuple(tuple(r for a, b in held for r in _after(a, b, total)) for held in split.ranges)
    rank = groups.place.sequence
    send = stream_for(tokens.device).send
    labels = relayout(tokens, move_for(split.ranges, after, rank).to(send), groups)
    last = np.array(list(accumulate(lengths))) - 1
    ends = np.isin(_positions(split.ranges[rank]), last)
    return labels.masked_fill(send(torch.from_numpy(ends)), IGNORED)


class _Relayout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, move: Move, groups: Groups) -> Tensor:
        ctx.move, ctx.groups = move, groups
        arrived = _all_to_all(x[move.send], move.send_counts, move.receive_counts, groups)
        found = torch.empty_like(arrived)
        found[move.receive] = arrived
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        move: Move = ctx.move
        arrived = _all_to_all(grad[move.receive], move.receive_counts, move.send_counts, ctx.groups)
        exact = torch.promote_types(grad.dtype, torch.float32)
        total = torch.zeros(move.rows, *grad.shape[1:], dtype=exact, device=grad.device)
        return total.index_add_(0, move.send, arrived.to(exact)).to(grad.dtype), None, None


def _all_to_all(x: Tensor, sizes: Sequence[int], arriving: Sequence[int], groups: Groups) -> Tensor:
    if groups.sequence is None:
        return x
    found = x.new_empty(sum(arriving), *x.shape[1:])
    dist.all_to_all_single(found, x.contiguous(), list(arriving), list(sizes), group=groups.sequence)
    return found


def _positions(ranges: Ranges) -> Ints:
    return np.concatenate([np.zeros(0, np.int64), *(np.arange(start, stop) for start, stop in ranges)])


def _after(start: int, stop: int, total: int) -> list[tuple[int, int]]:
    """The positions after each of [start, stop); the last of all stands for itself, and is left out."""
    if stop < total:
        return [(start + 1, stop + 1)]
    return [(start + 1, stop), (total - 1, total)] if stop - start > 1 else [(total - 1, total)]
