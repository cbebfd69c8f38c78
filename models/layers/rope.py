"""Rotary embedding (Su et al., RoFormer, arXiv:2104.09864, eq. 14 and 34) over one or three axes, from coordinates.

Neighbouring numbers (2i, 2i + 1) of a head form a pair, which turns by coordinate x frequency. The head_dim / 2 pairs
are divided among the axes (t, y, x): y and x get a third of the pairs each, rounded down, and t gets the rest:

    head_dim 64 = 32 pairs     t 12 pairs | y 10 pairs | x 10 pairs     dims 24 | 20 | 20
    head_dim  6 =  3 pairs     t  1 pair  | y  1 pair  | x  1 pair      dims  2 |  2 |  2

Pair j of the n pairs of an axis has the frequency theta ** (-j / n). The score of a query and a key depends on the
difference of their coordinates alone, so memory order, packing and cutting do not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.layers.fused import turn_into
from parallel.errors import InputError


def pairs_per_axis(head_dim: int, axes: int) -> tuple[int, ...]:
    """Pairs that turn with each axis; their sum is head_dim / 2."""
    assert head_dim % 2 == 0, f"head_dim {head_dim} is odd"
    assert head_dim >= 2 * axes, f"head_dim {head_dim} for {axes} axes"
    pairs = head_dim // 2
    return (pairs - (axes - 1) * (pairs // axes), *[pairs // axes] * (axes - 1))


@dataclass(frozen=True)
class Rotary:
    """One turn for each token and pair, shared by all heads and layers.

    Attributes:
        cos: [tokens, 1, head_dim / 2], of the angle, in at least float32.
        sin: like it.
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def at(cls, coordinates: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotary:
        """The rotary embedding of tokens at `coordinates`.

        Args:
            coordinates: [tokens, axes] integers.
            head_dim: even, at least 2 x axes.
            theta: base of the frequencies; the longest wave is 2 pi theta.
            dtype: of the queries and keys; angles are float64 for float64 and float32 for all others.
        """
        real = torch.promote_types(dtype, torch.float32)
        angles = []
        for axis, pairs in enumerate(pairs_per_axis(head_dim, coordinates.shape[1])):
            steps = torch.arange(pairs, device=coordinates.device, dtype=real)
            angles.append(coordinates[:, axis, None] * theta ** (-steps / pairs))
        angle = torch.cat(angles, dim=1)[:, None]  # [tokens, 1, head_dim / 2]
        turn = torch.polar(torch.ones_like(angle), angle)
        return cls(turn.real.contiguous(), turn.imag.contiguous())

    def __call__(self, x: Tensor) -> Tensor:
        """`x` [tokens, heads, head_dim], turned; computed in at least float32, returned in the dtype of `x`."""
        turn_into(x, self.cos, self.sin, out := torch.empty_like(x))
        return out


def check_heads(dim: int, heads: int, axes: int, name: str = "") -> None:
    """Refuse a width that does not divide into heads which rotary embedding can turn.

    Raises:
        InputError: `dim` / `heads` is not an even number of at least 2 x axes.
    """
    if dim % heads or dim // heads % 2 or dim // heads < 2 * axes:
        unit = 2 * heads
        near = max(axes, round(dim / unit)) * unit
        fitting = [n for n in range(1, dim + 1) if dim % n == 0 and dim // n % 2 == 0 and dim // n >= 2 * axes]
        below, above = [n for n in fitting if n < heads][-1:], [n for n in fitting if n > heads][:1]
        of_this_dim = [f"model.{name}heads={n}" for n in (*below, *above)]
        raise InputError(
            f"{name}dim / {name}heads is an even number of at least {2 * axes} (rotary embedding turns pairs)",
            f"{name}dim: {dim}, {name}heads: {heads}",
            " or ".join([*of_this_dim, f"model.{name}dim={near}"]),
        )
