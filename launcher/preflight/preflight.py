"""Everything that can be found wrong with a run before a worker starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from data.planning.fitting import fullest
from data.streams.curriculum import AnyStream
from launcher.batches.datasets import check_data, notes_on_words, open_curriculum
from launcher.batches.idle_replicas import as_begun, idle_notes
from launcher.checkpoints.compatibility import changed_settings, refuse_changes, refuse_foreign, refuse_left_behind
from launcher.checkpoints.reading import newest, trusting
from launcher.checkpoints.storage import open_storage
from launcher.config.run_config import RunConfig
from launcher.config.sections import MeshConfig
from launcher.core.hardware import cores, gpus, ranks_here, refuse_unusable_gpus
from launcher.core.run_folder import RunFolder
from launcher.preflight.elastic_mesh import mesh_for
from launcher.preflight.memory_floor import Parameters, memory_here, parameters_of, refuse_too_large, usual_packs
from launcher.training.hang_timeout import RATES, Kind, pack_flops, step_seconds
from launcher.training.run_kernel import refuse_kernels
from parallel import shell
from parallel.errors import InputError
from parallel.mesh import Mesh

LEAST_FILL = 0.8  # of a pack, below which the person is told


@dataclass(frozen=True)
class Ready:
    """What the checks found.

    Attributes:
        config: of the run, with what its checkpoint decides.
        step: of the checkpoint that the run will go on from; 0 for a fresh run.
        samples: that will be trained on.
        notes: what works, but perhaps not as the person thinks, one sentence each.
        flops: of the dearest pack (`patience.pack_flops`).
        parameters: of the model.
        step_tokens: of a usual step.
        epoch_steps: of an epoch of the segment that is trained next, about.
        changed: what differs from the checkpoint that the run will go on from, one sentence each; `notes` tell it.
    """

    config: RunConfig
    step: int
    samples: int
    notes: tuple[str, ...]
    flops: float
    parameters: Parameters
    step_tokens: float
    epoch_steps: float
    changed: tuple[str, ...] = ()


def check(config: RunConfig, ranks_available: int | None = None) -> Ready:
    """Check dataset, packing, mesh and checkpoint of a run.

    Args:
        config: of the run.
        ranks_available: how many ranks can run; this machine's own number if not given, 0 for unknown.

    Raises:
        InputError: something cannot work.
    """
    available = ranks_here(config.device) if ranks_available is None else ranks_available
    if available and config.device == "auto":
        refuse_unusable_gpus()
    _check_mesh(config, available)
    if config.device == "cpu" or gpus() or ranks_available is None:  # else a cluster may have GPUs: its ranks say it
        refuse_kernels(config, "cuda" if gpus(config.device) else "cpu")
    storage = open_storage(RunFolder(config.out).checkpoints, config.checkpoint.location)
    found, broken = newest(storage, trusting)
    refuse_left_behind(RunFolder(config.out), storage, found)
    state = found.state if found else None
    config = as_begun(config, found)
    if found is not None:
        refuse_foreign(found, config)
        refuse_changes(found, config)
    curriculum = open_curriculum(config, state.datasets if state else ())
    check_data(config, curriculum)
    if state is not None:
        curriculum.verify(state.position)
    at = curriculum.segment(state.step if state else 0)
    notes = [f"checkpoint {name} is broken and will be passed over: {reason}" for name, reason in broken]
    changed = changed_settings(found, _on_its_mesh(config, found.state.step)) if found is not None else []
    if found is not None and changed:
        notes.append(f"changed since step {found.state.step}: {'; '.join(changed)}")
    notes += idle_notes(config, begun=found is not None)
    for stream in curriculum.streams[at:]:
        refuse_missing_shards(stream)
        notes += notes_on(stream, max(mesh.sequence_ranks for mesh in config.meshes))
    notes += notes_on_words(config, curriculum, at)
    flops = pack_flops(config.model, curriculum)
    notes += notes_on_time(config, flops, "cpu" if available and not gpus(config.device) else "cuda")
    parameters, packs = parameters_of(config), usual_packs(curriculum, at)
    machine = memory_here(config) if available else None
    if machine is not None:
        longest = None if found is not None else int(curriculum.streams[at].plan.lengths.max())
        refuse_too_large(config, parameters, packs, at, machine, longest)
    plan, step_tokens = curriculum.streams[at].plan, packs[0] * config.data.packs_per_step
    epoch_steps = float(plan.lengths.sum()) / step_tokens
    return Ready(
        config, state.step if state else 0, plan.mix.samples, tuple(notes), flops, parameters, step_tokens, epoch_steps,
        tuple(changed),
    )  # fmt: skip


def notes_on_time(config: RunConfig, flops: float, kind: Kind) -> Iterator[str]:
    """What a person who chose how long a step may take should know of how long it will."""
    seconds = max(step_seconds(flops, config.data.packs_per_step, mesh, kind, config.dtype) for mesh in config.meshes)
    for name in ("collective_timeout_seconds", "hang_timeout_seconds"):
        chosen = getattr(config.restart, name)
        if chosen is not None and chosen < seconds:
            rate = RATES[kind][config.dtype]
            yield (
                f"restart.{name}={chosen:g} may be too short: the dearest step has {flops:.1e} operations a pack, "
                f"{seconds:,.0f} s at {rate / 1e12:g} TFLOP/s a rank; leave it out to have it chosen"
            )


def notes_on(stream: AnyStream, ranks: int = 1) -> Iterator[str]:
    """What a person should know of a stream: what is left out, what is shorter than asked, packs that stay empty.

    `ranks` share a pack.
    """
    yield from stream.source.notes()
    window = stream.plan.window_at(0, 0, 0)
    fill = float(stream.plan.lengths[window.samples].sum()) / (len(window) * stream.pack_tokens)
    if fill < LEAST_FILL:
        tokens = int(stream.plan.lengths.sum())
        better = fullest(stream.plan.lengths[window.samples].tolist(), stream.pack_tokens, LEAST_FILL, ranks)
        fewer = f"data.pack_tokens={better}" if better else "fewer tokens a pack"
        yield (
            f"packs of data.pack_tokens={stream.pack_tokens} are {fill:.0%} full: an epoch has {tokens:,} tokens in "
            f"{len(stream.plan.lengths):,} samples; {fewer}, or more samples, waste less"
        )


def refuse_missing_shards(stream: AnyStream) -> None:
    """Each shard is there and as long as its samples reach: two calls of the system a shard, no reading.

    Raises:
        InputError: names the first that is not.
    """
    for shard, least in stream.source.shards().items():
        size = shard.stat().st_size if shard.is_file() else -1
        if size < least:
            found = "is missing" if size < 0 else f"has {size:,} bytes, its samples reach to {least:,}"
            remedy = shell.join(["longreel", "data", "check", str(shard.parent.parent), "--repair"])
            raise InputError("every shard of a dataset is there", f"{shard} {found}", remedy)


def _on_its_mesh(config: RunConfig, step: int) -> RunConfig:
    """The run as it is started after `step` steps: a segment may have a mesh of its own."""
    mesh = config.mesh_after(step)
    of_mesh = MeshConfig(replica=mesh.replica, ring=mesh.ring, ulysses=mesh.ulysses)
    return config.model_copy(update={"mesh": of_mesh})


def _check_mesh(config: RunConfig, available: int) -> None:
    mesh = max(config.meshes, key=lambda one: one.ranks)
    if available and mesh.ranks > available:
        seen = gpus(config.device)
        what = f"{seen} GPUs" if seen else f"{cores()} cores, for at most {available} ranks"
        raise InputError(
            "a mesh has no more ranks than can run",
            f"{mesh} = {mesh.ranks} ranks; this machine has {what}",
            f"{_smaller(config, mesh, available)}, or a cluster with --address",
        )


def _smaller(config: RunConfig, mesh: Mesh, available: int) -> str:
    """The settings of the largest mesh that this machine can run."""
    fits = mesh_for(mesh, config.model.heads, available, (available,))
    if fits is None or len(config.meshes) > 1:
        return "a smaller mesh"
    return f"mesh.replica={fits.replica} mesh.ring={fits.ring} mesh.ulysses={fits.ulysses}"
