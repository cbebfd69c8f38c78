"""What decides the numbers of a step is named in its line: by settings, by rounding and by the update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.training.number_digests import Made, differences, machine_here, machine_of_all
from tests.support.process_groups import run_world
from tests.support.runs import config

HERE = {"threads": 2, "device": "a CPU, AVX2", "kernel": "flash"}


def made(step: int = 3, rate: float = 1e-3, unreadable: tuple[str, ...] = (), **changes: Any) -> dict[str, str]:
    machine, outside = changes.pop("machine", HERE), changes.pop("outside", {"model.path frozen": "a"})
    datasets = changes.pop("datasets", [["one"], ["two"]])
    return Made(config(Path("out"), Path("data"), **changes), machine, outside, datasets).of(step, rate, unreadable)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"machine": {**HERE, "threads": 1}}, "rounding"),
        ({"machine": {**HERE, "kernel": "aten"}}, "rounding"),
        ({"mesh": {"ring": 2}}, "rounding"),
        ({"rate": 2e-3}, "update"),
        ({"optimizer__max_grad_norm": 0.5}, "update"),
        ({"dtype": "float32"}, "numbers"),
        ({"unreadable": ("a clip",)}, "numbers"),
        ({"outside": {"model.path frozen": "b"}}, "numbers"),
        ({"datasets": [["other"], ["two"]]}, "numbers"),
        ({"datasets": [["one"], ["other"]]}, ""),  # of another segment
        ({"data__dataset": {"a": 3, "b": 1}}, "numbers"),
        ({"steps": 9, "checkpoint__every": 7, "data__workers": 3, "model__recompute": True}, ""),
    ],
)
def test_a_change_shows_in_one_digest(changes: dict[str, Any], name: str) -> None:
    before, now = made(), made(**changes)
    assert {each for each in before if before[each] != now[each]} == ({name} if name else set())


def test_meshes_of_segments_are_those_of_the_ranks_that_compute_them() -> None:
    segments = [{"until": 5, "mesh": {"ring": 1}}, {"mesh": {"ring": 2}}]
    assert made(3, data__segments=segments) == made(3, data__segments=[{"until": 5}, {}]) == made(3)
    assert made(3, data__segments=segments, mesh={"ring": 2})["rounding"] != made(3)["rounding"]


def test_segments_are_told_apart_by_what_they_show_and_where_they_begin() -> None:
    parts = [{"until": 3}, {"frames": 5}]
    assert made(3, data__segments=parts) == made(3)
    same = {"datasets": [["one"], ["one"]]}
    later = made(4, data__segments=parts, **same)["numbers"]
    plain = [{"until": 3}, {"mesh": {"ulysses": 1}}]
    assert later == made(4, data__frames=5, data__segments=plain, **same)["numbers"]
    assert len({later, made(4, data__segments=plain, **same)["numbers"], made(4, **same)["numbers"]}) == 3
    assert later != made(4, data__segments=[{"until": 2}, {"frames": 5}], **same)["numbers"]
    assert later != made(4, data__segments=parts)["numbers"]
    others = {"outside": {"model.path frozen": "a", "tokenizer of segment 1": "b"}, "data__segments": parts}
    assert made(3, **others) == made(3)
    assert made(4, **others)["numbers"] != made(4, data__segments=parts)["numbers"]


def test_versions_decide_last_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    before = made()
    monkeypatch.setattr("launcher.training.number_digests.versions", lambda: {"torch": "0.1"})
    now = made()
    assert [each for each in before if before[each] != now[each]] == ["rounding"]


def test_differences_are_told_where_both_are_known() -> None:
    assert differences(HERE, {**HERE, "threads": 1, "new": 3}) == ["threads: 2 became 1"]
    assert differences({}, HERE) == []


def threads(rank: int) -> dict[str, Any]:
    torch.set_num_threads(1 + rank)
    return machine_of_all(torch.device("cpu"), "flash")


def test_ranks_that_differ_are_listed() -> None:
    one, other = run_world(2, threads)
    assert one == other
    assert one["threads"] == [1, 2]
    assert one["kernel"] == "flash"
    assert machine_here(torch.device("cpu"), "flash").keys() == one.keys()
