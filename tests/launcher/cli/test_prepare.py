"""`longreel prepare`: what it says at the end, to people and to scripts, and how it stops."""

import json
import os
import signal
import time

import cv2
import pytest
from typer.testing import CliRunner

from data.synthetic.shapes import synth
from launcher.cli.app import app
from launcher.core.text import printable
from parallel.errors import InputError

RUNNER = CliRunner()


def longreel(*arguments):
    return RUNNER.invoke(app, ["prepare", *map(str, arguments)], env={"COLUMNS": "100"})


@pytest.fixture
def source(tmp_path):
    synth(tmp_path / "in", 6, seed=0)
    return tmp_path / "in"


def test_the_closing_table_and_the_funnel(source, tmp_path):
    for number in range(30):
        (source / f"broken {number}[red].mp4").write_bytes(f"broken {number}".encode())
    out = tmp_path / "out"
    captions = json.loads((source / "captions.json").read_text())
    captions.update({path.name: "words" for path in source.glob("*.mp4") if path.name not in captions})
    (source / "captions.json").write_text(json.dumps(captions))
    done = longreel(source, "--out", out, "--max-seconds", "0.9")
    assert isinstance(done.exception, InputError)
    assert "(unusable file: 30, max_seconds: 6)" in done.exception.value
    done = longreel(source, "--out", out, "--max-seconds", "2", "--near-duplicates", "0", "--workers", "0")
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    assert lines[:5] == [
        "files found 36",
        "readable 6 -30 83.3 % unusable file",
        "shots 6",
        "after min_frames 6",
        "after max_seconds 6",
    ]
    assert lines[5].startswith("kept ")
    assert "30 │ broken 0[red].mp4: no video but text" in done.output
    assert f"{out}/quarantine/" in done.output
    assert f"{out}/funnel.png" in done.output
    before = (out / "funnel.png").read_bytes()
    assert cv2.imread(str(out / "funnel.png")).shape[1] == 2552
    again = longreel(source, "--out", out, "--max-seconds", "2", "--near-duplicates", "0", "--workers", "0")
    assert [" ".join(line.split()) for line in again.output.splitlines()][:2] == [
        "files found 36",
        "done before 36 not done again",
    ]
    assert (out / "funnel.png").read_bytes() == before


def test_a_script_gets_json(source, tmp_path):
    (source / "silent.mp4").write_bytes(b"no caption")
    done = longreel(source, "--out", tmp_path / "out", "--json", "--limit", "3", "--no-previews")
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    assert (said["files"], said["kept"], said["tally"]["shots"], said["rejected"]) == (3, 3, 3, [])
    assert said["limits"] == {"min_frames": "fewer than 8 frames"}
    assert not (tmp_path / "out" / "previews").exists()
    said = json.loads(longreel(source, "--out", tmp_path / "out", "--json").stdout)
    assert (said["skipped"], said["tally"]["files"], said["rejected"][0]["file"]) == (
        3,
        {"no caption": 1},
        "silent.mp4",
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_request(source, tmp_path, monkeypatch, request, how):
    # a shell starts background jobs with SIGINT ignored, and then nobody can ask for a stop by it
    before = signal.default_int_handler if how == signal.SIGINT else signal.SIG_DFL
    request.addfinalizer(lambda was=signal.signal(how, before): signal.signal(how, was))
    # another thread may take the signal: the main one learns of it a moment later
    monkeypatch.setattr("data.prepare.pipeline.convert", lambda *_, **__: (os.kill(os.getpid(), how), time.sleep(5)))
    done = longreel(source, "--out", tmp_path / "out", "--workers", "0")
    assert done.exit_code == 75
    assert "the same command goes on" in done.output
    assert signal.getsignal(how) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sizes", ["480", "480x", "axb", "480x832;832x480"])
def test_sizes_that_are_none(source, tmp_path, sizes):
    done = longreel(source, "--out", tmp_path / "out", "--sizes", sizes)
    assert isinstance(done.exception, InputError)
    assert "480x832,832x480" in done.exception.remedy


def test_names_for_a_terminal():
    assert printable("a\nb\x1b[31m[red]é") == r"a\nb\x1b[31m\[red]é"
    assert len(printable("x" * 1000)) < 400
