"""A cluster that somebody else started: ranks go to it by --address, and it lives on when they are done."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.config import to_yaml
from launcher.folder import RunFolder, read_lines
from launcher.processes import free_port
from tests.runs import config


@pytest.fixture(scope="module")
def environment_of_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, environment_of_module: pytest.MonkeyPatch) -> Iterator[str]:
    """host:port of a Ray head with 2 CPUs and token authentication, started by Ray's own command."""
    port, log = free_port(), tmp_path_factory.mktemp("ray") / "head.log"
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    token = log.with_name("token")
    token.write_text("0" * 64)
    os.chmod(token, 0o600)
    environment_of_module.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, env=environment)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
    yield f"127.0.0.1:{port}"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


def longreel(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher", "train", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=180)


def test_a_run_on_a_cluster(head: str, tmp_path: Path, dataset: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config(tmp_path / "out", dataset, dtype="float32", zero__stage=1, mesh={"ring": 2})))
    done = longreel(file, "--address", head)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["step"] for line in read_lines(RunFolder(tmp_path / "out").metrics)] == [1, 2, 3, 4, 5]
    again = longreel(file, "steps=7", "--address", head)  # the cluster is still there, and has room again
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resumed from step 5" in again.stdout
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
        stranger = longreel(file, "steps=9", "--address", head)
    assert stranger.returncode == 2
    assert "token" in stranger.stderr
    too_many = longreel(file, "steps=9", "mesh.ring=3", "--address", head)
    assert too_many.returncode == 2
    assert "takes 3 CPU" in too_many.stderr
    assert "the cluster has 2 CPU" in too_many.stderr
