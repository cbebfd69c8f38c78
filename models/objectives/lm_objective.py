"""What a language model learns: targets of each conversation, and a loss of hidden rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Sees = Literal["past", "all", "apart"]


@dataclass(frozen=True, eq=False)
class LMTargets:
    """One conversation, as a model learns it.

    Attributes:
        tokens: [tokens] that go in.
        labels: [tokens] that should come out, -100 for none.
        weight: [tokens] of each label.
    """

    tokens: Ints
    labels: Ints
    weight: Floats


class LMObjective(Protocol):
    """What a language model learns.

    Attributes:
        sees: what tokens see: the past, by the model's mask; all of the conversation; or, apart, the past of text
            sees text and the past of visuals visuals.
    """

    @property
    def sees(self) -> Sees:
        """See above."""

    def prepare(self, tokens: Ints, labels: Ints, kinds: Ints, visual: Bools, key: int) -> LMTargets:
        """Targets of one conversation: see `data.streams.chat_layout`; `key` is that of its document."""

    def loss(self, model: Any, batch: Any, plans: Any) -> tuple[Tensor, Tensor]:
        """See `models.core.loss_module.Objective`; the batch is a `models.language.lm_batch.LMBatch`."""
