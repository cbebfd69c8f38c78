"""Sampling: follow the velocity from noise to data (Euler), with classifier-free guidance.

    v = v(z, "") + guidance (v(z, prompt) - v(z, ""))      (Ho and Salimans, arXiv:2207.12598, eq. 6; w = guidance - 1)
    z(s') = z(s) + (s' - s) v                               levels s from 1 to 0, evenly spaced, then shifted

All clips of a call, and their twins without a prompt, are one packed sequence and one forward pass a step. The noise
comes from the keys alone: the same model, prompt and key give the same bytes on the same machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod

import numpy as np
import torch
from torch import Tensor

from models.diffusion.attention_schedule import masks_of
from models.diffusion.video_dit import VideoDiT, batch_of
from models.objectives.rectified_flow import RectifiedFlow, shifted
from parallel.attention.plan import local_plan
from parallel.device_stream import stream_for
from parallel.errors import InputError
from parallel.random import key_of, normal
from parallel.sequence.geometry import Grid
from parallel.sequence.packed import Document, lay_out


@torch.no_grad()
def sample(
    model: VideoDiT,
    objective: RectifiedFlow,
    grids: Sequence[Grid],
    prompts: Sequence[str],
    keys: Sequence[int],
    *,
    steps: int,
    guidance: float,
    shift: float,
    dtype: torch.dtype,
    first_frames: Sequence[Tensor | None] | None = None,
) -> list[Tensor]:
    """Clean tokens [prod(grid), token_dim] of each clip, in at least float32.

    Args:
        model: trained with `objective`.
        objective: says what the model's output means.
        grids: tokens along (t, y, x) of each clip.
        prompts: of each clip.
        keys: 64 bits for each clip, for its noise.
        steps: of the solver, each one forward pass over all clips.
        guidance: 1 follows the prompt as trained (and costs half), larger follows it more.
        shift: of the levels towards noise; 1 for none.
        dtype: of the model's input.
        first_frames: clean tokens [y x, token_dim] of the first frame of each clip, or None where it is to be drawn.

    Raises:
        InputError: the lists differ in length, or `steps` is below 1.
    """
    given = list(first_frames) if first_frames is not None else [None] * len(grids)
    if not len(grids) == len(prompts) == len(keys) == len(given) or not grids:
        raise InputError(
            "each clip to sample has a grid, a prompt and a key",
            f"{len(grids)} grids, {len(prompts)} prompts, {len(keys)} keys, {len(given)} first frames",
            "give lists of one length, at least 1",
        )
    if steps < 1:
        raise InputError("sampling takes at least one step", f"steps: {steps}", "use 20 to 50")

    device = next(model.parameters()).device
    wide = torch.promote_types(dtype, torch.float32)
    drawn = [
        normal(key_of(key, "noise"), 0, prod(grid), model.token_dim) for key, grid in zip(keys, grids, strict=True)
    ]
    send = stream_for(device).send
    state = send(torch.from_numpy(np.concatenate(drawn))).to(wide)  # [tokens of all clips, token_dim]
    drawn_there = np.ones(len(state))  # 0 where a token is given
    start = 0
    for grid, frame in zip(grids, given, strict=True):
        if frame is not None:
            stop = start + grid[1] * grid[2]
            state[start:stop], drawn_there[start:stop] = frame.to(state), 0.0
        start += prod(grid)

    texts = [*prompts, *[""] * (len(prompts) if guidance != 1 else 0)]
    twins = len(texts) // len(prompts)
    documents = [Document("", 0, text, grids[i % len(grids)]) for i, text in enumerate(texts)]
    total = twins * len(state)
    packed = lay_out(documents, ((0, total),), state.new_zeros(total, model.token_dim))
    plans = [local_plan(mask) for mask in masks_of(model.config.attention, [d.grid for d in documents])]

    free = send(torch.from_numpy(drawn_there)).to(wide)
    levels = shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).tolist()
    for now, then in pairwise(levels):
        level = now * free
        step = replace(packed, values=state.to(dtype).repeat(twins, 1), noise_level=level.repeat(twins))
        batch = batch_of(step, np.tile(now * drawn_there, twins), send, text_bytes=model.config.text.max_bytes)
        predictions = model(batch, plans).to(wide).chunk(twins)
        with_prompt, without = (objective.velocity(p, state, level) for p in (predictions[0], predictions[-1]))
        velocity = without + guidance * (with_prompt - without) if twins == 2 else with_prompt
        state = state + ((then - now) * free)[:, None] * velocity
    return list(state.split([prod(grid) for grid in grids]))
