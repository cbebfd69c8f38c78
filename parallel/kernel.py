"""`Kernel`: forward and backward of the pieces of one launch, with log-sum-exp.

The backward takes the *global* output and log-sum-exp of the rows (after merging all launches), which makes the sum of
the pieces' gradients the exact gradient of the whole (Liu et al., Ring Attention, arXiv:2310.01889, sec. 3).

Tensors are whole blocks, [rows, heads, head_dim], log-sum-exp is [heads, rows], and the launch says which rows of them
meet. What a kernel gives comes piece by piece, each with its rows. Query heads are a multiple of key heads.

    FlashCPU    torch's aten flash op for CPU: float64, float32, bf16; neighbouring pieces of one shape are one call
    FlashCUDA   torch's aten flash op for CUDA, with variable lengths: many small pieces are one call; bf16 and fp16.
                torch.nn.attention.activate_flash_attention_impl re-routes it to FA3 or FA4
    FlashAttn   the same from the flash-attn package
    Reference   dense, for what the others do not take (float32 and float64 on CUDA)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from parallel.errors import InputError
from parallel.launch import Call, GradientPart, Launch, Part
from parallel.rectangles import ANTICAUSAL, CAUSAL, DIAGONAL, FULL

aten = torch.ops.aten
Name = Literal["aten", "flash_attn", "reference"]
LARGEST_HEAD = 256  # that the flash kernels of CUDA take; and multiples of 8


class Kernel(Protocol):
    """Attention of queries to keys, piece by piece."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, launch: Launch, scale: float) -> Iterator[Part]:
        """Rows, output [rows, heads, head_dim] and log-sum-exp [heads, rows] of each stretch of queries."""

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, launch: Launch, scale: float
    ) -> Iterator[GradientPart]:
        """Gradients of stretches of queries and keys, given the global `out` and `lse` of the rows."""


def kernel_for(device: torch.device, dtype: torch.dtype, name: Name | None = None) -> Kernel:
    """The fastest kernel that is right for this device and dtype, or the one that is asked for.

    Raises:
        InputError: the kernel that was asked for does not take them.
    """
    half = dtype in (torch.bfloat16, torch.float16)
    if name == "reference":
        return Reference()
    if name == "flash_attn" and device.type == "cuda" and half:
        return FlashAttn()
    if name == "flash_attn" or (name == "aten" and device.type == "cuda" and not half):
        raise InputError(f"{name} takes bf16 and fp16 on CUDA", f"{dtype} on {device.type}", "dtype=bf16")
    if device.type == "cpu":
        return FlashCPU()
    return FlashCUDA() if half else Reference()


def refuse_head_counts(queries: int, keys: int) -> None:
    """Query heads share key heads evenly.

    Raises:
        InputError: they do not.
    """
    if min(queries, keys) < 1 or queries % keys:
        found = f"{queries} query heads, {keys} key heads"
        raise InputError("query heads are a multiple of key heads", found, "change the number of key heads")


def refuse_heads(q: Tensor, k: Tensor, v: Tensor, flash: bool | None = None) -> None:
    """Shapes that a kernel takes.

    Args:
        q: queries.
        k: keys.
        v: values.
        flash: whether a flash kernel of CUDA is to take them; found out if not given.

    Raises:
        InputError: tensors do not fit each other, the query heads are no multiple of the key heads, or no flash kernel
            takes the head dimension.
    """
    shapes = [tuple(x.shape) for x in (q, k, v)]
    if any(len(shape) != 3 for shape in shapes) or k.shape != v.shape or q.shape[2] != k.shape[2] or not q.shape[2]:
        rule = "q is [tokens, heads, head_dim]; k and v are [keys, kv_heads, head_dim]"
        raise InputError(rule, " and ".join(map(str, shapes)), "give three tensors of these shapes")
    if len({(x.dtype, x.device) for x in (q, k, v)}) > 1 or not q.is_floating_point():
        found = ", ".join(f"{x.dtype} on {x.device}" for x in (q, k, v))
        raise InputError("q, k and v are of one floating dtype on one device", found, "cast or move them")
    refuse_head_counts(q.shape[1], k.shape[1])
    if flash is None:
        flash = q.device.type == "cuda" and q.dtype in (torch.bfloat16, torch.float16)
    if flash and (q.shape[2] % 8 or q.shape[2] > LARGEST_HEAD):
        rule = f"flash attention takes a head_dim that is a multiple of 8, up to {LARGEST_HEAD}"
        raise InputError(rule, f"head_dim {q.shape[2]}", "change the number of heads, or dtype=float32")


class FlashCPU:
    """aten flash attention on CPU; takes fewer key heads than query heads."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, launch: Launch, scale: float) -> Iterator[Part]:
        """See `Kernel`."""
        for count, rows, columns in launch.runs:
            if launch.kind == DIAGONAL:
                yield rows, *_diagonal(q[rows], k[columns], v[columns], scale)
                continue
            q4, k4, v4 = (_batched(x, count, launch.kind) for x in (q[rows], k[columns], v[columns]))
            out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
                q4, k4, v4, 0.0, launch.kind != FULL, attn_mask=None, scale=scale
            )
            yield rows, _flat(out, launch.kind), _lse_flat(lse, launch.kind)

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, launch: Launch, scale: float
    ) -> Iterator[GradientPart]:
        """See `Kernel`."""
        for count, rows, columns in launch.runs:
            if launch.kind == DIAGONAL:
                dq, dk, dv = _diagonal_backward(
                    grad[rows], q[rows], k[columns], v[columns], out[rows], lse[:, rows], scale
                )
                yield rows, dq, columns, dk, dv
                continue
            grad4, q4, out4 = (_batched(x[rows], count, launch.kind) for x in (grad, q, out))
            k4, v4 = (_batched(x[columns], count, launch.kind) for x in (k, v))
            grads = aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad4, q4, k4, v4, out4, _lse_batched(lse[:, rows], count, launch.kind),
                0.0, launch.kind != FULL, attn_mask=None, scale=scale,
            )  # fmt: skip
            dq, dk, dv = (_flat(x, launch.kind) for x in grads)
            yield rows, dq, columns, dk, dv


class FlashCUDA:
    """aten flash attention on CUDA, small pieces together in one call of variable lengths."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, launch: Launch, scale: float) -> Iterator[Part]:
        """See `Kernel`."""
        for call in launch.calls(len(k)):
            rows, columns = call.rows, call.columns
            q1, k1, v1 = _taken(q, rows), _taken(k, columns), _taken(v, columns)
            if launch.kind == DIAGONAL:
                out, lse = _diagonal(q1, k1, v1, scale)
            else:
                q1, k1, v1 = (_turned(x, n, launch.kind) for x, n in ((q1, rows), (k1, columns), (v1, columns)))
                out, lse = self._call(q1, k1, v1, call, launch.kind != FULL, scale)
                out, lse = _turned(out, rows, launch.kind), _turned(lse.T, rows, launch.kind).T
            for at, stretch in _stretches(rows):
                yield stretch, out[at], lse[:, at]

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, launch: Launch, scale: float
    ) -> Iterator[GradientPart]:
        """See `Kernel`."""
        for call in launch.calls(len(k)):
            rows, columns = call.rows, call.columns
            grad1, q1, out1, lse1 = (_taken(x, rows) for x in (grad, q, out, lse.T))
            k1, v1 = _taken(k, columns), _taken(v, columns)
            if launch.kind == DIAGONAL:
                dq, dk, dv = _diagonal_backward(grad1, q1, k1, v1, out1, lse1.T, scale)
            else:
                grad1, q1, out1, lse1 = (_turned(x, rows, launch.kind) for x in (grad1, q1, out1, lse1))
                k1, v1 = (_turned(x, columns, launch.kind) for x in (k1, v1))
                grads = self._call_backward(
                    grad1.contiguous(), q1, k1, v1, out1.contiguous(), lse1.T.contiguous(),
                    call, launch.kind != FULL, scale,
                )  # fmt: skip
                dq, dk, dv = (_turned(x, n, launch.kind) for x, n in zip(grads, (rows, columns, columns), strict=True))
            row = column = 0
            for r, c in call.pieces:  # one by one: pieces may share keys, and the order of a sum is part of a result
                row, column = row + r.stop - r.start, column + c.stop - c.start
                at, of = slice(row - (r.stop - r.start), row), slice(column - (c.stop - c.start), column)
                yield r, dq[at], c, dk[of], dv[of]

    def _call(self, q: Tensor, k: Tensor, v: Tensor, call: Call, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        out, lse, *_ = aten._flash_attention_forward(
            q, k, v, *call.bounds(q.device), *call.longest, 0.0, causal, False, scale=scale,
        )  # fmt: skip
        return out, lse

    def _call_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        call: Call, causal: bool, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        unused = torch.zeros(2, dtype=torch.uint64, device=q.device)  # the state of a drop-out that is 0
        dq, dk, dv = aten._flash_attention_backward(
            grad, q, k, v, out, lse, *call.bounds(q.device), *call.longest, 0.0, causal, unused, unused, scale=scale,
        )  # fmt: skip
        return dq, dk, dv


class FlashAttn(FlashCUDA):
    """The flash-attn package, through the same operators that it registers for its own autograd."""

    def _call(self, q: Tensor, k: Tensor, v: Tensor, call: Call, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        out, lse, *_ = _package()._flash_attn_varlen_forward(
            q, k, v, *call.bounds(q.device), *call.longest, 0.0, scale, causal,
        )  # fmt: skip
        return out, lse

    def _call_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        call: Call, causal: bool, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        _package()._flash_attn_varlen_backward(
            grad, q, k, v, out, lse, dq, dk, dv, *call.bounds(q.device), *call.longest,
            0.0, scale, causal, -1, -1, 0.0, None, True,
        )  # fmt: skip
        return dq, dk, dv


class Reference:
    """Dense softmax in the dtype of its input; memory grows with rows x keys of a piece."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, launch: Launch, scale: float) -> Iterator[Part]:
        """See `Kernel`."""
        groups = q.shape[1] // k.shape[1]
        for rows, columns in launch.pieces:
            scores = self._scores(q[rows], _repeat(k[columns], groups), launch.kind, scale)
            lse = torch.logsumexp(scores, dim=-1)
            p = (scores - lse[..., None]).exp()
            yield rows, torch.einsum("hqk,khd->qhd", p, _repeat(v[columns], groups)), lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, launch: Launch, scale: float
    ) -> Iterator[GradientPart]:
        """See `Kernel`."""
        groups = q.shape[1] // k.shape[1]
        for rows, columns in launch.pieces:
            k_all, v_all = _repeat(k[columns], groups), _repeat(v[columns], groups)
            scores = self._scores(q[rows], k_all, launch.kind, scale)
            p = (scores - lse[:, rows, None]).exp()  # [heads, rows, keys]
            dp = torch.einsum("qhd,khd->hqk", grad[rows], v_all)
            ds = p * (dp - (grad[rows] * out[rows]).sum(dim=-1).T[..., None]) * scale
            dk, dv = torch.einsum("hqk,qhd->khd", ds, q[rows]), torch.einsum("hqk,qhd->khd", p, grad[rows])
            dq = torch.einsum("hqk,khd->qhd", ds, k_all)
            yield rows, dq, columns, _sum_groups(dk, groups), _sum_groups(dv, groups)

    def _scores(self, q: Tensor, k: Tensor, kind: int, scale: float) -> Tensor:
        seen = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device)
        if kind in (CAUSAL, DIAGONAL):
            seen = seen.tril()
        if kind in (ANTICAUSAL, DIAGONAL):
            seen = seen.triu()
        return (torch.einsum("qhd,khd->hqk", q, k) * scale).masked_fill(~seen, -torch.inf)


def _diagonal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Each query sees one key: the output is its value."""
    groups = q.shape[1] // k.shape[1]
    exact = torch.promote_types(q.dtype, torch.float32)
    lse = (q.to(exact) * _repeat(k, groups)).sum(dim=2).T * scale
    return v.clone() if groups == 1 else _repeat(v, groups), lse


def _diagonal_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    groups = q.shape[1] // k.shape[1]
    exact = torch.promote_types(q.dtype, torch.float32)
    q_, grad_ = q.to(exact), grad.to(exact)
    k_, v_ = _repeat(k, groups).to(exact), _repeat(v, groups).to(exact)
    p = ((q_ * k_).sum(dim=2) * scale - lse.T).exp()[..., None]
    ds = p * (grad_ * (v_ - out)).sum(dim=2, keepdim=True) * scale
    dk, dv = (_sum_groups(x, groups).to(k.dtype) for x in (ds * q_, p * grad_))
    return (ds * k_).to(q.dtype), dk, dv


def _batched(x: Tensor, count: int, kind: int) -> Tensor:
    """[count x rows, heads, head_dim] -> [count, heads, rows, head_dim]; backwards in time for an anticausal square."""
    x = x.unflatten(0, (count, -1))
    return (x.flip(1) if kind == ANTICAUSAL else x).transpose(1, 2)


def _flat(x: Tensor, kind: int) -> Tensor:
    """The way back."""
    x = x.transpose(1, 2)
    return (x.flip(1) if kind == ANTICAUSAL else x).flatten(0, 1)


def _lse_flat(lse: Tensor, kind: int) -> Tensor:
    """[count, heads, rows] -> [heads, count x rows]."""
    return (lse.flip(2) if kind == ANTICAUSAL else lse).transpose(0, 1).flatten(1)


def _lse_batched(lse: Tensor, count: int, kind: int) -> Tensor:
    """[heads, count x rows] -> [count, heads, rows]."""
    lse = lse.unflatten(1, (count, -1)).transpose(0, 1)
    return (lse.flip(2) if kind == ANTICAUSAL else lse).contiguous()


def _turned(x: Tensor, ranges: list[slice], kind: int) -> Tensor:
    """Each piece backwards in time if it is anticausal: it then is causal."""
    if kind != ANTICAUSAL:
        return x
    return torch.cat([part.flip(0) for part in x.split([r.stop - r.start for r in ranges])])


def _taken(x: Tensor, ranges: list[slice]) -> Tensor:
    """Rows of ranges, one after the other: a view where they are one stretch."""
    stretches = [x[stretch] for _, stretch in _stretches(ranges)]
    return stretches[0] if len(stretches) == 1 else torch.cat(stretches)


def _stretches(ranges: list[slice]) -> list[tuple[slice, slice]]:
    """Ranges that touch as one: where it is among the taken rows, and where in the block."""
    found: list[tuple[slice, slice]] = []
    at = 0
    for r in ranges:
        size = r.stop - r.start
        if found and found[-1][1].stop == r.start:
            here, there = found[-1]
            found[-1] = slice(here.start, at + size), slice(there.start, r.stop)
        else:
            found.append((slice(at, at + size), r))
        at += size
    return found


def _repeat(x: Tensor, groups: int) -> Tensor:
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def _sum_groups(x: Tensor, groups: int) -> Tensor:
    return x if groups == 1 else x.unflatten(1, (-1, groups)).sum(dim=2)


def _package() -> Any:
    import flash_attn.flash_attn_interface

    return flash_attn.flash_attn_interface
