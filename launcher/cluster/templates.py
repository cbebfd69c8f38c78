"""What starts a Ray cluster for a run: a RayJob for KubeRay, a batch script for Slurm, a script for plain machines.

Files of `job_templates/`, filled in. In each of them
- Ray asks for a token: an open Ray port runs anybody's code (CVE-2023-48022, CVE-2025-62593);
- the head has no CPUs of its own to give, so no rank runs on it, and workers may come and go;
- a node that is cut off is called dead after 24 s, where Ray itself takes 65 s;
- the end of a run leaves a last checkpoint: there is time for it between being told and being killed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from string import Template
from typing import Any

import yaml

from launcher.cluster.machines import Machines, SharedVolume
from parallel import shell
from parallel.errors import InputError

PORT, DASHBOARD = 6379, 8265
STOP_SECONDS = 1800  # between being told to stop and being killed, for a last checkpoint
JOIN_SECONDS = 300  # for all nodes of a Slurm job to join
NOTICE_SECONDS = 600  # before the time of a Slurm job is up
HEALTH = {  # of the head towards its nodes: 4 x (1 + 5) s; by itself Ray takes 5 x (3 + 10) s
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "4",
}
# gRPC's own way to an address needs a DNS server; this one takes names as the machine knows them
SETTINGS = {**HEALTH, "GRPC_DNS_RESOLVER": "native"}
LONGEST_NAME = 40  # of a job
HEAD_CPUS, HEAD_GIB = 4, 16  # of a head that runs no ranks


def job_name(folder: str) -> str:
    """A name that Kubernetes and Slurm take, of the name of a run folder: KubeRay adds to it, and allows 63 letters."""
    name = re.sub("[^a-z0-9-]+", "-", folder.lower()).strip("-")[:LONGEST_NAME].strip("-")
    return name if name[:1].isalpha() else f"run-{name}".strip("-")


def kuberay(
    name: str,
    run: str,
    machines: Machines,
    image: str,
    storage: SharedVolume,
    ray_version: str,
    metadata: Mapping[str, str],
) -> str:
    """A RayJob with its cluster and its run file, for `kubectl apply -f`.

    Args:
        name: of the RayJob, in letters that Kubernetes takes.
        run: the YAML of the run, whose paths lie on `storage`.
        machines: of the workers.
        image: with Python, Ray and longreel.
        storage: of datasets and run folders.
        ray_version: of the image.
        metadata: by which `longreel list` knows the job.
    """
    text, health = _template("kuberay.yaml"), [{"name": key, "value": value} for key, value in HEALTH.items()]
    values: dict[str, Any] = {"name": name, "claim": storage.claim, "mount": storage.path}
    values |= {"image": image, "environment": health}

    def pod(cpus: int, gib: int, gpus: int) -> Any:
        takes = {"cpu": str(cpus), "memory": f"{gib}Gi"}
        if gpus:
            takes["nvidia.com/gpu"] = str(gpus)
        return _filled(yaml.safe_load(_template("pod.yaml")), {**values, "takes": takes})

    values |= {
        "run": run,
        "metadata": dict(metadata),
        "stop_seconds": STOP_SECONDS,
        "ray_version": ray_version,
        "nodes": machines.nodes,
        "head_pod": pod(HEAD_CPUS, HEAD_GIB, 0),
        "worker_pod": pod(machines.cpus, machines.gib, machines.gpus),
    }
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    documents = [_filled(one, values) for one in yaml.safe_load_all(text)]
    written = yaml.dump_all(documents, Dumper=_Plain, sort_keys=False, width=120)
    return _Template(head).substitute(name=name) + written


def slurm(name: str, run: str, machines: Machines, binaries: str, folder: str, more: tuple[str, ...] = ()) -> str:
    """A batch script: Ray on all nodes by `ray symmetric-run`, the run on the first of them.

    Args:
        name: of the job.
        run: the YAML of the run, whose paths lie on storage that all nodes see.
        machines: all nodes of the job; the first is the head too, and ranks run on it.
        binaries: folder with `python`, `ray` and `longreel`, the same on every node.
        folder: on that storage, for the token, the run file and the state of the job.
        more: further lines of options, such as --partition=gpu.
    """
    options = [
        f"--job-name={name}", f"--nodes={machines.nodes}", "--ntasks-per-node=1",
        f"--cpus-per-task={machines.cpus}", *([f"--gpus-per-node={machines.gpus}"] if machines.gpus else []),
        f"--mem={machines.gib}G", "--output=%x-%j.log", "--open-mode=append", "--requeue", "--no-kill",
        f"--signal=B:USR1@{NOTICE_SECONDS}", *more,
    ]  # fmt: skip
    sbatch = "\n".join(f"#SBATCH {option}" for option in options)
    settings = " ".join(f"{key}={value}" for key, value in SETTINGS.items())
    last = "END OF RUN"
    while last in run:  # a caption of the run may say so, too
        last += "."
    for line in more:
        if not line.strip() or set(line) & set("\n\r\0"):
            raise InputError("an option of sbatch is one line", f"--option={line!r}", "--option=--partition=gpu")
    return _Template(_template("slurm.sh")).substitute(
        sbatch=sbatch,
        binaries=shell.quote(binaries),
        folder=shell.quote(folder),
        settings=settings,
        join_seconds=JOIN_SECONDS,
        run=run.rstrip(),
        end=last,
        cpus=machines.cpus,
        gpus=machines.gpus,
        port=PORT,
    )


def plain(binaries: str) -> str:
    """A script for machines without a scheduler: `head` on one, `worker HEAD` on the others.

    Args:
        binaries: folder with `python` and `ray`, the same on every machine.
    """
    settings = " ".join(f"{key}={value}" for key, value in SETTINGS.items())
    return _Template(_template("plain.sh")).substitute(
        binaries=shell.quote(binaries), settings=settings, port=PORT, dashboard=DASHBOARD
    )


class _Template(Template):
    """With %{name} for what is filled in, because $ is the shell's."""

    delimiter = "%"


def _template(name: str) -> str:
    return files("launcher.cluster").joinpath("job_templates", name).read_text("utf-8")


def _filled(node: Any, values: Mapping[str, Any]) -> Any:
    """A tree of YAML with values in place of %{name}: in a text as text, alone as what they are."""
    if isinstance(node, dict):
        return {key: _filled(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, values) for value in node]
    if not isinstance(node, str):
        return node
    alone = re.fullmatch(r"%\{(\w+)\}", node)
    return values[alone[1]] if alone else _Template(node).substitute(values)


class _Plain(yaml.SafeDumper):
    """YAML as people write it: no anchors, and texts of several lines as blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        """Everything is written out."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _text)
