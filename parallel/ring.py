"""The ring: queries stay, keys and values travel; the next hop is in flight while this one is computed.

    hop 0         hop 1         hop 2            rank 0 holds queries 0 and sees keys 0, then 2, then 1
    0:kv0  ->  1:kv0  ->  2:kv0                  backward: the same way again, and the gradient of each key block
    1:kv1  ->  2:kv1  ->  0:kv1                  travels with it, one hop behind, until it is home
    2:kv2  ->  0:kv2  ->  1:kv2

Between rectangles, output and log-sum-exp are merged in float32 (float64 for float64), always: in bf16 the error
grows to 58 % after 64 blocks. A mesh with a ring of one is the same code with one hop.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.kernel import Kernel, kernel_for
from parallel.plan import Call, Plan


class RingAttention(torch.autograd.Function):
    """Attention of [queries, heads, head_dim] to [keys, kv_heads, head_dim] over the hops of a plan.

    `kv_of_head` maps each query head to its key head; None where the kernel's own grouping is right.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Plan, kv_of_head: Tensor | None, scale: float
    ) -> Tensor:
        """Output [queries, heads, head_dim]."""
        kernel = kernel_for(q.device, q.dtype)
        exact = _accumulator(q.dtype)
        out = torch.zeros(q.shape, dtype=exact, device=q.device)
        lse = torch.full((q.shape[1], q.shape[0]), -torch.inf, dtype=exact, device=q.device)
        travel = _Travel(torch.stack((k, v)), plan)
        for calls in plan.hops:
            kv = travel.depart()
            for call in calls:
                _forward_call(kernel, call, q, kv, kv_of_head, out, lse, scale)
            travel.arrive()
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan, ctx.kv_of_head, ctx.scale = plan, kv_of_head, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v."""
        q, k, v, out, lse = ctx.saved_tensors
        plan: Plan = ctx.plan
        kernel = kernel_for(q.device, q.dtype)
        exact = _accumulator(q.dtype)
        dq = torch.zeros(q.shape, dtype=exact, device=q.device)
        travel, homeward = _Travel(torch.stack((k, v)), plan), _Homeward(plan)
        for hop, calls in enumerate(plan.hops):
            kv = travel.depart()
            dkv = torch.zeros(kv.shape, dtype=exact, device=q.device)
            for call in calls:
                _backward_call(kernel, call, grad, q, kv, ctx.kv_of_head, out, lse, dq, dkv, ctx.scale)
            homeward.pass_on(hop, dkv)
            travel.arrive()
        dk, dv = homeward.come_home()
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _forward_call(
    kernel: Kernel,
    call: Call,
    q: Tensor,
    kv: Tensor,
    kv_of_head: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> None:
    """One rectangle, merged into the rows of `out` and `lse`."""
    r = call.rectangle
    if q.shape[1] == 0:  # more ulysses ranks than heads: this one has none
        return
    k, v = _expand(kv[:, r.k0 : r.k1], kv_of_head)
    new_out, new_lse = kernel.forward(q[r.q0 : r.q1], k, v, r.causal, scale)
    rows, rows_lse = out[r.q0 : r.q1], lse[:, r.q0 : r.q1]
    if call.fresh:
        rows.copy_(new_out)
        rows_lse.copy_(new_lse)
        return
    total = torch.logaddexp(rows_lse, new_lse.to(lse.dtype))  # the sigmoid form gives NaN from -inf
    rows.mul_((rows_lse - total).exp().T[..., None]).add_(new_out * (new_lse - total).exp().T[..., None])
    rows_lse.copy_(total)


def _backward_call(
    kernel: Kernel,
    call: Call,
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
    """Gradients of one rectangle, added to the rows of `dq` and `dkv`."""
    r = call.rectangle
    if q.shape[1] == 0:
        return
    rows, keys = slice(r.q0, r.q1), slice(r.k0, r.k1)
    k, v = _expand(kv[:, keys], kv_of_head)
    new_dq, new_dk, new_dv = kernel.backward(
        grad[rows], q[rows], k, v, out[rows], lse[:, rows].contiguous(), r.causal, scale
    )
    dq[rows] += new_dq
    for total, new in zip(dkv[:, keys], (new_dk, new_dv), strict=True):
        if kv_of_head is None:
            total += new
        else:
            total.index_add_(1, kv_of_head, new.to(total.dtype))


def _expand(kv: Tensor, kv_of_head: Tensor | None) -> Tensor:
    return kv if kv_of_head is None else kv.index_select(2, kv_of_head)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class _Travel:
    """Keys and values on their way round: `depart` sends what is here and gives it out, `arrive` waits for the next."""

    def __init__(self, kv: Tensor, plan: Plan) -> None:
        self.here, self.plan, self.hop = kv, plan, 0
        self.next: Tensor | None = None
        self.works: list[dist.Work] = []

    def depart(self) -> Tensor:
        if self.hop + 1 < len(self.plan.hops):
            shape = (2, self.plan.key_tokens[self.hop + 1], *self.here.shape[2:])
            self.next = torch.empty(shape, dtype=self.here.dtype, device=self.here.device)
            self.works = _exchange(self.plan, self.here, self.next)
        return self.here

    def arrive(self) -> None:
        self.hop += 1
        for work in self.works:
            work.wait()
        self.works = []
        if self.next is not None:
            self.here, self.next = self.next, None


class _Homeward:
    """Gradients of travelling keys: each hop adds its own and passes the sum on; after the last hop it is home."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.sent: list[dist.Work] = []
        self.leaving: Tensor | None = None
        self.coming: Tensor | None = None

    def pass_on(self, hop: int, dkv: Tensor) -> None:
        """Add the gradient of hop `hop` to what has come in for the same keys, and send the sum up the ring."""
        self._wait()
        if self.coming is not None:
            dkv += self.coming
        hops = len(self.plan.hops)
        if hops == 1:
            self.coming = dkv
            return
        # what comes in next is for the keys of the next hop; after the last hop, for our own
        tokens = self.plan.key_tokens[(hop + 1) % hops]
        self.coming = torch.empty((2, tokens, *dkv.shape[2:]), dtype=dkv.dtype, device=dkv.device)
        self.leaving = dkv  # kept alive until it is sent
        self.sent = _exchange(self.plan, dkv, self.coming)

    def come_home(self) -> Tensor:
        """The whole gradient of this rank's own keys and values: [2, keys, kv_heads, head_dim]."""
        self._wait()
        assert self.coming is not None, "a plan has at least one hop"
        return self.coming

    def _wait(self) -> None:
        for work in self.sent:
            work.wait()
        self.sent = []


def _exchange(plan: Plan, leaving: Tensor, coming: Tensor) -> list[dist.Work]:
    """Start sending to the next rank of the ring and receiving from the one before; both sides know empty blocks."""
    assert plan.groups is not None, "only a plan with groups has more than one hop"
    ring, me = plan.groups.ring_ranks, plan.groups.place.ring
    ops = []
    if leaving.numel():
        ops.append(dist.P2POp(dist.isend, leaving.contiguous(), ring[(me + 1) % len(ring)], plan.groups.ring))
    if coming.numel():
        ops.append(dist.P2POp(dist.irecv, coming, ring[me - 1], plan.groups.ring))
    return list(dist.batch_isend_irecv(ops)) if ops else []
