"""`Kernel`: forward and backward of one rectangle, with log-sum-exp.

The backward takes the *global* output and log-sum-exp of the rows (after merging all rectangles), which makes the sum
of the rectangles' gradients the exact gradient of the whole (Liu et al., Ring Attention, arXiv:2310.01889, sec. 3).

Two kernels: torch's own aten flash ops (CPU in float64, float32, bf16; CUDA in bf16 and fp16), and a dense reference
for what they do not take (float32 and float64 on CUDA). Tensors are [rows, heads, head_dim]; log-sum-exp is [heads,
rows]. Query heads are a multiple of key heads.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

aten = torch.ops.aten


class Kernel(Protocol):
    """Attention of queries to keys, full or causal and square."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """Output [rows, heads, head_dim] and log-sum-exp [heads, rows]."""

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v, given the global `out` and `lse` of the rows."""


def kernel_for(device: torch.device, dtype: torch.dtype) -> Kernel:
    """The fastest kernel that is right for this device and dtype."""
    if device.type == "cpu":
        return FlashCPU()
    return FlashCUDA() if dtype in (torch.bfloat16, torch.float16) else Reference()


class FlashCPU:
    """aten flash attention on CPU; takes fewer key heads than query heads."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
            _heads_first(q), _heads_first(k), _heads_first(v), 0.0, causal, attn_mask=None, scale=scale
        )
        return _rows_first(out), lse[0]

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernel`."""
        dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(_heads_first(x) for x in (grad, q, k, v, out)), lse[None], 0.0, causal, attn_mask=None, scale=scale
        )
        return _rows_first(dq), _rows_first(dk), _rows_first(dv)


class FlashCUDA:
    """aten flash attention on CUDA, which `activate_flash_attention_impl` re-routes to FA3 or FA4."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        groups = q.shape[1] // k.shape[1]
        q4, k4, v4 = _heads_first(q), _heads_first(_repeat(k, groups)), _heads_first(_repeat(v, groups))
        out, lse, *_ = aten._scaled_dot_product_flash_attention(q4, k4, v4, 0.0, causal, False, scale=scale)
        return _rows_first(out), lse[0, :, : q.shape[0]]

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernel`."""
        groups = q.shape[1] // k.shape[1]
        q4, k4, v4 = _heads_first(q), _heads_first(_repeat(k, groups)), _heads_first(_repeat(v, groups))
        unused = torch.zeros(2, dtype=torch.uint64, device=q.device)  # the state of a drop-out that is 0
        dq, dk, dv = aten._scaled_dot_product_flash_attention_backward(
            _heads_first(grad), q4, k4, v4, _heads_first(out), lse[None].contiguous(), None, None,
            q.shape[0], k.shape[0], 0.0, causal, unused, unused, scale=scale,
        )  # fmt: skip
        dq, dk, dv = _rows_first(dq), _rows_first(dk), _rows_first(dv)
        return dq, _sum_groups(dk, groups), _sum_groups(dv, groups)


class Reference:
    """Dense softmax in the dtype of its input; memory grows with rows x keys."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        groups = q.shape[1] // k.shape[1]
        scores = self._scores(q, _repeat(k, groups), causal, scale)
        lse = torch.logsumexp(scores, dim=-1)
        return torch.einsum("hqk,khd->qhd", (scores - lse[..., None]).exp(), _repeat(v, groups)), lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernel`."""
        groups = q.shape[1] // k.shape[1]
        k_all, v_all = _repeat(k, groups), _repeat(v, groups)
        p = (self._scores(q, k_all, causal, scale) - lse[..., None]).exp()  # [heads, rows, keys]
        dp = torch.einsum("qhd,khd->hqk", grad, v_all)
        ds = p * (dp - (grad * out).sum(dim=-1).T[..., None]) * scale
        dq = torch.einsum("hqk,khd->qhd", ds, k_all)
        dk = torch.einsum("hqk,qhd->khd", ds, q)
        dv = torch.einsum("hqk,qhd->khd", p, grad)
        return dq, _sum_groups(dk, groups), _sum_groups(dv, groups)

    def _scores(self, q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        if causal:
            seen = torch.ones(q.shape[0], k.shape[0], dtype=torch.bool, device=q.device).tril()
            scores = scores.masked_fill(~seen, -torch.inf)
        return scores


def _heads_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1)[None]  # [rows, heads, head_dim] -> [1, heads, rows, head_dim]


def _rows_first(x: Tensor) -> Tensor:
    return x[0].transpose(0, 1)


def _repeat(x: Tensor, groups: int) -> Tensor:
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def _sum_groups(x: Tensor, groups: int) -> Tensor:
    return x if groups == 1 else x.unflatten(1, (-1, groups)).sum(dim=2)
