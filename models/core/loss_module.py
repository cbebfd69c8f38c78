"""`LossModule`: a model and what it learns as one module, whose forward is the loss.

    engine.forward(batch, plans) --> objective.loss(model, batch, plans) --> this rank's part of (sum, weight)

The engine wraps this, and so every family has one call in the step. The loss belongs inside of the wrapped forward:
under ZeRO-3 the parameters that it reads, as the head over a vocabulary in tiles, are whole there and nowhere else.

Modules and parameters have the names that they have in the model alone, so that checkpoints know nothing of a wrapper.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn


class Objective(Protocol):
    """What a model learns."""

    @property
    def prepare(self) -> Any:
        """Makes of samples what goes in and what should come out: as the family of the objective calls it."""

    def loss(self, model: Any, batch: Any, plans: Any) -> tuple[Tensor, Tensor]:
        """This rank's part of the sum of weighted losses, and of the sum of weights.

        Args:
            model: of the family.
            batch: of the family, made of what `prepare` gave.
            plans: of attention, as the model takes them.
        """


class LossModule(nn.Module):
    """A model and its objective.

    Args:
        model: of any family.
        objective: of the same one.
    """

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Any, plans: Any) -> tuple[Tensor, Tensor]:
        """See `Objective.loss`. Collective over the ranks of the replica."""
        return self.objective.loss(self.model, batch, plans)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Itself, and the modules of the model under the names that they have there."""
        yield prefix, self
        yield from self.model.named_modules(memo, prefix, remove_duplicate)
