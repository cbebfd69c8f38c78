"""Promise 3: a kill costs nothing but time. Real commands, real SIGKILLs; every loss is bit-identical afterwards."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

from launcher.audit import audit
from launcher.config import to_yaml
from launcher.folder import RunFolder, read_lines
from launcher.why import why
from tests.runs import config, lines

STEPS = 14
RAY = pytest.param(True, id="ray")
STARTED: list[subprocess.Popen[str]] = []
PLAIN = pytest.param(False, id="processes")


def settings(out: Path, dataset: Path) -> Path:
    """A run file of two ranks with ZeRO-2 and a checkpoint every third step."""
    run = config(out, dataset, steps=STEPS, dtype="float32", zero__stage=2, mesh={"ulysses": 2}, checkpoint__every=3)
    file = out.parent / f"{out.name}.yaml"
    file.write_text(to_yaml(run))
    return file


def start(file: Path, ray: bool, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launcher", "train", str(file), *overrides, "--ray" if ray else "--no-ray"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
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


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
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
    found = [e for e in read_lines(RunFolder(out).events) if e["event"] == "ranks"]
    return {p["rank"]: p["pid"] for p in found[-1]["places"]} if found else {}


def first(out: Path, name: str) -> dict[str, Any]:
    """The first event of a name."""
    return next(e for e in read_lines(RunFolder(out).events) if e["event"] == name)


def next_step(out: Path, moment: float) -> float:
    """When the first step after a moment was done."""
    return min(line["time"] for line in lines(out) if line["time"] > moment)


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
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(start(settings(out, dataset), ray=False))
    return curve(out)


def curve(out: Path) -> list[tuple[Any, ...]]:
    return [(line["step"], line["loss"], line["grad_norm"], line["samples"]) for line in lines(out)]


def some_moment(out: Path, seed: int) -> None:
    """Wait until a random step is done, and a random part of the next."""
    chance = random.Random(seed)
    step = chance.randint(4, STEPS - 3)  # a checkpoint is there
    wait_for(lambda: len(lines(out)) >= step)
    time.sleep(chance.random() * 0.1)


@pytest.mark.parametrize("ray", [PLAIN, RAY])
def test_a_killed_rank_is_restarted_by_itself(
    tmp_path: Path, dataset: Path, undisturbed: list[tuple[Any, ...]], ray: bool
) -> None:
    out = tmp_path / "run"
    process = start(settings(out, dataset), ray)
    some_moment(out, seed=1)
    assert not listening_beyond_loopback(process.pid)
    os.kill(pids(out)[1], signal.SIGKILL)
    output = finish(process)
    assert curve(out) == undisturbed
    failure = first(out, "failure")
    assert failure["rank"] == 1, failure
    assert failure["how"] == "died", failure
    assert (failure["cause"], failure["reason"]) == ("killed", "killed by SIGKILL")
    assert "restarting all ranks (1 of 3)" in output
    assert "(raylet)" not in output, "Ray's own lines are on the screen"
    assert next_step(out, failure["time"]) - failure["time"] < 15
    (incident,) = why(out).incidents
    assert (incident.cause, incident.rank, incident.ended) == ("killed", 1, False)


@pytest.mark.parametrize("ray", [PLAIN, RAY])
def test_a_killed_job_goes_on_where_it_was(
    tmp_path: Path, dataset: Path, undisturbed: list[tuple[Any, ...]], ray: bool
) -> None:
    out = tmp_path / "run"
    file = settings(out, dataset)
    process = start(file, ray)
    some_moment(out, seed=2)
    wait_for(lambda: list(RunFolder(out).checkpoints.glob("step-*")))
    os.kill(pids(out)[0], signal.SIGSTOP)  # so that it cannot notice
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    assert process.stdout is not None
    process.stdout.close()  # the stopped rank holds the other side
    output = finish(start(file, ray))  # at once: it waits for ranks that still live
    assert curve(out) == undisturbed
    assert ray or "rank 0 of an earlier start was stopped and is ended" in output  # Ray's raylet may have ended it
    assert "resumed from step" in output
    assert not [pid for pid in pids(out).values() if alive(pid)]


def test_sigterm_saves_a_checkpoint_and_exits_75(
    tmp_path: Path, dataset: Path, undisturbed: list[tuple[Any, ...]]
) -> None:
    """Sent to every process of the job, as batch systems do."""
    out = tmp_path / "run"
    file = settings(out, dataset)
    process = start(file, False, "checkpoint.every=1000", f"steps={STEPS}")
    some_moment(out, seed=3)
    os.killpg(process.pid, signal.SIGTERM)
    finish(process, code=75)
    stopped_at = lines(out)[-1]["step"]
    assert stopped_at < STEPS
    assert [p.name for p in RunFolder(out).checkpoints.iterdir()] == [f"step-{stopped_at:08d}"]
    finish(start(file, False))
    assert curve(out) == undisturbed


def test_a_broken_checkpoint_is_passed_over(tmp_path: Path, dataset: Path, undisturbed: list[tuple[Any, ...]]) -> None:
    out = tmp_path / "run"
    file = settings(out, dataset)
    finish(start(file, False, "steps=9"))
    part = RunFolder(out).checkpoints / "step-00000009" / "part-00001.safetensors"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    output = finish(start(file, False))
    assert "step-00000009 is broken" in output
    assert "part-00001.safetensors" in output
    assert "resumed from step 6" in output
    assert curve(out) == undisturbed


def test_too_many_failures_end_the_run(tmp_path: Path, dataset: Path) -> None:
    out = tmp_path / "run"
    process = start(settings(out, dataset), False, "restart.limit=1", "checkpoint.every=1000", "steps=100000")
    for attempt in (1, 2):
        wait_for(lambda n=attempt: len([e for e in read_lines(RunFolder(out).events) if e["event"] == "ranks"]) == n)
        os.kill(pids(out)[0], signal.SIGKILL)
    output = finish(process, code=1)
    assert "given up after 1 restarts" in output
    assert "SIGKILL" in output


@pytest.fixture(scope="module")
def undisturbed_at(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Callable[[int], list[tuple[Any, ...]]]:
    @cache
    def at(stage: int) -> list[tuple[Any, ...]]:
        out = tmp_path_factory.mktemp("undisturbed") / f"zero-{stage}"
        finish(start(settings(out, dataset), False, f"zero.stage={stage}"))
        return curve(out)

    return at


@pytest.mark.parametrize(("stage", "ray"), [(0, False), (1, False), (2, True), (3, False)])
def test_a_stopped_rank_is_named_and_all_are_restarted(
    tmp_path: Path,
    dataset: Path,
    undisturbed_at: Callable[[int], list[tuple[Any, ...]]],
    stage: int,
    ray: bool,
) -> None:
    expected = undisturbed_at(stage)
    out = tmp_path / "run"
    process = start(settings(out, dataset), ray, f"zero.stage={stage}")
    some_moment(out, seed=stage)
    stopped, at = pids(out)[1], time.time()
    os.kill(stopped, signal.SIGSTOP)
    output = finish(process)
    hang = first(out, "hang")
    assert hang["time"] - at < 30
    assert (hang["rank"], hang["pid"], hang["kind"], hang["state"]) == (1, stopped, "silent", "T (stopped)")
    told = {e["rank"]: e["text"] for e in read_lines(RunFolder(out).events) if e["event"] == "stacks"}
    assert told.keys() == {0, 1}
    assert "run (launcher/rank.py" in told[0]
    assert "run (launcher/rank.py" in told[1] or "py-spy" in told[1]
    assert first(out, "failure")["cause"] == "hang"
    assert "its process: T (stopped)" in output
    assert "stack of rank" in output
    assert "restarting all ranks (1 of 3)" in output
    assert not alive(stopped)
    assert curve(out) == expected
    (incident,) = why(out).incidents
    assert (incident.cause, incident.rank, incident.step) == ("hang", 1, hang["step"])


def test_ranks_give_up_by_themselves(tmp_path: Path, dataset: Path, undisturbed: list[tuple[Any, ...]]) -> None:
    """By the run's own timeout, whichever process group waits: DeepSpeed's would wait for half an hour."""
    out = tmp_path / "run"
    process = start(settings(out, dataset), False, "restart.timeout_seconds=6", "restart.silence_seconds=1000")
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
    file = settings(out, dataset)
    out.mkdir()
    (out / "events.jsonl").touch()
    (out / "checkpoints").write_text("a file where a folder should be")
    output = finish(start(file, False, "restart.limit=5"), code=1)
    assert [e["event"] for e in read_lines(RunFolder(out).events)].count("ranks") == 2
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
    process = start(file, ray)
    for _ in range(2):
        time.sleep(chance.uniform(0.1, 20 if ray else 8))
        ranks = [pid for pid in pids(out).values() if alive(pid)]
        if ranks and chance.random() < 0.5:
            os.kill(chance.choice(ranks), signal.SIGKILL)
        else:
            process.kill()
            process.communicate()
            process = start(file, ray)
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

    def anew() -> subprocess.Popen[str]:
        replica, ring, ulysses = chance.choice([(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (3, 1, 1), (2, 2, 1)])
        mesh = f"mesh={{replica: {replica}, ring: {ring}, ulysses: {ulysses}}}"
        return start(file, False, mesh, f"data.workers={chance.choice([0, 1, 3])}", "checkpoint.every=1")

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
