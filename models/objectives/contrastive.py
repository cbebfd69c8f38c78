"""Contrastive objective: a video and its words find each other among those of their pack (`contrastive_head.py`).

Documents of one pack are compared, and no others: which they are follows from the data alone, so that no number of
replicas or micro-steps changes the loss. Words do not see the video, nor the video words.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.objectives.next_token import Bools, Ints, Learned
from parallel.sequence.gather import total
from parallel.sequence.packed import ANSWERED
from parallel.sequence.relayout import IGNORED
from parallel.setting_effects import State


class VideoTextConfig(BaseModel):
    """Embeddings of video and words.

    Attributes:
        embedding_dim: of an embedding.
        temperature: at first; it is learned.
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

    def learned(self, tokens: Ints, labels: Ints, kinds: Ints, visual: Bools, key: int) -> Learned:
        """Of one conversation: rows of its video, and what is answered, each half of the weight 1 of a document."""
        own = np.append(0, kinds[:-1])
        said = (own == ANSWERED) & ~visual
        weight = np.zeros(len(tokens))
        if said.any() and visual.any():
            weight[said], weight[visual] = 0.5 / said.sum(), 0.5 / visual.sum()
        return Learned(tokens, np.full(len(tokens), IGNORED), weight)

    def head(self, model: Any, hidden: Tensor, heard: Any) -> Tensor:
        """This rank's part of the sum over documents."""
        packed, groups = heard.packed, heard.groups
        rows = hidden, packed.document, packed.kind, packed.weight
        part = groups.place.sequence, groups.mesh.sequence_ranks
        loss: Tensor = model.contrast(*rows, len(packed.documents), partial(total, groups=groups), part)[0]
        return loss

    def loss(self, prediction: Tensor, heard: Any) -> tuple[Tensor, Tensor]:
        """See `models.objectives.next_token`."""
        return prediction, heard.packed.weight.sum()
