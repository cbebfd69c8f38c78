"""Contrast: the video of a document and its words lie near each other, and far from those of all other documents.

    rank 0: video a, words a, video b     sums by document      total     +---- words a b c d
    rank 1: video b, words b           ------------------->   ------->   video a  # . . .    rank 0 computes rows
    rank 2: video c, words c, d ...     [documents, width]     of all    video b  . # . .    and columns a and d,
                                                                         video c  . . # .    rank 1 those of b,
                                                                         video d  . . . #    rank 2 those of c

Symmetric InfoNCE with a learned temperature (Radford et al., CLIP, arXiv:2103.00020, fig. 3; for video Bain et al.,
Frozen in Time, arXiv:2104.00650, eq. 1 and 2, which add the two directions where CLIP takes their mean, as here).

An embedding is the weighted mean of the hidden rows of a document, of its video or of its words, projected. The mean is
linear, so a document that lies on several ranks is a sum of sums: each rank projects what it holds and brings a row
for each document of the pack, zeros for those that it does not hold: a few numbers whatever the length of the video.
How sums get around is not known here: `total` is handed in (`parallel.sequence.gather`). Shapes follow from the number
of documents alone, and who takes part is a mask, so that a GPU's host never waits for a number.

Words that have seen the video tell nothing: give such a model a mask in which the two do not see each other.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from parallel.dtypes import accumulator
from parallel.errors import InputError
from parallel.sequence.packed import TEXT, VIDEO

Total = Callable[[Tensor], Tensor]  # what this rank brings -> the sum of what all ranks of the pack bring
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
        self,
        hidden: Tensor,
        document: Tensor,
        kind: Tensor,
        weight: Tensor,
        documents: int,
        total: Total,
        part: tuple[int, int] = (0, 1),
    ) -> tuple[Tensor, Tensor]:
        """This rank's part of the loss, summed over documents, and how many of them it answers for.

            loss = sum_i -1/2 log softmax_j(s v_i . w_j)[i] - 1/2 log softmax_j(s w_i . v_j)[i]

        Divide by the number over all ranks. Documents are dealt to the ranks in turn. One whose video or whose words
        have no weight takes no part, not as another's contrast either. Collective if `total` is; the gradient is that
        of the sum of the parts of all ranks.

        Args:
            hidden: [tokens, dim], those of this rank, or none.
            document: [tokens] int64, of the pack.
            kind: [tokens], VIDEO or TEXT; others are left out.
            weight: [tokens], in the mean of its document, 0 or more; 0 leaves a token out. Gets no gradient.
            documents: of the pack: the same on all ranks that share it.
            total: differentiable, see `parallel.sequence.gather.total`.
            part: the rank among those that share the pack, and how many they are.

        Raises:
            InputError: sizes do not fit.
        """
        _refuse_sizes(hidden, document, kind, weight, self.video)
        video, words, takes_part = _embeddings(
            total(self._sums(hidden, document, kind, weight, documents)), self.video.shape[0]
        )
        rank, ranks = part
        own, v, w = takes_part[rank::ranks], video[rank::ranks], words[rank::ranks]
        scale = self.scale.to(video.dtype)
        absent = torch.finfo(video.dtype).min  # finite: where nobody takes part gradients are 0, not undefined
        others = (scale * v @ words.T).masked_fill(~takes_part, absent).logsumexp(1)
        others = others + (scale * w @ video.T).masked_fill(~takes_part, absent).logsumexp(1)
        loss = torch.where(own, others / 2 - scale * (v * w).sum(1), 0)
        return loss.sum(), own.sum().to(video.dtype)

    def _sums(self, hidden: Tensor, document: Tensor, kind: Tensor, weight: Tensor, documents: int) -> Tensor:
        """[documents, 2 width + 2]: the weighted sums of video and words that are held here, and of the weights."""
        exact = accumulator(hidden.dtype)
        member = document == torch.arange(documents, device=document.device)[:, None]  # [documents, tokens]; products,
        found, weights = [], []  #                       not index_add, whose sums on a GPU have no fixed order
        for which, projection in ((VIDEO, self.video), (TEXT, self.words)):
            share = member * (weight.detach() * (kind == which)).to(exact)
            found.append((share @ hidden.to(exact)) @ projection.to(exact).T)
            weights.append(share.sum(1, keepdim=True))
        return torch.cat(found + weights, dim=1)


def heads_of(objective: Any, dim: int) -> dict[str, nn.Module]:
    """The head of an objective of video and text, for hidden rows of a width: see `models.core.specs`."""
    return {"contrast": Contrast(dim, objective.embedding_dim, objective.temperature)}


def _embeddings(sums: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each document: its video and its words, [documents, width] of length 1, and whether it has both."""
    video, words, weight = sums.split([width, width, 2], dim=1)
    there = weight > 0
    weight = torch.where(there, weight, 1)
    return normalize(video / weight[:, :1]), normalize(words / weight[:, 1:]), there.all(dim=1)


def _refuse_sizes(hidden: Tensor, document: Tensor, kind: Tensor, weight: Tensor, projection: Tensor) -> None:
    tokens = hidden.shape[:1]
    fits = hidden.ndim == 2 and hidden.shape[1] == projection.shape[1]
    if not fits or not document.shape == kind.shape == weight.shape == tokens:
        raise InputError(
            f"hidden is [tokens, {projection.shape[1]}], and document, kind and weight are [tokens]",
            ", ".join(str(list(x.shape)) for x in (hidden, document, kind, weight)),
            "give them of the tokens that this rank holds",
        )
