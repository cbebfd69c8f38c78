"""What lies between matrix products and attention in a block, each as one step that keeps nothing but its input.

    modulated   norm(x) (1 + scale) + shift      adaLN: the row of its stretch
    gated       x + y scale                      how much of a branch is added, and the residual
    turned      rotary(rms norm(x))              queries and keys of each head

Written out in torch, autograd keeps every result on the way: of queries and keys alone 8 bytes a number in float32
copies, of each norm its input and its output. Here backward computes them again from the input, which is kept anyway
for another reason (the residual, the projection), a few rows at a time where it is wide. The price is one norm more.

Each is a pair of functions of plain tensors, which `torch.compile` can turn into one kernel each (`compiled`). What
calls them, with its loop over stretches, is not compiled: so recomputation, tiles and engines see the same graph of
autograd either way, and the number of stretches is no reason to compile again; the number of rows is not either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._guards import detect_fake_mode

EPSILON = 1e-6
CHUNK_ROWS, CHUNKS = 1 << 19, 4  # of heads, that are float32 at a time: 256 MB of 128 numbers, or a quarter of all
BACKEND = "inductor"  # of torch.compile
Compile = Literal["none", "blocks"]
Spans = tuple[tuple[int, int, int], ...]  # of stretches: row of the tables, rows [start, stop) of tokens


@dataclass(frozen=True)
class Kernels:
    """Forward and backward of each step, on rows of one stretch; the last arguments are what they write to."""

    modulate: Callable[[Tensor, Tensor, Tensor, Tensor], None]
    modulate_backward: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    gate: Callable[[Tensor, Tensor, Tensor, Tensor], None]
    gate_backward: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    turn: Callable[[Tensor, Tensor, Tensor | None, Tensor | None, Tensor], None]
    turn_backward: Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor], Tensor]


def modulated(x: Tensor, shift: Tensor, scale: Tensor, spans: Spans, kernels: Kernels) -> Tensor:
    """norm(x) (1 + scale) + shift (Peebles and Xie, DiT, arXiv:2212.09748, sec. 3.2, fig. 3).

    Args:
        x: [tokens, dim].
        shift: [stretches, dim].
        scale: [stretches, dim].
        spans: of the stretches.
        kernels: that compute it.
    """
    out: Tensor = _Modulated.apply(x, 1 + scale, shift, spans, kernels)  # type: ignore[no-untyped-call]
    return out


def gated(x: Tensor, y: Tensor, scale: Tensor, spans: Spans, kernels: Kernels) -> Tensor:
    """x + y scale; `x` and `y` are [tokens, dim], `scale` [stretches, dim]."""
    out: Tensor = _Gated.apply(x, y, scale, spans, kernels)  # type: ignore[no-untyped-call]
    return out


def turned(x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None, kernels: Kernels) -> Tensor:
    """Heads normalised (Zhang and Sennrich, arXiv:1910.07467, eq. 4) and turned (Su et al., arXiv:2104.09864, eq. 34).

    Computed in at least float32.

    Args:
        x: [tokens, heads, head_dim].
        weight: [head_dim] of the norm.
        cos: [tokens, 1, head_dim / 2], of the angle of each pair of neighbours, in at least float32; None for no turn.
        sin: like it.
        kernels: that compute it.
    """
    out: Tensor = _Turned.apply(x, weight, cos, sin, kernels)  # type: ignore[no-untyped-call]
    return out


class _Modulated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, spans: Spans, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.spans, ctx.kernels = spans, kernels
        out = torch.empty_like(x)
        for row, start, stop in spans:
            kernels.modulate(x[start:stop], scale[row], shift[row], out[start:stop])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, scale = ctx.saved_tensors
        grad_x, grad_scale, grad_shift = torch.empty_like(x), torch.zeros_like(scale), torch.zeros_like(scale)
        for row, start, stop in ctx.spans:
            grad_scale[row], grad_shift[row] = ctx.kernels.modulate_backward(
                grads[0][start:stop], x[start:stop], scale[row], grad_x[start:stop]
            )
        return grad_x, grad_scale, grad_shift, None, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor, spans: Spans, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(y, scale)
        ctx.spans, ctx.kernels = spans, kernels
        out = torch.empty_like(x)
        for row, start, stop in spans:
            kernels.gate(x[start:stop], y[start:stop], scale[row], out[start:stop])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        y, scale = ctx.saved_tensors
        grad_y, grad_scale = torch.empty_like(y), torch.zeros_like(scale)
        for row, start, stop in ctx.spans:
            rows = slice(start, stop)
            grad_scale[row] = ctx.kernels.gate_backward(grads[0][rows], y[rows], scale[row], grad_y[rows])
        return grads[0], grad_y, grad_scale, None, None


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None, kernels: Kernels
    ) -> Tensor:
        ctx.save_for_backward(x, weight, cos, sin)
        ctx.kernels = kernels
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for rows in _chunks(x):
            kernels.turn(x[rows], weight, _of(cos, rows), _of(sin, rows), out[rows])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, weight, cos, sin = ctx.saved_tensors
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        total = torch.zeros(weight.shape, dtype=_wide(x), device=weight.device)
        for rows in _chunks(x):
            total += ctx.kernels.turn_backward(
                grads[0][rows], x[rows], weight, _of(cos, rows), _of(sin, rows), grad_x[rows]
            )
        return grad_x, total.to(weight.dtype), None, None, None


def _of(x: Tensor | None, rows: slice) -> Tensor | None:
    return None if x is None else x[rows]


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _chunks(x: Tensor) -> list[slice]:
    """Rows of [tokens, heads, head_dim] that are wide at a time."""
    size = max(1, CHUNK_ROWS // x.shape[1], -(-len(x) // CHUNKS))
    return [slice(start, start + size) for start in range(0, len(x), size)]


def _modulate(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
    torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=EPSILON), scale, out=out)


def _modulate_backward(grad: Tensor, x: Tensor, scale: Tensor, grad_x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of scale and shift."""
    normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, EPSILON)
    of_scale, of_shift = normed.mul_(grad).sum(0), grad.sum(0)
    torch.mul(grad, scale, out=normed)
    found, _, _ = torch.ops.aten.native_layer_norm_backward(
        normed, x, x.shape[-1:], mean, rstd, None, None, [True, False, False]
    )
    grad_x.copy_(found)
    return of_scale, of_shift


def _gate(x: Tensor, y: Tensor, scale: Tensor, out: Tensor) -> None:
    torch.mul(y, scale, out=out)
    out.add_(x)


def _gate_backward(grad: Tensor, y: Tensor, scale: Tensor, grad_y: Tensor) -> Tensor:
    """The gradient of scale."""
    torch.mul(grad, y, out=grad_y)
    found = grad_y.sum(0)
    torch.mul(grad, scale, out=grad_y)
    return found


def _turn(x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None, out: Tensor) -> None:
    normed = F.rms_norm(x, x.shape[-1:], weight, EPSILON)
    if cos is None or sin is None:
        out.copy_(normed)
    else:
        turn_into(normed, cos, sin, out)


def _turn_backward(
    grad: Tensor, x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None, grad_x: Tensor
) -> Tensor:
    """The gradient of weight, in at least float32."""
    wide = _wide(x)
    if cos is not None and sin is not None:
        turn_into(grad, cos, -sin, back := torch.empty_like(grad))
        grad = back
    if x.device.type == "cpu":  # it has no kernel for this
        return _norm_backward(grad.to(wide), x.to(wide), weight.to(wide), grad_x)
    fused, fused_backward = torch.ops.aten._fused_rms_norm, torch.ops.aten._fused_rms_norm_backward
    _, rstd = fused(x, x.shape[-1:], weight, EPSILON)
    found, of_weight = fused_backward(grad, x, x.shape[-1:], rstd, weight, [True, True])
    grad_x.copy_(found)
    total: Tensor = of_weight.to(wide)
    return total


def _norm_backward(grad: Tensor, x: Tensor, weight: Tensor, grad_x: Tensor) -> Tensor:
    """Gradients of an RMS norm: of its input into `grad_x`, and of its weight."""
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
    of_weight = (grad * (x * rstd)).sum((0, 1))
    inner = grad * weight
    grad_x.copy_(rstd * inner - x * (rstd.pow(3) * (inner * x).mean(-1, keepdim=True)))
    return of_weight


def turn_into(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Pairs (2i, 2i + 1) of [tokens, heads, head_dim] by an angle, computed in the dtype of `cos`."""
    a, b = x[..., 0::2].to(cos.dtype), x[..., 1::2].to(cos.dtype)
    out[..., 0::2] = a * cos - b * sin
    out[..., 1::2] = a * sin + b * cos


EAGER = Kernels(_modulate, _modulate_backward, _gate, _gate_backward, _turn, _turn_backward)


def kernels_of(how: Compile) -> Kernels:
    """Those of a config: as they are, or each compiled into one kernel."""
    return EAGER if how == "none" else _compiled(BACKEND)


@cache
def _compiled(backend: str) -> Kernels:
    def modulate(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
        out.copy_(F.layer_norm(x, x.shape[-1:], eps=EPSILON) * scale + shift)

    def modulate_backward(grad: Tensor, x: Tensor, scale: Tensor, grad_x: Tensor) -> tuple[Tensor, Tensor]:
        wide = _wide(x)
        centred = x.to(wide) - x.to(wide).mean(-1, keepdim=True)
        rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + EPSILON)
        normed, inner = centred * rstd, grad.to(wide) * scale.to(wide)
        grad_x.copy_(rstd * (inner - inner.mean(-1, keepdim=True) - normed * (inner * normed).mean(-1, keepdim=True)))
        return (grad.to(wide) * normed).sum(0).to(x.dtype), grad.sum(0)

    def gate(x: Tensor, y: Tensor, scale: Tensor, out: Tensor) -> None:
        out.copy_(x + y * scale)

    def gate_backward(grad: Tensor, y: Tensor, scale: Tensor, grad_y: Tensor) -> Tensor:
        grad_y.copy_(grad * scale)
        return (grad * y).sum(0)

    def turn(x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None, out: Tensor) -> None:
        wide = x.to(_wide(x))
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON) * weight.to(wide.dtype)
        if cos is not None and sin is not None:
            a, b = normed.unflatten(-1, (-1, 2)).unbind(-1)
            normed = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
        out.copy_(normed)

    def turn_backward(
        grad: Tensor, x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None, grad_x: Tensor
    ) -> Tensor:
        grad, wide = grad.to(_wide(x)), x.to(_wide(x))
        if cos is not None and sin is not None:
            a, b = grad.unflatten(-1, (-1, 2)).unbind(-1)
            grad = torch.stack((a * cos + b * sin, b * cos - a * sin), dim=-1).flatten(-2)
        return _norm_backward(grad, wide, weight.to(wide.dtype), grad_x)

    written: tuple[Callable[..., Any], ...] = (modulate, modulate_backward, gate, gate_backward, turn, turn_backward)
    plain: tuple[Callable[..., Any], ...] = (
        _modulate,
        _modulate_backward,
        _gate,
        _gate_backward,
        _turn,
        _turn_backward,
    )
    return Kernels(*(compiled(a, b, backend) for a, b in zip(written, plain, strict=True)))


def compiled(function: Callable[..., Any], plain: Callable[..., Any], backend: str | None = None) -> Callable[..., Any]:
    """`function` as one kernel for any number of rows; on fake tensors, which compute nothing, `plain`."""
    made = torch.compile(function, backend=backend or BACKEND)

    def call(*args: Tensor | None) -> Any:
        if detect_fake_mode(args):
            return plain(*args)
        for x in args:
            if x is not None and x.ndim > 1:
                torch._dynamo.maybe_mark_dynamic(x, 0)
        return made(*args)

    return call
