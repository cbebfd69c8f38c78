"""Capacity on a cluster, versions of its nodes, and what is made of a job's log: arithmetic, with no cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from launcher.cluster.capacity import Capacity, Node, capacity_for, refuse_too_large
from launcher.cluster.head_probe import url_of
from launcher.cluster.job import OURS, job_of, quiet
from launcher.cluster.job_package import stage
from launcher.core import versions
from launcher.core.versions import (
    CODE,
    HOME,
    Difference,
    code_digest,
    differences,
    refuse_other_versions,
    versions_here,
)
from parallel.errors import InputError
from parallel.mesh import Mesh
from tests.support.runs import config

GPUS = [
    Node({"CPU": 8, "GPU": 4}, {}),
    Node({"CPU": 8, "GPU": 4}, {"CPU": 2, "GPU": 2}),
    Node({"CPU": 8, "GPU": 4}, {"CPU": 4, "GPU": 4}),
    Node({"CPU": 0}, {}),  # the head
]


@pytest.mark.parametrize(
    ("mesh", "asked", "free", "now", "ever"),
    [
        (Mesh(4, 1, 1), 6, 6, True, True),
        (Mesh(1, 2, 4), 6, 6, False, True),  # one group of 4 has room, the other not
        (Mesh(1, 1, 4), 6, 6, True, True),
        (Mesh(3, 1, 1), 10, 2, False, True),  # 4 more have been asked for than are placed
        (Mesh(2, 1, 1), 10, 2, True, True),
        (Mesh(1, 4, 4), 6, 6, False, False),
        (Mesh(1, 1, 8), 0, 6, False, False),
        (Mesh(1, 1, 1), 99, 0, False, True),
    ],
)
def test_room(mesh: Mesh, asked: int, free: int, now: bool, ever: bool) -> None:
    assert capacity_for(mesh, GPUS, asked) == Capacity(("CPU", "GPU"), mesh.ranks, free, 12, now, ever)


def test_room_without_gpus_or_nodes() -> None:
    assert capacity_for(Mesh(2, 1, 1), [Node({"CPU": 1}, {}), Node({"CPU": 1.5}, {"CPU": 0.5})], 0).free == 2
    nothing = capacity_for(Mesh(1, 1, 1), [], 0)
    assert (nothing.now, nothing.ever) == (False, False)


def test_room_in_words() -> None:
    assert str(capacity_for(Mesh(2, 1, 1), GPUS, 0)) == "starts at once: takes 2 CPU and GPU, 6 of 12 are free"
    waits = "waits for room: takes 2 CPU and GPU, 1 of 12 is free; starts by itself"
    assert str(capacity_for(Mesh(2, 1, 1), GPUS, 11)) == waits


def test_what_never_fits_is_refused() -> None:
    with pytest.raises(InputError, match="takes 13 CPU and GPU, the cluster has 12"):
        refuse_too_large(Mesh(13, 1, 1), capacity_for(Mesh(13, 1, 1), GPUS, 0))
    with pytest.raises(InputError, match="groups of 8 on one node each"):
        refuse_too_large(Mesh(1, 1, 8), capacity_for(Mesh(1, 1, 8), GPUS, 0))
    refuse_too_large(Mesh(1, 1, 4), capacity_for(Mesh(1, 1, 4), GPUS, 99))


SAME = {"python": "3.11.7", "torch": "2.13.0"}


def test_versions_that_differ_are_named() -> None:
    refuse_other_versions({"one": SAME, "two": dict(SAME)})
    found = {"one": SAME, "two": {**SAME, "torch": "2.12.0"}, "three": SAME}
    assert differences(found) == [Difference("two", "torch", "2.12.0", "2.13.0", 2)]
    with pytest.raises(InputError, match=r"two has torch 2\.12\.0, 2 of 3 have 2\.13\.0"):
        refuse_other_versions(found)


def test_most_decide_and_of_two_the_first() -> None:
    odd_first = {"the launcher": {"ray": "1"}, "one": {"ray": "2"}, "two": {"ray": "2"}}
    assert [d.node for d in differences(odd_first)] == ["the launcher"]
    assert [d.node for d in differences({"the launcher": {"ray": "1"}, "one": {"ray": "2"}})] == ["one"]
    assert [d.has for d in differences({"one": {"av": "18"}, "two": {}})] == ["none"]


def test_versions_here_and_the_digest_of_the_code(tmp_path: Path) -> None:
    here = versions_here()
    assert here["longreel"] == code_digest(HOME)
    assert {"python", "torch", "deepspeed", "ray", "blake3", "safetensors", "av"} <= set(here)
    stage(config(tmp_path / "run", tmp_path / "dataset"), tmp_path / "copy")
    assert code_digest(tmp_path / "copy") == here["longreel"]
    assert sorted(p.name for p in (tmp_path / "copy").iterdir()) == sorted((*CODE, "run.yaml"))
    with open(tmp_path / "copy" / "data" / "mix.py", "a") as file:
        file.write("#")
    assert code_digest(tmp_path / "copy") != here["longreel"]


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("http://head:8265", "http://head:8265"),
        ("http://head:8265/", "http://head:8265"),
        ("head", "http://head:8265"),
        ("10.0.0.1:9000", "http://10.0.0.1:9000"),
        ("https://ray.example.org:443", "https://ray.example.org:443"),
        ("[::1]:8265", "http://[::1]:8265"),
    ],
)
def test_addresses(typed: str, url: str) -> None:
    assert url_of(typed) == url


@pytest.mark.parametrize("typed", ["ray://head:10001", "http://:8265", "", "head:port"])
def test_addresses_that_are_none(typed: str) -> None:
    with pytest.raises(InputError, match="jobs are submitted to"):
        url_of(typed)


LOG = """2026-11-21 14:15:01,924\tINFO job_manager.py:581 -- Runtime env is setting up.
Running entrypoint for job mine-1: node=$(sed ...)
step      1/30  loss 1.6671  639 tokens/s  2.10 s/step  61 s left
step     13/30  loss 1.0985  602 tokens/s  2.23 s/step  38 s left
rank 1 on second was killed
"""


def details(status: JobStatus, code: int | None = None) -> JobDetails:
    about = {"out": "/shared/mine", "mesh": "replica 1 x ring 2 x ulysses 1", "ranks": 2, "steps": 30}
    return JobDetails(
        type=JobType.SUBMISSION, submission_id="mine-1", status=status, entrypoint="x", start_time=1000,
        metadata={OURS: json.dumps(about)}, driver_exit_code=code, message="it said so\nand more",
    )  # fmt: skip


def test_a_job_and_its_log() -> None:
    assert list(quiet(LOG.splitlines())) == LOG.splitlines()[2:]
    job = job_of(details(JobStatus.RUNNING), LOG)
    assert (job.state, job.step, job.steps, job.ranks, job.started) == ("running", 13, 30, 2, 1.0)
    assert job.said == "rank 1 on second was killed"
    assert job_of(details(JobStatus.RUNNING), LOG + "waiting for room: takes 2 CPU\n").state == "waiting"
    assert job_of(details(JobStatus.FAILED, 1), "").said == "it said so"


@pytest.mark.parametrize(
    ("status", "code", "state"),
    [
        (JobStatus.PENDING, None, "starting"),
        (JobStatus.SUCCEEDED, 0, "done"),
        (JobStatus.STOPPED, None, "stopped"),
        (JobStatus.FAILED, 75, "stopped"),  # by a signal that did not come from us
        (JobStatus.FAILED, 2, "refused"),
        (JobStatus.FAILED, 1, "failed"),
        (JobStatus.FAILED, None, "failed"),
    ],
)
def test_states_of_a_job(status: JobStatus, code: int | None, state: str) -> None:
    assert job_of(details(status, code), "").state == state


def test_another_nccl_is_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    wheels, of_others = {"nvidia-nccl-cu13": "2.28.3"}, versions.version
    monkeypatch.setattr(versions, "version", lambda name: wheels[name] if name in wheels else of_others(name))
    here = versions_here()
    assert here["nccl"] == "2.28.3"
    there = {**here, "nccl": "2.27.5"}
    assert [(d.node, d.package, d.has) for d in differences({"a": here, "b": here, "c": there})] == [
        ("c", "nccl", "2.27.5")
    ]
