"""Ranks that hold parts of one sequence must have made the same plan: else messages do not fit, and the job hangs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
import torch.distributed as dist

from parallel.errors import InputError
from parallel.mesh import Groups


def refuse_differences(digests: Sequence[int], ranks: Sequence[int]) -> None:
    """All of these ranks have one digest.

    Raises:
        InputError: names the ranks that differ from most.
    """
    ((common, _),) = Counter(digests).most_common(1)
    others = [rank for rank, digest in zip(ranks, digests, strict=True) if digest != common]
    if others:
        raise InputError(
            "all ranks of a replica make the same plan of a batch",
            f"rank {', '.join(map(str, others[:8]))} of {len(ranks)} differ from the others",
            "give every rank the same mask, split, mesh, dataset and settings",
        )


def compare(digest: int, groups: Groups, device: torch.device | None = None) -> None:
    """Compare the digest of a plan (`Plan.digest`) over the ranks of a replica. Collective.

    Raises:
        InputError: on every rank, if any of them differs.
    """
    if groups.sequence is None:
        return
    mine = torch.tensor([digest], device=device)
    everyone = [torch.empty_like(mine) for _ in groups.sequence_ranks]
    dist.all_gather(everyone, mine, group=groups.sequence)
    refuse_differences([int(d) for d in torch.cat(everyone).tolist()], groups.sequence_ranks)
