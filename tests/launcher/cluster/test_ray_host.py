"""Hosts that are machines of their own, and one run over three of them: cables are pulled and put back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.config.loading import to_yaml
from tests.support.hosts import Cluster, Host, listed, network, sweep, tell, why_not
from tests.support.runs import config, events, lines, train

STEPS = 24
TRY = "import socket,sys; socket.create_connection((sys.argv[1], 7000), 1).close()"
LISTEN = """
import socket, sys
server = socket.create_server((sys.argv[1], 7000))
print("listening", flush=True)
while True:
    with server.accept()[0] as line:
        while line.recv(1 << 16): pass
"""
SEND = """
import socket, sys, time
began = time.monotonic()
with socket.create_connection((sys.argv[1], 7000)) as line:
    line.sendall(bytes(1 << 20)); line.shutdown(socket.SHUT_WR); line.recv(1)
print(time.monotonic() - began)
"""
FALL = """
import os, signal, sys
from pathlib import Path
from tests.support.hosts import network
with network(Path(sys.argv[1]), "one") as hosts:
    sleeping = hosts["one"].start("sleep", "1000")
    print(hosts["one"].init.pid, sleeping.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""

pytestmark = [pytest.mark.multinode, pytest.mark.ray]


@pytest.fixture(autouse=True)
def _allowed() -> None:
    if why_not():
        pytest.skip(why_not())


def until(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.1)
    return found


def test_hosts_are_machines_of_their_own(tmp_path: Path) -> None:
    before = listed()
    with network(tmp_path, "one", "two") as hosts:
        one, two = hosts["one"], hosts["two"]
        assert [h.run("hostname").stdout.strip() for h in (one, two)] == ["one", "two"]
        assert one.run("touch", "/dev/shm/mine", "/tmp/ray/mine").returncode == 0
        assert two.run("ls", "/dev/shm", "/tmp/ray").stdout.split() == ["/dev/shm:", "/tmp/ray:"]
        server = two.start(sys.executable, "-c", LISTEN, two.address)
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"

        def reaches() -> bool:
            return one.run(sys.executable, "-c", TRY, two.address).returncode == 0

        assert reaches()
        two.cut()
        assert not reaches()
        two.heal()
        assert reaches()
        if one.run("tc", "-V").returncode == 0:
            fast = float(one.run(sys.executable, "-c", SEND, two.address).stdout)
            one.slow(megabits=8)
            assert float(one.run(sys.executable, "-c", SEND, two.address).stdout) > max(0.5, fast)  # a MiB takes 1 s
            one.slow(0)
        two.kill()
        assert server.wait(10) != 0
        assert not reaches()
        two.boot()
        assert two.run("hostname").stdout.strip() == "two"
    assert listed() == before


def test_a_killed_test_run_leaves_nothing(tmp_path: Path) -> None:
    fallen = subprocess.run(
        [sys.executable, "-c", FALL, str(tmp_path)], capture_output=True, text=True, timeout=60, cwd=Path.cwd()
    )
    assert fallen.returncode == -signal.SIGKILL, fallen.stderr
    for pid in fallen.stdout.split():
        until(lambda p=pid: not Path(f"/proc/{p}").exists() or _dead(p), 20)
    sweep()
    assert not [name for name in listed() if not Path(f"/proc/{name.split('-')[1]}").exists()]


def _dead(pid: str) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if why_not():
        pytest.skip(why_not())
    with Cluster(tmp_path_factory.mktemp("hosts"), ("first", "second", "third")) as made:
        yield made


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> list[tuple[Any, ...]]:
    """The same run on three processes of one machine."""
    train(settings(tmp_path_factory.mktemp("one"), dataset, STEPS))
    return curve(tmp_path_factory.getbasetemp() / "one0" / "run")


def settings(folder: Path, dataset: Path, steps: int) -> Any:
    return config(
        folder / "run", dataset, steps=steps, dtype="float32", zero__stage=2, mesh={"ring": 3}, checkpoint__every=4
    )


def start(host: Host, cluster: Cluster, folder: Path, dataset: Path, steps: int) -> subprocess.Popen[str]:
    file = folder / "run.yaml"
    file.write_text(to_yaml(settings(folder, dataset, steps)))
    return host.start(sys.executable, "-m", "launcher", "train", file, "--address", cluster.address)


def finish(process: subprocess.Popen[str], code: int) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def curve(out: Path) -> list[tuple[Any, ...]]:
    return [(line["step"], line["samples"], line["loss"]) for line in lines(out)]


def on(out: Path) -> list[str]:
    """Hosts of the ranks of the newest attempt."""
    started = events(out, "ranks")
    return sorted(place["host"] for place in started[-1]["places"]) if started else []


def stepped(out: Path, since: int) -> bool:
    return bool(lines(out)) and lines(out)[-1]["step"] >= since


@pytest.mark.slow
def test_three_hosts_train_as_one_machine(
    cluster: Cluster, tmp_path: Path, dataset: Path, one_machine: list[tuple[Any, ...]]
) -> None:
    out = tmp_path / "run"
    finish(start(cluster.hosts["head"], cluster, tmp_path, dataset, STEPS), 0)
    assert on(out) == ["first", "second", "third"]
    assert curve(out) == one_machine


@pytest.mark.slow
def test_a_client_without_the_token_is_refused(cluster: Cluster, tmp_path: Path, dataset: Path) -> None:
    first = cluster.hosts["first"]
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(settings(tmp_path, dataset, STEPS)))
    command = (sys.executable, "-m", "launcher", "train", file, "--address", cluster.address)
    for token in ("/nowhere", str(tmp_path / "wrong")):
        (tmp_path / "wrong").write_text("0" * 64)
        stranger = first.run(*command, RAY_AUTH_TOKEN_PATH=token)
        assert stranger.returncode == 2, stranger.stdout
        assert "a cluster with token authentication is given its token" in stranger.stderr
    bare = "import ray, sys; ray.init(address=sys.argv[1]); print('in')"
    for mode in ("token", "disabled"):
        guest = first.run(sys.executable, "-c", bare, cluster.address, RAY_AUTH_MODE=mode, RAY_AUTH_TOKEN_PATH="")
        assert "in\n" not in guest.stdout
        assert guest.returncode != 0
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert os.stat(cluster.token).st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_a_link_is_cut_for_20_seconds(
    cluster: Cluster, tmp_path: Path, dataset: Path, one_machine: list[tuple[Any, ...]]
) -> None:
    out, second = tmp_path / "run", cluster.hosts["second"]
    process = start(cluster.hosts["head"], cluster, tmp_path, dataset, STEPS)
    try:
        until(lambda: stepped(out, 6))
        second.cut()
        time.sleep(20)
    finally:
        second.heal()
    finish(process, 0)
    assert [line[:2] for line in curve(out)] == [line[:2] for line in one_machine]
    assert [line[2] for line in curve(out)] == pytest.approx([line[2] for line in one_machine], rel=1e-5)
    cluster.wait("head", "first", "second", "third")


@pytest.mark.slow
def test_a_link_is_cut_for_good_and_comes_back(
    cluster: Cluster, tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On two hosts while the middle one is away, on three as soon as it is back; no step is left out or done twice."""
    out, second = tmp_path / "run", cluster.hosts["second"]
    process = start(cluster.hosts["head"], cluster, tmp_path, dataset, steps=100_000)
    told: dict[str, float] = {}
    try:
        until(lambda: stepped(out, 6))
        began, at = time.monotonic(), lines(out)[-1]["step"]
        second.cut()
        until(lambda: on(out) == ["first", "third"], 180)
        until(lambda: stepped(out, at + 2), 180)
        told["cut to going on on two"] = time.monotonic() - began
        cluster.wait("head", "first", "third")
        began = time.monotonic()
        second.heal()
        cluster.wait("head", "first", "second", "third")
        told["cable back to Ray's node back"] = time.monotonic() - began
        until(lambda: on(out) == ["first", "second", "third"], 120)
        at = lines(out)[-1]["step"]
        until(lambda: stepped(out, at + 2), 120)
        told["cable back to going on on three"] = time.monotonic() - began
    finally:
        second.heal()
        tell(process, signal.SIGTERM)
    finish(process, 75)
    assert [line["step"] for line in lines(out)] == list(range(1, lines(out)[-1]["step"] + 1))
    meshes = [(event["from"], event["to"]) for event in events(out, "mesh")]
    two, three = ("replica 1 x ring 2 x ulysses 1", "replica 1 x ring 3 x ulysses 1")
    assert meshes[0] == (three, two)
    assert meshes[-1] == (two, three)
    with capsys.disabled():
        print("\n" + json.dumps({what: round(seconds, 1) for what, seconds in told.items()}))
