"""Commands for clusters: submit, status, logs, stop, list, cluster. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from launcher.cli.options import Json, with_options
from launcher.core.terminal import Console, visible
from parallel import shell
from parallel.errors import InputError

if TYPE_CHECKING:
    from launcher.cluster.capacity import Node
    from launcher.cluster.job import Job
    from launcher.cluster.machines import Machines
    from launcher.config.run_config import RunConfig

Address = Annotated[str, typer.Option(help="Ray head, as http://HEAD:8265.")]
NoToken = Annotated[bool, typer.Option("--no-token", help="Connect without a token, to a cluster that asks for none.")]
Id = Annotated[str, typer.Argument(help="Job id, as longreel submit printed it.")]
CODES = {"done": 0, "stopped": 75, "refused": 2, "failed": 1}
COLOURS = {"done": "green", "failed": "red", "refused": "red", "waiting": "yellow", "stopped": "yellow"}


def submit(
    run: Annotated[Path, typer.Argument(help="Run, a YAML file; its paths must be on storage that all nodes see.")],
    address: Address,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings as key=value, such as steps=20 mesh.ring=2.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print its output until it ends.")] = False,
    no_token: NoToken = False,
    json_: Json = False,
) -> None:
    """Submit a run to a Ray cluster, from any machine that reaches its head: ships the code, prints a job id.

    Resumes from the newest checkpoint if the run folder holds one. Waits for free slots while other runs hold them.

    Example: longreel submit recipes/quickstart.yaml out=/shared/runs/mine --address http://head:8265
    """
    from launcher.cluster.jobs import Jobs
    from launcher.config.loading import load
    from launcher.supervision.run import absolute

    jobs = Jobs(address, no_token)
    made = jobs.submit(absolute(load(run, overrides or [])))
    if json_:
        print(json.dumps({"id": made.id, "room": asdict(made.capacity)}))
    else:
        console = Console()
        console.print(f"{made.id}: {made.capacity}", markup=False, highlight=False, soft_wrap=True)
        if not follow:
            for command in ("logs -f", "status", "stop"):
                line = f"longreel {command} {made.id} --address {shell.quote(jobs.url)}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    if follow:
        for line in jobs.follow(made.id):
            print(visible(line), flush=True)
        raise typer.Exit(CODES.get(jobs.wait(made.id, 30).state, 1))


def status(
    address: Address,
    id_: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Job id; the nodes and all jobs if not given.")
    ] = None,
    no_token: NoToken = False,
    json_: Json = False,
) -> None:
    """Print the progress of a job, or the nodes and jobs of a cluster.

    Example: longreel status mine-3fa2c1 --address http://head:8265
    """
    from launcher.cluster.jobs import Jobs

    jobs = Jobs(address, no_token)
    if id_ is not None:
        job = jobs.get(id_)
        if json_:
            print(json.dumps(asdict(job)))
        else:
            Console().print(_told(job), highlight=False, soft_wrap=True)
        return
    nodes, found = jobs.nodes(), jobs.all(whole=True)
    if json_:
        print(json.dumps({"nodes": [asdict(n) for n in nodes], "jobs": [asdict(j) for j in found]}))
        return
    console = Console()
    console.print(_capacity(nodes), highlight=False)
    console.print(_table(found) if found else "no jobs", highlight=False)


def logs(
    id_: Annotated[str, typer.Argument(metavar="ID", help="Job id, as longreel submit printed it.")],
    address: Address,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Follow until it ends; exits as the run does.")
    ] = False,
    no_token: NoToken = False,
) -> None:
    """Print the output of a job: the lines of rank 0 and the errors of all ranks.

    Example: longreel logs -f mine-3fa2c1 --address http://head:8265
    """
    from launcher.cluster.jobs import Jobs

    jobs = Jobs(address, no_token)
    if not follow:
        sys.stdout.write(visible(jobs.logs(id_)))
        return
    for line in jobs.follow(id_):
        print(visible(line), flush=True)
    raise typer.Exit(CODES.get(jobs.wait(id_, 30).state, 1))


def stop(
    id_: Annotated[str, typer.Argument(metavar="ID", help="Job id, as longreel submit printed it.")],
    address: Address,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has saved and ended.")] = True,
    no_token: NoToken = False,
    json_: Json = False,
) -> None:
    """Stop a job after its current step, with a last checkpoint. The same submit resumes it.

    Example: longreel stop mine-3fa2c1 --address http://head:8265
    """
    from launcher.cluster.jobs import Jobs
    from launcher.cluster.templates import STOP_SECONDS

    jobs, began = Jobs(address, no_token), time.monotonic()
    job = jobs.stop(id_)
    if wait:
        job = jobs.wait(id_, STOP_SECONDS + 60)
    if json_:
        print(json.dumps({**asdict(job), "seconds": time.monotonic() - began}))
    else:
        Console().print(_told(job), highlight=False, soft_wrap=True)


def list_(address: Address, no_token: NoToken = False, json_: Json = False) -> None:
    """List the jobs that longreel submitted to a cluster, newest first.

    Example: longreel list --address http://head:8265
    """
    from launcher.cluster.jobs import Jobs

    found = Jobs(address, no_token).all()
    if json_:
        print(json.dumps([asdict(job) for job in found]))
    else:
        Console().print(_table(found) if found else "no jobs", highlight=False)


@dataclass(frozen=True)
class MachineOptions:
    """What ranks run on."""

    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 1
    gpus: Annotated[int, typer.Option(min=0, help="GPUs per node.")] = 0
    cpus: Annotated[int, typer.Option(min=1, help="CPUs per node.")] = 8
    memory: Annotated[
        int | None, typer.Option(min=1, help="kuberay, slurm: memory per node [GiB]; 64 if not given.")
    ] = None


@dataclass(frozen=True)
class KindOptions:
    """What some kinds of cluster alone have a use for."""

    image: Annotated[str | None, typer.Option(help="kuberay: container image with Ray and longreel.")] = None
    storage: Annotated[str | None, typer.Option(help="kuberay: CLAIM:PATH of a volume that all pods see.")] = None
    option: Annotated[
        list[str] | None, typer.Option(help="slurm: further sbatch option, such as --partition=gpu; may be repeated.")
    ] = None


@with_options
def cluster(
    run: Annotated[Path, typer.Argument(help="Run, a YAML file; its paths must be on storage that all nodes see.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings as key=value, such as steps=20 mesh.ring=2.")
    ] = None,
    kind: Annotated[
        Literal["kuberay", "slurm", "ray"], typer.Option(help="Scheduler: Kubernetes, Slurm, or none.")
    ] = "ray",
    machines: MachineOptions = MachineOptions(),
    own: KindOptions = KindOptions(),
    out: Annotated[Path | None, typer.Option(help="File to write; printed if not given.")] = None,
) -> None:
    """Write a RayJob, a Slurm script or a shell script that starts a Ray cluster for a run, with token authentication.

    Example: longreel cluster run.yaml --kind slurm --nodes 4 --gpus 8 --cpus 64 --option=--partition=gpu --out run.sh
    """
    from launcher.cluster.machines import Machines, refuse_other_options
    from launcher.config.loading import load
    from launcher.supervision.run import absolute

    of_kind = {"image": own.image, "storage": own.storage, "option": own.option or None, "memory": machines.memory}
    refuse_other_options(kind, of_kind)
    config = absolute(load(run, overrides or []))
    there = Machines(machines.nodes, machines.gpus, machines.cpus, machines.memory or 64)
    for mesh in config.meshes:
        there.refuse_small(mesh)
    there.refuse_idle(config.meshes, config.device)
    for note in _checked(config):
        Console(stderr=True).print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
    text = _text_of(kind, config, there, own)
    if out is None:
        sys.stdout.write(text)
        return
    out.write_text(text)
    Console().print(f"{out}: its first lines say how to use it", markup=False, highlight=False, soft_wrap=True)


def _text_of(kind: str, config: RunConfig, machines: Machines, own: KindOptions) -> str:
    """What starts a cluster of this kind."""
    from launcher.cluster import templates
    from launcher.cluster.machines import SharedVolume
    from launcher.config.loading import to_yaml
    from launcher.config.run_config import paths_of

    name, binaries = templates.job_name(config.out.name), str(Path(sys.executable).parent)
    if kind == "ray":
        return templates.plain(binaries)
    if kind == "slurm":
        folder, more = str(config.out.parent), tuple(own.option or ())
        return templates.slurm(name, to_yaml(config), machines, binaries, folder, more)
    image, storage = own.image, own.storage
    claim, colon, path = (storage or "").partition(":")
    if not (image and colon and claim and path.startswith("/")):
        example = "--image registry/longreel:1 --storage shared:/mnt/shared"
        found = f"--image {image or 'not given'} --storage {storage or 'not given'}"
        raise InputError("pods have an image with longreel and a volume that all of them see", found, example)
    import ray

    from launcher.cluster.job import metadata_of

    volume, version = SharedVolume(claim, path), str(ray.__version__)
    volume.refuse_outside(paths_of(config))
    return templates.kuberay(name, to_yaml(config), machines, image, volume, version, metadata_of(config))


def _checked(config: RunConfig) -> list[str]:
    """What a person should know of a run before it waits in a queue; its data are looked at if they are here.

    Raises:
        InputError: the run cannot work.
    """
    from launcher.preflight import preflight

    away = [str(folder) for data in config.data.merged() for folder in data.folders if not folder.exists()]
    if away:
        return [f"not checked, because it is not here: {', '.join(dict.fromkeys(away))}"]
    return list(preflight.check(config, 0).notes)


def _told(job: Job) -> str:
    seconds = (job.ended or time.time()) - job.started
    colour = COLOURS.get(job.state, "cyan")
    lines = [
        f"{escape(job.id)}  [{colour}]{job.state}[/]  step {job.step}/{job.steps}  {seconds:.0f} s  {escape(job.mesh)}"
    ]
    lines.append(f"run folder: {escape(job.out)}")
    return "\n".join([*lines, escape(job.said)] if job.said else lines)


def _table(found: list[Job]) -> Table:
    table = Table("job", "state", "step", "ranks", "started", box=None, pad_edge=False)
    table.add_column("run folder", overflow="fold")
    for job in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started))
        steps = f"{job.step}/{job.steps}" if job.step else f"of {job.steps}"
        state = f"[{COLOURS.get(job.state, 'cyan')}]{job.state}[/]"
        table.add_row(escape(job.id), state, steps, str(job.ranks), when, escape(job.out))
    return table


def _capacity(nodes: list[Node]) -> str:
    kinds = ("CPU", "GPU") if any(n.total.get("GPU", 0) for n in nodes) else ("CPU",)
    total, free = (sum(n.slots(kinds, now) for n in nodes) for now in (False, True))
    return f"{len(nodes)} nodes, room for {total} ranks, {free} free"
