"""Records of a run on a disk that is full: told at once, delayed, never lost. On a real small disk."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from launcher.analysis.data_audit import audit
from launcher.checkpoints.reading import by_hash, newest
from launcher.checkpoints.storage import open_storage
from launcher.config.loading import to_yaml
from launcher.core.append_log import RESERVE_BYTES, AppendLog
from launcher.core.run_folder import RunFolder, append_line, read_lines
from launcher.supervision.supervisor import DONE
from tests.support.commands import Forked
from tests.support.runs import config, events, lines


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of so many bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take every byte that is left."""
    filler = disk / "filler"
    with suppress(OSError), open(filler, "ab", buffering=0) as file:
        while file.write(bytes(1 << 12)) == 1 << 12:
            pass
    return filler


def until(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_a_line_after_a_broken_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append_line(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    append_line(path, {"step": 3})
    append_line(path, {"step": 4})
    assert [line["step"] for line in read_lines(path)] == [1, 3, 4]


@pytest.mark.parametrize("disk", [2 << 20], indirect=True)
def test_the_reserve_tells_and_the_rest_is_held(disk: Path) -> None:
    folder = RunFolder(disk)
    log = AppendLog(folder)
    fill(disk)
    log.append(folder.events, {"step": 0})
    assert [line["step"] for line in read_lines(folder.events)] == [0], "the reserve makes room"
    filler = fill(disk)
    many = [{"step": step, "words": "x" * 1000} for step in range(1, 2 * RESERVE_BYTES // 1000)]
    for line in many:
        log.append(folder.metrics, line)
    assert log.held
    filler.unlink()
    log.append(folder.metrics, {"step": len(many) + 1})
    assert not log.held
    assert [line["step"] for line in read_lines(folder.metrics)] == list(range(1, len(many) + 2))
    for line in folder.metrics.read_text().splitlines():  # any reader of JSON lines reads it
        json.loads(line)


@pytest.mark.parametrize("disk", [24 << 20], indirect=True)
def test_a_run_whose_own_disk_is_full_goes_on(disk: Path, tmp_path: Path, dataset: Path) -> None:
    out = disk / "run"
    file = tmp_path / "run.yaml"
    checkpoint = {"every": 2, "keep": 2, "retry_seconds": 0.2}
    run = config(out, dataset, mesh={"ulysses": 2}, zero__stage=2, dtype="float32", steps=80, checkpoint=checkpoint)
    file.write_text(to_yaml(run))
    command = Forked("train", file, "--no-ray")
    try:
        until(lambda: len(events(out, "checkpoint")) > 1)
        filler = fill(disk)
        until(lambda: "was not saved" in command.said())
        saved, step = len(events(out, "checkpoint")), lines(out)[-1]["step"]
        until(lambda: command.poll() is not None or lines(out)[-1]["step"] > step + 5)
        filler.unlink()
        until(lambda: command.poll() is not None or len(events(out, "checkpoint")) > saved)
        until(lambda: command.poll() is not None, 300)
        assert command.poll() == DONE, command.said()
    finally:
        command.kill()
        command.communicate(60)
    assert [line["step"] for line in lines(out)] == list(range(1, 81))
    assert not events(out, "restart")
    assert audit(out).clean
    found, _ = newest(open_storage(RunFolder(out).checkpoints, None), by_hash)
    assert found is not None
    assert found.state.step == 80
