"""A cluster that somebody else started: ranks go to it by --address, and it lives on when they are done."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.cluster.connection import HeadWatch, check_address, head_gone, resolved
from launcher.cluster.head_probe import knock
from launcher.config.loading import to_yaml
from launcher.core.network import interface_towards
from launcher.core.run_folder import RunFolder, read_lines
from launcher.supervision.local_ranks import free_port
from parallel.errors import InputError
from tests.support.runs import config

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def environment_of_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def dashboard() -> int:
    """The port to which jobs go."""
    return free_port()


@pytest.fixture(scope="module")
def head(
    tmp_path_factory: pytest.TempPathFactory, environment_of_module: pytest.MonkeyPatch, dashboard: int
) -> Iterator[str]:
    """host:port of a Ray head with 2 CPUs and token authentication, started by Ray's own command."""
    port, log = free_port(), tmp_path_factory.mktemp("ray") / "head.log"
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--port={port}", "--num-cpus=2", "--dashboard-host=127.0.0.1"]
    command += [f"--dashboard-port={dashboard}"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]  # two heads of one machine would want the same
    token = log.with_name("token")
    token.write_text("0" * 64)
    os.chmod(token, 0o600)
    environment_of_module.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, env=environment)
    try:
        until_listening(port, process, log)
        until_listening(dashboard, process, log)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def until_listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
    pytest.fail(f"nobody listens on port {port}: {log.read_text()}")


def longreel(*arguments: object, command: str = "train") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher", command, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """A run of two ranks; `out` lies beside it."""
    file = tmp_path_factory.mktemp("cluster") / "run.yaml"
    file.write_text(to_yaml(config(file.parent / "out", dataset, dtype="float32", zero__stage=1, mesh={"ring": 2})))
    return file


@pytest.fixture(scope="module")
def submitted(head: str, dashboard: int, file: Path) -> subprocess.CompletedProcess[str]:
    """The run as a job of the cluster, with its code, from wherever: the first thing that the head is asked for.

    On a busy machine a head takes longer than anybody waits for it: then the same again, as the remedy says.
    """
    for _ in range(5):
        said = longreel(file, "--address", f"http://127.0.0.1:{dashboard}", "--follow", command="submit")
        if "the services of a Ray head are ready within" not in said.stderr:
            break
    return said


def test_a_run_is_submitted(submitted: subprocess.CompletedProcess[str], dashboard: int, file: Path) -> None:
    url = f"http://127.0.0.1:{dashboard}"
    assert knock(url), "it asks for a token"
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "starts at once: takes 2 CPU, 2 of 2 are free" in submitted.stdout
    assert "step      5/5  loss " in submitted.stdout
    assert [line["step"] for line in read_lines(RunFolder(file.parent / "out").metrics)] == [1, 2, 3, 4, 5]
    (job,) = json.loads(longreel("--address", url, "--json", command="list").stdout)
    assert (job["state"], job["out"], job["ranks"]) == ("done", str(file.parent / "out"), 2)


def test_a_run_on_a_cluster(head: str, submitted: subprocess.CompletedProcess[str], file: Path) -> None:
    """From a node of it: the cluster lives on, and has room again for the same run."""
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    again = longreel(file, "steps=7", "--address", head)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resumed from step 5" in again.stdout
    assert [line["step"] for line in read_lines(RunFolder(file.parent / "out").metrics)] == [1, 2, 3, 4, 5, 6, 7]
    too_many = longreel(file, "steps=9", "mesh.ring=3", "--address", head)
    assert too_many.returncode == 2
    assert "takes 3 CPU" in too_many.stderr
    assert "the cluster has 2 CPU" in too_many.stderr


def test_a_stranger_is_refused(head: str, dashboard: int, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has another token neither trains there nor sees what runs."""
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file.with_name("none")))
    with pytest.raises(InputError, match="a cluster with token authentication is given its token"):
        check_address(head)
    stranger = longreel("--address", f"http://127.0.0.1:{dashboard}", command="list")
    assert stranger.returncode == 2
    assert "a cluster with token authentication is given its token" in stranger.stderr


def test_the_address_of_this_node_s_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.1.2.3:6379")
    assert (resolved("auto"), resolved("other:1")) == ("10.1.2.3:6379", "other:1")
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr("launcher.cluster.connection.HERE_FILE", str(tmp_path / "ray_current_cluster"))
    with pytest.raises(InputError, match="no Ray node runs on this machine"):
        resolved("auto")
    (tmp_path / "ray_current_cluster").write_text("10.1.2.4:6379\n")
    assert resolved("auto") == "10.1.2.4:6379"


def test_a_head_that_falls_silent_is_noticed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        watch = HeadWatch(f"127.0.0.1:{server.getsockname()[1]}", every=0.1)
        began, deadline = watch.heard, time.monotonic() + 60
        while watch.heard == began:
            assert time.monotonic() < deadline, "it answers, and is not heard"
            time.sleep(0.01)
    deadline = time.monotonic() + 60
    while watch.silent < 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert watch.silent >= 1
    watch.close()
    assert "not for 25 s" in str(head_gone("head:6379", 25.4))


def test_a_place_that_is_no_head_is_told_at_once() -> None:
    with pytest.raises(InputError, match="refused"):
        check_address(f"127.0.0.1:{free_port()}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        with pytest.raises(InputError, match="a Ray head answers at --address"):
            knock(f"http://127.0.0.1:{port}")


def test_the_device_towards_an_address() -> None:
    assert interface_towards("127.0.0.1") == "lo"
