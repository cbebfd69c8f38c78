"""Runs as jobs of a cluster of three hosts, submitted from a fourth machine that is no member of it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import pytest

from launcher.cluster.machines import Machines
from launcher.cluster.templates import slurm
from launcher.config.loading import to_yaml
from launcher.core.run_folder import RunFolder
from launcher.core.versions import CODE
from tests.support.hosts import BIN, HOME, Cluster, Network, why_not
from tests.support.runs import config, events, lines, train

STEPS = 16
LONGREEL = (sys.executable, "-m", "launcher")

pytestmark = [pytest.mark.multinode, pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three hosts with a CPU each behind a head, and a client outside."""
    if why_not():
        pytest.skip(why_not())
    with Cluster(tmp_path_factory.mktemp("hosts"), ("first", "second", "third")) as made:
        made.add("client").boot()
        yield made


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> list[tuple[Any, ...]]:
    """The same run on processes of one machine."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(settings(out, dataset))
    return curve(out)


def settings(out: Path, dataset: Path, **changes: Any) -> Any:
    usual = {"dtype": "float32", "zero__stage": 2, "mesh": {"ring": 2}, "steps": STEPS, "checkpoint__every": 100}
    return config(out, dataset, **{**usual, **changes})


def written(out: Path, dataset: Path, **changes: Any) -> Path:
    file = out.parent / f"{out.name}.yaml"
    file.write_text(to_yaml(settings(out, dataset, **changes)))
    return file


def ask(cluster: Cluster, *arguments: object, code: int = 0, folder: Path = HOME) -> subprocess.CompletedProcess[str]:
    """A command of the client."""
    command = ("env", "-C", folder, *LONGREEL, *arguments, "--address", cluster.url)
    done = cluster.hosts["client"].run(*command, seconds=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def submit(cluster: Cluster, file: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(ask(cluster, "submit", file, "--json").stdout)
    return answer


def state(cluster: Cluster, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(ask(cluster, "status", name, "--json").stdout)
    return answer


def until(condition: Callable[[], Any], seconds: float = 180) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.1)
    return found


def curve(out: Path) -> list[tuple[Any, ...]]:
    return [(line["step"], line["samples"], line["loss"], line["grad_norm"]) for line in lines(out)]


def test_submit_look_follow_stop_and_submit_again(
    cluster: Cluster, tmp_path: Path, dataset: Path, undisturbed: list[tuple[Any, ...]]
) -> None:
    out = tmp_path / "run"
    file = written(out, dataset)
    made = submit(cluster, file)
    assert made["room"]["now"], made
    again = ask(cluster, "submit", file, code=2).stderr
    assert f"{out}: job {made['id']}" in again
    following = cluster.hosts["client"].start(*LONGREEL, "logs", "-f", made["id"], "--address", cluster.url)
    until(lambda: len(lines(out)) >= 5)
    assert state(cluster, made["id"])["state"] == "running"
    assert made["id"] in ask(cluster, "list").stdout
    stopped = json.loads(ask(cluster, "stop", made["id"], "--json").stdout)
    assert stopped["state"] == "stopped"
    step = lines(out)[-1]["step"]
    assert step < STEPS
    assert [p.name for p in RunFolder(out).checkpoints.iterdir()] == [f"step-{step:08d}"]
    said, _ = following.communicate(timeout=60)
    assert following.returncode == 75, said
    assert f"/{STEPS}  loss " in said
    assert "job_manager" not in said
    second = submit(cluster, file)
    said = ask(cluster, "logs", "-f", second["id"]).stdout
    assert f"resumed from step {step} " in said
    assert curve(out) == undisturbed
    assert state(cluster, second["id"])["state"] == "done"
    assert state(cluster, second["id"])["step"] == STEPS


def test_the_code_is_shipped(cluster: Cluster, tmp_path: Path, dataset: Path) -> None:
    """Ranks run what was submitted, whatever is installed on their nodes: here, a copy of ours that leaves a mark."""
    copy = tmp_path / "copy"
    for package in CODE:
        shutil.copytree(HOME / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    with open(copy / "launcher" / "training" / "loop.py", "a") as module:
        module.write(
            f"\nimport pathlib, socket\npathlib.Path({str(tmp_path)!r}, 'on-' + socket.gethostname()).touch()\n"
        )
    file = written(tmp_path / "run", dataset, steps=2)
    ask(cluster, "submit", "-f", file, folder=copy)
    assert sorted(p.name for p in tmp_path.glob("on-*")) == sorted(
        f"on-{place['host']}" for place in events(tmp_path / "run", "ranks")[-1]["places"]
    )


def test_two_runs_share_and_a_third_waits(cluster: Cluster, tmp_path: Path, dataset: Path) -> None:
    """Of three places one run takes two and the next one; the third run starts by itself when the first ends."""
    endless = {"steps": 100_000}
    first = submit(cluster, written(tmp_path / "one", dataset, **endless))
    second = submit(cluster, written(tmp_path / "two", dataset, mesh={"ring": 1}, **endless))
    third = submit(cluster, written(tmp_path / "three", dataset, steps=4))
    try:
        assert [made["room"]["now"] for made in (first, second, third)] == [True, True, False]
        assert third["room"]["free"] == 0
        until(lambda: len(lines(tmp_path / "one")) > 1 and len(lines(tmp_path / "two")) > 1)
        until(lambda: state(cluster, third["id"])["state"] == "waiting")
        assert "waiting for room: takes 2 CPU" in ask(cluster, "logs", third["id"]).stdout
        assert not events(tmp_path / "three", "ranks")
        ask(cluster, "stop", first["id"])
        said = ask(cluster, "logs", "-f", third["id"]).stdout
        assert "step      4/4" in said
        assert [line["step"] for line in lines(tmp_path / "three")] == [1, 2, 3, 4]
    finally:
        ask(cluster, "stop", first["id"])
        ask(cluster, "stop", second["id"])


def test_a_run_that_waits_can_be_stopped(cluster: Cluster, tmp_path: Path, dataset: Path) -> None:
    holder = submit(cluster, written(tmp_path / "holder", dataset, mesh={"ring": 3}, steps=100_000))
    waiting = submit(cluster, written(tmp_path / "waiting", dataset))
    try:
        until(lambda: state(cluster, waiting["id"])["state"] == "waiting")
        began = time.monotonic()
        assert json.loads(ask(cluster, "stop", waiting["id"], "--json").stdout)["state"] == "stopped"
        assert time.monotonic() - began < 60
    finally:
        ask(cluster, "stop", holder["id"])


def test_a_mesh_that_never_fits_is_refused_at_once(cluster: Cluster, tmp_path: Path, dataset: Path) -> None:
    refused = ask(cluster, "submit", written(tmp_path / "large", dataset, mesh={"ring": 4}), code=2).stderr
    assert "takes 4 CPU, the cluster has 3" in refused
    torn = ask(cluster, "submit", written(tmp_path / "torn", dataset, mesh={"ulysses": 2}), code=2).stderr
    assert "no room for groups of 2 on one node each" in torn


def test_a_node_with_another_version_is_named(cluster: Cluster, tmp_path: Path, dataset: Path) -> None:
    """An older safetensors comes first on the path of one node."""
    other = tmp_path / "packages"
    found = distribution("safetensors")
    shutil.copytree(Path(str(found.locate_file("safetensors"))), other / "safetensors")
    facts = other / "safetensors-0.0.1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: safetensors\nVersion: 0.0.1\n")
    restarted(cluster, "third", PYTHONPATH=str(other))
    try:
        job = submit(cluster, written(tmp_path / "run", dataset))
        said = ask(cluster, "logs", "-f", job["id"], code=2).stdout
        assert "all nodes of a run have the same versions" in said
        address = cluster.hosts["third"].address
        assert f"third ({address}) has safetensors 0.0.1, 4 of 5 have {version('safetensors')}" in said
        assert not events(tmp_path / "run", "ranks")
        assert state(cluster, job["id"])["state"] == "refused"
    finally:
        restarted(cluster, "third")


def test_a_node_that_does_not_see_the_storage_is_named(cluster: Cluster, tmp_path: Path, dataset: Path) -> None:
    (tmp_path / "run").mkdir()
    for without in (tmp_path / "run", dataset):
        restarted(cluster, "third", without=[without])
        try:
            job = submit(cluster, written(tmp_path / "run", dataset))
            said = ask(cluster, "logs", "-f", job["id"], code=2).stdout
            assert "lie on storage that every node sees" in said
            assert "third (" in said
            assert str(without) in said
            assert not events(tmp_path / "run", "ranks")
        finally:
            restarted(cluster, "third")


def restarted(cluster: Cluster, name: str, without: list[Path] | None = None, **environment: str) -> None:
    cluster.hosts[name].kill()
    cluster.wait("head", *(n for n in cluster.workers if n != name))
    cluster.up(name, without or [], **environment)
    cluster.wait("head", *cluster.workers)


def test_a_head_that_is_gone_is_told_within_30_seconds(cluster: Cluster, tmp_path: Path, dataset: Path) -> None:
    """By a client that follows, by one that asks, and by a launcher on another node; nothing is lost by it."""
    out, head = tmp_path / "run", cluster.hosts["head"]
    job = submit(cluster, written(out, dataset, steps=100_000, mesh={"ring": 1}))
    file = written(tmp_path / "mine", dataset, steps=100_000, mesh={"ring": 1})
    command = (*LONGREEL, "train", file, "--address", cluster.address)
    launcher = cluster.hosts["first"].start(*command)
    following = cluster.hosts["client"].start(*LONGREEL, "logs", "-f", job["id"], "--address", cluster.url)
    try:
        until(lambda: len(lines(out)) > 2 and len(lines(tmp_path / "mine")) > 2)
        head.cut()
        began = time.monotonic()
        asked = ask(cluster, "status", job["id"], code=2)
        assert time.monotonic() - began < 30
        assert "a Ray head answers at --address" in asked.stderr
        for process in (following, launcher):
            said, _ = process.communicate(timeout=60)
            assert time.monotonic() - began < 35, said  # 30 s, and the time it takes to leave
            assert "the head of a cluster answers as long as a run goes on" in said
            assert process.returncode == (2 if process is following else 1), said
    finally:
        head.heal()
    cluster.wait("head", *cluster.workers, seconds=180)
    ask(cluster, "stop", job["id"])


SRUN = """#!/usr/bin/env bash
# a scheduler in ten lines: task after task on host after host, as if each were a machine of its own
while [[ "$1" == --* ]]; do case "$1" in --nodelist=*) only="${1#*=}" ;; esac; shift; done
enter() { local host="$1"; shift; exec nsenter -t "$(cat "$HOSTS/$host.init")" -m -u -n -p -- "$@"; }
[ -z "${only:-}" ] || enter "$only" "$@"
trap 'kill -KILL $(jobs -p); exit 143' TERM
id=0
for host in $SLURM_JOB_NODELIST; do (SLURM_PROCID=$id enter "$host" "$@") & id=$((id + 1)); done
wait
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo "$3" | tr ' ' '\\n'; else echo "$@" >> "$HOSTS/requeued"; fi
"""


def test_the_slurm_script(tmp_path: Path, dataset: Path) -> None:
    """Ray's symmetric run over three hosts: before its time is up it saves and queues again; told to stop, it stops."""
    if why_not():
        pytest.skip(why_not())
    out = tmp_path / "run"
    run = to_yaml(settings(out, dataset, steps=100_000, mesh={"ring": 3}))
    script = tmp_path / "run.sh"
    script.write_text(slurm("run", run, Machines(3, 0, 1, 1), str(BIN), str(tmp_path)))
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    names = ("one", "two", "three")
    with Network(tmp_path / "hosts") as network:
        hosts = [network.add(name) for name in names]
        for host in hosts:
            host.boot()
            (tmp_path / f"{host.name}.init").write_text(str(host.pid))
        slurm_says = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_NODELIST": " ".join(names)}
        environment = network.environment({**slurm_says, "HOSTS": str(tmp_path)})
        environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
        reached = 0
        for attempt, number in enumerate((signal.SIGUSR1, signal.SIGTERM)):
            for host in hosts:  # a new job finds no Ray of the last one
                if attempt:
                    host.kill()
                    host.boot()
                    (tmp_path / f"{host.name}.init").write_text(str(host.pid))
            environment["SLURM_RESTART_COUNT"] = str(attempt)
            with open(tmp_path / "run.log", "a") as log:
                job = subprocess.Popen(["bash", str(script)], env=environment, stdout=log, stderr=log)
            try:
                until(lambda at=reached: len(lines(out)) > at + 3)
                job.send_signal(number)
                job.wait(120)
            finally:
                job.kill()
            assert job.returncode == 75, (tmp_path / "run.log").read_text()
            assert (tmp_path / "requeued").read_text() == "requeue 7\n"
            assert not list(tmp_path.glob("slurm-*")), "its token is gone"
            assert len({place["host"] for place in events(out, "ranks")[-1]["places"]}) == 3
            reached = lines(out)[-1]["step"]
            assert (RunFolder(out).checkpoints / f"step-{reached:08d}").is_dir()
        assert len(events(out, "resume")) == 1
