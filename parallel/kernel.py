"""`Kernel`: forward and backward of the pieces of one launch, with log-sum-exp.

The backward takes the *global* output and log-sum-exp of the rows (after merging all launches), which makes the sum of
the pieces' gradients the exact gradient of the whole (Liu et al., Ring Attention, arXiv:2310.01889, sec. 3).

Rows of all pieces stand one after the other: tensors are [rows, heads, head_dim], log-sum-exp is [heads, rows], and
`Pieces` says where each piece ends. Query heads are a multiple of key heads.

    FlashCPU    torch's aten flash op for CPU: float64, float32, bf16; pieces of one shape are one call
    FlashCUDA   torch's aten flash op for CUDA, with variable lengths: all pieces are one call; bf16 and fp16.
                torch.nn.attention.activate_flash_attention_impl re-routes it to FA3 or FA4
    FlashAttn   the same from the flash-attn package
    Reference   dense, for what the others do not take (float32 and float64 on CUDA)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from parallel.errors import InputError
from parallel.rectangles import ANTICAUSAL, CAUSAL, DIAGONAL, FULL

aten = torch.ops.aten
Name = Literal["aten", "flash_attn", "reference"]
LARGEST_HEAD = 256  # that the flash kernels of CUDA take; and multiples of 8


@dataclass(frozen=True)
class Pieces:
    """Kind and lengths of the pieces of a launch; all but FULL are squares."""

    kind: int
    queries: tuple[int, ...]
    keys: tuple[int, ...]

    def runs(self) -> Iterator[tuple[int, slice, slice]]:
        """Stretches of pieces of one shape: how many, their rows of the queries and of the keys."""
        row = column = 0
        for (queries, keys), group in groupby(zip(self.queries, self.keys, strict=True)):
            count = len(list(group))
            yield count, slice(row, row + count * queries), slice(column, column + count * keys)
            row, column = row + count * queries, column + count * keys


class Kernel(Protocol):
    """Attention of queries to keys, piece by piece."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, pieces: Pieces, scale: float) -> tuple[Tensor, Tensor]:
        """Output [rows, heads, head_dim] and log-sum-exp [heads, rows]."""

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, pieces: Pieces, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v, given the global `out` and `lse` of the rows."""


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
    if keys == 0 or queries % keys:
        found = f"{queries} query heads, {keys} key heads"
        raise InputError("query heads are a multiple of key heads", found, "change the number of key heads")


def refuse_heads(q: Tensor, k: Tensor) -> None:
    """Shapes that a kernel takes.

    Raises:
        InputError: the query heads are no multiple of the key heads, or no flash kernel takes the head dimension.
    """
    refuse_head_counts(q.shape[1], k.shape[1])
    if q.shape[2] != k.shape[2]:
        raise InputError("queries and keys have one head_dim", f"{q.shape[2]} and {k.shape[2]}", "make them equal")
    flash = q.device.type == "cuda" and q.dtype in (torch.bfloat16, torch.float16)
    if flash and (q.shape[2] % 8 or q.shape[2] > LARGEST_HEAD):
        rule = f"flash attention takes a head_dim that is a multiple of 8, up to {LARGEST_HEAD}"
        raise InputError(rule, f"head_dim {q.shape[2]}", "change the number of heads, or dtype=float32")


class FlashCPU:
    """aten flash attention on CPU; takes fewer key heads than query heads."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, pieces: Pieces, scale: float) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        if pieces.kind == DIAGONAL:
            return _diagonal(q, k, v, scale)
        outs, lses = [], []
        for count, rows, columns in pieces.runs():
            q4, k4, v4 = (_batched(x, count, pieces.kind) for x in (q[rows], k[columns], v[columns]))
            out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
                q4, k4, v4, 0.0, pieces.kind != FULL, attn_mask=None, scale=scale
            )
            outs.append(_flat(out, pieces.kind))
            lses.append(_lse_flat(lse, pieces.kind))
        return _joined(outs), _joined(lses, dim=1)

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, pieces: Pieces, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernel`."""
        if pieces.kind == DIAGONAL:
            return _diagonal_backward(grad, q, k, v, out, lse, scale)
        found: list[tuple[Tensor, ...]] = []
        for count, rows, columns in pieces.runs():
            grad4, q4, out4 = (_batched(x[rows], count, pieces.kind) for x in (grad, q, out))
            k4, v4 = (_batched(x[columns], count, pieces.kind) for x in (k, v))
            grads = aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad4, q4, k4, v4, out4, _lse_batched(lse[:, rows], count, pieces.kind),
                0.0, pieces.kind != FULL, attn_mask=None, scale=scale,
            )  # fmt: skip
            found.append(tuple(_flat(x, pieces.kind) for x in grads))
        dq, dk, dv = (_joined(list(parts)) for parts in zip(*found, strict=True))
        return dq, dk, dv


class FlashCUDA:
    """aten flash attention on CUDA, all pieces in one call."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, pieces: Pieces, scale: float) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        if pieces.kind == DIAGONAL:
            return _diagonal(q, k, v, scale)
        q, k, v = (_turned(x, n, pieces.kind) for x, n in zip((q, k, v), _sides(pieces), strict=True))
        out, lse = self._call(q, k, v, pieces, scale)
        return _turned(out, pieces.queries, pieces.kind), _turned(lse.T, pieces.queries, pieces.kind).T

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, pieces: Pieces, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernel`."""
        if pieces.kind == DIAGONAL:
            return _diagonal_backward(grad, q, k, v, out, lse, scale)
        sides = _sides(pieces)
        grad, out = (_turned(x, pieces.queries, pieces.kind).contiguous() for x in (grad, out))
        q, k, v = (_turned(x, n, pieces.kind) for x, n in zip((q, k, v), sides, strict=True))
        lse = _turned(lse.T, pieces.queries, pieces.kind).T.contiguous()
        grads = self._call_backward(grad, q, k, v, out, lse, pieces, scale)
        dq, dk, dv = (_turned(x, n, pieces.kind) for x, n in zip(grads, sides, strict=True))
        return dq, dk, dv

    def _call(self, q: Tensor, k: Tensor, v: Tensor, pieces: Pieces, scale: float) -> tuple[Tensor, Tensor]:
        bounds = _bounds(pieces, q.device)
        out, lse, *_ = aten._flash_attention_forward(
            q, k, v, *bounds, max(pieces.queries), max(pieces.keys), 0.0, pieces.kind != FULL, False, scale=scale
        )
        return out, lse

    def _call_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, pieces: Pieces, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        unused = torch.zeros(2, dtype=torch.uint64, device=q.device)  # the state of a drop-out that is 0
        dq, dk, dv = aten._flash_attention_backward(
            grad, q, k, v, out, lse, *_bounds(pieces, q.device), max(pieces.queries), max(pieces.keys),
            0.0, pieces.kind != FULL, unused, unused, scale=scale,
        )  # fmt: skip
        return dq, dk, dv


class FlashAttn(FlashCUDA):
    """The flash-attn package, through the same operators that it registers for its own autograd."""

    def _call(self, q: Tensor, k: Tensor, v: Tensor, pieces: Pieces, scale: float) -> tuple[Tensor, Tensor]:
        out, lse, *_ = _package()._flash_attn_varlen_forward(
            q, k, v, *_bounds(pieces, q.device), max(pieces.queries), max(pieces.keys), 0.0, scale, pieces.kind != FULL
        )
        return out, lse

    def _call_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, pieces: Pieces, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        _package()._flash_attn_varlen_backward(
            grad, q, k, v, out, lse, dq, dk, dv, *_bounds(pieces, q.device), max(pieces.queries), max(pieces.keys),
            0.0, scale, pieces.kind != FULL, -1, -1, 0.0, None, True,
        )  # fmt: skip
        return dq, dk, dv


class Reference:
    """Dense softmax in the dtype of its input; memory grows with rows x keys."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, pieces: Pieces, scale: float) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        groups = q.shape[1] // k.shape[1]
        scores = self._scores(q, _repeat(k, groups), pieces, scale)
        lse = torch.logsumexp(scores, dim=-1)
        return torch.einsum("hqk,khd->qhd", (scores - lse[..., None]).exp(), _repeat(v, groups)), lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, pieces: Pieces, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernel`."""
        groups = q.shape[1] // k.shape[1]
        k_all, v_all = _repeat(k, groups), _repeat(v, groups)
        p = (self._scores(q, k_all, pieces, scale) - lse[..., None]).exp()  # [heads, rows, keys]
        dp = torch.einsum("qhd,khd->hqk", grad, v_all)
        ds = p * (dp - (grad * out).sum(dim=-1).T[..., None]) * scale
        dq = torch.einsum("hqk,khd->qhd", ds, k_all)
        dk = torch.einsum("hqk,qhd->khd", ds, q)
        dv = torch.einsum("hqk,qhd->khd", p, grad)
        return dq, _sum_groups(dk, groups), _sum_groups(dv, groups)

    def _scores(self, q: Tensor, k: Tensor, pieces: Pieces, scale: float) -> Tensor:
        shapes = list(zip(pieces.queries, pieces.keys, strict=True))
        blocks = [torch.ones(*shape, dtype=torch.bool, device=q.device) for shape in shapes]
        if pieces.kind in (CAUSAL, DIAGONAL):
            blocks = [b.tril() for b in blocks]
        if pieces.kind in (ANTICAUSAL, DIAGONAL):
            blocks = [b.triu() for b in blocks]
        return (torch.einsum("qhd,khd->hqk", q, k) * scale).masked_fill(~torch.block_diag(*blocks).bool(), -torch.inf)


def _diagonal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Each query sees one key: the output is its value."""
    groups = q.shape[1] // k.shape[1]
    exact = torch.promote_types(q.dtype, torch.float32)
    lse = (q.to(exact) * _repeat(k, groups)).sum(dim=2).T * scale
    return _repeat(v, groups), lse


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


def _turned(x: Tensor, lengths: tuple[int, ...], kind: int) -> Tensor:
    """Each piece backwards in time if it is anticausal: it then is causal."""
    return torch.cat([part.flip(0) for part in x.split(list(lengths))]) if kind == ANTICAUSAL else x


def _sides(pieces: Pieces) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    return pieces.queries, pieces.keys, pieces.keys


def _bounds(pieces: Pieces, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where pieces begin and end, as kernels of variable length want it: [pieces + 1] int32 of queries and keys."""
    sides = ([0, *accumulate(n)] for n in (pieces.queries, pieces.keys))
    queries, keys = (torch.tensor(n, dtype=torch.int32).to(device, non_blocking=True) for n in sides)
    return queries, keys


def _joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _repeat(x: Tensor, groups: int) -> Tensor:
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def _sum_groups(x: Tensor, groups: int) -> Tensor:
    return x if groups == 1 else x.unflatten(1, (-1, groups)).sum(dim=2)


def _package() -> Any:
    import flash_attn.flash_attn_interface

    return flash_attn.flash_attn_interface
