"""The ring: queries stay, keys and values travel; the next hop is in flight while this one is computed.

    hop 0         hop 1         hop 2            rank 0 holds queries 0 and sees keys 0, then 2, then 1
    0:kv0  ->  1:kv0  ->  2:kv0                  backward: the same way again, and the gradient of each key block
    1:kv1  ->  2:kv1  ->  0:kv1                  travels with it, one hop behind, until it is home
    2:kv2  ->  0:kv2  ->  1:kv2

That is the transport "ring", which talks to neighbours alone. "need" keeps the hops, but in hop d a rank sends the
columns that the rank d places down the ring needs straight to it, no others, and their gradients come straight back.

Between launches, output and log-sum-exp are merged in float32 (float64 for float64), always: in bf16 the error grows to
58 % after 64 blocks. A mesh with a ring of one is the same code with one hop.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.kernel import Kernel, Pieces
from parallel.plan import Launch, Plan, Rows


def forward(
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, plan: Plan, kv_of_head: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Output [queries, heads, head_dim] and log-sum-exp [heads, queries].

    Args:
        kernel: that computes the launches.
        q: [queries, heads, head_dim].
        k: [keys, kv_heads, head_dim].
        v: like k.
        plan: of this rank.
        kv_of_head: the key head of each query head; None where the kernel's own grouping is right.
        scale: of the scores.
    """
    exact = accumulator(q.dtype)
    out = torch.zeros(q.shape, dtype=exact, device=q.device)
    lse = torch.full((q.shape[1], q.shape[0]), -torch.inf, dtype=exact, device=q.device)
    kv, fetch = torch.stack((k, v)), _fetch(plan)
    fetch.depart(kv, 1)
    for hop in range(len(plan.hops)):
        for launch in plan.hops[hop].launches:
            _forward_launch(kernel, launch, q, kv, kv_of_head, out, lse, scale)
        if hop + 1 < len(plan.hops):
            kv = fetch.arrive()
            fetch.depart(kv, hop + 2)
    return out.to(q.dtype), lse


def backward(
    kernel: Kernel,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    plan: Plan,
    kv_of_head: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, given what `forward` returned and the gradient of its output."""
    exact = accumulator(q.dtype)
    dq = torch.zeros(q.shape, dtype=exact, device=q.device)
    kv, fetch, home = torch.stack((k, v)), _fetch(plan), _return(plan)
    fetch.depart(kv, 1)
    for hop in range(len(plan.hops)):
        dkv = torch.zeros(kv.shape, dtype=exact, device=q.device)
        for launch in plan.hops[hop].launches:
            _backward_launch(kernel, launch, grad, q, kv, kv_of_head, out, lse, dq, dkv, scale)
        home.add(hop, dkv)
        if hop + 1 < len(plan.hops):
            kv = fetch.arrive()
            fetch.depart(kv, hop + 2)
    dk, dv = (x.to(k.dtype, copy=True) for x in home.total())  # an operator's results share no memory
    return dq.to(q.dtype), dk, dv


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums over launches are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _forward_launch(
    kernel: Kernel,
    launch: Launch,
    q: Tensor,
    kv: Tensor,
    kv_of_head: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> None:
    """The pieces of one launch, merged into the rows of `out` and `lse`."""
    if q.shape[1] == 0:  # more ulysses ranks than heads: this one has none
        return
    k, v = _expand(launch.keys.take(kv, 1), kv_of_head)
    new_out, new_lse = kernel.forward(launch.queries.take(q), k, v, _pieces(launch), scale)
    at = 0
    for rows in launch.queries.pieces():
        of = slice(at, at + rows.stop - rows.start)
        at = of.stop
        if launch.fresh:
            out[rows], lse[:, rows] = new_out[of], new_lse[:, of]
            continue
        before = lse[:, rows]
        total = torch.logaddexp(before, new_lse[:, of].to(lse.dtype))  # the sigmoid form gives NaN from -inf
        out[rows].mul_(_weight(before, total)).add_(new_out[of] * _weight(new_lse[:, of], total))
        lse[:, rows] = total


def _backward_launch(
    kernel: Kernel,
    launch: Launch,
    grad: Tensor,
    q: Tensor,
    kv: Tensor,
    kv_of_head: Tensor | None,
    out: Tensor,
    lse: Tensor,
    dq: Tensor,
    dkv: Tensor,
    scale: float,
) -> None:
    """Gradients of one launch, added to the rows of `dq` and `dkv`."""
    if q.shape[1] == 0:
        return
    rows = launch.queries
    k, v = _expand(launch.keys.take(kv, 1), kv_of_head)
    new_dq, new_dk, new_dv = kernel.backward(
        rows.take(grad), rows.take(q), k, v, rows.take(out), rows.take(lse, 1).contiguous(), _pieces(launch), scale
    )
    _add(dq, rows, new_dq)
    for total, new in zip(dkv, (new_dk, new_dv), strict=True):
        if kv_of_head is not None:
            folded = torch.zeros(len(new), *total.shape[1:], dtype=total.dtype, device=total.device)
            new = folded.index_add_(1, kv_of_head, new.to(total.dtype))
        _add(total, launch.keys, new)


def _add(total: Tensor, rows: Rows, new: Tensor) -> None:
    """Add to rows, range after range: several ranges may share rows, and the order of a sum is part of a result."""
    at = 0
    for range_ in rows.pieces():
        size = range_.stop - range_.start
        total[range_] += new[at : at + size]
        at += size


def _pieces(launch: Launch) -> Pieces:
    return Pieces(launch.kind, tuple(launch.queries.lengths), tuple(launch.keys.lengths))


def _weight(part: Tensor, total: Tensor) -> Tensor:
    """Of a partial output in the merged one: [rows, heads, 1]."""
    return (part - total).exp().T[..., None]


def _expand(kv: Tensor, kv_of_head: Tensor | None) -> Tensor:
    return kv if kv_of_head is None else kv.index_select(2, kv_of_head)


class _Fetch(Protocol):
    """Keys and values on their way: `depart` starts the way to hop `hop`, if there is one; `arrive` waits for it."""

    def depart(self, kv: Tensor, hop: int) -> None: ...

    def arrive(self) -> Tensor: ...


class _Return(Protocol):
    """Gradients on their way home: `add` those of a hop's keys; `total` is what came home to the own keys."""

    def add(self, hop: int, dkv: Tensor) -> None: ...

    def total(self) -> Tensor: ...


def _fetch(plan: Plan) -> _Fetch:
    return _RingFetch(plan) if plan.transport == "ring" else _NeedFetch(plan)


def _return(plan: Plan) -> _Return:
    return _RingReturn(plan) if plan.transport == "ring" else _NeedReturn(plan)


class _RingFetch:
    """Whole blocks, passed on to the neighbour."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def depart(self, kv: Tensor, hop: int) -> None:
        if hop < len(self.plan.hops):
            self.leaving = kv  # kept alive until it is sent
            self.coming = kv.new_empty(2, self.plan.hops[hop].keys, *kv.shape[2:])
            self.works = _exchange(self.plan, kv, 1, self.coming, -1)

    def arrive(self) -> Tensor:
        _wait(self.works)
        return self.coming


class _NeedFetch:
    """The columns that each rank needs, straight from who holds them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def depart(self, kv: Tensor, hop: int) -> None:
        if hop == 1:
            self.own = kv
        if hop < len(self.plan.hops):
            self.leaving = self.plan.hops[hop].send.take(self.own, 1).contiguous()
            self.coming = kv.new_empty(2, self.plan.hops[hop].keys, *kv.shape[2:])
            self.works = _exchange(self.plan, self.leaving, hop, self.coming, -hop)

    def arrive(self) -> Tensor:
        _wait(self.works)
        return self.coming


class _RingReturn:
    """Each hop adds its own to what came in for the same keys and passes the sum on; after the last hop it is home."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.works: list[dist.Work] = []
        self.coming: Tensor | None = None

    def add(self, hop: int, dkv: Tensor) -> None:
        _wait(self.works)
        if self.coming is not None:
            dkv += self.coming
        if len(self.plan.hops) == 1:
            self.coming = dkv
            return
        # what comes in next is for the keys of the next hop; after the last hop, for our own
        tokens = self.plan.hops[(hop + 1) % len(self.plan.hops)].keys
        self.coming = dkv.new_empty(2, tokens, *dkv.shape[2:])
        self.leaving = dkv
        self.works = _exchange(self.plan, dkv, 1, self.coming, -1)

    def total(self) -> Tensor:
        _wait(self.works)
        assert self.coming is not None, "a plan has at least one hop"
        return self.coming


class _NeedReturn:
    """Gradients of fetched columns go straight back, and are added to the rows that were sent."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.hop = plan, 0
        self.works: list[dist.Work] = []

    def add(self, hop: int, dkv: Tensor) -> None:
        if hop == 0:
            self.sum = dkv
            return
        self._collect()
        self.hop, self.leaving = hop, dkv
        self.coming = dkv.new_empty(2, self.plan.hops[hop].send.count, *dkv.shape[2:])
        self.works = _exchange(self.plan, dkv, -hop, self.coming, hop)

    def total(self) -> Tensor:
        self._collect()
        return self.sum

    def _collect(self) -> None:
        _wait(self.works)
        if self.hop:
            for total, new in zip(self.sum, self.coming, strict=True):
                _add(total, self.plan.hops[self.hop].send, new)


def _exchange(plan: Plan, leaving: Tensor, to: int, coming: Tensor, from_: int) -> list[dist.Work]:
    """Start sending `to` so many places down the ring and receiving `from_` there; both sides know empty blocks."""
    assert plan.groups is not None, "only a plan with groups has more than one hop"
    ring, me = plan.groups.ring_ranks, plan.groups.place.ring
    ops = []
    if leaving.numel():
        ops.append(dist.P2POp(dist.isend, leaving.contiguous(), ring[(me + to) % len(ring)], plan.groups.ring))
    if coming.numel():
        ops.append(dist.P2POp(dist.irecv, coming, ring[(me + from_) % len(ring)], plan.groups.ring))
    return list(dist.batch_isend_irecv(ops)) if ops else []


def _wait(works: list[dist.Work]) -> None:
    for work in works:
        work.wait()
