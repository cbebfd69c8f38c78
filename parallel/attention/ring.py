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

from parallel.attention.plan import Plan
from parallel.dtypes import accumulator
from parallel.kernels.kernel import Kernel
from parallel.kernels.launch import Part, Rows


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
    if plan.alone and q.shape[1]:
        _, outs, sums = zip(
            *kernel.forward(q, *_expand(k, v, kv_of_head), plan.hops[0].launches[0], scale), strict=True
        )
        return _joined(outs).to(q.dtype), _joined(sums, 1).to(exact)
    out = torch.zeros(q.shape, dtype=exact, device=q.device)
    lse = torch.full((q.shape[1], q.shape[0]), -torch.inf, dtype=exact, device=q.device)
    fetch = _fetch(plan, k, v)
    for hop in plan.hops:
        fetch.depart()
        if q.shape[1]:  # with more ulysses ranks than heads some have none
            k, v = _expand(*fetch.here, kv_of_head)
            for launch in hop.launches:
                for part in kernel.forward(q, k, v, launch, scale):
                    _merge(out, lse, part, launch.fresh)
        fetch.arrive()
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
    if plan.alone and kv_of_head is None and q.shape[1]:
        parts = kernel.backward(grad, q, k, v, out, lse, plan.hops[0].launches[0], scale)
        _, dqs, _, dks, dvs = zip(*parts, strict=True)
        return _joined(dqs), _joined(dks), _joined(dvs)
    dq = torch.zeros(q.shape, dtype=exact, device=q.device)
    fetch, home = _fetch(plan, k, v), _return(plan)
    for number, hop in enumerate(plan.hops):
        fetch.depart()
        dkv = torch.zeros(2, *fetch.here[0].shape, dtype=exact, device=q.device)
        if q.shape[1]:
            k, v = _expand(*fetch.here, kv_of_head)
            for launch in hop.launches:
                for rows, new_dq, columns, *new in kernel.backward(grad, q, k, v, out, lse, launch, scale):
                    dq[rows] += new_dq
                    for total, part in zip(dkv, new, strict=True):
                        _fold(total[columns], part, kv_of_head)
        home.add(number, dkv)
        fetch.arrive()
    dk, dv = (x.to(grad.dtype, copy=True) for x in home.total())  # an operator's results share no memory
    return dq.to(q.dtype), dk, dv


def _joined(parts: tuple[Tensor, ...], dim: int = 0) -> Tensor:
    """Parts that come in order, as one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _merge(out: Tensor, lse: Tensor, part: Part, fresh: bool) -> None:
    """Merge a part into its rows of `out` and `lse`."""
    rows, new_out, new_lse = part
    if fresh:
        out[rows], lse[:, rows] = new_out, new_lse
        return
    before = lse[:, rows]
    total = torch.logaddexp(before, new_lse.to(lse.dtype))  # the sigmoid form gives NaN from -inf
    out[rows].mul_(_weight(before, total)).add_(new_out * _weight(new_lse, total))
    lse[:, rows] = total


def _weight(part: Tensor, total: Tensor) -> Tensor:
    """Of a partial output in the merged one: [rows, heads, 1]."""
    return (part - total).exp().T[..., None]


def _expand(k: Tensor, v: Tensor, kv_of_head: Tensor | None) -> tuple[Tensor, Tensor]:
    """A key head for each query head, where the kernel cannot tell which it is."""
    return (k, v) if kv_of_head is None else (k.index_select(1, kv_of_head), v.index_select(1, kv_of_head))


def _fold(total: Tensor, new: Tensor, kv_of_head: Tensor | None) -> None:
    """Add gradients of keys, those of one key head together."""
    if kv_of_head is None:
        total += new
    else:
        total.index_add_(1, kv_of_head, new.to(total.dtype))


def _add(total: Tensor, rows: Rows, new: Tensor) -> None:
    """Add to rows, range after range."""
    at = 0
    for range_ in rows.stretches():
        size = range_.stop - range_.start
        total[range_] += new[at : at + size]
        at += size


class _Return(Protocol):
    """Gradients on their way home: `add` those of a hop's keys; `total` is what came home to the own keys."""

    def add(self, hop: int, dkv: Tensor) -> None: ...

    def total(self) -> Tensor: ...


def _fetch(plan: Plan, k: Tensor, v: Tensor) -> _Fetch:
    return _RingFetch(plan, k, v) if plan.transport == "ring" else _Fetch(plan, k, v)


def _return(plan: Plan) -> _Return:
    return _RingReturn(plan) if plan.transport == "ring" else _NeedReturn(plan)


class _Fetch:
    """Keys and values on their way: `here` are those of this hop; `depart` starts the way of the next ones.

    `arrive` waits for them. What each rank needs comes straight from who holds it.
    """

    def __init__(self, plan: Plan, k: Tensor, v: Tensor) -> None:
        self.plan, self.hop, self.here = plan, 0, (k, v)
        self.own = torch.stack((k, v)) if len(plan.hops) > 1 else torch.empty(0)
        self.works: list[dist.Work] = []

    def depart(self) -> None:
        self.hop += 1
        if self.hop < len(self.plan.hops):
            self.coming = self.own.new_empty(2, self.plan.hops[self.hop].keys, *self.own.shape[2:])
            self._send()

    def arrive(self) -> None:
        if self.hop < len(self.plan.hops):
            _wait(self.works)
            self.here = self.coming[0], self.coming[1]

    def _send(self) -> None:
        self.leaving = self.plan.hops[self.hop].send.take(self.own, 1).contiguous()  # kept alive until it is sent
        self.works = _exchange(self.plan, self.leaving, self.hop, self.coming, -self.hop)


class _RingFetch(_Fetch):
    """Whole blocks, passed on from neighbour to neighbour."""

    def _send(self) -> None:
        self.leaving = self.own  # what came with the last hop
        self.works = _exchange(self.plan, self.leaving, 1, self.coming, -1)
        self.own = self.coming


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
