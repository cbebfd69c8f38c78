"""Contrastive objective: a video and its words find each other among those of their pack (`contrastive_head.py`).

Documents of one pack are compared, and no others: which they are follows from the data alone, so that no number of
replicas or micro-steps changes the loss. Words do not see the video, nor the video words.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.objectives.lm_objective import Bools, Ints, LMTargets
from parallel.sequence.packed import ASSISTANT, IGNORED
from parallel.setting_effects import State


class VideoTextConfig(BaseModel):
    """Contrastive embeddings of video and text (CLIP).

    Attributes:
        embedding_dim: width of an embedding.
        temperature: initial temperature of the logits; it is learned.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: State[Literal["video_text"]] = "video_text"
    embedding_dim: State[int] = Field(default=256, ge=1)
    temperature: State[float] = Field(default=0.07, ge=0.01, le=1)


class VideoText:
    """The objective."""

    sees: Literal["apart"] = "apart"

    def __init__(self, config: VideoTextConfig) -> None:
        self.config = config

    def prepare(self, tokens: Ints, labels: Ints, kinds: Ints, visual: Bools, key: int) -> LMTargets:
        """Targets of a conversation: rows of its video, and what is answered, each half of a document's weight of 1."""
        own = np.append(0, kinds[:-1])
        said = (own == ASSISTANT) & ~visual
        weight = np.zeros(len(tokens))
        if said.any() and visual.any():
            weight[said], weight[visual] = 0.5 / said.sum(), 0.5 / visual.sum()
        return LMTargets(tokens, np.full(len(tokens), IGNORED), weight)

    def loss(self, model: Any, batch: Any, plans: Any) -> tuple[Tensor, Tensor]:
        """This rank's part of the sum over documents, and of the weights of their tokens."""
        hidden, packed = model(batch, plans), batch.packed
        rows = hidden, packed.document, packed.kind, packed.weight
        loss: Tensor = model.contrast(*rows, len(packed.documents), batch.total, batch.part)[0]
        return loss, packed.weight.sum()
