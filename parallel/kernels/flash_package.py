"""`FlashPackage`: FlashAttention 2 from the flash-attn package, through the functions that its own autograd calls.

It is often newer than the copy in torch. Written for versions 2.7 and 2.8.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallel.kernels.flash_cuda import FlashCUDA
from parallel.kernels.launch import Call


class FlashPackage(FlashCUDA):
    """bf16 and fp16; backward is deterministic where torch is told to be."""

    def _call(self, q: Tensor, k: Tensor, v: Tensor, call: Call, scale: float) -> tuple[Tensor, Tensor]:
        out, lse, *_ = _package()._flash_attn_varlen_forward(
            q, k, v, *call.bounds(q.device), *call.longest, 0.0, scale, call.causal
        )
        return out, lse

    def _call_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        call: Call, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        _package()._flash_attn_varlen_backward(
            grad, q, k, v, out, lse, dq, dk, dv, *call.bounds(q.device), *call.longest,
            0.0, scale, call.causal, -1, -1, 0.0, None, torch.are_deterministic_algorithms_enabled(),
        )  # fmt: skip
        return dq, dk, dv


def _package() -> Any:
    import flash_attn.flash_attn_interface

    return flash_attn.flash_attn_interface
