"""Masked visual tokens: some codes are hidden, and the model names them from all others, words included.

    r = cos(pi u / 2), u ~ U(0, 1)                 the share that is hidden  (MaskGIT, arXiv:2202.04200, eq. 3; MAGVIT,
    loss = sum_hidden -log p(code | the rest)                                 Yu et al., arXiv:2212.05199, sec. 3.3)

Every token sees every other of its document. Draws come from the key of the document and the position in it.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.objectives.lm_objective import Bools, Ints, LMTargets
from models.objectives.next_token import cross_entropy
from parallel.errors import InputError
from parallel.random import key_of, normal, uniform
from parallel.sequence.packed import IGNORED, VISUAL_CODE
from parallel.setting_effects import Numbers, State


class MaskedTokenConfig(BaseModel):
    """Masking of visual codes (MaskGIT).

    Attributes:
        mask_token: token id that replaces a masked code: `mask` of chat.json, after the last code.
        mask_ratio: share of masked codes; null draws it per sample from the cosine schedule.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: State[Literal["masked_token"]] = "masked_token"
    mask_token: State[int] = Field(ge=0)
    mask_ratio: Numbers[float | None] = Field(default=None, gt=0, le=1)


class MaskedToken:
    """The objective."""

    sees: Literal["all"] = "all"

    def __init__(self, config: MaskedTokenConfig) -> None:
        self.config = config

    def prepare(self, tokens: Ints, labels: Ints, kinds: Ints, visual: Bools, key: int) -> LMTargets:
        """Targets of a conversation; `kinds` are those of labels, so a token's own kind is that of the label before."""
        own = np.append(0, kinds[:-1])
        codes = np.flatnonzero(own == VISUAL_CODE)
        if len(codes) and self.config.mask_token <= tokens[codes].max():
            rule = "a token that no code has stands where one is hidden"
            told = f"objective.mask_token={self.config.mask_token}, and there is a code {tokens[codes].max()}"
            raise InputError(rule, told, "objective.mask_token: the number of `mask` in chat.json")
        share = self.config.mask_ratio or math.cos(math.pi / 2 * uniform(key_of(key, "share")))
        count = max(1, round(share * len(codes))) if len(codes) else 0
        order = np.argsort(normal(key_of(key, "hidden"), 0, len(codes), 1)[:, 0], kind="stable")
        hidden = codes[order[:count]]
        masked, found, weight = tokens.copy(), np.full(len(tokens), IGNORED), np.zeros(len(tokens))
        masked[hidden], found[hidden], weight[hidden] = self.config.mask_token, tokens[hidden], 1.0
        return LMTargets(masked, found, weight)

    def loss(self, model: Any, batch: Any, plans: Any) -> tuple[Tensor, Tensor]:
        """As of `NextToken`: the labels stand where they are to be named."""
        return cross_entropy(model, batch, plans)
