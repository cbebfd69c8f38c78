"""What starts a Ray cluster for a run: a RayJob for KubeRay, a batch script for Slurm, a script for plain machines.

Pure text. In each of them
- Ray asks for a token: an open Ray port runs anybody's code (CVE-2023-48022, CVE-2025-62593);
- the head has no CPUs of its own to give, so no rank runs on it, and workers may come and go;
- a node that is cut off is called dead after 24 s, where Ray itself takes 65 s;
- the end of a run leaves a last checkpoint: there is time for it between being told and being killed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from parallel import shell
from parallel.errors import InputError

if TYPE_CHECKING:
    from parallel.mesh import Mesh

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
KINDS_OF = {  # of options of the command that not every kind of cluster has
    "image": ("kuberay",), "storage": ("kuberay",), "option": ("slurm",), "memory": ("kuberay", "slurm"),
}  # fmt: skip


@dataclass(frozen=True)
class Machines:
    """What ranks run on, beside the head.

    Attributes:
        nodes: how many.
        gpus: of each; 0 for ranks on CPUs.
        cpus: of each; at least one a rank.
        gib: of memory of each.
    """

    nodes: int
    gpus: int
    cpus: int
    gib: int

    @property
    def ranks(self) -> int:
        """That one node has room for."""
        return min(self.gpus, self.cpus) if self.gpus else self.cpus

    def refuse_small(self, mesh: Mesh) -> None:
        """A mesh fits on these machines, each ulysses group on one of them.

        Raises:
            InputError: it does not.
        """
        from launcher.preflight.elastic_mesh import mesh_for  # it loads torch

        fits = mesh_for(mesh, mesh.ulysses, mesh.ranks, [self.ranks] * self.nodes)
        if fits != mesh:
            kind = "GPUs and CPUs" if self.gpus else "CPUs"
            found = f"{mesh} = {mesh.ranks} ranks, {self.nodes} nodes with {kind} for {self.ranks} each"
            remedy = f"--nodes {-(-mesh.ranks // max(1, self.ranks))} or more, or a smaller mesh"
            if self.ranks < mesh.ulysses:
                remedy = "nodes with more GPUs, or fewer mesh.ulysses and more mesh.ring"
            raise InputError("a mesh fits on the machines, a ulysses group on one of them", found, remedy)

    def refuse_idle(self, meshes: Sequence[Mesh], device: str) -> None:
        """No GPU is paid for that no rank ever uses, and no node of CPUs.

        Args:
            meshes: of the run, of which the largest counts.
            device: of the run.

        Raises:
            InputError: some stand idle.
        """
        mesh = max(meshes, key=lambda one: one.ranks)
        if not self.gpus:
            self._refuse_idle_nodes(mesh)
            return
        rule, have = "every GPU has a rank", f"--nodes {self.nodes} --gpus {self.gpus}"
        if device == "cpu":
            found = f"{have}, and the run has device: cpu"
            raise InputError(rule, found, "device=auto, or --gpus 0")
        if self.cpus < self.gpus:
            found = f"{have} --cpus {self.cpus}: a rank takes a CPU beside its GPU"
            raise InputError(rule, found, f"--cpus {self.gpus} or more, or --gpus {self.cpus}")
        there = self.nodes * self.gpus
        if mesh.ranks < there:
            found = f"{have}: {there} GPUs; the run's mesh, {mesh}, has {mesh.ranks} ranks: {there - mesh.ranks} idle"
            full, over = divmod(mesh.ranks, self.gpus)
            fewer = f"--nodes {full}" if full and not over else f"--nodes 1 --gpus {mesh.ranks}" if not full else ""
            more = (
                f"mesh.replica={there // (mesh.ring * mesh.ulysses)}" if there % (mesh.ring * mesh.ulysses) == 0 else ""
            )
            remedy = ", or ".join(filter(None, (fewer, more))) or "fewer or smaller nodes, or a larger mesh"
            raise InputError(rule, found, remedy)

    def _refuse_idle_nodes(self, mesh: Mesh) -> None:
        """Ranks fill one node after the other, a ulysses group on one; CPUs beside them help no rank of another."""
        taken = -(-mesh.ranks // (self.cpus // mesh.ulysses * mesh.ulysses))
        if taken < self.nodes:
            found = f"--nodes {self.nodes} --cpus {self.cpus}; the run's mesh, {mesh}, has {mesh.ranks} ranks, which "
            found += f"fill {taken}: {self.nodes - taken} idle"
            each, over = divmod(mesh.ranks, self.nodes)
            spread = f", or --cpus {each}" if not over and each % mesh.ulysses == 0 else ""
            raise InputError("every node has a rank", found, f"--nodes {taken}{spread}, or a larger mesh")


def refuse_foreign_options(kind: str, given: Mapping[str, Any]) -> None:
    """Options that a kind of cluster has no use for are not passed over.

    Args:
        kind: of cluster.
        given: options by name, with what they were given; None for those that were not.

    Raises:
        InputError: names the first, and the kinds that have it.
    """
    for name, value in given.items():
        kinds = KINDS_OF[name]
        if value is not None and kind not in kinds:
            found = f"--kind {kind} and --{name} {shell.quote(str(value[0] if isinstance(value, list) else value))}"
            remedy = f"leave --{name} out, or --kind {' or --kind '.join(kinds)}"
            raise InputError(f"--{name} is of --kind {' and '.join(kinds)}", found, remedy)


@dataclass(frozen=True)
class Storage:
    """A volume that all pods see: a claim of Kubernetes, and where it is mounted."""

    claim: str
    path: str

    def refuse_outside(self, paths: Iterable[tuple[str, str]]) -> None:
        """Every path of a run lies on the volume: what a pod writes elsewhere is gone with it.

        Args:
            paths: (key of the run, absolute path).

        Raises:
            InputError: names those that do not, and the volume.
        """
        root = PurePosixPath(self.path)
        if len(root.parts) < 2 or ".." in root.parts or root.is_relative_to("/etc/longreel"):
            remedy = "a folder of its own, such as --storage shared:/mnt/shared"
            raise InputError("the volume is mounted in a folder of the pods", f"--storage {self.claim}:{root}", remedy)
        outside = [f"{key}={path}" for key, path in paths if not PurePosixPath(path).is_relative_to(root)]
        if outside:
            remedy = f"paths below {root}, or --storage {self.claim}:FOLDER that holds them all".replace(
                "FOLDER", common(outside)
            )
            found = f"{'; '.join(outside)}; the volume is mounted at {root}"
            raise InputError("every path of a run lies on the volume that all pods see", found, remedy)


def common(settings: Sequence[str]) -> str:
    """The folder that holds all paths of key=path."""
    paths = [PurePosixPath(one.partition("=")[2]).parent for one in settings]
    return os.path.commonpath([str(path) for path in paths])


def job_name(folder: str) -> str:
    """A name that Kubernetes and Slurm take, of the name of a run folder: KubeRay adds to it, and allows 63 letters."""
    name = re.sub("[^a-z0-9-]+", "-", folder.lower()).strip("-")[:LONGEST_NAME].strip("-")
    return name if name[:1].isalpha() else f"run-{name}".strip("-")


def kuberay(
    name: str,
    run: str,
    machines: Machines,
    image: str,
    storage: Storage,
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
    files = {"name": "run", "configMap": {"name": f"{name}-run"}}
    shared = {"name": "storage", "persistentVolumeClaim": {"claimName": storage.claim}}
    quick = {"name": "shm", "emptyDir": {"medium": "Memory"}}

    def pod(cpus: int, gib: int, gpus: int) -> dict[str, Any]:
        takes: dict[str, Any] = {"cpu": str(cpus), "memory": f"{gib}Gi"}
        if gpus:
            takes["nvidia.com/gpu"] = str(gpus)
        container = {
            "name": "ray",
            "image": image,
            "env": [{"name": key, "value": value} for key, value in HEALTH.items()],
            "resources": {"requests": takes, "limits": takes},
            "volumeMounts": [
                {"name": "storage", "mountPath": storage.path},
                {"name": "run", "mountPath": "/etc/longreel"},
                {"name": "shm", "mountPath": "/dev/shm"},
            ],
        }
        volumes = [shared, files, quick]
        return {"spec": {"terminationGracePeriodSeconds": 60, "containers": [container], "volumes": volumes}}

    cluster = {
        "rayVersion": ray_version,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},
            "template": pod(HEAD_CPUS, HEAD_GIB, 0),
        },
        "workerGroupSpecs": [
            {
                "groupName": "ranks",
                "replicas": machines.nodes,
                "minReplicas": machines.nodes,
                "maxReplicas": machines.nodes,
                "rayStartParams": {},
                "template": pod(machines.cpus, machines.gib, machines.gpus),
            }
        ],
    }
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": {
            "metadata": dict(metadata),
            "entrypoint": "longreel train /etc/longreel/run.yaml --address auto",
            "runtimeEnvYAML": yaml.safe_dump({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}}),
            "backoffLimit": 3,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 3600,
            "rayClusterSpec": cluster,
        },
    }
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-run"},
        "data": {"run.yaml": run},
    }
    head = f"""\
# longreel on KubeRay 1.6 or newer:  kubectl apply -f THIS.yaml
# Follow it:  kubectl logs -f job/{name}
# Stop it with a last checkpoint:  longreel stop, see docs/cluster.md
# KubeRay makes the token that Ray asks for, as a Secret with the name of the RayCluster:
#   kubectl get secret CLUSTER -o jsonpath='{{.data.auth_token}}' | base64 -d
# A job that fails is started again on new pods, and goes on from its last checkpoint.
"""
    return head + yaml.dump_all([config, job], Dumper=_Plain, sort_keys=False, width=120)


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
    quoted = shell.quote
    last = "END OF RUN"
    while last in run:  # a caption of the run may say so, too
        last += "."
    for line in more:
        if not line.strip() or set(line) & set("\n\r\0"):
            raise InputError("an option of sbatch is one line", f"--option={line!r}", "--option=--partition=gpu")
    return f"""\
#!/usr/bin/env bash
{sbatch}
# longreel on Slurm:  sbatch THIS.sh
# Before the time is up, or when the job is preempted, it saves a checkpoint and puts itself into the queue again.
# Stop it with a last checkpoint:  scancel --batch --signal=TERM JOB
set -euo pipefail
export PATH={quoted(binaries)}:"$PATH"
export STATE={quoted(folder)}/"slurm-$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}"
export {settings} RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT={JOIN_SECONDS}

# Ray asks for a token, which is this job's alone
(umask 077 && mkdir -p "$STATE" && od -An -N32 -tx1 /dev/urandom | tr -d ' \\n' > "$STATE/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$STATE/token"

cat > "$STATE/run.yaml" << '{last}'
{run.rstrip()}
{last}

HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# on a machine itself its name often means 127.0.1.1
ADDRESS=$(srun --nodes=1 --ntasks=1 --nodelist="$HEAD" hostname -I | cut -d " " -f 1)
export HEAD ADDRESS
export NODES="$SLURM_JOB_NUM_NODES" RESOURCES="--num-cpus={machines.cpus} --num-gpus={machines.gpus}"
export TRAIN='echo $$ > "$STATE/pid"; exec longreel train "$STATE/run.yaml" --address auto'

# on every node: the first starts the head and the run; the others join, and join again if their Ray ends
task='
cluster() {{ ray symmetric-run --address "$ADDRESS:{PORT}" --min-nodes "$NODES" $RESOURCES -- "$@"; }}
if [ "$SLURM_PROCID" = 0 ]; then
  code=0
  cluster bash -c "$TRAIN" || code=$?
  echo "$code" > "$STATE/code.new"; mv "$STATE/code.new" "$STATE/code"
  exit "$code"
fi
until [ -e "$STATE/code" ]; do cluster true || true; sleep 5; done
'
again=no
stop() {{ srun --overlap --nodes=1 --ntasks=1 --nodelist="$HEAD" kill -TERM "$(cat "$STATE/pid")" || true; }}
trap 'again=yes; stop' USR1
trap 'stop' TERM

srun --no-kill bash -c "$task" &
step=$!
until [ -e "$STATE/code" ] || ! kill -0 "$step" 2> /dev/null; do sleep 1; done
code=$(cat "$STATE/code" 2> /dev/null || echo 1)
kill "$step" 2> /dev/null || true  # workers would notice the end of their head only after a minute
rm -rf "$STATE"
if [ "$code" = 75 ] && [ "$again" = yes ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""


def plain(binaries: str) -> str:
    """A script for machines without a scheduler: `head` on one, `worker HEAD` on the others.

    Args:
        binaries: folder with `python` and `ray`, the same on every machine.
    """
    settings = " ".join(f"{key}={value}" for key, value in SETTINGS.items())
    return f"""\
#!/usr/bin/env bash
# Ray on plain machines, for longreel. Every machine has the same packages, and storage that all see.
#   on one:         bash THIS.sh head
#   token:          copy ~/.ray/auth_token from there to the others and to where you submit from, mode 0600
#   on the others:  bash THIS.sh worker HEAD          they may come and go
#   from anywhere:  longreel submit RUN.yaml --address http://HEAD:{DASHBOARD}
# What follows is passed on to `ray start`: bash THIS.sh head --num-cpus=64 --num-gpus=8 lets ranks run on the head too.
set -euo pipefail
export PATH={shell.quote(binaries)}:"$PATH"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="${{RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}}"
export {settings}

case "${{1:-}}" in
head)
  if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
    (umask 077 && mkdir -p "$(dirname "$RAY_AUTH_TOKEN_PATH")" &&
      od -An -N32 -tx1 /dev/urandom | tr -d ' \\n' > "$RAY_AUTH_TOKEN_PATH")
  fi
  chmod 600 "$RAY_AUTH_TOKEN_PATH"
  exec ray start --head --block --disable-usage-stats --port={PORT} \\
    --dashboard-host=0.0.0.0 --dashboard-port={DASHBOARD} --num-cpus=0 --num-gpus=0 "${{@:2}}"
  ;;
worker)
  : "${{2:?the head: bash $0 worker HEAD}}"
  if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
    echo "no token: copy $RAY_AUTH_TOKEN_PATH from $2, mode 0600" >&2
    exit 2
  fi
  # a node that was cut off ends its Ray when it hears that it was given up: it joins again
  until ray start --address="$2:{PORT}" --block --disable-usage-stats "${{@:3}}"; do sleep 2; done
  ;;
*)
  echo "bash $0 head | worker HEAD" >&2
  exit 2
  ;;
esac
"""


class _Plain(yaml.SafeDumper):
    """YAML as people write it: no anchors, and texts of several lines as blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        """Everything is written out."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _text)
