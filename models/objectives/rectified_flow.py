"""Rectified flow: learn the velocity of straight paths from data to noise.

    z_s = (1 - s) x + s e        e ~ N(0, 1), noise level s: 0 = clean, 1 = noise       (Liu et al., eq. 1)
    dz/ds = e - x                the velocity; the loss is its mean squared error         (Liu et al., eq. 1)

Liu et al., "Flow straight and fast", arXiv:2209.03003; Esser et al., "Scaling rectified flow transformers",
arXiv:2403.03206, whose t is our s. Li and He, "Back to basics: let denoising generative models denoise",
arXiv:2511.13720, let the network predict x and keep the loss on the velocity (z - x) / s: data lies on a surface of few
dimensions and noise does not, so that wide tokens (pixels) learn much faster from a narrow network.

All draws about a clip come from its key and the position inside it, so the same numbers fall on the same token
whichever rank holds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from models.objectives.conditioning import check_shares, given_in_training
from parallel.device_stream import Send, here
from parallel.random import key_of, normal, normal_at, uniform
from parallel.sequence.packed import Document, Packed, local_spans
from parallel.setting_effects import Numbers, State

LEAST_LEVEL = 0.05  # the smallest s that we divide by, as Li and He do


class RectifiedFlowConfig(BaseModel):
    """How noise levels are drawn and what the network predicts.

    Attributes:
        logit_mean: mean of the logit of the noise level; above 0 trains more on noise.
        logit_std: standard deviation of the logit of the noise level.
        shift: shift of the noise level towards noise; 1 for none, "tokens" for sqrt(tokens / base_tokens) per clip.
        base_tokens: size of a clip whose noise levels are not shifted, for shift: tokens [tokens].
        predict: prediction type of the network: the velocity, or the clean latent.
        caption_dropout: share of clips that are trained without their caption, for guidance.
        conditioning: share of clips of each conditioning task (`models.objectives.conditioning`), such as
            {first_frame: 0.3} for image to video; the others are trained by their words alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: State[Literal["rectified_flow"]] = "rectified_flow"
    logit_mean: Numbers[float] = 0.0
    logit_std: Numbers[float] = Field(default=1.0, ge=0)
    shift: Numbers[Literal["tokens"] | Annotated[float, Field(gt=0)]] = 1.0
    base_tokens: Numbers[int] = Field(default=4096, gt=0)
    predict: State[Literal["velocity", "clean"]] = "velocity"
    caption_dropout: Numbers[float] = Field(default=0.1, ge=0, le=1)
    conditioning: Numbers[dict[str, float]] = {}

    @field_validator("conditioning")
    @classmethod
    def _tasks_are_there(cls, shares: dict[str, float]) -> dict[str, float]:
        check_shares(shares)
        return shares


@dataclass(frozen=True, eq=False)
class Prepared:
    """Input and target of one micro-step.

    Attributes:
        packed: with noisy values, noise levels, the weights that count, and "" for dropped captions.
        target: [tokens, token_dim], the velocity e - x or the clean x.
        levels: [tokens], the noise levels as the host knows them.
    """

    packed: Packed
    target: Tensor
    levels: npt.NDArray[np.float64]


def shifted(level: Tensor, shift: float) -> Tensor:
    """Noise levels moved towards noise (Esser et al., eq. 23): a s / (1 + (a - 1) s) with a = sqrt(m / n)."""
    return shift * level / (1 + (shift - 1) * level)


class RectifiedFlow:
    """The objective: `prepare` makes noise, `loss` lets the model predict and compares."""

    def __init__(self, config: RectifiedFlowConfig) -> None:
        self.config = config

    def level(self, document: Document) -> float:
        """The noise level of a clip: sigmoid of a normal (Esser et al., eq. 19), shifted."""
        draw = float(normal(key_of(document.key, "level"), 0, 1, 1)[0, 0])
        level = torch.tensor(self.config.logit_mean + self.config.logit_std * draw, dtype=torch.float64).sigmoid()
        return float(shifted(level, self.shift_of(document.tokens)))

    def shift_of(self, tokens: int) -> float:
        """The shift for a clip of `tokens` tokens."""
        if self.config.shift == "tokens":
            return math.sqrt(tokens / self.config.base_tokens)
        return self.config.shift

    def prepare(self, packed: Packed, send: Send = here) -> Prepared:
        """Noise the clean `packed`: bit for bit the same for a token, whatever else is held.

        Noise is drawn in float32 and mixed in at least float32; noise levels stay in at least float32.

        Args:
            packed: on the device.
            send: puts a tensor of the host there.
        """
        wide = torch.promote_types(packed.values.dtype, torch.float32)
        clean, weight = packed.values.to(wide), packed.weight.to(wide)
        noise, levels, learned = torch.empty_like(clean), np.empty(len(clean)), np.ones(len(clean))
        row = 0
        for index, start, stop in local_spans(packed.lengths, packed.ranges):
            document, rows = packed.documents[index], slice(row, row + stop - start)
            places = document.places(start, stop)
            noise[rows] = send(torch.from_numpy(normal_at(key_of(document.key, "noise"), places, clean.shape[1])))
            levels[rows] = self.level(document)
            if (task := given_in_training(self.config.conditioning, document.grid, document.key)) is not None:
                given, counted = (tokens.reshape(-1)[places] for tokens in task)
                levels[rows][given], learned[rows] = 0.0, counted
            row = rows.stop
        level, weight = send(torch.from_numpy(levels).to(wide)), weight * send(torch.from_numpy(learned).to(wide))
        noisy = (1 - level)[:, None] * clean + level[:, None] * noise
        noisy_packed = replace(
            packed,
            documents=tuple(self._with_caption_dropped(d) for d in packed.documents),
            values=noisy.to(packed.values.dtype),
            noise_level=level,
            weight=weight,
        )
        return Prepared(noisy_packed, noise - clean if self.config.predict == "velocity" else clean, levels)

    def loss(self, model: Any, batch: Any, plans: Any) -> tuple[Tensor, Tensor]:
        """See `weighted_error`; the batch is a `Prepared` with the `input` of the model."""
        return self.weighted_error(model(batch.input, plans), batch)

    def weighted_error(self, prediction: Tensor, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """The sum over local tokens of weight x squared error of the velocity (mean over token_dim), and of weight."""
        packed = prepared.packed
        error = prediction.to(prepared.target.dtype) - prepared.target
        if self.config.predict == "clean":
            # Li and He, table 1: predict x, loss on v
            error = error / packed.noise_level.clamp_min(LEAST_LEVEL)[:, None]
        return (packed.weight * error.square().mean(dim=1)).sum(), packed.weight.sum()

    def levels(self, steps: int, tokens: int) -> npt.NDArray[np.float64]:
        """[steps + 1] noise levels from 1 down to 0 for a sampler: evenly spaced, then shifted as in training.

        Args:
            steps: of the sampler.
            tokens: of the clip.
        """
        even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return shifted(even, self.shift_of(tokens)).numpy()

    def velocity(self, prediction: Tensor, noisy: Tensor, level: Tensor) -> Tensor:
        """What the network's output says about dz/ds, for samplers.

        Args:
            prediction: [tokens, token_dim].
            noisy: [tokens, token_dim].
            level: [tokens].
        """
        if self.config.predict == "velocity":
            return prediction
        return (noisy - prediction) / level.clamp_min(LEAST_LEVEL)[:, None]

    def _with_caption_dropped(self, document: Document) -> Document:
        dropped = uniform(key_of(document.key, "drop")) < self.config.caption_dropout
        return replace(document, text="") if dropped else document
