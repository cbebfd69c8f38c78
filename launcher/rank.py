"""One rank of a run, from start to end: the same function under Ray, plain processes, torchrun and srun."""

from __future__ import annotations

import math
import os
import socket
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from data.curriculum import Position
from launcher import checkpoint
from launcher.checkpoint import Checkpoint, TrainState
from launcher.config import OptimizerConfig, RunConfig
from launcher.feed import CHECKSUM, Batch, Feed, Problem
from launcher.folder import RunFolder, only_writer
from launcher.journal import Journal
from launcher.pulse import Pulse
from launcher.streams import open_curriculum
from models.kinds import build, build_objective
from models.latents import open_codec
from parallel.agreement import refuse_differences
from parallel.errors import InputError
from parallel.mesh import Mesh, join
from parallel.zero import Engine, engine_for

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class RankPlace:
    """Where a rank runs.

    Attributes:
        rank, world: among all.
        local_rank, local_world: among those on this node.
        address: host:port of rank 0, for meeting.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    address: str


@dataclass(frozen=True)
class Outcome:
    """How a rank ended: after the last step, or early because it was asked to stop."""

    step: int
    stopped: bool


def run(
    config: RunConfig,
    place: RankPlace,
    should_stop: Callable[[], bool] = lambda: False,
    pulse: Pulse | None = None,
) -> Outcome:
    """Train from the newest checkpoint, or from the start, to `config.steps`.

    Args:
        config: of the run; paths are the same on every rank.
        place: of this rank.
        should_stop: asked once a step; if it says so on any rank, all save a checkpoint and end.
        pulse: told how far this rank is.
    """
    folder, pulse = RunFolder(config.out), pulse or Pulse()
    with meet(config, place) as device, only_writer(folder.root, place.rank):
        pulse.enter("load", 0)
        found = find_checkpoint(config, folder)
        feed = build_feed(config, place, device, found.state if found else None)
        engine = build_engine(config, feed, device)
        set_timeouts(timedelta(seconds=config.restart.timeout_seconds))
        state = resume(folder, found, feed, engine)
        journal = Journal(folder, state.step, place.rank)
        batches = feed.batches(state.position)
        unreadable: set[str] = set()
        stopped = False
        while state.step < config.steps and not stopped:
            begin = time.perf_counter()
            pulse.enter("data", state.step + 1)
            batch = next(batches)
            waited = time.perf_counter() - begin
            pulse.enter("agree", state.step + 1)
            weight, stopped, problems = agree(batch, should_stop(), config.mesh.mesh(), device)
            if problems:
                unreadable |= {problem.uid for problem in problems}
                refuse_many(unreadable, problems, config.data.tolerate)
                journal.problems(state.step + 1, problems)
                batch = feed.without(batch, problems)
                weight, stopped, _ = agree(batch, stopped, config.mesh.mesh(), device)
            rate = learning_rate(config.optimizer, state.step, config.steps)
            loss, norm = train_step(engine, feed, batch, weight, rate, device, pulse)
            state = TrainState(batch.position, feed.datasets(batch.position))
            refuse_nonsense(state.step, loss, norm, batch)
            journal.write(
                state.step, batch, loss=loss, grad_norm=norm, learning_rate=rate,
                seconds=time.perf_counter() - begin, data_seconds=waited, flops=flops(engine, config, batch),
            )  # fmt: skip
            if state.step % config.checkpoint.every == 0 or state.step == config.steps or stopped:
                begin = time.perf_counter()
                pulse.enter("save", state.step)
                saved = checkpoint.save(folder.checkpoints, state, engine, config)
                journal.event("checkpoint", step=state.step, path=str(saved), seconds=time.perf_counter() - begin)
        pulse.enter("end", state.step)
        batches.close()
        journal.close()
        engine.destroy()
    return Outcome(state.step, stopped and state.step < config.steps)


@contextmanager
def meet(config: RunConfig, place: RankPlace) -> Iterator[torch.device]:
    """Join the other ranks; gives this rank's device."""
    os.environ.update(RANK=str(place.rank), WORLD_SIZE=str(place.world), LOCAL_RANK=str(place.local_rank))
    host, _, port = place.address.rpartition(":")
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=port)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed uses old names
    if torch.cuda.is_available():
        visible = torch.cuda.device_count()  # Ray shows a rank its own GPU alone
        device, backend = torch.device("cuda", place.local_rank % visible), "nccl"
        torch.cuda.set_device(device)
    else:
        device, backend = torch.device("cpu"), "gloo"
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // place.local_world))
        if host in ("127.0.0.1", "localhost"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # listen on loopback only
    timeout = timedelta(seconds=config.restart.timeout_seconds)
    store = meeting_store(place, timeout)
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, timeout=timeout)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def set_timeouts(timeout: timedelta) -> None:
    """Give every process group the run's timeout: DeepSpeed clones its own, with half an hour."""
    for group in dist.distributed_c10d._world.pg_map:
        dist.distributed_c10d._set_pg_timeout(timeout, group)


def meeting_store(place: RankPlace, timeout: timedelta) -> Store:
    """Where ranks find each other: torchrun's own store, or one of rank 0 that listens on the given address alone."""
    host, _, port = place.address.rpartition(":")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return PrefixStore(f"attempt-{attempt}", TCPStore(host, int(port), place.world, False, timeout))
    if place.rank > 0:
        return TCPStore(host, int(port), place.world, False, timeout)
    listener = socket.create_server((host, int(port)))
    return TCPStore(host, int(port), place.world, True, timeout, master_listen_fd=listener.detach())


def build_feed(config: RunConfig, place: RankPlace, device: torch.device, state: TrainState | None = None) -> Feed:
    """Data, codec and objective of this rank; `state` is that of the checkpoint to go on from."""
    dtype = DTYPES[config.dtype]
    codec = open_codec(config.codec, config.model.patch, dtype, device)
    curriculum = open_curriculum(config, codec.geometry, state.datasets if state else ())
    groups = join(config.mesh.mesh(), place.rank, timedelta(seconds=config.restart.timeout_seconds))
    objective, attention = build_objective(config.objective), config.model.attention
    return Feed(curriculum, codec, objective, attention, groups, device)


def build_engine(config: RunConfig, feed: Feed, device: torch.device) -> Engine:
    """The model, the same first numbers on every rank, in its ZeRO engine."""
    model = build(config.model, feed.codec.geometry.channels, config.seed, DTYPES[config.dtype]).to(device)
    return engine_for(model, config.optimizer.adam(), config.zero.stage, feed.micro_steps, config.zero.offload)


def find_checkpoint(config: RunConfig, folder: RunFolder) -> Checkpoint | None:
    """The newest whole checkpoint, found and verified by rank 0, the same for all."""
    found: list[Checkpoint | None] = [None]
    failure: list[Exception | None] = [None]
    if dist.get_rank() == 0:
        try:
            found[0], broken = checkpoint.newest(folder.checkpoints)
            for name, reason in broken:
                folder.record("fallback", checkpoint=name, reason=reason)
        except Exception as error:  # every rank must hear of it, or the others would wait
            failure[0] = error
    dist.broadcast_object_list(failure)
    if failure[0] is not None:
        raise failure[0]
    dist.broadcast_object_list(found)
    if found[0] is not None:
        checkpoint.refuse_changes(found[0], config)
    return found[0]


def resume(folder: RunFolder, found: Checkpoint | None, feed: Feed, engine: Engine) -> TrainState:
    """The state to go on from; parameters and moments are restored."""
    if found is None:
        return TrainState(Position(), ())
    state = found.state
    feed.curriculum.verify(state.position)
    engine.restore(found.parameters(), state.step)
    if dist.get_rank() == 0:
        folder.record("resume", step=state.step, checkpoint=found.path.name)
    return state


def agree(batch: Batch, stop: bool, mesh: Mesh, device: torch.device) -> tuple[float, bool, list[Problem]]:
    """The loss weight of the whole step, whether any rank was asked to stop, and what any rank could not read.

    Raises:
        InputError: the ranks of a replica were about to compute different batches, tokens of the step were read by no
            rank or by two, or nothing of it could be read.
    """
    weight = torch.tensor([batch.weight], dtype=torch.float64).view(torch.int64)
    words = [int(stop), batch.digest, batch.received, batch.expected, len(batch.problems)]
    mine = torch.cat((weight, torch.tensor(words))).to(device)
    everyone = [torch.empty_like(mine) for _ in range(mesh.ranks)]
    dist.all_gather(everyone, mine)
    weights, stops, digests, received, expected, problems = torch.stack(everyone).cpu().unbind(1)
    for ranks in mesh.replicas():
        refuse_differences(digests[ranks].tolist(), ranks)
    total, stopped = float(weights.view(torch.float64).sum()), bool(stops.any())
    if problems.any():
        found: list[list[Problem]] = [[]] * mesh.ranks
        dist.all_gather_object(found, list(batch.problems))
        return total, stopped, [problem for of_rank in found for problem in of_rank]
    if sum(received.tolist()) & CHECKSUM != int(expected[0]):
        raise InputError(
            "every token of a step is read by one rank",
            f"step {batch.position.step}: the checksum of what was read is not that of its samples",
            "report this with the run folder: no step with such data is computed",
        )
    if total == 0:
        raise InputError(
            "a step has samples that can be read",
            f"step {batch.position.step}: none of {len(batch.samples)}",
            "longreel data check DATASET --repair",
        )
    return total, stopped, []


def refuse_many(unreadable: Collection[str], problems: Sequence[Problem], most: int) -> None:
    """A few samples that cannot be read are no reason to stop; many are a broken dataset."""
    if len(unreadable) > most:
        raise InputError(
            f"at most data.tolerate={most} samples of a run cannot be read",
            f"{len(unreadable)} cannot; the last: {problems[-1].reason}",
            "longreel data check DATASET --repair, or a larger data.tolerate",
        )


def train_step(
    engine: Engine, feed: Feed, batch: Batch, weight: float, rate: float, device: torch.device, pulse: Pulse
) -> tuple[float, float]:
    """One update; gives loss and gradient norm of the whole step."""
    loss = torch.zeros((), dtype=torch.float64, device=device)
    step = batch.position.step
    for micro in batch.micro_steps:
        pulse.enter("forward", step)
        prediction = engine.forward(micro.prepared.packed, micro.plans)
        part, _ = feed.objective.loss(prediction, micro.prepared)
        pulse.enter("backward", step)
        engine.backward(part / weight)
        loss += part.detach()
    pulse.enter("update", step)
    dist.all_reduce(loss)
    return float(loss) / weight, engine.step(rate)


def learning_rate(config: OptimizerConfig, done: int, steps: int) -> float:
    """The rate of the step after `done` steps: linear warm-up, then constant, or half a cosine to the last step."""
    if done < config.warmup_steps:
        return config.learning_rate * (done + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (done - config.warmup_steps) / max(1, steps - config.warmup_steps)
    share = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_ratio + (1 - config.final_ratio) * share)


def refuse_nonsense(step: int, loss: float, norm: float, batch: Batch) -> None:
    """Stop before a broken update is saved."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise FloatingPointError(f"step {step}: loss {loss}, gradient norm {norm}; samples {list(batch.samples)[:8]}")


def flops(engine: Engine, config: RunConfig, batch: Batch) -> float:
    """Of one step, forward and backward: 6 x parameters x tokens (Kaplan et al., arXiv:2001.08361, sec. 2.1), and
    for attention 12 x pairs x dim x depth, pairs counted exactly.
    """
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    return 6.0 * parameters * batch.tokens + 12.0 * batch.area * config.model.dim * config.model.depth
