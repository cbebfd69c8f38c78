"""The fault kit strikes once and for real; a drill tells what a run survives, and what it costs."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from launcher.analysis.fault_drill import KINDS, Result, figures, flip_bit, plan
from launcher.analysis.subprocess_run import Record
from launcher.checkpoints.storage import LocalStorage
from launcher.cli.drill import drill as command
from launcher.cli.drill import table
from launcher.config.loading import to_yaml
from launcher.config.run_config import RunConfig
from launcher.core.run_folder import RunFolder, append_line, make_run_folder, read_lines
from launcher.faults import inject
from parallel.errors import InputError
from tests.support.process_groups import server
from tests.support.runs import config

MANIFEST = b'{"it": "is one"}'
PART = [b"0123456789", bytes(range(256)), b"end"]


def asking(folder: Path, **fault: Any) -> RunConfig:
    """A run with one fault; its folder is there, no data is needed."""
    run = config(folder / "run", folder / "dataset", mesh={"ulysses": 2}, faults=[{"step": 3, **fault}])
    make_run_folder(RunFolder(run.out))
    return run


def events(run: RunConfig, name: str = "fault") -> list[dict[str, Any]]:
    return [event for event in read_lines(RunFolder(run.out).events) if event["event"] == name]


def in_a_process(work: Callable[..., None], *args: Any, until: Callable[[int], bool] | None = None) -> int | None:
    """The exit code of `work(*args)` in a process of its own; None if it was ended when `until(pid)` came true."""
    process = server().Process(target=work, args=args)  # type: ignore[attr-defined]
    process.start()
    deadline = time.monotonic() + 300
    while process.is_alive() and time.monotonic() < deadline:
        if until is not None and until(process.pid):
            process.kill()
            process.join()
            return None
        time.sleep(0.02)
    assert not process.is_alive()
    return process.exitcode


def enter_steps(run: RunConfig, launcher: int | None = None) -> None:
    strike = inject.striker(run.faults, run.out, 0, launcher)
    assert strike is not None
    for step in range(1, 6):
        for phase in ("data", "agree", "forward", "backward", "update"):
            strike(phase, step)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_run_without_faults_has_no_kit(tmp_path: Path) -> None:
    run, storage = config(tmp_path / "run", tmp_path), LocalStorage(tmp_path)
    assert inject.striker(run.faults, run.out, 0, None) is None
    assert inject.storage(run.faults, run.out, 0, storage) is storage
    assert not inject.poisoned(run.faults, run.out, 0)(1)


def test_other_ranks_are_left_alone(tmp_path: Path) -> None:
    run, storage = asking(tmp_path, kind="kill", rank=1), LocalStorage(tmp_path)
    assert inject.striker(run.faults, run.out, 0, None) is None
    assert inject.striker(run.faults, run.out, 1, None) is not None
    assert inject.storage(run.faults, run.out, 1, storage) is storage


def test_a_fault_strikes_once_in_the_life_of_a_run(tmp_path: Path) -> None:
    run = asking(tmp_path, kind="raise", phase="backward")
    with pytest.raises(inject.InjectedFaultError, match="on purpose in backward of step 3"):
        enter_steps(run)
    enter_steps(run)  # as the rank that was started again
    assert [(e["kind"], e["rank"], e["step"], e["phase"]) for e in events(run)] == [("raise", 0, 3, "backward")]


def test_equal_faults_strike_once_each(tmp_path: Path) -> None:
    one = {"kind": "raise", "step": 3}
    run = config(tmp_path / "run", tmp_path, faults=[one, one])
    for _ in range(2):
        with pytest.raises(inject.InjectedFaultError):
            enter_steps(run)
    enter_steps(run)


def test_a_kill_is_a_sigkill_and_is_recorded_before(tmp_path: Path) -> None:
    run = asking(tmp_path, kind="kill", phase="update")
    assert in_a_process(enter_steps, run) == -signal.SIGKILL
    assert events(run)[0]["phase"] == "update"
    assert in_a_process(enter_steps, run) == 0


def test_a_pause_stops_the_process(tmp_path: Path) -> None:
    assert in_a_process(enter_steps, asking(tmp_path, kind="pause"), until=is_stopped) is None


def test_slow_sleeps(tmp_path: Path) -> None:
    began = time.monotonic()
    enter_steps(asking(tmp_path, kind="slow", seconds=0.3))
    assert time.monotonic() - began >= 0.3


def test_terminate_is_a_sigterm_to_the_launcher(tmp_path: Path) -> None:
    heard = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: heard.set())
    try:
        enter_steps(asking(tmp_path, kind="terminate"), os.getpid())
        assert heard.wait(60)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("launcher", [None, 0])
def test_terminate_refuses_without_a_launcher_here(tmp_path: Path, launcher: int | None) -> None:
    with pytest.raises(InputError, match="only on the launcher's machine"):
        enter_steps(asking(tmp_path, kind="terminate"), launcher)


def test_nan_is_asked_for_once(tmp_path: Path) -> None:
    run = asking(tmp_path, kind="nan")
    poisoned = inject.poisoned(run.faults, run.out, 0)
    assert [poisoned(step) for step in (1, 2, 3, 3, 4)] == [False, False, True, False, False]
    assert not inject.poisoned(run.faults, run.out, 0)(3)
    assert events(run)[0]["kind"] == "nan"


def cut_talk(run: RunConfig) -> None:
    """Exit code 7 if both sides of a connection are told that it is gone, and a pipe still carries."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        mine = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
        pipe, end = socket.socketpair()
        enter_steps(run)
        pipe.sendall(b"x")
        assert end.recv(1) == b"x"
        assert theirs.recv(1) == b""
        assert mine.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            mine.sendall(b"x")
        socket.create_connection(listening.getsockname()).close()  # who listens goes on
    os._exit(7)


def test_cut_shuts_down_connections_and_leaves_pipes(tmp_path: Path) -> None:
    assert in_a_process(cut_talk, asking(tmp_path, kind="cut")) == 7


def test_memory_ends_by_the_memory_killer_or_refuses(tmp_path: Path) -> None:
    """It refuses where no control group can be made and there is no limit; nothing else is killed either way."""
    run = asking(tmp_path, kind="memory", seconds=0.5)
    code = in_a_process(enter_steps, run)
    assert code in (-signal.SIGKILL, 1)


def write(storage: Any, name: str) -> None:
    storage.write(name, "part", iter(PART))
    storage.commit(name, ["part"], MANIFEST)


def test_a_full_disk_takes_half_and_nothing_more_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(inject, "time", SimpleNamespace(monotonic=lambda: now[0]))
    run, plain = asking(tmp_path, kind="full", seconds=0.4), LocalStorage(tmp_path / "checkpoints")
    storage = inject.storage(run.faults, run.out, 0, plain)
    write(storage, "step-00000002")
    for refused in (lambda: write(storage, "step-00000004"), lambda: storage.commit("step-00000002", ["part"], b"")):
        with pytest.raises(OSError) as raised:
            refused()
        assert raised.value.errno == errno.ENOSPC
    assert storage.free() == 0
    storage.abandon()
    assert storage.names() == ["step-00000002"]
    now[0] = 0.4
    assert storage.free()
    write(storage, "step-00000004")
    assert storage.names() == plain.names() == ["step-00000002", "step-00000004"]
    assert storage.read("step-00000004", "part") == b"".join(PART)
    assert storage.files("step-00000004") == plain.files("step-00000004")
    assert storage.where("a") == plain.where("a")
    storage.remove("step-00000002")
    assert plain.names() == ["step-00000004"]
    assert len(events(run)) == 1


def tear(run: RunConfig, root: Path) -> None:
    storage = inject.storage(run.faults, run.out, 0, LocalStorage(root))
    write(storage, "step-00000002")
    write(storage, "step-00000003")


def test_a_torn_write_leaves_half_of_the_bytes(tmp_path: Path) -> None:
    run, root = asking(tmp_path, kind="tear"), tmp_path / "checkpoints"
    assert in_a_process(tear, run, root) == -signal.SIGKILL
    assert LocalStorage(root).names() == ["step-00000002"]
    (torn,) = (root / ".step-00000003.tmp").iterdir()
    whole = b"".join(PART)
    assert torn.read_bytes() == whole[: len(whole) // 2]
    assert in_a_process(tear, run, root) == 0
    assert LocalStorage(root).read("step-00000003", "part") == whole


def test_a_flipped_bit_is_one_bit_of_a_committed_file(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    write(storage, "step-00000002")
    write(storage, "step-00000004")
    assert flip_bit(storage) == "step-00000004/part"
    was, now = int.from_bytes(b"".join(PART), "big"), int.from_bytes(storage.read("step-00000004", "part"), "big")
    assert (was ^ now).bit_count() == 1
    assert storage.read("step-00000002", "part") == b"".join(PART)


def test_a_plan_has_lost_steps_for_every_fault(tmp_path: Path) -> None:
    run = config(tmp_path / "run", tmp_path, mesh={"ring": 3}, checkpoint__keep=1)
    planned = plan(run, tmp_path / "out", KINDS, 12)
    assert list(planned.faults) == list(KINDS)
    assert (planned.config.steps, planned.config.checkpoint.every, planned.config.checkpoint.keep) == (12, 3, 2)
    for kind, fault in planned.faults.items():
        assert fault.step == (6 if kind in ("tear", "full") else 7)
        assert fault.rank == (0 if kind == "full" else 2)
    assert "cut" not in plan(config(tmp_path / "run", tmp_path), tmp_path / "out", KINDS, 4).faults


@pytest.mark.parametrize(("kinds", "steps", "rule"), [(["kil"], 12, "knows its faults"), (["kill"], 3, "at least 4")])
def test_a_plan_refuses(tmp_path: Path, kinds: list[str], steps: int, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        plan(config(tmp_path / "run", tmp_path), tmp_path / "out", kinds, steps)


def written(root: Path, times: dict[int, float], **losses: float) -> Record:
    """The record of a run whose steps were done at these times."""
    folder = RunFolder(root)
    make_run_folder(folder)
    for step, when in times.items():
        loss = losses.get(f"step{step}", 1.0 / step)
        append_line(
            folder.metrics, {"step": step, "time": when, "loss": loss, "grad_norm": 1.0, "samples": [str(step)]}
        )
    record = Record(folder)
    record.update()
    return record


def test_figures_of_a_kill(tmp_path: Path) -> None:
    """Steps 1 to 7 are done, the fault strikes in 8 at 8.5, steps 7 and 8 follow the resume from 6."""
    kill = {"kind": "kill", "rank": 1, "step": 8}
    run = config(tmp_path / "run", tmp_path, mesh={"ulysses": 2}, steps=9, faults=[kill])
    undisturbed = written(tmp_path / "undisturbed", {s: float(s) for s in range(1, 10)})
    record = written(tmp_path / "run", {s: float(s) for s in range(1, 8)})
    append_line(
        record.folder.events, {"time": 8.5, "event": "fault", "kind": "kill", "rank": 1, "step": 8, "phase": "data"}
    )
    append_line(record.folder.events, {"time": 12.0, "event": "resume", "step": 6})
    kept = [json.dumps(line) for line in read_lines(record.folder.metrics) if line["step"] <= 6]
    record.folder.metrics.write_text("\n".join(kept) + "\n")
    for step, when in ((7, 12.5), (8, 13.0), (9, 13.1)):
        line = {"step": step, "time": when, "loss": 1.0 / step, "grad_norm": 1.0, "samples": [str(step)]}
        append_line(record.folder.metrics, line)
    record.update()
    found = figures("kill", run.faults[0], undisturbed, record)
    assert found == Result("kill", 1, 8, "data", True, seconds=4.5, steps_again=1, identical=True, difference=0.0)


def test_figures_tell_other_losses_and_missing_steps(tmp_path: Path) -> None:
    run = config(tmp_path / "run", tmp_path, faults=[{"kind": "kill", "step": 2}])
    undisturbed = written(tmp_path / "undisturbed", {1: 1.0, 2: 2.0, 3: 3.0})
    other, short = (
        written(tmp_path / "other", {1: 1.0, 2: 2.0, 3: 3.0}, step2=0.75),
        written(tmp_path / "short", {1: 1.0}),
    )
    assert figures("kill", run.faults[0], undisturbed, other).note == "the fault did not strike"
    for record in (other, short):
        record.folder.record("fault", kind="kill", rank=0, step=2, phase="data")
    differs = figures("kill", run.faults[0], undisturbed, other)
    assert (differs.survived, differs.identical) == (True, False)
    assert differs.difference is not None
    assert math.isclose(differs.difference, 1 / 3)
    missing = figures("kill", run.faults[0], undisturbed, short)
    assert not missing.survived
    assert "step 2 is missing" in missing.note
    assert table([differs, missing]).row_count == 2


@pytest.mark.parametrize("kinds", [("kill", "full"), pytest.param(("kill", "tear", "full"), marks=pytest.mark.slow)])
def test_a_drill_of_a_real_run(tmp_path: Path, dataset: Path, kinds: tuple[str, ...]) -> None:
    """Faults through the real command, beside the run's own folder, which is not made."""
    run = config(tmp_path / "run", dataset, dtype="float32", zero__stage=2, mesh={"ulysses": 2})
    (tmp_path / "run.yaml").write_text(to_yaml(run))
    app = typer.Typer()
    app.command()(command)
    before = sorted(path.stat().st_mtime_ns for path in dataset.rglob("*"))
    asked = [str(tmp_path / "run.yaml"), "--no-ray", "--faults", ",".join(kinds), "--json"]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["survived"], told["of"], told["out"]) == (len(kinds), len(kinds), str(tmp_path / "run-drill"))
    by_kind = {found["fault"]: found for found in told["faults"]}
    assert all(found["identical"] for found in told["faults"]), told
    assert by_kind["full"]["steps_again"] == 0
    for kind in set(kinds) - {"full"}:  # whether the save of the step before was whole by then is a matter of chance
        folder = RunFolder(tmp_path / "run-drill" / kind)
        resumed = next(event["step"] for event in read_lines(folder.events) if event["event"] == "resume")
        assert resumed in ((3,) if kind == "tear" else (3, 6))
        assert by_kind[kind]["steps_again"] == 6 - resumed  # both strike when 6 steps are done
    assert "saved" in by_kind["full"]["note"]
    assert not run.out.exists()
    assert sorted(path.stat().st_mtime_ns for path in dataset.rglob("*")) == before
    assert "Traceback" not in (tmp_path / "run-drill" / "full.log").read_text()


def test_a_drill_of_a_run_that_does_not_work_says_why(tmp_path: Path) -> None:
    run = config(tmp_path / "run", tmp_path / "nowhere")
    (tmp_path / "run.yaml").write_text(to_yaml(run))
    app = typer.Typer()
    app.command()(command)
    with pytest.raises(InputError, match="before faults strike"):
        CliRunner().invoke(app, [str(tmp_path / "run.yaml"), "--no-ray"], catch_exceptions=False)
