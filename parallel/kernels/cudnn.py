"""`CuDNN`: NVIDIA's own attention, which comes with torch, for large pieces; aten's flash op for the rest.

On Hopper it is of FlashAttention 3's speed. It knows no variable lengths that we could use, so only calls of one piece
go to it, of as many pairs as `calls.LARGE`. Its backward is not deterministic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.kernels.flash_cuda import FlashCUDA
from parallel.kernels.launch import Call
from parallel.kernels.varlen_calls import LARGE

aten = torch.ops.aten
SHORTEST = 128  # rows or keys: what is shorter is not what it was made for
LARGEST_HEAD = 128  # head_dim whose backward all versions have


class CuDNN(FlashCUDA):
    """bf16 and fp16."""

    def _call(self, q: Tensor, k: Tensor, v: Tensor, call: Call, scale: float) -> tuple[Tensor, Tensor]:
        if not suits(q, call):
            return super()._call(q, k, v, call, scale)
        q4, k4, v4 = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        out, lse, *_ = aten._scaled_dot_product_cudnn_attention(
            q4, k4, v4, None, True, 0.0, call.causal, False, scale=scale
        )
        return out.squeeze(0).transpose(0, 1), lse.view(q.shape[1], -1)

    def _call_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        call: Call, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        if not suits(q, call):
            return super()._call_backward(grad, q, k, v, out, lse, call, scale)
        grad4, q4, k4, v4, out4 = (x.transpose(0, 1).unsqueeze(0) for x in (grad, q, k, v, out))
        unused = torch.zeros((), dtype=torch.int64, device=q.device)  # the state of a drop-out that is 0
        grads = aten._scaled_dot_product_cudnn_attention_backward(
            grad4, q4, k4, v4, out4, lse.unsqueeze(0).unsqueeze(-1), unused, unused, None, None, None, *call.longest,
            0.0, call.causal, scale=scale,
        )  # fmt: skip
        dq, dk, dv = (x.squeeze(0).transpose(0, 1) for x in grads)
        return dq, dk, dv


def suits(q: Tensor, call: Call) -> bool:
    """Whether cuDNN takes a call: one large piece, heads of at most 128."""
    rows, keys = call.longest
    return (
        len(call.pieces) == 1
        and rows * keys >= LARGE
        and min(rows, keys) >= SHORTEST
        and q.shape[2] % 8 == 0
        and q.shape[2] <= LARGEST_HEAD
    )
