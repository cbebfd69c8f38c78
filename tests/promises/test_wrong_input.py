"""Promise 5: wrong input is one message of rule, value and remedy, exit code 2, before any worker starts."""

from __future__ import annotations

import errno
import io
import json
import os
import socket
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.cli.app import main
from launcher.config.loading import to_yaml
from launcher.core.run_folder import RunFolder, read_lines
from parallel.errors import InputError
from tests.support.runs import config, train


def longreel(*arguments: str | Path, code: int = 2) -> str:
    """The output of the command, run in this process: an interpreter of its own takes seconds to import torch."""
    output = io.StringIO()
    before, sys.argv = sys.argv, ["longreel", *map(str, arguments)]
    try:
        with redirect_stdout(output), redirect_stderr(output), pytest.raises(SystemExit) as exit_:
            main()
    finally:
        sys.argv = before
    assert exit_.value.code == code, output.getvalue()
    return output.getvalue()


def test_a_real_process_says_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launcher", "train", str(tmp_path / "none.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == longreel("train", tmp_path / "none.yaml")


def refused(*arguments: str | Path, value: str, remedy: str) -> str:
    """The command exits with 2 and one message that holds `value` and `remedy`, and no traceback."""
    output = longreel(*arguments)
    flat = " ".join(output.split())
    assert output.count("error:") == 1, output
    assert "Traceback" not in output
    assert value in flat.partition("found:")[2].partition("remedy:")[0], output
    assert remedy in flat.partition("remedy:")[2], output
    return flat


@pytest.fixture
def run(tmp_path: Path, dataset: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config(tmp_path / "out", dataset)))
    return file


def no_worker_started(run: Path) -> bool:
    return not any(e["event"] == "ranks" for e in read_lines(RunFolder(run.parent / "out").events))


@pytest.mark.parametrize(
    ("override", "value", "remedy"),
    [
        ("mesh.rings=2", "mesh.rings", "mesh.ring"),
        ("pack_tokens=2", "pack_tokens", "data.pack_tokens"),
        ("steps=many", "'many'", "steps"),
        ("dtype=float16", "'float16'", "one of float64, float32, bf16"),
        ("zero.stage=4", "4", "zero.stage"),
        ("mesh.replica=0", "0", "mesh.replica"),
        ("mesh.replica=64", "64 ranks", "--address"),
        ("mesh.ulysses=5", "mesh.ulysses=5", "mesh.ring"),
        ("data.dataset=/nowhere/at/all", "/nowhere/at/all", "longreel prepare"),
        ("model.kind=video_dip", "video_dip", "video_dit"),
        ("model.dim=50", "50", "dim"),
        ("data.pack_tokens=20", "data.pack_tokens=20", "data.pack_tokens="),
        ("data.size=[33,32]", "33", "32 x 32"),
        ("steps", "'steps'", "steps=20"),
        ("optimizer.betas=[1.5,0.9]", "1.5", "optimizer.betas"),
        ("objective.shift=0", "command line, objective.shift=0", "objective.shift"),
        ("modle.dim=3", "modle (command line, modle.dim=3)", "model"),
        ("optimizer.learning_rate=.inf", "inf", "optimizer.learning_rate=0.0001"),
        ("out=/proc/nobody/run", "/proc/nobody/run", "out="),
        ("out=/etc", "/etc has:", "out=runs/NAME"),
        ("out=", "'out='", "out=null"),
        ("mesh=2", "2 (command line, mesh=2)", "give mesh.replica, mesh.ring, mesh.ulysses"),
        (".steps=2", "'.steps=2'", "steps=20"),
        (f"data.dataset={__file__}", "is a file", "longreel prepare"),
        ("data.dataset={a: -1}", "a: -1", "{FOLDER: 3, FOLDER: 1}"),
        ("data.dataset={a: .nan, b: 1}", "a: nan", "{FOLDER: 3, FOLDER: 1}"),
        ("data.dataset={a: 1, ./b/../a: 5}", "comes twice", "one weight for each folder"),
        ("data.dataset=[a, b]", "a list of 2", "{FOLDER: 3, FOLDER: 1}"),
    ],
)
def test_a_wrong_setting(run: Path, override: str, value: str, remedy: str) -> None:
    refused("train", run, override, value=value, remedy=remedy)
    assert no_worker_started(run)


def test_the_line_of_the_file_is_named(run: Path) -> None:
    run.write_text(run.read_text().replace("replica: 1", "replika: 1"))
    line = next(i for i, text in enumerate(run.read_text().splitlines(), 1) if "replika" in text)
    flat = refused("train", run, value="mesh.replika", remedy="mesh.replica")
    assert f"run.yaml, line {line}" in flat


def test_a_key_that_stands_twice(run: Path) -> None:
    run.write_text(run.read_text() + "\nsteps: 3\n")
    refused("train", run, value="steps, again in line", remedy="keep one")


def test_output_that_cannot_be_written(tmp_path: Path, dataset: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "file").write_text("mine")
    refused("data", "synth", "--clips", "1", "--out", "/proc/nobody/clips", value="/proc/nobody", remedy="write to")


def test_no_such_run_file(tmp_path: Path) -> None:
    refused("train", tmp_path / "none.yaml", value="none.yaml", remedy="recipes/")


def test_a_dataset_with_no_samples(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(
        "train", run, f"data.dataset={tmp_path / 'empty'}", value=str(tmp_path / "empty"), remedy="longreel prepare"
    )


def test_a_folder_with_no_videos(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "notes.txt").write_text("hello")
    refused("prepare", tmp_path / "videos", "--out", tmp_path / "d", value="notes.txt", remedy="folder with files")
    assert not (tmp_path / "d" / "manifest").exists()


def test_an_unreadable_video(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 1000)
    (tmp_path / "broken.txt").write_text("a caption")
    refused("prepare", tmp_path / "broken.mp4", "--out", tmp_path / "d", value="broken.mp4", remedy="")


def test_captions_with_a_missing_column(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,captoin\na.mp4,hello\n")
    refused("prepare", tmp_path / "list.csv", "--out", tmp_path / "d", value="captoin", remedy="caption")


def test_resume_with_a_changed_model(run: Path, tmp_path: Path, dataset: Path) -> None:
    train(config(tmp_path / "out", dataset, steps=1))
    before = (tmp_path / "out" / "metrics.jsonl").read_bytes()
    flat = refused("train", run, "model.dim=96", value="model.dim: 48 became 96", remedy="out=")
    assert "step-00000001" in flat
    refused("train", run, "seed=5", value="seed: 0 became 5", remedy="out=")
    changed = "objective.predict: velocity became clean"
    refused("train", run, "objective.predict=clean", value=changed, remedy="out=")
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == before


def test_only_corrupt_checkpoints(run: Path, tmp_path: Path, dataset: Path) -> None:
    train(config(tmp_path / "out", dataset, steps=1))
    (tmp_path / "out" / "checkpoints" / "step-00000001" / "manifest.json").write_text("{")
    refused("train", run, value="manifest.json", remedy="remove the folder")


def test_steps_already_reached(run: Path, tmp_path: Path, dataset: Path) -> None:
    train(config(tmp_path / "out", dataset, steps=2))
    output = longreel("train", run, "steps=2", code=0)
    assert "has done 2 steps already, and 2 are asked for" in " ".join(output.split())
    assert no_worker_started(run)


def test_an_address_that_does_not_answer(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.cluster.connection.HEALTH_SECONDS", 3.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        refused("train", run, "--address", f"127.0.0.1:{port}", value=str(port), remedy="ray start --head")
        silent.listen()  # now somebody answers, who never speaks
        refused(
            "train", run, "--address", f"127.0.0.1:{port}", value="no Ray answer within 3 s", remedy="ray start --head"
        )
    refused("train", run, "--address", "nonsense", value="nonsense", remedy="ray start --head")
    assert no_worker_started(run)


def test_sample_of_what_is_no_run(tmp_path: Path) -> None:
    refused("sample", tmp_path, "--prompt", "x", value=str(tmp_path), remedy="run")
    refused("report", tmp_path, value=str(tmp_path), remedy="run")


def test_settings_that_work_but_not_as_one_may_think(run: Path, dataset: Path) -> None:
    from launcher.config.loading import load
    from launcher.preflight.preflight import check

    assert check(load(run)).notes == ()
    train(config(run.parent / "other", dataset, steps=1))
    (note,) = check(load(run, [f"out={run.parent / 'other'}", "optimizer.learning_rate=1"])).notes
    assert note == "changed since step 1: optimizer.learning_rate: 0.001 became 1.0"
    note, empty = check(load(run, ["data.frames=800", "data.pack_tokens=8000"])).notes
    assert empty.startswith("packs of data.pack_tokens=8000 are 38% full: an epoch has 3,072 tokens in 24 samples")
    assert "data.frames=800 at data.stride=1 is more than any clip has" in note


def test_two_jobs_in_one_folder(run: Path, tmp_path: Path, dataset: Path) -> None:
    from launcher.supervision.run import only_launcher

    with only_launcher(RunFolder(tmp_path / "out")):
        refused("train", run, value=str(tmp_path / "out"), remedy="out=")


def test_every_known_key_can_be_overridden(tmp_path: Path, dataset: Path) -> None:
    """What the README and scripts rely on."""
    from launcher.config.config_errors import known_keys
    from launcher.config.loading import load

    keys = known_keys()
    wanted = "out seed dtype steps mesh.replica mesh.ring mesh.ulysses zero.stage data.dataset data.pack_tokens"
    assert {*wanted.split(), "checkpoint.every"} <= set(keys)
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config(tmp_path / "out", dataset)))
    settings = yaml.safe_load(file.read_text())
    for key in keys:
        value = settings
        *path, last = key.split(".")
        for name in path:
            value = value.get(name, {})
        if last not in value:  # of another kind of model, objective or codec
            assert key.startswith(("model.", "objective.", "codec."))
            continue
        value = value[last]
        changed = load(file, [f"{key}={json.dumps(value)}"])
        assert changed == load(file), key


@pytest.mark.parametrize(
    ("faults", "value", "remedy"),
    [
        ([{"kind": "nan"}], "{'kind': 'nan'}", "faults=[{kind: kill, rank: 1, step: 8}]"),
        ([{"kind": "kill", "step": 3, "rank": 2}], "rank 2 of 2, step 3 of 5", "ranks are counted from 0"),
        ([{"kind": "kill", "step": 6}], "rank 0 of 2, step 6 of 5", "steps from 1"),
    ],
)
def test_faults_that_would_not_strike(tmp_path: Path, faults: Any, value: str, remedy: str) -> None:
    with pytest.raises(InputError) as refused:
        config(tmp_path, tmp_path, mesh={"ring": 2}, faults=faults)
    assert value in refused.value.value
    assert remedy in refused.value.remedy


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP])
def test_a_disk_that_takes_no_more_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    from launcher.cli import app

    def fail() -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / "a\x1b[2J"))

    monkeypatch.setattr(app, "app", fail)
    with pytest.raises(SystemExit) as left:
        app.main()
    assert left.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert rf"a\x1b[2J: {os.strerror(number)}" in said
    assert ("remedy: make room" in said) is (number in (errno.ENOSPC, errno.EDQUOT))


def test_a_limit_of_address_space_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from launcher.cli import app
    from launcher.core import address_space

    def fail() -> None:
        raise MemoryError("Unable to allocate 8 GiB")

    monkeypatch.setattr(app, "app", fail)
    monkeypatch.setattr(address_space, "limit", lambda: 2 << 30)
    with pytest.raises(SystemExit) as left:
        app.main()
    assert left.value.code == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "Unable to allocate 8 GiB; a process may have 2 GiB of address space here (ulimit -v 2097152)" in said
    assert "Traceback" not in said
