"""Rows by any way of holding them to any other, and back for gradients; labels across ranks; ranks that disagree."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parallel.attention.attend import attend
from parallel.attention.plan import local_plan, plan_for
from parallel.consistency import compare
from parallel.errors import InputError
from parallel.masks import mask as masks
from parallel.masks import video_patterns
from parallel.mesh import Mesh, join
from parallel.sequence.packed import IGNORED, Ranges
from parallel.sequence.relayout import by_place, move_for, next_tokens, relayout
from parallel.sequence.sharding import Split, balanced, contiguous, zigzag
from tests.parallel.attention.test_attend import dense, dense_mask, rows_of
from tests.support.process_groups import run_world

FRAMES, PLACES = 5, 7
LENGTHS = [9, 1, 4, 21]


def values(rows: Tensor, width: int = 3) -> Tensor:
    """Of each position, the same for whoever asks."""
    return torch.sin(torch.arange(width) + 1.7 * rows[:, None].double())


def moved(rank: int, mesh: Mesh) -> dict[str, Tensor]:
    groups, total = join(mesh, rank), FRAMES * PLACES
    time_major, space_major = zigzag(total, mesh.ranks), by_place(FRAMES, PLACES, mesh.ranks)
    rows, places = rows_of(time_major, rank), rows_of(space_major, rank)
    there = move_for(time_major.ranges, space_major.ranges, rank)
    back = move_for(space_major.ranges, time_major.ranges, rank)
    x = values(rows).requires_grad_()
    y = relayout(x, there, groups)
    torch.testing.assert_close(y, values(places), rtol=0, atol=0)
    again = relayout(y, back, groups)
    torch.testing.assert_close(again, x, rtol=0, atol=0)
    (y * (1 + places[:, None])).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (1.0 + rows[:, None]).double().expand_as(x), rtol=0, atol=0)

    # attention over time, local to each rank after the move, and as a mask over the whole
    q = values(rows, 8)[:, None, :]
    local = relayout(q, there, groups)
    plan = local_plan(masks.packed([FRAMES] * (len(places) // FRAMES))) if len(places) else None
    out = attend(local, local, local, plan) if plan else local
    everywhere = plan_for(video_patterns.temporal(FRAMES, PLACES), time_major, groups)
    return {
        "local": relayout(out, back, groups),
        "mask": attend(q, q, q, everywhere),
        "labels": next_tokens(torch.arange(total)[rows] * 10, LENGTHS, time_major, groups),
        "rows": rows,
    }


@pytest.mark.parametrize("mesh", [Mesh(1, 1, 1), Mesh(1, 3, 1), Mesh(1, 2, 2)], ids=str)
def test_there_and_back(mesh: Mesh) -> None:
    answers = run_world(mesh.ranks, moved, mesh)
    total = FRAMES * PLACES
    q = values(torch.arange(total), 8)[:, None, :]
    wanted = dense(q, q, q, dense_mask(video_patterns.temporal(FRAMES, PLACES)))
    after = (torch.arange(total) + 1) * 10
    after[torch.tensor(LENGTHS).cumsum(0) - 1] = IGNORED
    for answer in answers:
        rows = answer["rows"]
        torch.testing.assert_close(answer["local"], wanted[rows], rtol=0, atol=1e-12)
        torch.testing.assert_close(answer["mask"], wanted[rows], rtol=0, atol=1e-12)
        assert torch.equal(answer["labels"], after[rows])


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, list[Ranges], list[Ranges]]:
    ranks, total = draw(st.integers(1, 4)), draw(st.integers(1, 20))

    def some(all_: bool) -> list[Ranges]:
        borders = sorted({0, total, *draw(st.lists(st.integers(0, total), max_size=6))})
        ranges = draw(st.permutations(list(itertools.pairwise(borders))))
        owners = [draw(st.integers(0 if all_ else -1, ranks - 1)) for _ in ranges]
        return [tuple(r for r, o in zip(ranges, owners, strict=True) if o == i) for i in range(ranks)]

    return total, some(True), some(False)


@given(layouts())
@settings(max_examples=200)
def test_moves_fit_together(layout: tuple[int, list[Ranges], list[Ranges]]) -> None:
    """What rank i sends to rank j is what j expects of i, played through without processes."""
    _, have, want = layout
    moves = [move_for(have, want, rank) for rank in range(len(have))]
    held = [rows_of(Split((r,)), 0) for r in have]
    outbox = [h[m.send].split(list(m.send_counts)) for h, m in zip(held, moves, strict=True)]
    for j, move in enumerate(moves):
        arrived = torch.cat([outbox[i][j] for i in range(len(moves))])
        assert tuple(len(outbox[i][j]) for i in range(len(moves))) == move.receive_counts
        found = torch.empty_like(arrived)
        found[move.receive] = arrived
        assert torch.equal(found, rows_of(Split((want[j],)), 0))


@pytest.mark.parametrize(
    ("have", "want", "rule"),
    [
        ([((0, 3),), ((2, 4),)], [(), ()], "held by one rank"),
        ([((0, 3),), ((3, 4),)], [((0, 9),), ()], "wants 4, which nobody holds"),
    ],
)
def test_moves_that_cannot_be(have: list[Ranges], want: list[Ranges], rule: str) -> None:
    with pytest.raises(InputError) as error:
        move_for(have, want, 0)
    assert rule in str(error.value)


def disagreeing(rank: int) -> list[str]:
    groups, found = join(Mesh(1, 3, 1), rank), []
    shifted = masks.packed([4, 5] if rank == 2 else [5, 4])
    uneven = Split((((0, 2),), ((2, 5),), ((5, 9),)))
    plans = [
        plan_for(shifted, contiguous(9, 3), groups),
        plan_for(masks.full(9), uneven if rank == 2 else contiguous(9, 3), groups),
        plan_for(masks.causal(9), contiguous(9, 3), groups, "ring" if rank == 2 else "need"),
        plan_for(masks.causal(9), balanced(masks.causal(9), Mesh(1, 3, 1)), groups),
    ]
    for plan in plans:
        try:
            compare(plan.digest, groups)
            found.append("")
        except InputError as error:
            found.append(error.value)
    return found


def test_ranks_whose_plans_differ_are_named() -> None:
    for answer in run_world(3, disagreeing):
        assert answer == ["rank 2 of 3 differ from the others"] * 3 + [""]


def too_large(rank: int) -> str:
    try:
        join(Mesh(1, 2, 2), rank)
    except InputError as error:
        return error.value
    return ""


def test_a_mesh_that_is_larger_than_the_world() -> None:
    assert run_world(2, too_large) == ["replica 1 x ring 2 x ulysses 2 = 4 ranks, 2 are running"] * 2


def test_places_are_held_whole() -> None:
    split = by_place(FRAMES, PLACES, 3)
    assert [split.tokens(r) for r in range(3)] == [15, 10, 10]
    assert torch.equal(rows_of(split, 0) % PLACES, torch.tensor([0, 1, 2]).repeat_interleave(FRAMES))
