"""The loader of a dry run: batches of drawn packs, made by the run's own builder, of values that are never read."""

from __future__ import annotations

from dataclasses import dataclass

from data.streams.curriculum import Position
from launcher.batches.drawn_packs import DrawnPack
from launcher.batches.family import BatchBuilder
from launcher.batches.loader import Batch
from models.language.causal_lm import Rope


@dataclass(frozen=True)
class DryLoader:
    """See `launcher.batches.loader.BatchLoader`, of which it has what a step needs.

    Attributes:
        builder: of the run.
        micro_steps: of a step.
        rope: rotary frequencies of its segment.
    """

    builder: BatchBuilder
    micro_steps: int
    rope: Rope = ()

    def batch(self, packs: list[DrawnPack]) -> Batch:
        """A step of these packs."""
        steps = tuple(self.builder.empty_step(pack.documents, pack.layouts, self.rope) for pack in packs)
        tokens = sum(pack.tokens for pack in packs)
        return Batch(steps, 1.0, 0, 0, 0, (), Position(step=1), (), tokens, 0.0)

    def tokens(self, batch: Batch) -> int:
        """Of this rank, in a micro-step."""
        return len(batch.micro_steps[0].batch.packed.position)
