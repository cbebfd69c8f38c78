"""Patches: latents to tokens and back. A token is a block of cells, flattened with the channel slowest.

    latents [c, t, h, w], patch (1, 2, 2)        tokens, numbered row-major over (t, y, x)
      a a b b                                       0: a a a a   1: b b b b
      a a b b                                       2: c c c c   3: d d d d
      c c d d
      c c d d

Patch embedding of Dosovitskiy et al., "An image is worth 16x16 words" (arXiv:2010.11929), eq. 1, over (t, y, x). The
order of tokens is the one of `parallel.sequence.geometry`: a stretch of token positions is a stretch of frames.
"""

from __future__ import annotations

from torch import Tensor

from parallel.errors import InputError
from parallel.sequence.geometry import Grid


def patchify(latents: Tensor, patch: Grid) -> Tensor:
    """Tokens [tokens, channels x cells of a patch] of latents [channels, t, h, w].

    Raises:
        InputError: the latents do not divide into patches.
    """
    (c, t, h, w), (pt, ph, pw) = latents.shape, patch
    if t % pt or h % ph or w % pw:
        raise InputError(
            "latents divide into whole patches",
            f"latents of {t} x {h} x {w} cells, patches of {pt} x {ph} x {pw}",
            "choose sizes through Geometry.grid, which names the nearest that fit",
        )
    blocks = latents.reshape(c, t // pt, pt, h // ph, ph, w // pw, pw).permute(1, 3, 5, 0, 2, 4, 6)
    return blocks.flatten(0, 2).flatten(1)  # [t, y, x, c, pt, ph, pw] -> [tokens, token_dim]


def unpatchify(tokens: Tensor, grid: Grid, patch: Grid, channels: int) -> Tensor:
    """Latents [channels, t, h, w] of the tokens of one clip: the inverse of `patchify`.

    Args:
        tokens: [prod(grid), channels x cells of a patch].
        grid: tokens along (t, y, x).
        patch: cells per token.
        channels: of one cell.
    """
    (t, y, x), (pt, ph, pw) = grid, patch
    blocks = tokens.reshape(t, y, x, channels, pt, ph, pw)
    return blocks.permute(3, 0, 4, 1, 5, 2, 6).reshape(channels, t * pt, y * ph, x * pw)
