"""The feed of a dry run: batches of drawn packs, made by the run's own maker, of values that are never read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from data.media.video import Frames
from data.streams.curriculum import Position
from launcher.batches.batch_builders import maker_of
from launcher.batches.diffusion_batches import ClipMaker
from launcher.batches.language_batches import TalkMaker
from launcher.batches.loader import Batch, Maker, MicroStep
from launcher.config.run_config import RunConfig
from launcher.dryrun.fake_kernels import gpu_kernel
from launcher.dryrun.fake_packs import DrawnPack
from models.language.causal_lm import Rope
from parallel.mesh import Groups


@dataclass(frozen=True)
class DryFeed:
    """See `launcher.batches.loader.Feed`, of which it has what a step needs.

    Attributes:
        maker: of the run.
        micro_steps: of a step.
        rope: rotary frequencies of its segment.
    """

    maker: Maker
    micro_steps: int
    rope: Rope = ()

    @classmethod
    def of(
        cls, config: RunConfig, segment: int, groups: Groups, device: torch.device, kernels: str, micro_steps: int
    ) -> DryFeed:
        """That of a segment of a run, with the kernels of "cuda" or "cpu"."""
        kernel = gpu_kernel(config) if kernels == "cuda" else None
        maker = maker_of(config, groups, device, kernel)
        return cls(maker, micro_steps, config.data.merged()[segment].rope_items)

    def batch(self, packs: list[DrawnPack]) -> Batch:
        """A step of these packs."""
        steps = tuple(self._micro_step(pack) for pack in packs)
        tokens = sum(pack.tokens for pack in packs)
        return Batch(steps, 1.0, 0, 0, 0, (), Position(step=1), (), tokens, 0.0)

    def tokens(self, batch: Batch) -> int:
        """Of this rank, in a micro-step."""
        return len(batch.micro_steps[0].prepared.packed.position)

    def _micro_step(self, pack: DrawnPack) -> MicroStep:
        maker = self.maker
        if isinstance(maker, TalkMaker):
            heard, windows = maker.hear(pack.documents, pack.layouts, self._shown, self.rope)
            return MicroStep(heard, windows, 0, {})
        assert isinstance(maker, ClipMaker), "clips or talks"
        clips, plans = maker.lay(
            pack.documents, lambda ranges: maker.values(sum(stop - start for start, stop in ranges)).zero_()
        )
        return MicroStep(clips, plans, 0, {})

    def _shown(self, begin: int, end: int) -> Frames:
        """Frames of one byte that all of them share."""
        assert isinstance(self.maker, TalkMaker), "clips have no frames of a dry run"
        views = self.maker.model.views
        assert views is not None, "a model that sees nothing is shown nothing"
        side = views.pixels
        return np.broadcast_to(np.zeros((), np.uint8), (end - begin, side, side, 3))
