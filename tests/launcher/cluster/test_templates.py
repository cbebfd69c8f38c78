"""What `longreel cluster` writes: YAML that parses, scripts that bash takes, and a token asked for by each."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from launcher.cli.app import app
from launcher.cluster.job import OURS, metadata_of
from launcher.cluster.machines import Machines, SharedVolume
from launcher.cluster.templates import STOP_SECONDS, job_name, kuberay, plain, slurm
from launcher.config.loading import check, to_yaml
from parallel.errors import InputError
from parallel.mesh import Mesh
from tests.support.runs import config

MACHINES = Machines(nodes=4, gpus=8, cpus=64, gib=512)


@pytest.fixture
def run(tmp_path: Path) -> str:
    return to_yaml(config(tmp_path / "it's a run", tmp_path / "dataset", mesh={"ring": 4, "ulysses": 4}))


def rayjob(run: str, machines: Machines = MACHINES) -> tuple[dict[str, Any], dict[str, Any]]:
    storage, about = SharedVolume("shared", "/mnt/shared"), metadata_of(check(yaml.safe_load(run)))
    text = kuberay("mine", run, machines, "registry/longreel:1", storage, "2.60.0", about)
    files, job = yaml.safe_load_all(text)
    assert "&id" not in text
    return files, job


def test_a_rayjob(run: str) -> None:
    files, job = rayjob(run)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}}
    head, (workers,) = spec["rayClusterSpec"]["headGroupSpec"], spec["rayClusterSpec"]["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0", "no rank runs on the head"
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (4, 4, 4)
    for group, gpus in ((head, None), (workers, "8")):
        (container,) = group["template"]["spec"]["containers"]
        resources = container["resources"]
        assert resources["limits"] == resources["requests"]
        assert resources["limits"].get("nvidia.com/gpu") == gpus
        mounted = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
        assert mounted == {"storage": "/mnt/shared", "run": "/etc/longreel", "shm": "/dev/shm"}
        volumes = {v.pop("name"): v for v in group["template"]["spec"]["volumes"]}
        assert volumes["storage"] == {"persistentVolumeClaim": {"claimName": "shared"}}
        assert volumes["run"] == {"configMap": {"name": files["metadata"]["name"]}}
    assert json.loads(spec["metadata"][OURS])["ranks"] == 16, "longreel list knows it"
    assert spec["entrypoint"].split()[:3] == ["longreel", "train", "/etc/longreel/run.yaml"]


def test_a_rayjob_holds_the_run_itself(run: str) -> None:
    files, _ = rayjob(run)
    assert check(yaml.safe_load(files["data"]["run.yaml"])) == check(yaml.safe_load(run))


def test_machines_without_gpus(run: str) -> None:
    _, job = rayjob(run, Machines(2, 0, 8, 64))
    assert "nvidia" not in str(job)
    assert "--gpus-per-node" not in slurm("mine", run, Machines(2, 0, 8, 64), "/bin", "/shared")


def test_a_batch_script(run: str) -> None:
    text = slurm("mine", run, MACHINES, "/opt/my venv/bin", "/shared/it's", ("--partition=gpu",))
    assert subprocess.run(["bash", "-n"], input=text, text=True, timeout=600, capture_output=True).stderr == ""
    options = re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)
    for option in ("--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=8", "--requeue", "--partition=gpu"):
        assert option in options
    lines = text.splitlines()
    assert lines.index("#SBATCH --partition=gpu") < lines.index("set -euo pipefail"), "later ones are not read"
    assert "export RAY_AUTH_MODE=token" in text
    inside = text.partition("<< 'END OF RUN'\n")[2].partition("\nEND OF RUN")[0]
    assert check(yaml.safe_load(inside)) == check(yaml.safe_load(run))


RAY = """#!/usr/bin/env bash
echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN_PATH $*" >> "$(dirname "$0")/calls"
[ "$(wc -l < "$(dirname "$0")/calls")" -ge "${CALLS:-1}" ]
"""


@pytest.fixture
def machine(tmp_path: Path) -> Any:
    """Runs the script where `ray` writes down what it is asked, and fails until it was asked CALLS times."""
    (tmp_path / "ray").write_text(RAY)
    (tmp_path / "ray").chmod(0o755)
    (tmp_path / "ray.sh").write_text(plain(str(tmp_path)))

    def go(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(tmp_path / "ray.sh"), *arguments]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        return subprocess.run(
            command, env={**clean, "HOME": str(tmp_path), **environment}, capture_output=True, text=True, timeout=600
        )

    return go


def test_a_head_makes_a_token_of_its_own(machine: Any, tmp_path: Path) -> None:
    assert machine("head", "--num-gpus=8").returncode == 0
    token = tmp_path / ".ray" / "auth_token"
    assert re.fullmatch("[0-9a-f]{64}", token.read_text())
    assert token.stat().st_mode & 0o777 == 0o600
    mode, path, *asked = (tmp_path / "calls").read_text().split()
    assert (mode, path) == ("token", str(token))
    assert "--head" in asked
    assert asked.index("--num-gpus=0") < asked.index("--num-gpus=8"), "what is given last counts"
    before = token.read_text()
    token.chmod(0o644)
    assert machine("head").returncode == 0
    assert (token.read_text(), token.stat().st_mode & 0o777) == (before, 0o600)


def test_a_worker_needs_the_token_and_joins_again(machine: Any, tmp_path: Path) -> None:
    without = machine("worker", "head")
    assert without.returncode == 2
    assert "copy" in without.stderr
    token = tmp_path / "token"
    token.write_text("0" * 64)
    again = machine("worker", "head", "--num-cpus=4", CALLS="2", RAY_AUTH_TOKEN_PATH=str(token))
    assert again.returncode == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 2, "its Ray ended once, as on a node that was cut off"
    assert calls[0].startswith(f"token {token} start --address=head:6379 --block")
    assert calls[0].endswith("--num-cpus=4")


def test_a_script_without_a_word_says_what_it_takes(machine: Any) -> None:
    for words in ((), ("worker",), ("tail",)):
        assert machine(*words).returncode != 0


def test_machines_that_are_too_few_are_refused() -> None:
    Machines(4, 8, 64, 512).refuse_small(Mesh(2, 2, 8))
    with pytest.raises(InputError, match="--nodes 5"):
        Machines(4, 8, 64, 512).refuse_small(Mesh(5, 1, 8))
    with pytest.raises(InputError, match="fewer mesh"):
        Machines(8, 4, 64, 512).refuse_small(Mesh(1, 1, 8))
    with pytest.raises(InputError, match="CPUs for 4"):
        Machines(1, 0, 4, 8).refuse_small(Mesh(5, 1, 1))


@pytest.mark.parametrize("kind", ["kuberay", "slurm", "ray"])
def test_the_command_writes_it(tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(to_yaml(config(tmp_path / "My Run", tmp_path / "dataset", mesh={"ring": 2})))
    more = ["--image", "longreel:1", "--storage", f"shared:{tmp_path}"] if kind == "kuberay" else []
    command = ["cluster", str(run), "--kind", kind, "--nodes", "2", "--cpus", "1", *more]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out").read_text()
    if kind == "kuberay":
        assert [d["metadata"]["name"] for d in yaml.safe_load_all(text)] == ["my-run-run", "my-run"]
        refused = CliRunner().invoke(app, command[:-2])
        assert isinstance(refused.exception, InputError)
        assert refused.exception.remedy == "--image registry/longreel:1 --storage shared:/mnt/shared"
    else:
        assert subprocess.run(["bash", "-n"], input=text, text=True, timeout=600, capture_output=True).stderr == ""
        assert str(Path(sys.executable).parent) in text


def cluster(run: Path, *more: str) -> Any:
    return CliRunner().invoke(app, ["cluster", str(run), *more])


@pytest.mark.parametrize(
    ("mesh", "device", "more", "found", "remedy"),
    [
        ({"ring": 4}, "auto", ("--nodes", "4", "--gpus", "8"), "32 GPUs; .* 4 ranks: 28 idle", "--nodes 1 --gpus 4"),
        ({"replica": 2, "ring": 8}, "auto", ("--nodes", "4", "--gpus", "8"), "16 idle", "--nodes 2, or mesh.replica=4"),
        ({"ring": 6}, "auto", ("--nodes", "1", "--gpus", "8"), "2 idle", "--nodes 1 --gpus 6"),
        ({"ring": 2}, "cpu", ("--nodes", "1", "--gpus", "2"), "device: cpu", "--gpus 0"),
        ({"ring": 8}, "auto", ("--nodes", "2", "--gpus", "8", "--cpus", "4"), "--cpus 4", "--cpus 8"),
        (
            {"ring": 2},
            "auto",
            ("--nodes", "3"),
            "--nodes 3 --cpus 64; .* 2 ranks, which fill 1: 2 idle",
            "--nodes 1, or",
        ),
        ({"ring": 6}, "cpu", ("--nodes", "3", "--cpus", "4"), "fill 2: 1 idle", "--nodes 2, or --cpus 2"),
        ({"ring": 2, "ulysses": 3}, "cpu", ("--nodes", "3", "--cpus", "5"), "fill 2: 1 idle", "--nodes 2, or a larger"),
    ],
)
@pytest.mark.parametrize("kind", ["kuberay", "slurm", "ray"])
def test_gpus_that_would_stand_idle_are_refused(
    tmp_path: Path, kind: str, mesh: Any, device: str, more: tuple[str, ...], found: str, remedy: str
) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(to_yaml(config(tmp_path / "run", tmp_path / "dataset", mesh=mesh, device=device)))
    more = more if "--cpus" in more else (*more, "--cpus", "64")
    of_pods = ("--image", "x:1", "--storage", f"shared:{tmp_path}") if kind == "kuberay" else ()
    done = cluster(run, "--kind", kind, *more, *of_pods)
    assert isinstance(done.exception, InputError)
    assert re.search(found, done.exception.value)
    assert remedy in done.exception.remedy
    assert not done.stdout


def test_the_remedies_of_idle_gpus_work(tmp_path: Path) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(to_yaml(config(tmp_path / "run", tmp_path / "dataset", mesh={"ring": 4})))
    for more in (("--nodes", "1", "--gpus", "4"), ("--nodes", "2", "--gpus", "8", "mesh.replica=4")):
        assert cluster(run, "--kind", "slurm", "--cpus", "8", *more).exit_code == 0
    for more in (("--nodes", "1", "--cpus", "8"), ("--nodes", "2", "--cpus", "2"), ("--nodes", "4", "--cpus", "1")):
        assert cluster(run, "--kind", "slurm", *more).exit_code == 0


@pytest.mark.parametrize(
    ("kind", "option", "remedy"),
    [
        ("ray", ("--image", "x:1"), "leave --image out, or --kind kuberay"),
        ("slurm", ("--image", "x:1"), "leave --image out, or --kind kuberay"),
        ("slurm", ("--storage", "a:/b"), "leave --storage out, or --kind kuberay"),
        ("ray", ("--option=--partition=gpu",), "leave --option out, or --kind slurm"),
        ("kuberay", ("--option=--partition=gpu",), "leave --option out, or --kind slurm"),
        ("ray", ("--memory", "64"), "leave --memory out, or --kind kuberay or --kind slurm"),
    ],
)
def test_options_of_other_kinds_are_refused(tmp_path: Path, kind: str, option: tuple[str, ...], remedy: str) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(to_yaml(config(tmp_path / "run", tmp_path / "dataset")))
    of_pods = ("--image", "x:1", "--storage", f"shared:{tmp_path}") if kind == "kuberay" else ()
    done = cluster(run, "--kind", kind, *of_pods, *option)
    assert isinstance(done.exception, InputError)
    name, value = option[0].partition("=")[0], option[-1].partition("=")[2] or option[-1]
    assert done.exception.value == f"--kind {kind} and {name} {value}"
    assert done.exception.remedy == remedy
    assert cluster(run, "--kind", kind, *of_pods).exit_code == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"out": "/runs/mine"}, "out=/runs/mine"),
        ({"data__dataset": "/data/set"}, "data.dataset=/data/set"),
        ({"data__dataset": {"/mnt/shared/a": 1.0, "/data/b": 2.0}}, "data.dataset=/data/b"),
        ({"data__dataset": "/mnt/shared/../local/set"}, "data.dataset=/mnt/local/set"),
        ({"data__dataset": "/mnt/shared2/set"}, "data.dataset=/mnt/shared2/set"),
        ({"checkpoint__location": "/scratch/saved"}, "checkpoint.location=/scratch/saved"),
        ({"data__segments": [{"until": 2, "dataset": "/other"}, {}]}, "data.dataset=/other"),
    ],
)
def test_paths_outside_of_the_mount_are_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    inside, out = {"data__dataset": "/mnt/shared/set"}, Path("/mnt/shared/runs/mine")
    run = tmp_path / "run.yaml"
    change = dict(change)
    run.write_text(to_yaml(config(Path(change.pop("out", out)), tmp_path, **{**inside, **change})))
    done = cluster(run, "--kind", "kuberay", "--image", "x:1", "--storage", "shared:/mnt/shared")
    assert isinstance(done.exception, InputError), done.output
    assert done.exception.value == f"{named}; the volume is mounted at /mnt/shared"
    run.write_text(to_yaml(config(out, tmp_path, **inside)))
    assert cluster(run, "--kind", "kuberay", "--image", "x:1", "--storage", "shared:/mnt/shared/").exit_code == 0


@pytest.mark.parametrize("where", ["/", "/etc/longreel", "/mnt/../.."])
def test_a_mount_that_would_hide_the_pods_own_is_refused(where: str) -> None:
    with pytest.raises(InputError, match="the volume is mounted in a folder of the pods"):
        SharedVolume("shared", where).refuse_outside([])


def test_a_run_that_cannot_work_is_refused_before_it_waits_in_a_queue(tmp_path: Path, dataset: Path) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(to_yaml(config(tmp_path / "run", dataset, data__pack_tokens=8)))
    done = cluster(run, "--kind", "slurm")
    assert isinstance(done.exception, InputError)
    assert "data.pack_tokens" in done.exception.value
    run.write_text(to_yaml(config(tmp_path / "run", tmp_path / "away", data__pack_tokens=8)))
    done = cluster(run, "--kind", "slurm")
    assert done.exit_code == 0
    assert f"not checked, because it is not here: {tmp_path / 'away'}" in done.stderr.replace("\n", "")


def test_what_a_run_says_ends_no_script(tmp_path: Path, run: str) -> None:
    text = slurm("mine", f"{run}\n# END OF RUN\nEND OF RUN\ntouch {tmp_path}/struck\n", MACHINES, "/bin", "/shared")
    assert "<< 'END OF RUN.'" in text
    with pytest.raises(InputError, match="an option of sbatch is one line"):
        slurm("mine", run, MACHINES, "/bin", "/shared", ("--partition=a\ntouch x",))


@pytest.mark.parametrize(
    ("folder", "name"),
    [("My Run", "my-run"), ("2024", "run-2024"), ("___", "run"), ("x" * 90, "x" * 40), ("a" * 39 + "-b", "a" * 39)],
)
def test_a_job_has_a_name_that_kubernetes_takes(folder: str, name: str) -> None:
    assert job_name(folder) == name
