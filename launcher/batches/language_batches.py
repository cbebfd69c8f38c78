"""Micro-steps of conversations, for video-language models.

pack --index--> tokens, labels, weights of the whole pack --split--> those of this rank
     --views, dealt--> frames of this rank's tower                   whichever words it holds
  mask, split --> Plan, one a window
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.media.video import Frames
from data.streams.chat_layout import ChatLayout
from data.streams.chat_source import ChatSource
from data.streams.curriculum import Curriculum
from data.streams.pack_stream import Pack, PackStream
from launcher.batches.checksum import checksum
from launcher.batches.family import MicroStep
from models.diffusion.attention_schedule import area_of
from models.language.attention_mask import MaskConfig, masks_of
from models.language.causal_lm import Rope, Window, windows_of
from models.language.lm_batch import LMBatch
from models.language.video_lm_config import VideoLMConfig
from models.language.vision_tower import Averages, VisualInputs
from models.objectives.lm_objective import LMObjective
from parallel.attention.plan import Keep, Plan, plan_for
from parallel.device_stream import Stream, stream_for
from parallel.errors import InputError
from parallel.kernels.kernel import Kernel
from parallel.masks.rectangles import Ints
from parallel.memory.tiled import refuse_labels
from parallel.mesh import Groups
from parallel.sequence.gather import total
from parallel.sequence.packed import TEXT, VIDEO, Document, lay_out, local_spans
from parallel.sequence.row_exchange import RowExchange, row_exchange_for
from parallel.sequence.sharding import balanced
from parallel.sequence.visual_tokens import Views

CHUNK_FRAMES = 16  # that are floats of four bytes at a time


@dataclass(frozen=True)
class ChatBatchBuilder:
    """See `launcher.batches.family.BatchBuilder`.

    Attributes:
        model: whose input is made.
        objective: that is learned.
        groups: of this rank.
        dtype: of the model.
        device: of the tensors.
        kernel, keep: of attention: see `Plan`.
    """

    model: VideoLMConfig
    objective: LMObjective
    groups: Groups
    dtype: torch.dtype
    device: torch.device
    kernel: Kernel | None = None
    keep: Keep = "exchanged"

    @cached_property
    def stream(self) -> Stream:
        """What is made goes here."""
        return stream_for(self.device)

    def check(self, curriculum: Curriculum) -> None:
        """The model has a row for every token of the tokenizer."""
        refuse_other_vocabulary(curriculum, self.model.vocabulary)

    def area(self, stream: PackStream[ChatSource], pack: Pack) -> float:
        """See `BatchBuilder`."""
        if self.objective.sees == "past" and self.model.mask == MaskConfig():
            return sum(area_of(self.model.attention, document.grid) for document in pack.documents)
        made = masks_of(
            self.model.windows,
            self.model.mask,
            [stream.source.layout(row).runs for row in pack.rows],
            self.objective.sees,
        )
        layers = windows_of(self.model.text)
        return sum(made[window].area for window in layers) / len(layers)

    def micro_step(self, stream: PackStream[ChatSource], pack: Pack) -> MicroStep:
        """See `BatchBuilder`."""
        layouts = [stream.source.layout(row) for row in pack.rows]
        problems: dict[int, str] = {}

        def shown(begin: int, end: int) -> Frames:
            pieces = stream.source.read(
                pack, ((begin, end),), lambda number, error: problems.update({number: error.value})
            )
            return np.concatenate([piece.frames for piece in pieces if piece.frames is not None])

        batch, plans = self.prepare(pack.documents, layouts, shown, stream.source.options.rope)
        received = sum(
            checksum(pack.documents[number].uid, stop - start)
            for number, start, stop in local_spans([len(one) for one in layouts], batch.packed.ranges)
            if pack.documents[number].weight and number not in problems
        )
        return MicroStep(batch, plans, received, problems)

    def empty_step(self, documents: Sequence[Document], layouts: Sequence[ChatLayout], rope: Rope) -> MicroStep:
        """See `BatchBuilder`; all frames share one byte."""
        side = self.model.views.pixels if self.model.views is not None else 0

        def shown(begin: int, end: int) -> Frames:
            return np.broadcast_to(np.zeros((), np.uint8), (end - begin, side, side, 3))

        return MicroStep(*self.prepare(documents, layouts, shown, rope), 0, {})

    def prepare(
        self,
        documents: Sequence[Document],
        layouts: Sequence[ChatLayout],
        shown: Callable[[int, int], Frames],
        rope: Rope = (),
    ) -> tuple[LMBatch, dict[Window, Plan]]:
        """What this rank holds of conversations that make up a pack, and who sees whom.

        Args:
            documents: of the pack.
            layouts: as many.
            shown: frames [begin, end) of all that they see, layouts end to end: uint8 [n, height, width, 3].
            rope: see `LMBatch`.
        """
        masks = masks_of(self.model.windows, self.model.mask, [one.runs for one in layouts], self.objective.sees)
        split = balanced(max(masks.values(), key=lambda mask: mask.area), self.groups.mesh)
        ranges = split.ranges[self.groups.place.sequence]
        here = np.concatenate([np.zeros(0, np.int64), *(np.arange(start, stop) for start, stop in ranges)])
        visuals = None
        if self.model.views is not None:
            before = list(accumulate(map(len, layouts), initial=0))
            starts = np.concatenate([one.starts + at for one, at in zip(layouts, before, strict=False)])
            rows = np.concatenate([one.rows for one in layouts])
            views = tuple(zip(starts.tolist(), (starts + rows).tolist(), strict=True))
            exchange = row_exchange_for(views, split, self.groups).to(self.stream.send)
            visuals = self._visuals(self.model.views, layouts, rows, exchange, shown)
        targets = [
            self.objective.prepare(one.tokens, one.labels, one.kinds, one.visual, document.key)
            for one, document in zip(layouts, documents, strict=True)
        ]
        labels = np.concatenate([one.labels for one in targets])[here]
        refuse_labels(labels, self.model.vocabulary)
        weight = np.concatenate([one.weight * d.weight for one, d in zip(targets, documents, strict=True)])[here]
        visual = np.concatenate([one.visual for one in layouts])[here]
        packed = lay_out(documents, ranges, torch.zeros(len(here), 0, dtype=self.dtype, device=self.device))
        wide = torch.promote_types(self.dtype, torch.float32)
        batch = LMBatch(
            replace(packed, kind=self._tensor(np.where(visual, VIDEO, TEXT)), weight=self._tensor(weight).to(wide)),
            self._tensor(np.concatenate([one.tokens for one in targets])[here]),
            self._tensor(labels),
            visuals,
            partial(total, groups=self.groups),
            (self.groups.place.sequence, self.groups.mesh.sequence_ranks),
            rope,
        )
        plans = {
            window: plan_for(mask, split, self.groups, kernel=self.kernel, keep=self.keep)
            for window, mask in masks.items()
        }
        for plan in plans.values():
            plan.prepare(self.device)
        return batch, plans

    def _visuals(
        self,
        views: Views,
        layouts: Sequence[ChatLayout],
        rows: Ints,
        exchange: RowExchange,
        shown: Callable[[int, int], Frames],
    ) -> VisualInputs:
        """The frames of the views that this rank was dealt."""
        by_span = (views.frames(span.frames) for one in layouts for span in one.spans)
        frames = np.concatenate([np.zeros(0, np.int64), *by_span])
        first, stop = exchange.views
        begin, end = int(frames[:first].sum()), int(frames[:stop].sum())
        none = np.zeros((0, views.pixels, views.pixels, 3), np.uint8)
        pixels = self._tensor(shown(begin, end) if begin < end else none)  # as bytes: a quarter of what floats take
        return VisualInputs(
            normalised(pixels, *self.model.normal, self.dtype),
            Averages.of(frames[first:stop], rows[first:stop], self.model.frame_tokens, self.stream.send),
            exchange.most * views.temporal_pool,
            exchange,
        )

    def _tensor(self, values: np.ndarray[Any, Any]) -> Tensor:
        return self.stream.send(torch.from_numpy(np.ascontiguousarray(values)))


def normalised(frames: Tensor, mean: Sequence[float], deviation: Sequence[float], dtype: torch.dtype) -> Tensor:
    """uint8 [frames, height, width, 3] -> [frames, 3, height, width] as a tower takes them, computed in float32."""
    out = torch.empty(frames.shape, dtype=dtype, device=frames.device).permute(0, 3, 1, 2)  # colours stay together
    for part, into in zip(frames.split(CHUNK_FRAMES), out.split(CHUNK_FRAMES), strict=True):
        for colour, (middle, width) in enumerate(zip(mean, deviation, strict=True)):
            into[:, colour] = part[..., colour].float().div_(255).sub_(middle).div_(width)
    return out


def refuse_other_vocabulary(curriculum: Curriculum, vocabulary: int) -> None:
    """A model has a row for every token.

    Raises:
        InputError: it has fewer.
    """
    for stream in curriculum.streams:
        assert isinstance(stream.source, ChatSource), "conversations are for models that speak"
        tokens = int(stream.source.index.tokenizer["tokens"])
        if tokens > vocabulary:
            raise InputError(
                "a model has a row of its vocabulary for every token of its tokenizer",
                f"{stream.index.folders[0]}: {tokens:,} tokens, the model has {vocabulary:,} rows",
                f"the tokenizer of this model, or model.language.vocab_size={tokens}",
            )
