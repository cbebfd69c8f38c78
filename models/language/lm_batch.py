"""What one rank holds of a pack of conversations: what a language model reads, and what its objective compares with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from models.language.causal_lm import Rope
from models.language.contrastive_head import Total
from models.language.vision_tower import VisualInputs
from parallel.sequence.packed import Packed


@dataclass(frozen=True, eq=False)
class LMBatch:
    """What one rank holds of a pack of conversations.

    Attributes:
        packed: documents, positions, weights; no values.
        tokens: [tokens] int64.
        labels: [tokens] int64.
        visuals: frames that this rank's tower encodes; None if the model has none.
        total: adds up over the ranks that share the pack (`parallel.sequence.gather`).
        part: this rank among those, and how many they are.
        rope: rotary frequencies, where they differ from the model's own.
    """

    packed: Packed
    tokens: Tensor
    labels: Tensor
    visuals: VisualInputs | None
    total: Total
    part: tuple[int, int] = (0, 1)
    rope: Rope = ()
