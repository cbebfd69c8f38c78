"""A language model that listens for ever: keys of the first tokens and of the last ones are kept, the rest forgotten.

    columns     0 .. sinks        seen - (c - sinks) .. seen - 1     seen .. seen + n - 1
    keys     [  first tokens   |      the window before            |      new tokens       ]    queries: new tokens

What a layer says of a token under the mask "window and sinks" (Xiao et al., arXiv:2309.17453; Xu et al., StreamingVLM,
arXiv:2510.09608) depends on the keys in the window of that layer alone, so forgetting the others changes nothing:
outputs are those of one pass over the whole with the same mask, and memory does not grow. Keys keep the positions at
which they were seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from models.language.causal_lm import Backbone, Plans, Rope, Window
from parallel.attention.plan import local_plan
from parallel.errors import InputError
from parallel.masks import rectangles
from parallel.masks.mask import Mask
from parallel.masks.rectangles import FREE


class Memory:
    """Keys and values of one stream; transformers calls `update` in each layer, as it does with caches of its own.

    Args:
        windows: keys that a query of each layer sees, itself included; None for all.
        sinks: first tokens that all see.
    """

    def __init__(self, windows: tuple[Window, ...], sinks: int) -> None:
        self.windows, self.sinks = windows, sinks
        self.seen = 0
        self.layers: list[Any] = []  # of caches of transformers, which look into each other
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def bytes(self) -> int:
        """That it holds."""
        return sum(tensor.nbytes for pair in self._kept.values() for tensor in pair)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """Keys and values [1, kv_heads, kept + new, head_dim] that the new tokens may see."""
        if layer in self._kept:
            keys, values = (torch.cat(pair, dim=2) for pair in zip(self._kept[layer], (keys, values), strict=True))
        keep = _kept(keys.shape[2], self.windows[layer], self.sinks)
        self._kept[layer] = keys[:, :, keep], values[:, :, keep]
        return keys, values

    def get_seq_length(self, *_: Any) -> int:
        """For transformers."""
        return self.seen

    def plans(self, new: int) -> Plans:
        """Who of the new tokens sees which of the kept and new keys, by window of the layer's own."""
        return {window: local_plan(self._mask(window, new)) for window in set(self.windows)}

    def _mask(self, window: Window, new: int) -> Mask:
        old = self.seen if window is None else min(self.seen, self.sinks + window - 1)
        first = old if window is None else min(old, self.sinks)
        near = rectangles.table([(0, new, first, old + new, -old, FREE if window is None else window - 1 - old)])
        far = rectangles.table([(0, new, 0, min(self.sinks, old + new), -old, FREE)])
        if window is None:
            return Mask(rectangles.table([(0, new, 0, old + new, -old, FREE)]), new, old + new)
        return Mask(near, new, old + new) | Mask(far, new, old + new)


class Streamer:
    """Feeds a model a stream, piece by piece.

    Args:
        backbone: on one rank.
        window: keys that a query sees, itself included; None for all, or for the model's own.
        sinks: first tokens that all see.
        rope: see `Backbone.hidden`.

    Raises:
        InputError: a window without a key, or fewer than no sinks.
    """

    def __init__(self, backbone: Backbone, window: Window = None, sinks: int = 0, rope: Rope = ()) -> None:
        if (window is not None and window < 1) or sinks < 0:
            rule = "a window has a key at least, and sinks are counted from 0"
            raise InputError(rule, f"window {window}, {sinks} sinks", "window=1 or more, sinks=0 or more")
        self.backbone, self.rope = backbone, rope
        self.own = backbone.layer_windows
        self.memory = Memory(tuple(_narrower(window, own) for own in self.own), sinks)

    @torch.no_grad()
    def feed(self, embeddings: Tensor, plans: Plans | None = None) -> Tensor:
        """What the model makes of new tokens: [tokens, dim] -> hidden [tokens, dim].

        Args:
            embeddings: of the new tokens.
            plans: at the beginning: who of them sees whom, by window of the layer's own; else each sees the past.
        """
        memory, new = self.memory, len(embeddings)
        assert plans is None or memory.seen == 0, "later tokens see the past"
        if plans is None:
            by_window = memory.plans(new)
            # layers ask by their own window: two of them with one own window have one of ours
            plans = {own: by_window[ours] for own, ours in zip(self.own, memory.windows, strict=True)}
        position = torch.arange(memory.seen, memory.seen + new, device=embeddings.device)
        hidden = self.backbone.hidden(embeddings, position, plans, memory, self.rope)
        memory.seen += new
        return hidden

    @torch.no_grad()
    def generate(self, embeddings: Tensor, most: int, plans: Plans | None = None) -> Iterator[int]:
        """The likeliest next tokens after these, at most `most` of them; each is fed in turn."""
        hidden = self.feed(embeddings, plans)
        for _ in range(most):
            word = self.backbone.logits(hidden[-1:]).argmax()
            yield int(word)
            hidden = self.feed(self.backbone.embed(word[None]))


def _kept(keys: int, window: Window, sinks: int) -> Tensor:
    """Rows that a later token may see."""
    if window is None or keys <= sinks + window - 1:
        return torch.arange(keys)
    return torch.cat([torch.arange(sinks), torch.arange(keys - window + 1, keys)])


def _narrower(one: Window, other: Window) -> Window:
    return min((window for window in (one, other) if window is not None), default=None)
