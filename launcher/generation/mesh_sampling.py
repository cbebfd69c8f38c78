"""Sampling over the ranks of a replica: each holds a part of the clips, as in training, and all get the whole of them.

    clips --balanced--> ranges of this rank --ring, ulysses--> rows of it --gathered--> clips

A clip that is too long for one device is sampled by as many as were needed to train it, to the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from models.diffusion.attention_schedule import masks_of, token_tile
from models.diffusion.sampler import Clip, Objective, Solver, sample, twice
from models.diffusion.video_dit import VideoDiT
from parallel.attention.plan import Plan, plan_for
from parallel.masks.mask import Mask
from parallel.mesh import Groups
from parallel.sequence.packed import Document, Ints, Ranges, local_spans
from parallel.sequence.sharding import Split, balanced


def sample_over(
    groups: Groups,
    model: VideoDiT,
    objective: Objective,
    clips: Sequence[Clip],
    solver: Solver,
    dtype: torch.dtype,
) -> list[Tensor]:
    """As `models.diffusion.sampler.sample`, over the ranks of a replica. Collective: all give and get the same.

    Args:
        groups: of this rank.
        model, objective, clips, solver, dtype: of `sample`.
    """
    split = _split(masks_of(model.config.attention, [clip.grid for clip in clips]), groups)

    def cut(alone: Sequence[Mask], masks: Sequence[Mask]) -> tuple[Ranges, Sequence[Plan]]:
        total, copies = alone[0].queries, masks[0].queries // alone[0].queries
        both = Split(tuple(twice(ranges, total, copies) for ranges in split.ranges))
        made = {id(mask): plan_for(mask, both, groups) for mask in masks}
        return split.ranges[groups.place.sequence], [made[id(mask)] for mask in masks]

    held = sample(model, objective, clips, solver, dtype, cut)
    if groups.sequence is None:
        return held
    parts: list[list[Tensor]] = [[]] * len(groups.sequence_ranks)
    dist.all_gather_object(parts, [rows.cpu() for rows in held], group=groups.sequence)
    whole = [rows.new_empty(prod(clip.grid), rows.shape[1]) for clip, rows in zip(clips, held, strict=True)]
    tile = token_tile(model.config.attention)
    documents = [Document("", 0, "", clip.grid, tile=tile) for clip in clips]
    for ranges, rows_of in zip(split.ranges, parts, strict=True):
        places: list[list[Ints]] = [[] for _ in clips]
        for clip, start, stop in local_spans([document.tokens for document in documents], ranges):
            places[clip].append(documents[clip].places(start, stop))
        for clip, held_here in enumerate(places):
            if held_here:  # rows come in the order of their places
                whole[clip][torch.from_numpy(np.sort(np.concatenate(held_here)))] = rows_of[clip].to(whole[clip])
    return whole


def _split(masks: Sequence[Mask], groups: Groups) -> Split:
    """As in training: even for the mask that costs most."""
    return balanced(max(masks, key=lambda mask: mask.area), groups.mesh)
