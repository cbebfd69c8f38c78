"""Sampling: from noise to clips along the velocity that a model has learned, with classifier-free guidance.

    v = v(z, "") + guidance (v(z, prompt) - v(z, ""))      (Ho and Salimans, arXiv:2207.12598, eq. 6; w = guidance - 1)
    z(s') = z(s) + (s' - s) v                               noise levels s from 1 to 0, as the objective spaces them

All clips of a call, and their twins without a prompt, are one packed sequence and one forward pass an evaluation. The
noise comes from the keys and the place in the clip alone: the same model, prompt and key give the same bytes on the
same machine, and the same numbers on any mesh. Tokens that are given (`models.objectives.conditioning`) are at level 0
throughout, as in training, and never move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.diffusion.attention_schedule import masks_of, token_tile
from models.diffusion.video_dit import batch_of
from parallel.attention.plan import Plan, local_plan
from parallel.device_stream import Send, stream_for
from parallel.errors import InputError
from parallel.masks.mask import Mask
from parallel.random import key_of, normal_at
from parallel.registries import Registry
from parallel.sequence.geometry import Grid
from parallel.sequence.packed import Document, Packed, Ranges, lay_out, local_spans

Floats = npt.NDArray[np.float64]
Velocity = Callable[[Tensor, Floats], Tensor]  # values [tokens, dim], noise levels [tokens] -> dz/ds [tokens, dim]
Cut = Callable[[Sequence[Mask], Sequence[Mask]], tuple[Ranges, Sequence[Plan]]]


class Objective(Protocol):
    """What a sampler asks of an objective, such as `RectifiedFlow`."""

    def levels(self, steps: int, tokens: int) -> Floats:
        """[steps + 1] noise levels from the first down to 0 of a clip of so many tokens."""

    def velocity(self, prediction: Tensor, noisy: Tensor, level: Tensor) -> Tensor:
        """dz/ds [tokens, dim] of the model's output at the noise levels [tokens]."""


class Sampler(Protocol):
    """An entry of `SAMPLERS`: solves dz/ds = velocity."""

    def __call__(self, velocity: Velocity, values: Tensor, levels: Floats) -> Tensor:
        """Values [tokens, dim] at the last level.

        Args:
            velocity: one forward pass of the model each time.
            values: [tokens, dim] at the first level.
            levels: [steps + 1, tokens], falling; a token that is given has 0 throughout.
        """


SAMPLERS: Registry[Sampler] = Registry("sampler")


def euler(velocity: Velocity, values: Tensor, levels: Floats) -> Tensor:
    """First order: one evaluation a step. See `Sampler`."""
    for now, then in pairwise(levels):
        values = values + _column(then - now, values) * velocity(values, now)
    return values


def heun(velocity: Velocity, values: Tensor, levels: Floats) -> Tensor:
    """Second order: two evaluations a step, one in the last (Karras et al., arXiv:2206.00364, alg. 1)."""
    for now, then in pairwise(levels):
        step, first = _column(then - now, values), velocity(values, now)
        ahead = values + step * first
        values = values + step * ((first + velocity(ahead, then)) / 2) if then.any() else ahead
    return values


SAMPLERS.register("euler", euler)
SAMPLERS.register("heun", heun)


@dataclass(frozen=True, eq=False)
class Given:
    """Tokens of a clip that are given clean.

    Attributes:
        tokens: bool [t, y, x], which.
        values: [tokens that are given, token_dim], in their order.
    """

    tokens: npt.NDArray[np.bool_]
    values: Tensor


@dataclass(frozen=True, eq=False)
class Clip:
    """One clip to sample.

    Attributes:
        grid: tokens along (t, y, x).
        prompt: its words.
        key: 64 bits, for its noise.
        given: what of it is given; None for words alone.
    """

    grid: Grid
    prompt: str
    key: int
    given: Given | None = None


@dataclass(frozen=True)
class Solver:
    """How clips are sampled.

    Attributes:
        steps: from noise to clips.
        guidance: 1 follows the prompt as trained (and costs half), larger follows it more.
        kind: of the sampler, one of `SAMPLERS`.
    """

    steps: int
    guidance: float = 1.0
    kind: str = "euler"


def whole(alone: Sequence[Mask], masks: Sequence[Mask]) -> tuple[Ranges, Sequence[Plan]]:
    """Everything on one device: see `sample`."""
    return ((0, alone[0].queries),), [local_plan(mask) for mask in masks]


@torch.no_grad()
def sample(
    model: Any,
    objective: Objective,
    clips: Sequence[Clip],
    solver: Solver,
    dtype: torch.dtype,
    cut: Cut = whole,
) -> list[Tensor]:
    """Clean tokens of each clip, [prod(grid), token_dim], in at least float32.

    Args:
        model: of the family of diffusion, trained with `objective`; it has `config` and `token_dim`.
        objective: says what the model's output means, and at which levels it is asked.
        clips: to sample, each with noise of its own.
        solver: steps and guidance.
        dtype: of the model's input.
        cut: over ranks, if there are several: (masks of the clips, masks of all that is computed) to the ranges that
            this rank holds of the clips, and plans of all that is computed, where the twins of what a rank holds lie on
            it too and follow it. A clip then has the rows that are held here, in the order of their places in the clip.

    Raises:
        InputError: no clips, no steps, no such sampler, or other values than tokens that are given.
    """
    if not clips or solver.steps < 1:
        found = f"{len(clips)} clips, steps: {solver.steps}"
        raise InputError("sampling takes a clip and a step, or more", found, "use 20 to 50 steps")
    solve = SAMPLERS[solver.kind]
    task = _Task.of(model, objective, clips, solver, dtype, cut)
    values = solve(task.velocity, task.noise, task.levels)
    rows = [stop - start for _, start, stop in task.spans]
    held: list[list[Tensor]] = [[values[:0]] for _ in clips]
    places = [[np.zeros(0, np.int64)] for _ in clips]
    for (clip, start, stop), part in zip(task.spans, values.split(rows), strict=True):
        held[clip].append(part)
        places[clip].append(task.packed.documents[clip].places(start, stop))
    order = [torch.from_numpy(np.argsort(np.concatenate(each))).to(values.device) for each in places]
    return [torch.cat(parts)[each] for parts, each in zip(held, order, strict=True)]


@dataclass(frozen=True, eq=False)
class _Task:
    """What is sampled on this rank, and the model that knows its velocity.

    Attributes:
        model, objective, dtype: of `sample`.
        guidance: see `Solver`.
        packed: clips, then their twins without a prompt, if there are any.
        plans: of attention.
        send: puts a tensor of the host on the device.
        spans: (clip, start, stop) that are held here.
        noise: [tokens, token_dim], tokens that are given in their place.
        levels: [steps + 1, tokens].
        copies: 2 with twins, else 1.
    """

    model: Any
    objective: Objective
    dtype: torch.dtype
    guidance: float
    packed: Packed
    plans: Sequence[Plan]
    send: Send
    spans: list[tuple[int, int, int]]
    noise: Tensor
    levels: Floats
    copies: int = field(default=1)

    @classmethod
    def of(
        cls,
        model: Any,
        objective: Objective,
        clips: Sequence[Clip],
        solver: Solver,
        dtype: torch.dtype,
        cut: Cut,
    ) -> _Task:
        """See `sample`."""
        device = next(model.parameters()).device
        send, wide = stream_for(device).send, torch.promote_types(dtype, torch.float32)
        twins = [replace(clip, prompt="") for clip in clips] if solver.guidance != 1 else []
        tile = token_tile(model.config.attention)
        documents = [Document("", 0, clip.prompt, clip.grid, tile=tile) for clip in (*clips, *twins)]
        masks = masks_of(model.config.attention, [document.grid for document in documents])
        alone = masks_of(model.config.attention, [clip.grid for clip in clips])
        ranges, plans = cut(alone, masks)
        copies, total = (2 if twins else 1), sum(prod(clip.grid) for clip in clips)
        spans = local_spans([prod(clip.grid) for clip in clips], ranges)
        dim, held = model.token_dim, [(clips[i], documents[i].places(start, stop)) for i, start, stop in spans]
        drawn = [normal_at(key_of(clip.key, "noise"), places, dim) for clip, places in held]
        values = send(torch.from_numpy(np.concatenate([np.zeros((0, dim), np.float32), *drawn]))).to(wide)
        levels = [_levels(objective, clip, solver.steps)[:, places] for clip, places in held]
        for part, rows in zip(held, values.split([len(noise) for noise in drawn]), strict=True):
            _put(*part, rows)
        packed = lay_out(documents, twice(ranges, total, copies), values.new_zeros(copies * len(values), dim))
        return cls(
            model, objective, dtype, solver.guidance, packed, plans, send, spans, values,
            np.concatenate([np.zeros((solver.steps + 1, 0)), *levels], axis=1), copies,
        )  # fmt: skip

    def velocity(self, values: Tensor, levels: Floats) -> Tensor:
        """With guidance: see `Velocity`."""
        level = self.send(torch.from_numpy(levels)).to(values)
        noisy = values.to(self.dtype).repeat(self.copies, 1)
        step = replace(self.packed, values=noisy, noise_level=level.repeat(self.copies))
        text = getattr(self.model.config, "text", None)
        batch = batch_of(step, np.tile(levels, self.copies), self.send, text=text)
        predictions = self.model(batch, self.plans).to(values).chunk(self.copies)
        found = [self.objective.velocity(prediction, values, level) for prediction in predictions]
        if self.copies == 1:
            return found[0]
        prompted, bare = found
        return bare + self.guidance * (prompted - bare)


def twice(ranges: Ranges, total: int, copies: int) -> Ranges:
    """The same ranges of each copy of a sequence of `total` positions; those that touch are one."""
    found: list[tuple[int, int]] = []
    for shift in range(0, copies * total, total):
        for start, stop in ranges:
            if found and found[-1][1] == start + shift:
                found[-1] = (found[-1][0], stop + shift)
            else:
                found.append((start + shift, stop + shift))
    return tuple(found)


def _levels(objective: Objective, clip: Clip, steps: int) -> Floats:
    """[steps + 1, tokens] of one clip."""
    free = np.ones(clip.grid) if clip.given is None else np.broadcast_to(~clip.given.tokens, clip.grid)
    return objective.levels(steps, prod(clip.grid))[:, None] * free.reshape(-1).astype(np.float64)


def _put(clip: Clip, places: npt.NDArray[np.int64], rows: Tensor) -> None:
    """What is given of the tokens at these places of a clip, into their rows.

    Raises:
        InputError: other values than tokens that are given.
    """
    if clip.given is None:
        return
    given = np.broadcast_to(clip.given.tokens, clip.grid).reshape(-1)
    count, values = int(given.sum()), clip.given.values
    if values.shape != (count, rows.shape[1]):
        found = f"{count} tokens of {rows.shape[1]}, values {list(values.shape)}"
        raise InputError("a clip has a row of values for each token that is given", found, "encode what is given anew")
    where = np.flatnonzero(given[places])
    which = np.cumsum(given)[places[where]] - 1  # rows of the values, which come in the order of places
    rows[torch.from_numpy(where).to(rows.device)] = values[torch.from_numpy(which).to(values.device)].to(rows)


def _column(values: Floats, like: Tensor) -> Tensor:
    """[tokens, 1] on the device and in the dtype of another tensor."""
    return torch.from_numpy(values).to(like)[:, None]
