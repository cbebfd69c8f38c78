"""Promise 3: a kill costs nothing but time. Real commands, real SIGKILLs; every loss is bit-identical afterwards."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from launcher.analysis.data_audit import audit
from launcher.analysis.incidents import why
from launcher.config.loading import load, to_yaml
from launcher.core.run_folder import RunFolder, read_lines
from tests.support.commands import Forked, Fresh, Started
from tests.support.runs import config, events, lines, train

pytestmark = pytest.mark.ray
SLOW = pytest.mark.slow
STEPS = 20
SILENCE = "restart.heartbeat_timeout_seconds=5"  # ten by default, as test_watchdog says
STARTED: list[Started] = []


def settings(out: Path, dataset: Path) -> Path:
    """A run file of two ranks with ZeRO-2 and a checkpoint every third step."""
    run = config(out, dataset, steps=STEPS, dtype="float32", zero__stage=2, mesh={"ulysses": 2}, checkpoint__every=3)
    file = out.parent / f"{out.name}.yaml"
    file.write_text(to_yaml(run))
    return file


def start(file: Path, ray: bool, *overrides: str, fresh: bool = False) -> Started:
    """`longreel train`; under Ray or if `fresh`, in an interpreter of its own."""
    arguments = ("train", file, *overrides, "--ray" if ray else "--no-ray")
    process = Fresh(*arguments) if ray or fresh else Forked(*arguments)
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    """What a test that failed has left running is killed."""
    yield
    for process in STARTED:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    STARTED.clear()


def finish(process: Started, code: int = 0) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    return output


def wait_for(condition: Any, seconds: float = 300) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise TimeoutError("it did not happen")


def pids(out: Path) -> dict[int, int]:
    """Of the ranks of the newest attempt."""
    found = events(out, "ranks")
    return {p["rank"]: p["pid"] for p in found[-1]["places"]} if found else {}


def first(out: Path, name: str) -> dict[str, Any]:
    """The first event of a name."""
    return events(out, name)[0]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def listening_beyond_loopback(pid: int) -> list[str]:
    """Sockets of a process and all that it started which other machines could reach."""
    found = []
    for process in (root := psutil.Process(pid), *root.children(recursive=True)):
        with suppress(psutil.Error):
            for c in process.net_connections("inet"):
                address = c.laddr.ip.removeprefix("::ffff:")
                if c.status == psutil.CONN_LISTEN and not (address.startswith("127.") or address == "::1"):
                    found.append(f"{process.name()} on {address}:{c.laddr.port}")
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> list[tuple[Any, ...]]:
    return undisturbed_at(tmp_path_factory.mktemp("undisturbed") / "run", dataset, 2)


def undisturbed_at(out: Path, dataset: Path, stage: int) -> list[tuple[Any, ...]]:
    """The curve at a ZeRO stage when nothing happens."""
    train(load(settings(out, dataset), [f"zero.stage={stage}"]))
    return curve(out)


def curve(out: Path) -> list[tuple[Any, ...]]:
    return [(line["step"], line["loss"], line["grad_norm"], line["samples"]) for line in lines(out)]


def some_moment(out: Path, seed: int) -> None:
    """Wait until a random step is done, and a random part of the next."""
    chance = random.Random(seed)
    step = chance.randint(4, STEPS - 3)  # a checkpoint is there
    wait_for(lambda: len(lines(out)) >= step)
    time.sleep(chance.random() * 0.1)


def until_step(out: Path, step: int) -> None:
    wait_for(lambda: lines(out) and lines(out)[-1]["step"] >= step)


def restarted(out: Path, number: int) -> None:
    """Wait until the ranks were started for the `number`-th time and have done a step since."""
    wait_for(lambda: len(events(out, "ranks")) >= number)
    moment = events(out, "ranks")[number - 1]["time"]
    wait_for(lambda: any(line["time"] > moment for line in lines(out)))


def kill_job(process: Started, out: Path) -> None:
    """SIGKILL to the launcher, with a rank that cannot notice it."""
    os.kill(pids(out)[0], signal.SIGSTOP)
    process.kill()
    process.wait(60)


def finished(out: Path, file: Path, ray: bool) -> str:
    """What the command says that goes on to the end: as far as the undisturbed run at least, and some steps more."""
    output = finish(start(file, ray, f"steps={max(STEPS, lines(out)[-1]['step'] + 3)}"))
    assert not [pid for pid in pids(out).values() if alive(pid)]
    return output


def assert_killed(out: Path, output: str) -> None:
    """The first failure was a SIGKILL of rank 1: it is told, and all ranks were started again at once."""
    failure = first(out, "failure")
    assert failure["rank"] == 1, failure
    assert failure["how"] == "died", failure
    assert (failure["cause"], failure["reason"]) == ("killed", "killed by SIGKILL")
    assert "restarting all ranks (1 of 3)" in output
    names = [e["event"] for e in read_lines(RunFolder(out).events)]
    at = names.index("failure")
    assert names[at : at + 3] == ["failure", "restart", "ranks"], "nobody waits for a timeout, and tells of it, before"
    assert "hang" not in names[: at + 3]
    incident = why(out).incidents[0]
    assert (incident.cause, incident.rank, incident.ended) == ("killed", 1, False)


def assert_hung(out: Path, output: str, stopped: int) -> None:
    """Rank 1 was stopped: it is named, with where all of them were, and all were started again; nobody gave up before,
    as ranks do that have waited for ten minutes.
    """
    hang = first(out, "hang")
    assert (hang["rank"], hang["pid"], hang["kind"], hang["state"]) == (1, stopped, "silent", "T (stopped)")
    names = [e["event"] for e in read_lines(RunFolder(out).events)]
    at = names.index("hang")
    begun = max((n for n, name in enumerate(names[:at]) if name == "resume"), default=0)
    assert "failure" not in names[begun:at]
    told = {e["rank"]: e["text"] for e in events(out, "stacks")}
    assert told.keys() == {0, 1}
    assert "run (launcher/training/loop.py" in told[0]
    assert "run (launcher/training/loop.py" in told[1] or "py-spy" in told[1]
    assert [e["cause"] for e in events(out, "failure")][-1] == "hang"
    assert "its process: T (stopped)" in output
    assert "stack of rank" in output
    assert not alive(stopped)
    incident = next(i for i in why(out).incidents if i.cause == "hang")
    assert (incident.rank, incident.step, incident.ended) == (1, hang["step"], False)


def test_one_run_through_every_fault(tmp_path: Path, dataset: Path, undisturbed: list[tuple[Any, ...]]) -> None:
    """A rank is killed, the job is told to stop, the job is killed, its newest checkpoint rots: three commands."""
    out = tmp_path / "run"
    file = settings(out, dataset)
    process = start(file, False, "steps=100000", "checkpoint.every=100000", fresh=True)
    until_step(out, 4)
    assert not listening_beyond_loopback(process.pid)
    os.kill(pids(out)[1], signal.SIGKILL)
    restarted(out, 2)
    until_step(out, 5)
    os.killpg(process.pid, signal.SIGTERM)  # to every process of the job, as batch systems do
    output = finish(process, code=75)
    assert_killed(out, output)
    stopped_at = lines(out)[-1]["step"]
    assert [p.name for p in RunFolder(out).checkpoints.iterdir()] == [f"step-{stopped_at:08d}"]

    process = start(file, False, "steps=100000", "checkpoint.every=2", fresh=True)
    wait_for(lambda: len(events(out, "checkpoint")) >= 3)
    kill_job(process, out)
    assert f"resumed from step {stopped_at}" in process.said()
    newest = max(p for p in RunFolder(out).checkpoints.glob("step-*"))
    part = newest / "part-00001.safetensors"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)

    output = finished(out, file, ray=False)
    assert "rank 0 of an earlier start was stopped and is ended" in output
    assert f"{newest.name} is broken" in output
    assert part.name in output
    assert events(out, "resume")[-1]["step"] < int(newest.name.removeprefix("step-"))
    assert f"resumed from step {events(out, 'resume')[-1]['step']}" in output
    assert curve(out)[:STEPS] == undisturbed


def test_one_run_under_ray_through_every_fault(
    tmp_path: Path, dataset: Path, undisturbed: list[tuple[Any, ...]]
) -> None:
    """A rank is killed, a rank is stopped, the job is killed: two commands."""
    out = tmp_path / "run"
    file = settings(out, dataset)
    process = start(file, True, "steps=100000", SILENCE)
    until_step(out, 4)
    assert not listening_beyond_loopback(process.pid)
    os.kill(pids(out)[1], signal.SIGKILL)
    restarted(out, 2)
    assert [e["step"] >= 3 for e in events(out, "resume")] == [True]
    stopped = pids(out)[1]
    os.kill(stopped, signal.SIGSTOP)
    restarted(out, 3)
    output = process.said()
    assert_killed(out, output)
    assert_hung(out, output, stopped)
    assert output.count("restarting all ranks") == 2
    kill_job(process, out)
    output = process.said() + finished(out, file, ray=True)  # at once: it waits for ranks that still live
    assert "(raylet)" not in output, "Ray's own lines are on the screen"
    assert len(events(out, "resume")) == 3
    assert f"resumed from step {events(out, 'resume')[-1]['step']}" in output
    assert curve(out)[:STEPS] == undisturbed


def small(out: Path, dataset: Path, **changes: Any) -> Path:
    """A run file of one rank without DeepSpeed, where what happens to its launcher matters alone."""
    file = out.parent / f"{out.name}.yaml"
    file.write_text(to_yaml(config(out, dataset, steps=100_000, checkpoint__every=100_000, **changes)))
    return file


def test_too_many_failures_end_the_run(tmp_path: Path, dataset: Path) -> None:
    out = tmp_path / "run"
    process = start(small(out, dataset), False, "restart.max_restarts=1")
    for attempt in (1, 2):
        wait_for(lambda n=attempt: len(events(out, "ranks")) == n)
        os.kill(pids(out)[0], signal.SIGKILL)
    output = finish(process, code=1)
    assert "given up after 1 restarts" in output
    assert "SIGKILL" in output


@pytest.mark.parametrize("stage", [pytest.param(0, marks=SLOW), pytest.param(1, marks=SLOW), 3])
def test_a_stopped_rank_is_named_and_all_are_restarted(tmp_path: Path, dataset: Path, stage: int) -> None:
    """Stage 2 under Ray above. What watches knows no stage; that each is gone on with exactly, others show, too."""
    expected = undisturbed_at(tmp_path / "undisturbed", dataset, stage)
    out = tmp_path / "run"
    process = start(settings(out, dataset), False, f"zero.stage={stage}", SILENCE)
    some_moment(out, seed=stage)
    stopped = pids(out)[1]
    os.kill(stopped, signal.SIGSTOP)
    output = finish(process)
    assert_hung(out, output, stopped)
    assert "restarting all ranks (1 of 3)" in output
    assert curve(out) == expected


def test_ranks_give_up_by_themselves(tmp_path: Path, dataset: Path, undisturbed: list[tuple[Any, ...]]) -> None:
    """By the run's own timeout, whichever process group waits: DeepSpeed's would wait for half an hour."""
    out = tmp_path / "run"
    process = start(
        settings(out, dataset), False, "restart.collective_timeout_seconds=8", "restart.heartbeat_timeout_seconds=1000"
    )
    some_moment(out, seed=2)
    os.kill(pids(out)[1], signal.SIGSTOP)
    assert "restarting all ranks (1 of 3)" in finish(process)
    assert curve(out) == undisturbed
    failure = first(out, "failure")
    assert (failure["rank"], failure["cause"]) == (0, "link"), failure


@pytest.mark.slow
@pytest.mark.parametrize("part", ["ray::Host", "raylet"])
def test_a_dead_part_of_ray_is_told_and_replaced(
    tmp_path: Path, dataset: Path, undisturbed: list[tuple[Any, ...]], part: str
) -> None:
    out = tmp_path / "run"
    process = start(settings(out, dataset), True, "steps=60")
    some_moment(out, seed=1)
    before = pids(out)
    victim = next(p for p in psutil.Process(process.pid).children(recursive=True) if p.name().startswith(part[:15]))
    victim.kill()
    output = finish(process)
    assert curve(out)[:STEPS] == undisturbed
    failure = first(out, "failure")
    assert failure["cause"] == "killed", failure
    assert "lost what held it" in failure["words"]
    assert "(raylet)" not in output, "Ray's own lines are on the screen"
    assert not any(alive(pid) for pid in before.values())


def test_the_same_failure_twice_is_not_tried_again(tmp_path: Path, dataset: Path) -> None:
    out = tmp_path / "run"
    file = small(out, dataset, faults=[{"kind": "raise", "step": 2}] * 5)  # each strikes once in the life of a run
    output = finish(start(file, False, "restart.max_restarts=5"), code=1)
    assert len(events(out, "ranks")) == 2
    assert "failed twice at the same step in the same way" in output


def test_torchrun_starts_the_same_rank(tmp_path: Path, dataset: Path, undisturbed: list[tuple[Any, ...]]) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "launcher.worker"]
    subprocess.run([*command, str(settings(out, dataset))], check=True, capture_output=True, timeout=600)
    assert curve(out) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_kills_at_random_moments(tmp_path: Path, dataset: Path, undisturbed: list[tuple[Any, ...]], seed: int) -> None:
    """Two SIGKILLs at any moment, start-up and checkpoint writes included, of a rank or of the whole job."""
    out, chance = tmp_path / "run", random.Random(seed)
    file, ray = settings(out, dataset), seed % 4 == 0
    process = start(file, ray, fresh=True)
    for _ in range(2):
        time.sleep(chance.uniform(0.1, 20 if ray else 8))
        ranks = [pid for pid in pids(out).values() if alive(pid)]
        if ranks and chance.random() < 0.5:
            os.kill(chance.choice(ranks), signal.SIGKILL)
        else:
            process.kill()
            process.communicate()
            process = start(file, ray, fresh=True)
    finish(process)
    assert curve(out) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_kills_and_another_mesh_each_time(
    tmp_path: Path, dataset: Path, undisturbed: list[tuple[Any, ...]], seed: int
) -> None:
    """The same samples in the same order, whoever reads them, and what was read is audited."""
    out, chance = tmp_path / "run", random.Random(seed)
    file = settings(out, dataset)

    def anew() -> Started:
        replica, ring, ulysses = chance.choice([(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (3, 1, 1), (2, 2, 1)])
        mesh = f"mesh={{replica: {replica}, ring: {ring}, ulysses: {ulysses}}}"
        return start(file, False, mesh, f"data.workers={chance.choice([0, 1, 3])}", "checkpoint.every=1", fresh=True)

    process = anew()
    for _ in range(3):
        time.sleep(chance.uniform(3, 12))
        process.kill()
        process.communicate()
        process = anew()
    finish(process)
    assert [line[3] for line in curve(out)] == [line[3] for line in undisturbed]
    found = audit(out)
    assert found.clean
    assert (found.steps, found.missing) == (STEPS, [])
