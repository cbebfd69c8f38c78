"""One rank of a run, from start to end: the same function under Ray, plain processes, torchrun and srun."""

from __future__ import annotations

import math
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from data.index import Index
from data.plan import Cursor
from data.sampling import Sampling
from data.stream import Stream
from launcher import checkpoint
from launcher.checkpoint import Checkpoint, TrainState
from launcher.config import OptimizerConfig, RunConfig
from launcher.feed import Batch, Feed
from launcher.folder import RunFolder, only_writer
from launcher.journal import Journal
from models.kinds import build, build_objective
from models.latents import open_codec
from parallel.agreement import refuse_differences
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


def run(config: RunConfig, place: RankPlace, should_stop: Callable[[], bool] = lambda: False) -> Outcome:
    """Train from the newest checkpoint, or from the start, to `config.steps`.

    Args:
        config: of the run; paths are the same on every rank.
        place: of this rank.
        should_stop: asked once a step; if it says so on any rank, all save a checkpoint and end.
    """
    folder = RunFolder(config.out)
    with meet(config, place) as device, only_writer(folder.root, place.rank):
        feed = build_feed(config, place, device)
        engine = build_engine(config, feed, device)
        set_timeouts(timedelta(seconds=config.restart.timeout_seconds))
        state = resume(config, folder, feed, engine)
        journal = Journal(folder, state.step, place.rank)
        batches = feed.batches(state.cursor)
        stopped = False
        while state.step < config.steps and not stopped:
            begin = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - begin
            weight, stopped = agree(batch, should_stop(), config.mesh.mesh(), device)
            rate = learning_rate(config.optimizer, state.step, config.steps)
            loss, norm = train_step(engine, feed, batch, weight, rate, device)
            state = TrainState(state.step + 1, batch.cursor, state.dataset)
            refuse_nonsense(state.step, loss, norm, batch)
            journal.write(
                state.step, batch, loss=loss, grad_norm=norm, learning_rate=rate,
                seconds=time.perf_counter() - begin, data_seconds=waited, flops=flops(engine, config, batch),
            )  # fmt: skip
            if state.step % config.checkpoint.every == 0 or state.step == config.steps or stopped:
                begin = time.perf_counter()
                saved = checkpoint.save(folder.checkpoints, state, engine, config)
                journal.event("checkpoint", step=state.step, path=str(saved), seconds=time.perf_counter() - begin)
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


def build_feed(config: RunConfig, place: RankPlace, device: torch.device) -> Feed:
    """Data, codec and objective of this rank."""
    dtype = DTYPES[config.dtype]
    codec = open_codec(config.codec, config.model.patch, dtype, device)
    stream = Stream(
        Index.open(config.data.dataset),
        Sampling(codec.geometry, config.data.frames, config.data.size, config.data.stride),
        config.data.pack_tokens,
        config.seed,
        config.data.window,
    )
    groups = join(config.mesh.mesh(), place.rank, timedelta(seconds=config.restart.timeout_seconds))
    objective, attention = build_objective(config.objective), config.model.attention
    return Feed(stream, codec, objective, attention, groups, config.data.packs_per_step, device)


def build_engine(config: RunConfig, feed: Feed, device: torch.device) -> Engine:
    """The model, the same first numbers on every rank, in its ZeRO engine."""
    model = build(config.model, feed.codec.geometry.channels, config.seed, DTYPES[config.dtype]).to(device)
    return engine_for(model, config.optimizer.adam(), config.zero.stage, feed.micro_steps, config.zero.offload)


def resume(config: RunConfig, folder: RunFolder, feed: Feed, engine: Engine) -> TrainState:
    """The state to go on from: rank 0 finds and verifies the newest whole checkpoint, all read it."""
    dataset = feed.stream.index.digest
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
    if found[0] is None:
        return TrainState(0, Cursor(), dataset)
    checkpoint.refuse_changes(found[0], config, dataset)
    state = found[0].state
    engine.restore(found[0].parameters(), state.step)
    if dist.get_rank() == 0:
        folder.record("resume", step=state.step, checkpoint=found[0].path.name)
    return state


def agree(batch: Batch, stop: bool, mesh: Mesh, device: torch.device) -> tuple[float, bool]:
    """The loss weight of the whole step, and whether any rank was asked to stop.

    Raises:
        InputError: the ranks of a replica were about to compute different batches.
    """
    weight = torch.tensor([batch.weight], dtype=torch.float64).view(torch.int64)
    mine = torch.cat((weight, torch.tensor([int(stop), batch.digest]))).to(device)
    everyone = [torch.empty_like(mine) for _ in range(mesh.ranks)]
    dist.all_gather(everyone, mine)
    weights, stops, digests = torch.stack(everyone).cpu().unbind(1)
    for ranks in mesh.replicas():
        refuse_differences(digests[ranks].tolist(), ranks)
    return float(weights.view(torch.float64).sum()), bool(stops.any())


def train_step(
    engine: Engine, feed: Feed, batch: Batch, weight: float, rate: float, device: torch.device
) -> tuple[float, float]:
    """One update; gives loss and gradient norm of the whole step."""
    loss = torch.zeros((), dtype=torch.float64, device=device)
    for micro in batch.micro_steps:
        prediction = engine.forward(micro.prepared.packed, micro.plans)
        part, _ = feed.objective.loss(prediction, micro.prepared)
        engine.backward(part / weight)
        loss += part.detach()
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
