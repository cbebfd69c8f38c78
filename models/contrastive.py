"""Contrast: the video of a document and its words lie near each other, and far from those of all other documents.

    rank 0: video a, words a, video b     sums by document     gather     +---- words a b c d
    rank 1: video b, words b           ------------------->   ------->   video a  # . . .    rank 0 computes rows
    rank 2: video c, words c, d ...      [held, width]         of all     video b  . # . .    and columns a and b,
                                                                          video c  . . # .    rank 2 those of c and d

Symmetric InfoNCE with a learned temperature (Radford et al., CLIP, arXiv:2103.00020, fig. 3; for video Bain et al.,
Frozen in Time, arXiv:2104.00650, eq. 1 and 2, which add the two directions where CLIP takes their mean, as here).

An embedding is the weighted mean of the hidden rows of a document, of its video or of its words, projected. The mean is
linear, so a document that lies on several ranks is a sum of sums: each rank projects what it holds and brings a row
for each of its documents, a few numbers whatever the length of the video. How rows get around is not known here: the
gather is handed in (`parallel.gathering`).

Words that have seen the video tell nothing: give such a model a mask in which the two do not see each other.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from parallel.errors import InputError
from parallel.packed import TEXT, VIDEO
from parallel.ring import accumulator

Gather = Callable[[Tensor], tuple[Tensor, slice]]  # rows of this rank -> rows of all ranks, and which of them are its
LARGEST_SCALE = 100.0  # of cosines, as in CLIP: beyond it training became unstable


class Contrast(nn.Module):
    """Projections of video and of words, and the temperature.

    Args:
        dim: of hidden rows.
        width: of embeddings.
        temperature: at first; cosines are divided by it.
        dtype: of the parameters.

    Raises:
        InputError: a size is not positive, or the temperature is not between 0.01 and 1.
    """

    def __init__(self, dim: int, width: int, temperature: float = 0.07, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if min(dim, width) < 1 or not 1 / LARGEST_SCALE <= temperature <= 1:
            raise InputError(
                f"embeddings have a width, and a temperature from {1 / LARGEST_SCALE} to 1",
                f"dim {dim}, width {width}, temperature {temperature}",
                "width=512, temperature=0.07",
            )
        # parameters of this module, not of linear layers in it: ZeRO-3 gathers them for its forward
        self.video = nn.Parameter(torch.randn(width, dim, dtype=dtype) * dim**-0.5)
        self.words = nn.Parameter(torch.randn(width, dim, dtype=dtype) * dim**-0.5)
        self.log_scale = nn.Parameter(torch.tensor([-log(temperature)], dtype=dtype))

    @property
    def scale(self) -> Tensor:
        """Of cosines, [1]: one over the temperature, at most `LARGEST_SCALE`.

        The gradient is that of the value without the limit, so that it can come back from there.
        """
        exact = self.log_scale.to(accumulator(self.log_scale.dtype))
        return (exact + (exact.clamp(max=log(LARGEST_SCALE)) - exact).detach()).exp()

    def forward(
        self, hidden: Tensor, document: Tensor, kind: Tensor, weight: Tensor, keys: Tensor, gather: Gather
    ) -> tuple[Tensor, Tensor]:
        """This rank's part of the loss, summed over documents, and how many of them it answers for.

            loss = sum_i -1/2 log softmax_j(s v_i . w_j)[i] - 1/2 log softmax_j(s w_i . v_j)[i]

        Divide by the number over all ranks (and micro-steps: only documents of one micro-step are compared). A document
        is that of the first rank with a part of it. One whose video or whose words have no weight takes no part, not as
        another's contrast either. Collective if `gather` is; the gradient is that of the sum of the parts of all ranks.

        Args:
            hidden: [tokens, dim], those of this rank, or none.
            document: [tokens] int64, index into `keys`.
            kind: [tokens], VIDEO or TEXT; others are left out.
            weight: [tokens], in the mean of its document, 0 or more; 0 leaves a token out. Gets no gradient.
            keys: [documents] int64, of the pack: the same on all ranks that hold parts of a document, different for all
                documents of the step (`parallel.gathering.numbers`).
            gather: differentiable; also called with the keys.

        Raises:
            InputError: sizes do not fit.
        """
        _refuse_sizes(hidden, document, kind, weight, self.video)
        held, local = torch.unique(document, return_inverse=True)
        everyone, mine = gather(keys.to(document.device)[held])
        rows, _ = gather(self._sums(hidden, local, kind, weight, len(held)))
        video, words, first = _embeddings(rows, everyone, self.video.shape[0])
        own = (first >= mine.start) & (first < mine.stop)
        scale, v, w = self.scale.to(video.dtype), video[own], words[own]
        paired = scale * (v * w).sum(1)
        others = (scale * v @ words.T).logsumexp(1) + (scale * w @ video.T).logsumexp(1)
        return (others / 2 - paired).sum(), own.sum().to(video.dtype)

    def _sums(self, hidden: Tensor, local: Tensor, kind: Tensor, weight: Tensor, held: int) -> Tensor:
        """[held, 2 width + 2]: of each document held here the weighted sums of video and words, and of the weights."""
        exact = accumulator(hidden.dtype)
        member = local == torch.arange(held, device=local.device)[:, None]  # [held, tokens]; products, not index_add,
        found, weights = [], []  #                                            whose sums on a GPU have no fixed order
        for which, projection in ((VIDEO, self.video), (TEXT, self.words)):
            share = member * (weight.detach() * (kind == which)).to(exact)
            found.append((share @ hidden.to(exact)) @ projection.to(exact).T)
            weights.append(share.sum(1, keepdim=True))
        return torch.cat(found + weights, dim=1)


def _embeddings(rows: Tensor, keys: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each document with both: its video and its words, [documents, width] of length 1, and the first row of it."""
    unique, of = torch.unique(keys, return_inverse=True)
    member = (of == torch.arange(len(unique), device=of.device)[:, None]).to(rows.dtype)  # [documents, rows]
    first = torch.full_like(unique, len(keys)).scatter_reduce(0, of, torch.arange(len(of), device=of.device), "amin")
    totals = member @ rows
    takes_part = (totals[:, -2:] > 0).all(dim=1)
    video, words, weight = totals[takes_part].split([width, width, 2], dim=1)
    return normalize(video / weight[:, :1]), normalize(words / weight[:, 1:]), first[takes_part]


def _refuse_sizes(hidden: Tensor, document: Tensor, kind: Tensor, weight: Tensor, projection: Tensor) -> None:
    tokens = hidden.shape[:1]
    fits = hidden.ndim == 2 and hidden.shape[1] == projection.shape[1]
    if not fits or not document.shape == kind.shape == weight.shape == tokens:
        raise InputError(
            f"hidden is [tokens, {projection.shape[1]}], and document, kind and weight are [tokens]",
            ", ".join(str(list(x.shape)) for x in (hidden, document, kind, weight)),
            "give them of the tokens that this rank holds",
        )
