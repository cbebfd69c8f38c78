"""Micro-steps of conversations, for video-language models.

pack --index--> tokens, labels, weights of the whole pack --split--> those of this rank
     --views, dealt--> frames of this rank's tower                   whichever words it holds
  mask, split --> Plan, one a window
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.curriculum import Curriculum
from data.stream import Pack
from data.talk_stream import Laid, TalkStream
from launcher.feed import MicroStep, checksum
from models.schedule import area_of
from models.video_lm import Heard, Objective, VideoLMConfig, masks_of
from models.vision import Places, Seen, places_for
from parallel.errors import InputError
from parallel.mesh import Groups
from parallel.packed import TEXT, VIDEO, Document, Ranges, lay_out, local_spans
from parallel.plan import plan_for
from parallel.rectangles import Ints
from parallel.split import balanced


@dataclass(frozen=True)
class TalkMaker:
    """See `launcher.feed.Maker`.

    Attributes:
        model: whose input is made.
        objective: that is learned.
        groups: of this rank.
        dtype: of the model.
        device: of the tensors.
    """

    model: VideoLMConfig
    objective: Objective
    groups: Groups
    dtype: torch.dtype
    device: torch.device

    def check(self, curriculum: Curriculum) -> None:
        """The model has a row for every token of the tokenizer."""
        refuse_other_vocabulary(curriculum, self.model.vocabulary)

    def area(self, document: Document) -> float:
        """See `Maker`."""
        return area_of(self.model.attention, document.grid)

    def micro_step(self, stream: TalkStream, pack: Pack) -> MicroStep:
        """See `Maker`."""
        laid = [stream.laid(row) for row in pack.rows]
        masks = masks_of(self.model, [len(one) for one in laid], self.objective.causal)
        split = balanced(max(masks.values(), key=lambda mask: mask.area), self.groups.mesh)
        ranges = split.ranges[self.groups.place.sequence]
        here = np.concatenate([np.zeros(0, np.int64), *(np.arange(start, stop) for start, stop in ranges)])
        problems: dict[int, str] = {}
        places = seen = None
        if stream.views is not None:
            before = list(accumulate(map(len, laid), initial=0))
            starts = np.concatenate([one.starts + at for one, at in zip(laid, before, strict=False)])
            rows = np.concatenate([one.rows for one in laid])
            places = places_for(tuple(zip(starts.tolist(), (starts + rows).tolist(), strict=True)), split, self.groups)
            seen = self._seen(stream, pack, laid, rows, places, problems)
        heard = self._heard(stream, pack, laid, here, ranges, seen, places)
        plans = {window: plan_for(mask, split, self.groups) for window, mask in masks.items()}
        received = sum(
            checksum(pack.documents[number].uid, stop - start)
            for number, start, stop in local_spans([len(one) for one in laid], ranges)
            if pack.documents[number].weight and number not in problems
        )
        return MicroStep(heard, plans, received, problems)

    def _heard(
        self, stream: TalkStream, pack: Pack, laid: Sequence[Laid], here: Ints, ranges: Ranges, seen: Seen | None,
        places: Places | None,
    ) -> Heard:  # fmt: skip
        learned = [
            self.objective.learned(one.tokens, one.labels, one.kinds, document.key)
            for one, document in zip(laid, pack.documents, strict=True)
        ]
        wide = torch.promote_types(self.dtype, torch.float32)
        weight = np.concatenate([one.weight * d.weight for one, d in zip(learned, pack.documents, strict=True)])[here]
        visual = np.concatenate([one.visual for one in laid])[here]
        packed = lay_out(pack.documents, ranges, torch.zeros(len(here), 0, dtype=self.dtype, device=self.device))
        packed = replace(
            packed,
            kind=self._tensor(np.where(visual, VIDEO, TEXT)),
            weight=self._tensor(weight).to(wide),
        )
        tokens = self._tensor(np.concatenate([one.tokens for one in learned])[here])
        labels = self._tensor(np.concatenate([one.labels for one in learned])[here])
        return Heard(packed, tokens, labels, seen, places, self.groups, self.objective, stream.rope)

    def _seen(
        self, stream: TalkStream, pack: Pack, laid: Sequence[Laid], rows: Ints, places: Places, problems: dict[int, str]
    ) -> Seen:
        """The frames of the views that this rank was dealt."""
        assert stream.views is not None, "asked of a model that sees"
        pixels = stream.views.pixels
        frames = np.concatenate(
            [np.zeros(0, np.int64), *(stream.views.frames(s.frames) for o in laid for s in o.sights)]
        )
        first, stop = places.views
        begin, end = int(frames[:first].sum()), int(frames[:stop].sum())
        shown = np.zeros((0, pixels, pixels, 3), np.uint8)
        if begin < end:
            shown = np.concatenate(stream.frames(pack, laid, begin, end, problems))
        mean, deviation = (torch.tensor(x, dtype=torch.float32).view(1, 3, 1, 1) for x in self.model.normal)
        values = torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 255
        return Seen(
            ((values - mean) / deviation).to(self.device, self.dtype),
            self._tensor(frames[first:stop]),
            self._tensor(rows[first:stop]),
            places.most * stream.views.merge,
        )

    def _tensor(self, values: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


def refuse_other_vocabulary(curriculum: Curriculum, vocabulary: int) -> None:
    """A model has a row for every token.

    Raises:
        InputError: it has fewer.
    """
    for stream in curriculum.streams:
        assert isinstance(stream, TalkStream), "talks are for models that speak"
        tokens = int(stream.index.tokenizer["tokens"])
        if tokens > vocabulary:
            raise InputError(
                "a model has a row of its vocabulary for every token of its tokenizer",
                f"{stream.index.folders[0]}: {tokens:,} tokens, the model has {vocabulary:,} rows",
                f"the tokenizer of this model, or model.language.vocab_size={tokens}",
            )
