"""`EfficientCUDA`: torch's memory-efficient attention op, for float32, which no flash kernel takes.

On tensor cores by three products in TF32, which is as exact as float32 nearly (xformers, Rabe and Staats,
arXiv:2112.05682). It wants a key head for each query head, and its log-sum-exp is [pieces, heads, longest], padded to
32 rows with infinity, so that what it weighs by is zero there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from parallel.kernels.flash_cuda import FlashCUDA
from parallel.kernels.launch import Call
from parallel.kernels.pieces import dense, folded, repeated

aten = torch.ops.aten
ALIGNED = 32  # rows of the log-sum-exp, as backward reads them
TOP_LEFT = 1  # causal, aligned there; 0 is no mask


class EfficientCUDA(FlashCUDA):
    """float32; deterministic where torch is told to be, by not splitting keys."""

    padded = True

    def _call(self, q: Tensor, k: Tensor, v: Tensor, call: Call, scale: float) -> tuple[Tensor, Tensor]:
        groups = q.shape[1] // k.shape[1]
        bounds = call.bounds(q.device) if len(call.pieces) > 1 else (None, None)
        out, lse, *_ = aten._efficient_attention_forward(
            *(x.unsqueeze(0) for x in (q, repeated(k, groups), repeated(v, groups))), None, *bounds, *call.longest,
            0.0, TOP_LEFT if call.causal else 0, True, **_scale(q, scale),
        )  # fmt: skip
        return out.squeeze(0), _flat(lse, call)

    def _call_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        call: Call, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        groups = q.shape[1] // k.shape[1]
        bounds = call.bounds(q.device) if len(call.pieces) > 1 else (None, None)
        unused = torch.zeros((), dtype=torch.int64, device=q.device)  # the state of a drop-out that is 0
        q1, k1, v1 = (x.unsqueeze(0) for x in (q, repeated(k, groups), repeated(v, groups)))
        dq, dk, dv, _ = aten._efficient_attention_backward(
            grad.unsqueeze(0), q1, k1, v1, None, out.unsqueeze(0), *bounds, *call.longest, _padded(lse, call),
            0.0, unused, unused, TOP_LEFT if call.causal else 0, False, **_scale(q, scale),
        )  # fmt: skip
        return dq.squeeze(0), folded(dk.squeeze(0), groups), folded(dv.squeeze(0), groups)


def _scale(q: Tensor, scale: float) -> dict[str, float]:
    """Only if it is not the op's own: on fake tensors torch 2.13 has no place for it in backward."""
    return {} if scale == q.shape[2] ** -0.5 else {"scale": scale}


def _flat(lse: Tensor, call: Call) -> Tensor:
    """[pieces, heads, padded] -> [heads, rows]."""
    sizes = [r.stop - r.start for r in call.rows]
    return torch.cat([one.narrow(1, 0, size) for one, size in zip(lse.unbind(), sizes, strict=True)], dim=1)


def _padded(lse: Tensor, call: Call) -> Tensor:
    """[heads, rows] -> [pieces, heads, padded]."""
    parts = lse.T.split([r.stop - r.start for r in call.rows])
    long = -(-call.longest[0] // ALIGNED) * ALIGNED
    parts = (*parts, lse.new_empty(long, len(lse)))  # decides the length, and is cut off
    found: Tensor = pad_sequence(list(parts), batch_first=True, padding_value=torch.inf)
    return dense(found.narrow(0, 0, len(call.pieces)).transpose(1, 2))
