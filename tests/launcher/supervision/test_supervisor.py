"""What a run does while it waits for room, and on which mesh it starts again; with ranks that are played."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from rich.console import Console

import launcher.supervision.supervisor
from launcher.config.run_config import RunConfig
from launcher.core.heartbeat import Heartbeat
from launcher.core.run_folder import RunFolder, append_line, make_run_folder
from launcher.supervision.attempt import StopRequests
from launcher.supervision.console_view import Screen
from launcher.supervision.rank_group import End, NoCapacityError, Wait, Where
from launcher.supervision.supervisor import DONE, FAILED, STOPPED, Supervisor
from parallel.mesh import Mesh
from tests.support.runs import config, events

FULL = Wait({"CPU": 3}, {"CPU": 1}, {"CPU": 3})


class Played:
    """Ranks that end as they are told.

    Args:
        waits: what `place` says, in turn; then None.
        ends: of each attempt; when they are used up, all are done.
        capacities: that are free, asked in turn; the last one stays.
        total: that there are in all.
    """

    def __init__(
        self,
        waits: Sequence[Wait] = (),
        ends: Sequence[list[End]] = (),
        capacities: Sequence[tuple[int, ...]] = ((3,),),
        total: tuple[int, ...] = (3,),
    ) -> None:
        self.waits, self.ends, self.free, self.total = list(waits), list(ends), list(capacities), total
        self.meshes: list[Mesh] = []
        self.on_place: Callable[[], None] = lambda: None
        self.world = 0

    def place(self, config: RunConfig) -> Wait | None:
        self.on_place()
        return self.waits.pop(0) if self.waits else None

    def start(self, config: RunConfig) -> list[Where]:
        self.meshes.append(config.mesh.mesh())
        self.world = self.meshes[-1].ranks
        return [Where(rank, "n", "h", 1) for rank in range(self.world)]

    def poll(self, seconds: float) -> list[End] | None:
        return self.ends.pop(0) if self.ends else [End(rank, "done", 5) for rank in range(self.world)]

    def heartbeats(self) -> dict[int, Heartbeat | None]:
        return {}

    def last(self, rank: int) -> Heartbeat | None:
        return None

    def state(self, rank: int) -> str:
        return "S (sleeping)"

    def stacks(self, ranks: Sequence[int]) -> dict[int, str]:
        return {}

    def capacities(self, in_all: bool = False) -> tuple[int, ...] | None:
        if in_all:
            return self.total
        return self.free.pop(0) if len(self.free) > 1 else self.free[0]

    def kind(self) -> Literal["cuda", "cpu"]:
        return "cpu"

    def stop(self) -> None:
        pass

    def kill(self) -> None:
        pass

    def close(self) -> None:
        pass


def supervised(tmp_path: Path, ranks: Played, asked: StopRequests | None = None, **changes: Any) -> tuple[int, str]:
    """The exit code, and what was printed."""
    settings = config(tmp_path / "run", tmp_path, mesh={"replica": 3}, **changes)
    folder = RunFolder(settings.out)
    make_run_folder(folder)
    said = io.StringIO()
    console = Console(file=said, width=200)
    screen = Screen(folder, settings.steps, 0, console)
    return Supervisor(settings, ranks, screen, asked or StopRequests(), console).run(), said.getvalue()


def lost(rank: int = 0, how: Any = "died", sign: str = "SIGKILL", message: str = "killed by SIGKILL") -> End:
    return End(rank, how, 2, message, sign=sign)


def test_a_queue_is_told_once_for_each_change(tmp_path: Path) -> None:
    more = Wait({"CPU": 3}, {"CPU": 2}, {"CPU": 3})
    code, said = supervised(tmp_path, Played([FULL, FULL, more]))
    assert code == DONE
    assert said.splitlines()[:3] == [
        "waiting for room: takes 3 CPU, 1 of 3 is free; starts by itself",
        "waiting for room: takes 3 CPU, 2 of 3 are free; starts by itself",
        "there is room, after 0 s",
    ]
    (queued,) = events(tmp_path / "run", "queued")
    assert (queued["needs"], queued["free"]) == ({"CPU": 3}, {"CPU": 1})
    assert len(events(tmp_path / "run", "placed")) == 1


def test_a_wait_can_be_stopped(tmp_path: Path) -> None:
    asked, ranks = StopRequests(), Played([FULL] * 100)
    ranks.on_place = lambda: setattr(asked, "times", asked.times + (len(ranks.waits) < 98))
    code, _ = supervised(tmp_path, ranks, asked)
    assert code == STOPPED
    assert not ranks.meshes
    assert events(tmp_path / "run", "stop")[0]["reason"] == "while it waited for room"


@pytest.mark.parametrize(
    ("total", "reason"), [((3,), "other runs hold the room"), ((2,), "too few nodes are left")], ids=["held", "gone"]
)
def test_after_a_loss_it_goes_on_with_fewer(tmp_path: Path, total: tuple[int, ...], reason: str) -> None:
    ranks = Played(ends=[[lost()]], capacities=[(2,)], total=total)
    code, _ = supervised(tmp_path, ranks, restart={"rejoin_timeout_seconds": 0})
    assert code == DONE
    assert [mesh.ranks for mesh in ranks.meshes] == [3, 2]
    (told,) = events(tmp_path / "run", "mesh")
    assert told["reason"] == reason


def test_patience_waits_for_all(tmp_path: Path) -> None:
    ranks = Played(ends=[[lost()]], capacities=[(2,), (2,), (3,)])
    assert supervised(tmp_path, ranks, restart={"rejoin_timeout_seconds": 60})[0] == DONE
    assert [mesh.ranks for mesh in ranks.meshes] == [3, 3]


def test_what_is_not_elastic_waits_for_its_nodes(tmp_path: Path) -> None:
    ranks = Played(ends=[[lost()]], capacities=[(2,)] * 4 + [(3,)], total=(2,))
    assert supervised(tmp_path, ranks, restart={"rejoin_timeout_seconds": 0, "elastic": False})[0] == DONE
    assert [mesh.ranks for mesh in ranks.meshes] == [3, 3]


def test_nodes_that_never_come_back_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher.supervision.supervisor, "EMPTY_SECONDS", 0.1)
    ranks = Played(ends=[[lost()]], capacities=[(0,)], total=(0,))
    code, said = supervised(tmp_path, ranks, restart={"max_restarts": 1})
    assert code == FAILED
    assert "too few nodes came back within 0.1 s" in said


def test_others_that_failed_get_a_line_each(tmp_path: Path) -> None:
    """Not those that only lost their peers."""
    echo = lost(2, "failed", "RuntimeError", "RuntimeError: [gloo] Connection closed by peer")
    ends = [lost(), lost(1, "failed", "ValueError", "Traceback\nValueError: it is seven"), echo]
    code, said = supervised(tmp_path, Played(ends=[ends]))
    assert code == DONE
    assert "rank 1 on h failed as well: ValueError: it is seven" in said
    assert [event["rank"] for event in events(tmp_path / "run", "also")] == [1]


def test_room_that_is_gone_at_the_start_is_an_error(tmp_path: Path) -> None:
    ranks = Played()

    def refuse() -> None:
        raise NoCapacityError("a mesh takes 3 CPU", "the cluster has 2 CPU", "a smaller mesh, or more nodes")

    ranks.on_place = refuse
    with pytest.raises(NoCapacityError):
        supervised(tmp_path, ranks)


@pytest.mark.parametrize(
    ("steps", "attempts", "words"),
    [
        ((0, 0), 1, "before its first step"),  # as started it cannot fit
        ((3, 0), 2, "twice without a checkpoint"),  # others may have taken the memory, once
        ((3, 4), 2, "twice without a checkpoint"),
    ],
)
@pytest.mark.parametrize("how", ["died", "failed"])
def test_a_run_out_of_memory_is_not_repeated_as_it_was(
    tmp_path: Path, how: str, steps: tuple[int, int], attempts: int, words: str
) -> None:
    if how == "died":
        out = [End(0, "died", 0, sign="SIGKILL", message="killed by the memory killer", for_memory=True)]
    else:
        out = [End(0, "failed", 0, "OutOfMemoryError: CUDA out of memory", sign="OutOfMemoryError")]
    ranks = Played(ends=[out] * 5)
    left = list(steps)
    start = ranks.start

    def start_and_step(settings: RunConfig) -> list[Where]:
        for step in range(left.pop(0) if left else 0):
            line = {"step": step + 1, "loss": 1.0, "tokens_per_second": 1.0, "seconds": 1.0}
            append_line(RunFolder(settings.out).metrics, line)
        return start(settings)

    ranks.start = start_and_step  # type: ignore[method-assign]
    code, told = supervised(tmp_path, ranks, steps=9)
    assert code == FAILED
    assert len(ranks.meshes) == attempts
    assert words in told
    assert "less memory: model.recompute=true" in told


def test_a_foreseen_failure_is_one_block_without_a_traceback(tmp_path: Path) -> None:
    """All ranks compute the same, so all fail in the same way: told once, with how many; the command can be typed."""
    message = "Traceback (most recent call last):\n  File x\nFloatingPointError: step 3 is not finite: loss nan"
    ends = [lost(rank, "failed", "FloatingPointError", message) for rank in range(3)]
    code, said = supervised(tmp_path, Played(ends=[ends]))
    assert code == FAILED
    assert [line.rstrip() for line in said.splitlines()] == [
        "rank 0 on h and 2 others failed: step 3 is not finite: loss nan",
        "not restarted, because it would happen again",
        "  remedy: a lower optimizer.learning_rate, or look at the samples of these steps",
        f"          longreel train {tmp_path / 'run'}/config.yaml optimizer.learning_rate=0.0001",
        f"  more:   longreel why {tmp_path / 'run'}",
    ]
    assert not events(tmp_path / "run", "also")


def test_a_failure_that_nobody_foresaw_has_its_traceback(tmp_path: Path) -> None:
    bug = [lost(rank, "failed", "ValueError", "Traceback\nValueError: it is seven") for rank in range(3)]
    code, said = supervised(tmp_path, Played(ends=[bug, bug]))
    assert code == FAILED
    assert said.count("Traceback\nValueError: it is seven") == 1
    assert "not restarted, because it failed twice at the same step in the same way" in said


def test_memory_twice_is_told_as_memory(tmp_path: Path) -> None:
    short = [lost(0, "failed", "MemoryError", "Traceback\nMemoryError: Unable to allocate 3 GiB")]
    code, said = supervised(tmp_path, Played(ends=[short, short], capacities=[(3,)]))
    assert code == FAILED
    assert "ran out of memory: MemoryError: Unable to allocate 3 GiB" in said
    assert "  remedy: less memory: model.recompute=true" in said
    assert f"\n          longreel train {tmp_path / 'run'}/config.yaml model.recompute=true" in said
    assert "Traceback" not in said
