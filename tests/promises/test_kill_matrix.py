"""kill -9 of a rank, of the command, of a node, at 40 seeded moments, ten of them inside the write of a checkpoint.

Each run ends by itself or by the same command, with every loss bit for bit that of the undisturbed run on the same
mesh, and an audit that finds no sample lost or repeated. What each recovery took is printed at the end.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from launcher.analysis.data_audit import audit
from launcher.analysis.subprocess_run import Command, Record
from launcher.config.loading import to_yaml
from launcher.core.run_folder import RunFolder
from tests.support.hosts import Cluster, child, why_not
from tests.support.runs import config

STEPS, EVERY, SECONDS = 40, 4, 300
TEARS, RANKS, COMMANDS, NODES = range(10), range(10, 23), range(23, 36), range(36, 40)
Told = list[tuple[str, float, int]]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def told(request: pytest.FixtureRequest) -> Iterator[Told]:
    """(what, seconds to the next new step, steps again) of every kill; shown when all are done."""
    found: Told = []
    yield found
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print()
        for what in sorted({what for what, _, _ in found}):
            seconds = [s for w, s, _ in found if w == what]
            again = [a for w, _, a in found if w == what]
            slowest = f"slowest {max(seconds):5.1f} s, mean {sum(seconds) / len(seconds):5.1f} s"
            print(f"{what:28} {len(seconds):3} kills, {slowest}, at most {max(again)} steps again")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> dict[str, list[Any]]:
    """The curve of each mesh."""
    curves = {}
    for axis in ("ulysses", "ring"):
        folder = tmp_path_factory.mktemp(axis)
        record = follow(folder, settings(folder, dataset, axis), "--no-ray", lambda record, command: True)
        curves[axis] = curve(record)
    return curves


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes for two ranks, and a spare one."""
    if why_not():
        pytest.skip(why_not())
    with Cluster(tmp_path_factory.mktemp("hosts"), ("first", "second", "third")) as made:
        yield made


def settings(folder: Path, dataset: Path, axis: str, **changes: Any) -> Path:
    run = config(
        folder / "run", dataset, steps=STEPS, dtype="float32", zero__stage=2, mesh={axis: 2},
        checkpoint__every=EVERY, **changes,
    )  # fmt: skip
    file = folder / "run.yaml"
    file.write_text(to_yaml(run))
    return file


def curve(record: Record) -> list[Any]:
    return [(s, line["loss"], line["grad_norm"], line["samples"]) for s, line in sorted(record.lines.items())]


def follow(folder: Path, file: Path, flag: str, strike: Callable[[Record, Command], bool]) -> Record:
    """Run to the end, calling `strike` until it says that it has struck; started again if the command was killed."""
    record, struck, deadline = Record(RunFolder(folder / "run")), False, time.monotonic() + SECONDS
    while True:
        with Command(file, [flag], folder / "log") as command:
            while (code := command.poll()) is None and time.monotonic() < deadline:
                record.update()
                struck = struck or strike(record, command)
                time.sleep(0.01)
            record.update()
            if code != -signal.SIGKILL:
                assert code == 0, command.last_words()
                return record


def pids(record: Record) -> list[int]:
    """Of the ranks of the newest attempt."""
    started = record.events("ranks")
    return [place["pid"] for place in started[-1]["places"]] if started else []


def tell(record: Record, kind: str, rank: int) -> None:
    record.folder.record("fault", kind=kind, rank=rank, step=record.step + 1, phase="?")


def judge(record: Record, expected: list[Any], what: str, told: Told) -> None:
    """Nothing was lost; tells what it took."""
    assert curve(record) == expected
    found = audit(record.folder.root)
    assert found.clean
    assert (found.steps, found.missing) == (STEPS, [])
    (fault,) = record.events("fault")
    at, resumed = fault["time"], [e for e in record.events("resume") if e["time"] > fault["time"]]
    back = resumed[-1]["time"] if resumed else at
    after = [when for when in record.first.values() if when > back] or [record.events("done")[-1]["time"]]
    done = max((step for step, when in record.first.items() if when <= back), default=0)
    told.append((what, min(after) - at, done - resumed[-1]["step"] if resumed else 0))


def some_moment(chance: random.Random, start: float) -> Callable[[Record], bool]:
    """Says when it is time: for one in four at any time of the start, for the rest within a random step."""
    if chance.random() < 0.25:
        moment = time.monotonic() + chance.uniform(0.2, start)
        return lambda record: time.monotonic() >= moment
    step, rest = chance.randint(1, STEPS - 2), chance.uniform(0, 0.1)

    def is_time(record: Record) -> bool:
        if record.step < step:
            return False
        time.sleep(rest)
        return True

    return is_time


@pytest.mark.parametrize("seed", TEARS)
def test_a_rank_is_killed_within_a_checkpoint_write(
    tmp_path: Path, dataset: Path, undisturbed: dict[str, list[Any]], told: Told, seed: int
) -> None:
    chance, ray = random.Random(seed), seed % 3 == 0
    fault = {"kind": "tear", "rank": chance.randrange(2), "step": EVERY * chance.randint(1, STEPS // EVERY)}
    file = settings(tmp_path, dataset, "ulysses", faults=[fault])
    record = follow(tmp_path, file, flag(ray), lambda record, command: True)
    judge(record, undisturbed["ulysses"], f"rank, within a write, {'ray' if ray else 'processes'}", told)
    (failure,) = record.events("failure")
    assert (failure["rank"], failure["how"]) == (fault["rank"], "died"), failure


@pytest.mark.parametrize("seed", RANKS)
def test_a_rank_is_killed(
    tmp_path: Path, dataset: Path, undisturbed: dict[str, list[Any]], told: Told, seed: int
) -> None:
    chance, ray = random.Random(seed), seed % 3 == 0
    is_time, rank = some_moment(chance, 12 if ray else 5), chance.randrange(2)

    def strike(record: Record, command: Command) -> bool:
        if not is_time(record) or not pids(record):
            return False
        tell(record, "kill", rank)
        with suppress(ProcessLookupError):
            os.kill(pids(record)[rank], signal.SIGKILL)
        return True

    record = follow(tmp_path, settings(tmp_path, dataset, "ulysses"), flag(ray), strike)
    judge(record, undisturbed["ulysses"], f"rank, {'ray' if ray else 'processes'}", told)


@pytest.mark.parametrize("seed", COMMANDS)
def test_the_command_is_killed_and_given_again(
    tmp_path: Path, dataset: Path, undisturbed: dict[str, list[Any]], told: Told, seed: int
) -> None:
    chance, ray = random.Random(seed), seed % 3 == 0
    is_time = some_moment(chance, 12 if ray else 5)

    def strike(record: Record, command: Command) -> bool:
        if not is_time(record) or not record.folder.root.is_dir():
            return False
        tell(record, "driver", -1)
        command.tell(signal.SIGKILL)
        return True

    record = follow(tmp_path, settings(tmp_path, dataset, "ulysses"), flag(ray), strike)
    judge(record, undisturbed["ulysses"], f"command, {'ray' if ray else 'processes'}", told)


@pytest.mark.multinode
@pytest.mark.parametrize("seed", NODES)
def test_a_node_is_killed(
    tmp_path: Path, dataset: Path, undisturbed: dict[str, list[Any]], told: Told, cluster: Cluster, seed: int
) -> None:
    """Its rank goes on on the spare one; it is switched on again for the next."""
    chance = random.Random(seed)
    cluster.wait("head", "first", "second", "third")
    file, record = settings(tmp_path, dataset, "ring"), Record(RunFolder(tmp_path / "run"))
    train = (sys.executable, "-m", "launcher", "train", file, "--address", cluster.address)
    process = cluster.hosts["head"].start(*train)
    step, deadline, lost = chance.randint(1, STEPS // 2), time.monotonic() + SECONDS, ""
    try:
        while process.poll() is None and time.monotonic() < deadline:
            record.update()
            if not lost and record.step >= step:
                lost = chance.choice([place["host"] for place in record.events("ranks")[-1]["places"]])
                tell(record, "node", -1)
                cluster.hosts[lost].kill()
            time.sleep(0.01)
        record.update()
        assert process.poll() == 0, end(process)
    finally:
        if process.poll() is None:
            end(process)
        if lost:
            cluster.up(lost)
    judge(record, undisturbed["ring"], "node", told)


def end(process: subprocess.Popen[str]) -> str:
    """Kill a command on a host; gives what it said."""
    if process.poll() is None:
        with suppress(ProcessLookupError, IndexError):
            os.kill(child(process.pid), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    return output


def flag(ray: bool) -> str:
    return "--ray" if ray else "--no-ray"
