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
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a Ray head with 2 CPUs, started by Ray's own command."""
    port = free_port()
    log = open(tmp_path_factory.mktemp("ray") / "head.log", "w")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # loopback only
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert process.poll() is None, Path(log.name).read_text()
            time.sleep(0.2)
    yield f"127.0.0.1:{port}"
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(30)
    log.close()


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
    too_many = longreel(file, "steps=9", "mesh.ring=3", "--address", head)
    assert too_many.returncode == 2
    assert "takes 3 CPU" in too_many.stderr
    assert "the cluster has 2 CPU" in too_many.stderr
