"""Conditioning tasks: each clip has the task of its share, whoever asks; what is given is clean and not counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from models.objectives.conditioning import CONDITIONING, Conditioning, check_shares, given_in_training, task_of
from models.objectives.rectified_flow import RectifiedFlow, RectifiedFlowConfig
from parallel.errors import InputError
from parallel.random import key_of, uniform
from parallel.sequence.geometry import Grid
from parallel.sequence.packed import Document, lay_out


def last_frame(grid: Grid, key: int) -> np.ndarray:
    return (np.arange(grid[0]) == grid[0] - 1)[:, None, None]


@pytest.fixture
def last(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {**CONDITIONING._entries, "last_frame": Conditioning("the last frame", last_frame, lambda given: given)}
    monkeypatch.setattr(CONDITIONING, "_entries", entries)


def test_each_task_has_its_share_of_all_clips(last: None) -> None:
    names = [task_of({"last_frame": 0.3, "first_frame": 0.5}, key_of(i)) for i in range(4000)]
    for name, share in (("first_frame", 0.5), ("last_frame", 0.3), (None, 0.2)):
        assert abs(names.count(name) / 4000 - share) < 0.03
    assert names == [task_of({"first_frame": 0.5, "last_frame": 0.3}, key_of(i)) for i in range(4000)]
    assert all(task_of({"last_frame": 1.0}, key_of(i)) == "last_frame" for i in range(100))
    alone = [task_of({"first_frame": 0.5}, key_of(i)) == "first_frame" for i in range(100)]
    assert alone == [uniform(key_of(key_of(i), "first_frame")) < 0.5 for i in range(100)]


def test_a_clip_that_would_be_given_whole_is_trained_by_its_words() -> None:
    assert given_in_training({"first_frame": 1.0}, (1, 4, 4), 0) is None
    given = given_in_training({"first_frame": 1.0}, (2, 1, 2), 0)
    assert given is not None
    assert given[0].tolist() == [[[True, True]], [[False, False]]]
    assert given[1].tolist() == [[[False, False]], [[True, True]]]


def test_the_loss_mask_is_that_of_the_task(last: None) -> None:
    documents = [Document("a", 1, "", (3, 1, 2))]
    packed = lay_out(documents, ((0, 6),), torch.ones(6, 2))
    prepared = RectifiedFlow(RectifiedFlowConfig(conditioning={"last_frame": 1.0})).prepare(packed)
    assert (prepared.packed.noise_level == 0).tolist() == [False] * 4 + [True] * 2
    assert prepared.packed.weight.tolist() == [0.0] * 4 + [1.0] * 2


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({"first_fram": 0.1}, r"(?s)a conditioning task is one of: first_frame.*did you mean first_frame"),
        ({"first_frame": 1.5}, r"(?s)each 0 or more, 1 at most together.*first_frame: 1.5"),
        ({"first_frame": -0.5}, r"first_frame: -0.5"),
    ],
)
def test_shares_are_checked(shares: dict[str, float], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RectifiedFlowConfig(conditioning=shares)


@pytest.mark.parametrize(
    "given",
    [
        lambda grid, key: (np.arange(grid[0]) == 0).astype(int)[:, None, None],
        lambda grid, key: np.full((grid[0], 1, 1), 0.5),
        lambda grid, key: np.ones(99, np.bool_),
        lambda grid, key: np.ones((1, *grid), np.bool_),
        lambda grid, key: None,
        lambda grid: np.ones(grid, np.bool_),
        lambda grid, key: 1 // 0,
    ],
    ids=["integers", "halves", "other lengths", "four axes", "nothing", "one argument", "it fails"],
)
def test_a_task_that_gives_no_mask_is_refused_before_a_run(monkeypatch: pytest.MonkeyPatch, given: Any) -> None:
    monkeypatch.setitem(CONDITIONING._entries, "odd", Conditioning("what it says", given))
    with pytest.raises(InputError, match="a conditioning task must"):
        check_shares({"odd": 0.5})


@pytest.mark.parametrize("share", [float("nan"), float("inf"), -0.1, 1.1])
def test_a_share_is_a_part_of_all_clips(share: float) -> None:
    with pytest.raises(InputError, match="shares of all clips"):
        check_shares({"first_frame": share})
