"""`longreel why`: causes from evidence, stories from records, and real runs to which real things happen."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from launcher.analysis.incident import Incident
from launcher.analysis.incidents import Story, why
from launcher.cli.why import advice, render
from launcher.core import address_space, hardware
from launcher.core.hardware import memory_group, memory_kills, memory_limit
from launcher.core.run_folder import RunFolder, read_lines
from launcher.supervision.console_view import describe
from launcher.supervision.failure_causes import CAUSES, cause_of
from launcher.supervision.rank_group import HOST, LINK, NODE, UNKNOWN, End
from launcher.supervision.watchdog import Hang
from parallel.errors import InputError
from tests.promises.test_train_faults import curve, finish, lines, no_leftovers, pids, settings, start, wait_for

GONE = (
    "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"
)
DATA_REFUSED = (
    "at most data.max_unreadable_samples=0 samples of a run cannot be read",
    "1 cannot",
    "longreel data check D --repair",
)

__all__ = ["no_leftovers"]  # a fixture of every test here


def failed(sign: str, message: str = "Traceback ...\nX: y") -> End:
    return End(1, "failed", 7, message, phase="forward", sign=sign)


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (End(1, "died", sign="SIGKILL", message="killed by SIGKILL"), "killed"),
        (End(1, "died", sign="SIGTERM", message="killed by SIGTERM"), "killed"),
        (End(1, "died", sign="SIGKILL", message="killed by the memory killer", for_memory=True), "memory"),
        (End(1, "died", sign="SIGSEGV", message="Fatal Python error: Segmentation fault"), "exception"),
        (End(1, "died", sign="exit code 3", message="exit code 3"), "exception"),
        (End(1, "died", sign=UNKNOWN, message="killed together with its server"), "killed"),
        (End(1, "died", sign=NODE), "node"),
        (End(1, "died", sign=LINK), "link"),
        (End(1, "died", sign=HOST, message="the Ray worker on a"), "killed"),
        (End(1, "died", sign=HOST, message="Ray killed it", for_memory=True), "memory"),
        (failed("KeyError"), "exception"),
        (failed("FloatingPointError"), "anomaly"),
        (failed("OSError ENOSPC"), "full"),
        (failed("OSError EDQUOT"), "full"),
        (failed("RuntimeError", "...\nRuntimeError: ... No space left on device"), "full"),
        (failed("MemoryError"), "memory"),
        (failed("OutOfMemoryError"), "memory"),
        (failed("RuntimeError", "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory"),
        (failed("UnsavedError EIO"), "store"),
        (failed("UnsavedError ENOSPC"), "full"),
        (failed("OSError ESTALE"), "store"),
        (failed("RuntimeError", GONE), "link"),
        (End(1, "refused", refusal=DATA_REFUSED), "data"),
        (End(1, "refused", refusal=("steps go up", "steps=3", "steps=30")), "input"),
    ],
)
def test_the_cause_of_an_end(end: End, kind: str) -> None:
    found = cause_of(end)
    assert found.kind == kind
    assert found.kind in CAUSES
    assert found.words
    assert found.remedy


@pytest.mark.parametrize(
    ("hang", "state", "kind", "words"),
    [
        (Hang(1, "silent", 7, "update", 10.0), "T (stopped)", "hang", "SIGSTOP"),
        (Hang(1, "silent", 7, "update", 10.0), "its machine does not answer: it died", "link", "does not answer"),
        (Hang(1, "silent", 7, "update", 60.0), "R (running)", "hang", "R (running)"),
        (Hang(1, "behind", 7, "data", 60.0), "S (sleeping)", "hang", "stood still in data of step 7"),
        (Hang(1, "behind", 7, "forward", 20.0), "S (sleeping)", "hang", "while the others waited"),
        (Hang(0, "all", 7, "update", 20.0), "S (sleeping)", "hang", "all others"),
    ],
)
def test_the_cause_of_a_hang(hang: Hang, state: str, kind: str, words: str) -> None:
    found = cause_of(None, hang, state)
    assert found.kind == kind
    assert words in found.words


@pytest.mark.parametrize(
    "end",
    [
        failed("MemoryError", "Traceback\nMemoryError"),
        failed("OSError ENOMEM", "Traceback\nOSError: [Errno 12] Cannot allocate memory"),
        failed("RuntimeError", "Traceback\nRuntimeError: can't start new thread"),
        failed("ImportError", "Traceback\nImportError: libx.so: failed to map segment from shared object"),
        failed("RuntimeError", "Traceback\nRuntimeError: std::bad_alloc"),
        End(0, "died", sign="SIGABRT", message="terminate called after throwing an instance of 'std::bad_alloc'"),
        End(0, "died", sign="SIGSEGV", message="Fatal Python error: Segmentation fault"),
        End(0, "died", sign="exit code 1", message="exit code 1"),
    ],
)
def test_a_limit_of_address_space_is_named(monkeypatch: pytest.MonkeyPatch, end: End) -> None:
    """And nothing is tried again under it: it would happen again."""
    monkeypatch.setattr(address_space, "limit", lambda: 3 << 30)
    found = cause_of(end)
    assert (found.kind, found.lasting) == ("memory", True)
    assert "a process may have 3 GiB of address space here (ulimit -v 3145728)" in found.words
    assert found.remedy.startswith("ulimit -v unlimited")
    monkeypatch.setattr(address_space, "limit", lambda: None)
    assert "address space" not in cause_of(end).words


@pytest.mark.parametrize("said", ["No space left on device", "Disk quota exceeded"])
def test_a_full_disk_is_named_and_tried_only_once(said: str) -> None:
    found = cause_of(failed("RuntimeError", f"Traceback\nRuntimeError: write failed: {said}: /runs/a"))
    assert (found.kind, found.lasting) == ("full", True)
    assert said in found.words


def test_the_limit_of_address_space_is_that_of_this_process() -> None:
    code = (
        "import resource as r; from launcher.core.address_space import limit; r.setrlimit(r.RLIMIT_AS, (1 << 35,) * 2)"
    )
    said = subprocess.run([sys.executable, "-c", f"{code}; print(limit())"], capture_output=True, text=True)
    assert said.stdout == f"{1 << 35}\n", said.stderr


def test_a_rank_is_not_started_where_torch_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_space, "limit", lambda: 1 << 30)
    with pytest.raises(InputError, match=r"at least 1.88 GiB of address space\n.*1 GiB of address space here"):
        address_space.refuse_little()
    monkeypatch.setattr(address_space, "limit", lambda: 8 << 30)
    assert "ulimit -v 8388608" in address_space.refuse_little()
    monkeypatch.setattr(address_space, "limit", lambda: None)
    assert address_space.refuse_little() == ""


def test_counts_of_the_memory_killer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both versions of control groups, also where a container sees its own at the root."""
    monkeypatch.setattr(hardware, "GROUPS", tmp_path)
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 31\noom 2\noom_kill 2\n")
    (tmp_path / "memory.max").write_text("1000000\n")
    group = tmp_path / "memory.events"
    assert (memory_kills(group), memory_limit(group)) == (2, 1000000)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit(group) is None
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_kills(folder / "memory.oom_control") == 5
    assert memory_limit(folder / "memory.oom_control") is None
    assert memory_group(2**30) is None
    assert memory_kills(tmp_path / "none") == 0


def test_this_process_has_a_count_of_kills() -> None:
    assert memory_kills(memory_group(os.getpid())) >= 0


class Record:
    """A run folder whose records are made up, a second an event."""

    def __init__(self, root: Path, steps: int = 20) -> None:
        self.folder, self.time = RunFolder(root), 1_700_000_000.0
        root.mkdir()
        self("start", step=0, steps=steps, samples=24, mesh="replica 1 x ring 1 x ulysses 2")

    def __call__(self, event: str, **fields: Any) -> None:
        self.time += 1
        self.append(self.folder.events, {"time": self.time, "event": event, **fields})

    def ranks(self, attempt: int = 1) -> None:
        places = [{"rank": r, "node": "n", "host": f"host{r}", "pid": 100 + r} for r in (0, 1)]
        self("ranks", places=places, mesh="replica 1 x ring 1 x ulysses 2", attempt=attempt)

    def step(self, step: int) -> None:
        self.time += 1
        self.append(self.folder.metrics, {"time": self.time, "step": step, "loss": 1.0})

    def append(self, file: Path, fields: dict[str, Any]) -> None:
        with file.open("a") as opened:
            opened.write(json.dumps(fields) + "\n")

    def failure(self, **fields: Any) -> None:
        told = {"rank": 1, "host": "host1", "pid": 101, "how": "died", "cause": "killed", "step": 7, "phase": "forward"}
        told |= {
            "reason": "killed by SIGKILL",
            "words": "was killed by SIGKILL from outside",
            "remedy": "look",
            "trace": "",
        }
        self("failure", **{**told, **fields})


def shown(story: Story, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render(story), highlight=False)
    for line in advice(story):
        console.print(line, highlight=False, soft_wrap=True)
    return console.export_text()


def test_a_run_that_went_well(tmp_path: Path) -> None:
    record = Record(tmp_path / "run")
    record.ranks()
    for step in (1, 2):
        record.step(step)
    record("checkpoint", step=20, path="x", seconds=0.1)
    record("done", step=20)
    story = why(tmp_path / "run")
    assert (story.state, story.incidents, story.attempts, story.step) == ("done", (), 1, 2)
    text = shown(story)
    assert "is done" in text
    assert "nothing went wrong" in text
    assert f"  longreel sample {tmp_path / 'run'} " in text


def test_a_kill_that_cost_two_steps(tmp_path: Path) -> None:
    record = Record(tmp_path / "run")
    record.ranks()
    record("checkpoint", step=3, path="x", seconds=0.1)
    record("checkpoint", step=6, path="x", seconds=0.1)
    record.failure(step=9)
    record("restart", attempt=1, limit=3)
    record.ranks(2)
    record("resume", step=6, checkpoint="step-00000006")
    record.step(7)
    record("done", step=20)
    (found,) = why(tmp_path / "run").incidents
    assert (found.cause, found.rank, found.host, found.step, found.phase) == ("killed", 1, "host1", 9, "forward")
    assert (found.where, found.when) == ("rank 1, process 101 on host1", "forward of step 9")
    assert found.after == "resumed from step 6, 4.0 s later at the next step; 2 steps done again"
    assert not found.ended
    assert not found.on_purpose
    text = shown(why(tmp_path / "run"))
    assert "2 of them, steps 3 to 6" in text
    assert "was killed by SIGKILL" in text


def test_a_hang_is_told_with_the_stacks_of_all(tmp_path: Path) -> None:
    record = Record(tmp_path / "run")
    record.ranks()
    hang = {"rank": 1, "host": "host1", "pid": 101, "step": 7, "phase": "forward", "seconds": 10.2}
    record("fault", kind="pause", rank=1, step=7, phase="forward")
    record("hang", **hang, kind="silent", state="T (stopped)")
    record("stacks", rank=0, text='Thread 1: "MainThread"\n    all_gather (torch/c10d.py:9)')
    record("stacks", rank=1, text='Thread 1: "MainThread"\n    a_layer (models/diffusion/video_dit.py:3)')
    record.failure(how="hung", cause="hang", words="was stopped")
    record("restart", attempt=1, limit=3)
    story = why(tmp_path / "run")
    (found, gone) = story.incidents
    assert found.on_purpose
    assert found.evidence[0] == "its machine says of its process: T (stopped)"
    assert "    all_gather (torch/c10d.py:9)" in found.evidence
    assert "    a_layer (models/diffusion/video_dit.py:3)" in found.evidence
    assert story.state == "vanished"
    assert gone.ended
    assert "the launcher itself" in gone.what
    text = shown(story)
    assert "by the fault kit" in text
    assert "ended without a word" in text


def test_only_the_last_lines_of_a_traceback(tmp_path: Path) -> None:
    record = Record(tmp_path / "run")
    record.ranks()
    trace = "\n".join(f"line {n}" for n in range(50)) + "\nKeyError: 'x'"
    record.failure(how="failed", cause="exception", words="failed: KeyError: 'x'", trace=trace)
    story = why(tmp_path / "run")
    (found,) = story.incidents
    assert story.state == "failed"
    assert found.ended
    assert found.evidence[0] == "... 39 lines more in events.jsonl"
    assert found.evidence[-1] == "KeyError: 'x'"
    assert story.next == ((f"longreel train {tmp_path / 'run' / 'config.yaml'}", "starts again"),)


def test_a_full_disk_is_told_once_until_something_is_saved(tmp_path: Path) -> None:
    record = Record(tmp_path / "run")
    record.ranks()
    for step in (3, 4, 5):
        record("unsaved", step=step, reason="No space left on device", cause="full", again_in=5.0)
    record("checkpoint", step=6, path="x", seconds=0.1)
    record("unsaved", step=9, reason="timed out", cause="store", again_in=5.0)
    record("stop", step=9)
    full, store = why(tmp_path / "run").incidents
    assert (full.cause, full.after, full.step) == ("full", "saved again at step 6", 3)
    assert (store.cause, store.after) == ("store", "training went on without it")
    assert why(tmp_path / "run").state == "stopped"


def test_a_disk_that_stays_full_is_one_cause(tmp_path: Path) -> None:
    record = Record(tmp_path / "run")
    record.ranks()
    record("unsaved", step=3, reason="a checkpoint takes 9 bytes, 1 are free", cause="full", again_in=5.0)
    words = "failed: UnsavedError: the checkpoint of step 6, the last, could not be saved: No space left on device"
    record.failure(how="failed", cause="full", words=words, remedy="make room; the same command goes on", step=6)
    (found,) = why(tmp_path / "run").incidents
    assert (found.cause, found.ended, found.what) == ("full", True, words)
    assert found.evidence == ["a checkpoint takes 9 bytes, 1 are free"]
    assert found.remedy == "make room; the same command goes on"


def test_bad_data_and_numbers_and_checkpoints(tmp_path: Path) -> None:
    record = Record(tmp_path / "run")
    record.ranks()
    record("fallback", checkpoint="step-00000003", reason="part-00001.safetensors: other bytes")
    for sample in ("a", "b"):
        record("unreadable", step=4, sample=sample, reason="its hash is wrong")
    record("anomaly", step=5, reason="is not finite: loss nan", policy="skip", samples=["c"])
    record("differs", checkpoint="step-00000003", steps=[4], identical=0, near=0, difference="step 4: loss 1, now 2")
    record("done", step=20)
    found = why(tmp_path / "run").incidents
    assert [i.cause for i in found] == ["store", "data", "anomaly", "exception"]
    assert found[1].what == "2 samples could not be read and counted nothing"
    assert found[1].remedy == "longreel data check DATASET --repair"
    shown(why(tmp_path / "run"))


def test_nodes_that_go_and_come_back(tmp_path: Path) -> None:
    record = Record(tmp_path / "run")
    record.ranks()
    record.failure(cause="node", words="died with its machine")
    record("restart", attempt=1, limit=3)
    record(
        "mesh", **{"from": "replica 2 x ring 1 x ulysses 2", "to": "replica 1 x ring 1 x ulysses 2", "reason": "gone"}
    )
    record.ranks(2)
    record("resume", step=6, checkpoint="step-00000006")
    record.step(7)
    (found, _) = why(tmp_path / "run").incidents
    assert "mesh replica 2 x ring 1 x ulysses 2 -> replica 1" in found.after


def test_a_run_that_somebody_holds_goes_on(tmp_path: Path) -> None:
    record = Record(tmp_path / "run")
    record.ranks()
    with open(tmp_path / "run" / ".launcher", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        story = why(tmp_path / "run")
    assert (story.state, story.incidents) == ("running", ())
    assert why(tmp_path / "run").state == "vanished"


def test_records_of_older_runs_and_broken_lines(tmp_path: Path) -> None:
    record = Record(tmp_path / "run")
    record("ranks", places=[{"rank": 0, "node": "vm", "pid": 1}])
    record("failure", rank=0, how="died", step=3, reason="killed by SIGKILL", trace="killed by SIGKILL")
    with record.folder.events.open("a") as file:
        file.write('{"event": "fail')
    found = why(tmp_path / "run").incidents[0]
    assert found.what == "died: killed by SIGKILL"
    shown(why(tmp_path / "run"))
    for event in read_lines(record.folder.events):
        describe(event)


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="longreel why takes the folder of a run"):
        why(tmp_path / "none")


def test_the_command(tmp_path: Path) -> None:
    import typer

    from launcher.cli.why import why as command

    app = typer.Typer()
    app.command()(command)
    record = Record(tmp_path / "run")
    record.ranks()
    record.failure()
    record("stop", step=6, reason="killed on request")
    answer = CliRunner().invoke(app, [str(tmp_path / "run"), "--json"])
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.output)
    assert told["state"] == "stopped"
    assert told["incidents"][0]["cause"] == "killed"
    assert told["incidents"][0]["step"] == 7
    text = CliRunner().invoke(app, [str(tmp_path / "run"), "--all"]).output
    assert "killed on request" in text


def test_what_is_shown_fits_any_terminal(tmp_path: Path) -> None:
    record = Record(tmp_path / "run")
    record.ranks()
    record.failure(words="failed: [red]not markup[/]", trace="x[/bold]\n" + "y" * 300)
    for width in (60, 80, 200):
        text = shown(why(tmp_path / "run"), width)
        assert all(len(line) <= width for line in text.partition("\nnext\n")[0].splitlines())
        assert "[red]not markup[/]" in " ".join(text.split())


NAME = "a b;$(touch x)'\"[bold]"


def with_config(record: Record) -> Path:
    root = record.folder.root
    settings = {"steps": 20, "data": {"dataset": "/data/a set"}, "optimizer": {"learning_rate": 0.02}}
    record.folder.config.write_text(yaml.safe_dump(settings))
    return root


def anomalies(record: Record, saved: bool) -> Path:
    """Three steps that are not finite end a run of two ranks, as its records have it."""
    root = with_config(record)
    record.ranks()
    record.step(1)
    if saved:
        record("checkpoint", step=1, path="x", seconds=0.1)
    for step in (2, 3, 4):
        policy = "end" if step == 4 else "skip"
        reason = f"is not finite: loss {step}.1017611870458754e+20, gradient norm inf"
        record("anomaly", step=step, reason=reason, policy=policy, samples=[f"s{n}" for n in range(40)])
        record.step(step)
    trace = "Traceback (most recent call last):\n" + "  File x\n" * 40 + "FloatingPointError: step 4 is not finite"
    told = {"words": "failed: step 4 is not finite: loss 4.102e+20, gradient norm inf", "trace": trace, "others": 1}
    record.failure(how="failed", cause="anomaly", rank=0, step=4, phase="update", remedy="a lower rate", **told)
    return root


@pytest.mark.parametrize("saved", [True, False])
def test_one_cause_is_one_block_with_commands_that_can_be_typed(tmp_path: Path, saved: bool) -> None:
    root = anomalies(Record(tmp_path / NAME), saved)
    story = why(root)
    (found,) = story.incidents
    assert (found.cause, found.step, found.ended) == ("anomaly", 4, True)
    assert found.when == "3 steps: 2, 3, 4"
    assert found.evidence == [
        "step 2 is not finite: loss 2.102e+20, gradient norm inf",
        "step 3 is not finite: loss 3.102e+20, gradient norm inf",
        "step 4 is not finite: loss 4.102e+20, gradient norm inf",
        "samples of step 4: s0, s1, s2, s3 ... 40 in all",
    ]
    assert found.after == "the run ended, and saved nothing of it"
    text = shown(story)
    assert len(text.splitlines()) < 40
    assert "Traceback" not in text
    assert not re.search(r"\d{9}|RUN|STEP|DATASET|FOLDER|KEY=", text)
    typed = [shlex.split(command) for command, _ in story.next]
    lower = ["longreel", "train", str(root / "config.yaml"), "optimizer.learning_rate=0.002"]
    again = [[*lower, f"out={root}-again"]] if saved else []
    assert typed == [lower, *again, ["longreel", "data", "audit", str(root), "--step", "4"]]
    assert ("goes on" in story.next[0][1]) is saved


def test_no_samples_are_proposed_of_a_step_that_has_no_line(tmp_path: Path) -> None:
    root = anomalies(record := Record(tmp_path / "run"), saved=True)
    lines = record.folder.metrics.read_text().splitlines(keepends=True)
    record.folder.metrics.write_text("".join(lines[:-1]))
    assert not any("audit" in command for command, _ in why(root).next)


def test_the_last_save_that_fails_is_told_in_words() -> None:
    said = "the checkpoint of step 6, the last, could not be saved: No space left on device"
    for place in ("", "launcher.checkpoints.saver."):
        end = failed("UnsavedError ENOSPC", f"Traceback ...\n{place}UnsavedError: [Errno 28] {said}")
        assert cause_of(end).words == f"failed: {said}"


def test_samples_that_cannot_be_read_are_one_cause_with_the_dataset_of_the_run(tmp_path: Path) -> None:
    record = Record(tmp_path / "run")
    root = with_config(record)
    record.ranks()
    for sample in ("a", "b"):
        record("unreadable", step=4, sample=sample, reason="its hash is wrong")
    rule = "refused: at most data.max_unreadable_samples=1 samples of a run cannot be read; found: 2 cannot"
    record.failure(how="refused", cause="data", words=rule, remedy="longreel data check DATASET --repair, or more")
    (found,) = why(root).incidents
    assert found.evidence == ["a: its hash is wrong", "b: its hash is wrong"]
    assert why(root).next[0][0] == "longreel data check '/data/a set' --repair"


def test_a_failure_that_comes_again_is_told_once(tmp_path: Path) -> None:
    record = Record(tmp_path / "run")
    for attempt in range(1, 4):
        record.ranks(attempt)
        record.failure(how="failed", cause="memory", words=f"ran out of memory: {attempt} bytes", step=7)
    record.ranks(4)
    record.failure(how="failed", cause="memory", words="ran out of memory: 9 bytes", step=8)
    first, second = why(tmp_path / "run").incidents
    assert first.what == "ran out of memory: 3 bytes (3 times)"
    assert second.what == "ran out of memory: 9 bytes"


def test_lines_of_records_that_are_none_are_counted(tmp_path: Path) -> None:
    """Also events that lack what they should tell, and those that would command a terminal."""
    record = Record(tmp_path / "run")
    record.ranks()
    record.step(1)
    record.step(2)
    with record.folder.metrics.open("a") as file:
        file.write('{"step": "3"}\n7\n[]\n{"step": 3, "loss": null}\n{\n' + "[" * 100_000 + "\n")
    with record.folder.events.open("a") as file:
        file.write('7\n{"event": 7}\n{"event": "stop", "time": "now"}\n')
    for name in ("failure", "hang", "anomaly", "mesh", "restart", "unreadable", "unsaved", "differs", "fallback"):
        record(name, rank="one", step=None, samples=7, needs=3, places=4, reason=[1])
    record("ranks", places=[{"host": "\x1b[2J\nhost"}])
    record("stop", step=2, reason="a\x1b]0;x\x07\nerror: b")
    story = why(tmp_path / "run")
    assert (story.step, story.broken) == (2, 6 + 3)
    text = shown(story)
    assert "9 lines of its records are none, and were left out" in " ".join(text.split())
    assert r"a\x1b]0;x\x07\nerror: b" in text
    assert "\x1b" not in text
    for event in read_lines(record.folder.events):
        assert "\x1b" not in describe(event)


# Real runs


def failure_of(out: Path) -> dict[str, Any]:
    """The first failure that is recorded."""
    found = [e for e in read_lines(RunFolder(out).events) if e["event"] == "failure"]
    return found[0] if found else {}


def last_incident(out: Path, cause: str) -> Incident:
    return next(i for i in reversed(why(out).incidents) if i.cause == cause)


def test_an_exception_is_no_kill(tmp_path: Path, dataset: Path) -> None:
    """The record of steps becomes a folder: rank 0 fails, and rank 1 only loses its peer."""
    out = tmp_path / "run"
    process = start(settings(out, dataset), False, "steps=1000")
    wait_for(lambda: len(lines(out)) >= 4)
    metrics = RunFolder(out).metrics
    metrics.rename(out / "aside")
    metrics.mkdir()
    wait_for(lambda: failure_of(out))
    metrics.rmdir()
    (out / "aside").rename(metrics)
    wait_for(lambda: [e for e in read_lines(RunFolder(out).events) if e["event"] == "resume"])
    process.kill()
    process.communicate()
    found = last_incident(out, "exception")
    assert found.rank == 0
    assert "IsADirectoryError" in "\n".join(found.evidence)
    assert "append_line" in "\n".join(found.evidence)
    assert found.pid
    assert found.when.endswith(f"of step {found.step}")


def test_bad_data_is_no_bug(tmp_path: Path, dataset: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(dataset, broken)
    for shard in (broken / "shards").glob("*.tar"):
        data = bytearray(shard.read_bytes())
        for at in range(2000, len(data), 1500):
            data[at] ^= 255
        shard.write_bytes(data)
    out = tmp_path / "run"
    output = finish(start(settings(out, broken), False, "data.max_unreadable_samples=0"), code=2)
    assert "cannot be read" in output
    assert failure_of(out)["cause"] == "data"
    found = last_incident(out, "data")
    assert "longreel data check" in found.remedy
    assert why(out).state == "failed"


def test_a_full_disk_is_told_and_training_goes_on(tmp_path: Path, dataset: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    out = tmp_path / "run"
    process = start(settings(out, dataset), False, "steps=100000", f"checkpoint.location={disk}")
    try:
        wait_for(lambda: [e for e in read_lines(RunFolder(out).events) if e["event"] == "unsaved"])
        at = len(lines(out))
        wait_for(lambda: len(lines(out)) > at + 2)
    finally:
        process.kill()
        process.communicate()
        wait_for(lambda: subprocess.run(["umount", disk], capture_output=True).returncode == 0)
    found = last_incident(out, "full")
    assert "full" in found.what
    assert "make room" in found.remedy
    assert found.after == "training went on without it"


@contextmanager
def memory_of_its_own() -> Iterator[Path]:
    """A control group with its own count of memory."""
    for root in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        folder = root / f"longreel-{os.getpid()}"
        with suppress(OSError):
            folder.mkdir()
            if (folder / "memory.limit_in_bytes").exists() or (folder / "memory.max").exists():
                break
            folder.rmdir()
    else:
        pytest.skip("control groups of memory cannot be made here")
    try:
        yield folder
    finally:
        wait_for(lambda: _removed(folder))


def _removed(folder: Path) -> bool:
    with suppress(OSError):
        folder.rmdir()
    return not folder.exists()


EATER = """
import os, sys, time
group, victim = sys.argv[1:]
open(group + "/cgroup.procs", "w").write(str(os.getpid()))
eaten = []
while os.path.exists(f"/proc/{victim}/fd/0"):  # slowly: what is killed needs a moment to give its memory back
    eaten.append(bytearray(os.urandom(1 << 20)) * 4)
    time.sleep(0.1)
"""


def exhaust_memory(group: Path, victim: int, out: Path) -> None:
    """Take memory in `group` until `victim` was killed for it, and give it back."""
    first = (group / "memory.limit_in_bytes").exists()
    used = int((group / ("memory.usage_in_bytes" if first else "memory.current")).read_text())
    limit = group / ("memory.limit_in_bytes" if first else "memory.max")
    limit.write_text(str(used + (128 << 20)))
    with subprocess.Popen([sys.executable, "-c", EATER, str(group), str(victim)]) as eater:
        try:
            wait_for(lambda: failure_of(out))
        finally:
            eater.kill()
    limit.write_text("-1" if first else "max")


def test_a_kill_for_memory_is_told_from_another(tmp_path: Path, dataset: Path) -> None:
    """The kernel's memory killer strikes rank 1 because somebody else in its control group eats all."""
    out = tmp_path / "run"
    with memory_of_its_own() as group:
        file = settings(out, dataset)
        inside = f'echo $$ > {group}/cgroup.procs; exec "$@"'
        command = [sys.executable, "-m", "launcher", "train", str(file), "steps=40", "--no-ray"]
        process = subprocess.Popen(
            ["sh", "-c", inside, "sh", *command],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            wait_for(lambda: len(lines(out)) >= 4)
            victim = pids(out)[1]
            Path(f"/proc/{victim}/oom_score_adj").write_text("1000")
            exhaust_memory(group, victim, out)
            output = finish(process)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    assert failure_of(out)["cause"] == "memory", failure_of(out)
    assert "killed for memory" in output
    found = last_incident(out, "memory")
    assert (found.rank, found.pid) == (1, victim)
    assert found.remedy.startswith("less memory: model.recompute=true")
    assert len(curve(out)) == 40


def test_a_stopped_launcher_is_no_fault_of_the_ranks(tmp_path: Path, dataset: Path) -> None:
    out = tmp_path / "run"
    process = start(
        settings(out, dataset),
        False,
        "steps=60",
        "restart.heartbeat_timeout_seconds=6",
        "restart.hang_timeout_seconds=6",
    )
    wait_for(lambda: len(lines(out)) >= 4)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(8)
    os.kill(process.pid, signal.SIGCONT)
    finish(process)
    assert why(out).incidents == ()


def test_a_launcher_that_is_killed_is_told_so(tmp_path: Path, dataset: Path) -> None:
    out = tmp_path / "run"
    process = start(settings(out, dataset), False, "steps=1000")
    wait_for(lambda: len(lines(out)) >= 2)
    assert why(out).state == "running"
    process.kill()
    process.communicate()
    story = why(out)
    assert story.state == "vanished"
    assert "the launcher itself" in story.incidents[-1].what
    assert story.next[0][0].startswith("longreel train")
