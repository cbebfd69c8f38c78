"""Layers that know their own initialisation, so that a model is the same whoever builds it and in whatever dtype.

Initialisation lies in `reset_parameters`, inside the constructor of the layer that owns the numbers: engines that cut
parameters as soon as a layer is built (DeepSpeed's `zero.Init`) then still cut the right numbers.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.fused import EAGER, EPSILON, Kernels, turned
from models.layers.rope import Rotary
from parallel.attention.attend import attend
from parallel.attention.plan import Plan


class Linear(nn.Linear):
    """Xavier-uniform weights (Glorot and Bengio 2010, eq. 16) and no offset at first."""

    def reset_parameters(self) -> None:
        """Draw the weights."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)


class ZeroLinear(nn.Linear):
    """All zeros at first: the branch that ends here starts as nothing."""

    def reset_parameters(self) -> None:
        """Set to zero."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def norm(x: Tensor) -> Tensor:
    """LayerNorm over the last dimension without parameters; statistics in at least float32 inside the kernel."""
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON)


class RMSNorm(nn.RMSNorm):
    """x / rms(x) times a learned scale (Zhang and Sennrich, arXiv:1910.07467, eq. 4), in at least float32."""

    def __init__(self, dim: int, kernels: Kernels = EAGER) -> None:
        super().__init__(dim, eps=EPSILON)
        self.kernels = kernels

    def forward(self, x: Tensor, rotary: Rotary | None = None) -> Tensor:
        """`x` [tokens, heads, dim], normalised and perhaps turned, in its own dtype."""
        cos, sin = (None, None) if rotary is None else (rotary.cos, rotary.sin)
        return turned(x, self.weight, cos, sin, self.kernels)


class MLP(nn.Module):
    """Linear, GELU (tanh form, Hendrycks and Gimpel, arXiv:1606.08415, sec. 2), linear."""

    def __init__(self, dim: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.up, self.down = Linear(dim, hidden), Linear(hidden, dim if out is None else out)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [rows, dim] -> [rows, out]."""
        out: Tensor = self.down(F.gelu(self.up(x), approximate="tanh"))
        return out


class SelfAttention(nn.Module):
    """Tokens look at tokens, as the plan says: query-key norm (Dehghani et al., arXiv:2302.05442, sec. 2), rotary."""

    def __init__(self, dim: int, heads: int, kernels: Kernels = EAGER) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = Linear(dim, 3 * dim), Linear(dim, dim)
        self.norm_q, self.norm_k = RMSNorm(dim // heads, kernels), RMSNorm(dim // heads, kernels)

    def forward(self, x: Tensor, rotary: Rotary, plan: Plan) -> Tensor:
        """`x` [tokens, dim] -> [tokens, dim]."""
        q, k, v = self.qkv(x).unflatten(1, (3, self.heads, -1)).unbind(1)  # each [tokens, heads, head_dim]
        out: Tensor = self.out(attend(self.norm_q(q, rotary), self.norm_k(k, rotary), v, plan).flatten(1))
        return out


class CrossAttention(nn.Module):
    """Tokens look at the words of their document; adds nothing at first."""

    def __init__(self, dim: int, text_dim: int, heads: int, kernels: Kernels = EAGER) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.out = Linear(dim, dim), Linear(text_dim, 2 * dim), ZeroLinear(dim, dim)
        self.norm_q, self.norm_k = RMSNorm(dim // heads, kernels), RMSNorm(dim // heads, kernels)

    def forward(self, x: Tensor, text: Tensor, plan: Plan) -> Tensor:
        """`x` [tokens, dim] and `text` [text tokens, text_dim] -> [tokens, dim]."""
        q = self.q(x).unflatten(1, (self.heads, -1))
        k, v = self.kv(text).unflatten(1, (2, self.heads, -1)).unbind(1)  # each [text tokens, heads, head_dim]
        out: Tensor = self.out(attend(self.norm_q(q), self.norm_k(k), v, plan).flatten(1))
        return out
