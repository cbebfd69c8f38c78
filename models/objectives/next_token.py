"""Next token: what a language model learns to say, each kind of token with a weight of its own.

    loss = sum_i w_i (-log p(x_(i+1) | x_(<= i))) / sum_i w_i         over all ranks and micro-steps of a step

Weights belong to tokens and not to sequences, so that packing changes nothing: LWM (Liu et al., arXiv:2402.08268, sec.
3.3) found that packing with a mean over packs, where long answers drown short ones, costs a third of the accuracy on
questions about images. `normalize_by: sample` gives each conversation the same weight, as training without packs would.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from models.objectives.lm_objective import Bools, Floats, Ints, LMTargets
from parallel.errors import InputError
from parallel.setting_effects import Numbers, State


class NextTokenConfig(BaseModel):
    """Loss weights of next-token prediction, by the role of the token.

    Attributes:
        assistant: loss weight of the assistant's tokens.
        user: loss weight of all other roles' text tokens.
        visual_code: loss weight of visual codes; above 0 the model learns to generate images and videos.
        silence: loss weight of the silence token, after each view of a stream.
        normalize_by: "token" weighs every token by its role; "sample" gives every conversation the same total weight.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: State[Literal["next_token"]] = "next_token"
    assistant: Numbers[float] = Field(default=1.0, ge=0)
    user: Numbers[float] = Field(default=0.0, ge=0)
    visual_code: Numbers[float] = Field(default=0.0, ge=0)
    silence: Numbers[float] = Field(default=1.0, ge=0)
    normalize_by: Numbers[Literal["token", "sample"]] = "token"

    @model_validator(mode="after")
    def _something_counts(self) -> NextTokenConfig:
        if not any((self.assistant, self.user, self.visual_code, self.silence)):
            rule = "at least one of objective.assistant, user, visual_code and silence must be above 0"
            raise InputError(rule, "all of them are 0", "set objective.assistant=1")
        return self

    def weigh(self, kinds: Ints, labelled: Bools) -> Floats:
        """[tokens] weights of one conversation, of the kinds of its labels (`parallel.sequence.packed`)."""
        by_kind = np.array([self.user, self.assistant, self.visual_code, self.silence])
        found = np.where(labelled, by_kind[kinds], 0.0)
        total = found.sum()
        return found / total if self.normalize_by == "sample" and total else found


class NextToken:
    """The objective."""

    sees: Literal["past"] = "past"

    def __init__(self, config: NextTokenConfig) -> None:
        self.config = config

    def prepare(self, tokens: Ints, labels: Ints, kinds: Ints, visual: Bools, key: int) -> LMTargets:
        """Targets of one conversation; `key` is that of its document."""
        return LMTargets(tokens, labels, self.config.weigh(kinds, labels >= 0))

    def loss(self, model: Any, batch: Any, plans: Any) -> tuple[Tensor, Tensor]:
        """The sum over local tokens of weight x cross entropy, and of weight; see `Backbone.loss`."""
        return cross_entropy(model, batch, plans)


def cross_entropy(model: Any, batch: Any, plans: Any) -> tuple[Tensor, Tensor]:
    """The sum over this rank's tokens of weight x cross entropy of their labels, and of weight."""
    hidden = model(batch, plans)
    loss: Tensor = model.lm.loss(hidden, batch.labels, batch.packed.weight)[0]
    return loss, batch.packed.weight.sum()
