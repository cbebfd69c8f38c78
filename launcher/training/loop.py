"""One rank of a run, from start to end: the same function under Ray, plain processes, torchrun and srun."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist

from launcher.batches.checksum import CHECKSUM
from launcher.batches.datasets import builder_of, geometry_of, open_curriculum
from launcher.batches.idle_replicas import as_begun
from launcher.batches.loader import Batch, BatchLoader, BatchSource, Problem
from launcher.checkpoints import pretrained
from launcher.checkpoints.checkpoint_manifest import TrainState, layout_of
from launcher.checkpoints.external_hashes import gather_outside, refuse_other_outside
from launcher.checkpoints.pretrained import folder_of_weights
from launcher.checkpoints.reading import newest, trusting
from launcher.checkpoints.saver import Saver
from launcher.checkpoints.storage import Storage, open_storage
from launcher.config.lr_schedule import learning_rate
from launcher.config.run_config import RunConfig
from launcher.config.sections import GuardConfig
from launcher.core.heartbeat import HeartbeatBoard
from launcher.core.run_folder import RunFolder, only_writer
from launcher.faults import inject
from launcher.training.anomaly_guard import AnomalyGuard, RewindError, add_window, skipped, windows_of
from launcher.training.gpu_out_of_memory import Shortage
from launcher.training.hang_timeout import Kind, group_seconds, pack_flops, patience
from launcher.training.metrics_log import MetricsLog
from launcher.training.number_digests import Made, datasets_of, machine_of_all
from launcher.training.rendezvous import RankPlace, join_process_group, set_timeouts, use_tensor_cores
from launcher.training.resume import changed_since, find_checkpoint, resume, resume_check_of, saver_for
from launcher.training.run_kernel import about, be_deterministic, kernel_of
from launcher.training.step_gauge import NO_MEMORY, Gauge, Memory
from models.registry import DTYPES, build_loss, spec_of
from parallel.consistency import refuse_differences
from parallel.errors import InputError
from parallel.kernels.kernel import Kernel
from parallel.mesh import Groups, join
from parallel.zero.ema import Ema
from parallel.zero.engine import Engine
from parallel.zero.meta_init import Drawn, on_meta
from parallel.zero.stages import engine_for


@dataclass(frozen=True)
class Outcome:
    """How a rank ended: after the last step, or early because it was asked to stop."""

    step: int
    stopped: bool


@dataclass(frozen=True)
class RankStatus:
    """What a rank tells the others before each step.

    Attributes:
        stop: it was asked to.
        due: on rank 0, a save that failed should be tried again.
        save: how far its save is (`checkpoints.saver`).
        memory: of the step before.
    """

    stop: bool
    due: bool
    save: int
    memory: Memory = NO_MEMORY


@dataclass(frozen=True)
class Agreement:
    """What all ranks know before a step.

    Attributes:
        weight: of the loss of the whole step.
        stop: whether any rank was asked to.
        due: whether to save after the step.
        saves: the word of each rank on its save.
        problems: what any rank could not read.
        memories: of each rank, of the step before.
    """

    weight: float
    stop: bool
    due: bool
    saves: tuple[int, ...]
    problems: tuple[Problem, ...]
    memories: tuple[Memory, ...] = ()


def run(
    config: RunConfig,
    place: RankPlace,
    should_stop: Callable[[], bool] = lambda: False,
    pulse: HeartbeatBoard | None = None,
) -> Outcome:
    """Train from the newest checkpoint, or from the start, to `config.steps` or to where the mesh changes.

    Args:
        config: of the run; paths are the same on every rank.
        place: of this rank.
        should_stop: asked once a step; if it says so on any rank, all save a checkpoint and end.
        pulse: told how far this rank is.
    """
    folder, pulse = RunFolder(config.out), pulse or HeartbeatBoard()
    chosen, mesh = config.restart.collective_timeout_seconds, config.mesh.mesh()
    be_deterministic(config)
    with (
        join_process_group(place, timedelta(seconds=group_seconds(chosen)), config.device, folder.root) as device,
        only_writer(folder.root, place.rank),
        Shortage(device) as shortage,
    ):
        pulse.enter("load", 0)
        use_tensor_cores(device, config.dtype)
        storage = inject.storage(
            config.faults, config.out, place.rank, open_storage(folder.checkpoints, config.checkpoint.location)
        )
        found = find_checkpoint(config, folder, storage)
        config = as_begun(config, found)
        attention = kernel_of(config, device, folder)
        loader = build_loader(config, place, device, found.state if found else None, attention.kernel)
        engine = build_engine(config, loader, device)
        begin_with_weights(config, engine)
        ema = Ema(engine, config.optimizer.ema) if config.optimizer.ema else None
        kind: Kind = "cuda" if device.type == "cuda" else "cpu"
        longest = patience(
            pack_flops(config.model, loader.curriculum), config.data.packs_per_step, mesh, kind, config.dtype
        )
        set_timeouts(timedelta(seconds=group_seconds(chosen, longest)))
        outside = gather_outside(config, engine.module, loader.curriculum, place.local_rank == 0)
        if found is not None:
            refuse_other_outside(found, config, outside)
        machine = machine_of_all(device, attention.title)
        made = Made(config, machine, outside, datasets_of(loader.curriculum))
        changed = changed_since(config, found, made)
        layout = layout_of(config.model_dump(mode="json"))
        state = resume(folder, found, loader, engine, ema, changed)
        journal = MetricsLog(folder, state.step, place.rank, layout, resume_check_of(config, found, device, changed))
        guard = guard_for(config, folder, journal)
        journal.expect(guard)
        if attention.tried:
            journal.event("kernel", **{"for": about(config, device)}, **attention.record())
        saver = saver_for(config, storage, engine, ema, journal, made)
        shortage.holds(engine)
        batches = loader.batches(state.position)
        poisoned = inject.poisoned(config.faults, config.out, place.rank)
        unreadable: set[str] = set()
        gauge = Gauge(device, DTYPES[config.dtype], place.rank, place.world, attention.title)
        stopped = False
        end = config.stretch_after(state.step)
        while state.step < end and not stopped:
            begin = time.perf_counter()
            pulse.enter("data", state.step + 1)
            batch = next(batches)
            waited = time.perf_counter() - begin
            pulse.enter("agree", state.step + 1)
            status = RankStatus(should_stop(), saver.is_due(), saver.save_status(), gauge.begin())
            agreed = agree(batch, status, loader.groups)
            saver.resolve(agreed.saves)
            without = {problem.uid for problem in agreed.problems}
            if agreed.problems:
                unreadable |= without
                refuse_many(unreadable, agreed.problems, config.data.max_unreadable_samples)
                journal.problems(state.step + 1, agreed.problems)
                batch = loader.without(batch, agreed.problems)
                agreed = agree(batch, replace(status, stop=agreed.stop, due=agreed.due), loader.groups)
            loss = gradients(engine, loader, batch, agreed.weight, device, pulse, poisoned)
            rate = learning_rate(config.optimizer, state.step, config.steps)
            saver.wait_copied()
            pulse.enter("update", state.step + 1)
            max_norm = guard.max_norm(state.step + 1, loss, state.updates)
            norm = engine.step(rate, max_norm)
            trouble = guard.trouble(state.step + 1, loss, norm, state.updates)
            updates = guard.after(state.updates, norm, norm <= max_norm, bool(trouble))
            if ema is not None and norm <= max_norm:
                ema.update(updates.done)
            state = TrainState(batch.position, loader.datasets(batch.position), updates)
            if trouble:
                answer_trouble(trouble, guard.config, state, batch, journal, storage)
            stopped = agreed.stop
            seconds, work = time.perf_counter() - begin, flops(engine, config, batch)
            journal.write(
                state.step, batch, gauge.end(agreed.memories, work, seconds),
                made.of(state.step, rate, without), loss=loss, grad_norm=norm,
                updated=norm <= max_norm, learning_rate=rate, seconds=seconds, data_seconds=waited, flops=work,
            )  # fmt: skip
            last = stopped or state.step == end
            if last or agreed.due or state.step % config.checkpoint.every == 0 or saver.keep.for_ever(state.step):
                pulse.enter("save", state.step)
                save(saver, state, journal, last, config.checkpoint.blocking)
        pulse.enter("end", state.step)
        batches.close()
        saver.close()
        journal.close()
        engine.destroy()
    return Outcome(state.step, stopped and state.step < config.steps)


def guard_for(config: RunConfig, folder: RunFolder, journal: MetricsLog) -> AnomalyGuard:
    """What judges the steps, the same on every rank; rank 0 alone knows what they were before."""
    windows = [(*windows_of(folder), *skipped(journal.after))]
    dist.broadcast_object_list(windows)
    return AnomalyGuard(config.guard, windows[0])


def build_loader(
    config: RunConfig,
    place: RankPlace,
    device: torch.device,
    state: TrainState | None = None,
    kernel: Kernel | None = None,
) -> BatchLoader:
    """Data and objective of this rank; `state` is that of the checkpoint to go on from, `kernel` computes attention."""
    curriculum = open_curriculum(config, state.datasets if state else ())
    groups = join(
        config.mesh.mesh(), place.rank, timedelta(seconds=group_seconds(config.restart.collective_timeout_seconds))
    )
    return BatchLoader(curriculum, builder_of(config, groups, device, kernel))


def build_engine(config: RunConfig, loader: BatchSource, device: torch.device, numbers: bool = True) -> Engine:
    """The model, the same first numbers on every rank, in its ZeRO engine; none yet, where a folder has them.

    Where ZeRO-3 cuts a model whose layers are drawn one by one, no rank holds it whole at any time. A dry run asks for
    no `numbers`.
    """
    channels, spec = geometry_of(config).channels, spec_of(config.model)
    if device.type == "cuda":
        spec.refuse_on_gpu(config.model)
    zero, drawn = config.zero, Drawn(dist.get_rank(), dist.get_world_size())
    in_parts = zero.stage == 3 and spec.in_parts
    with drawn.cutting() if in_parts else on_meta() if folder_of_weights(config.model) else nullcontext():
        model = build_loss(config.model, channels, config.seed, DTYPES[config.dtype], config.objective)
    names = {parameter: name for name, parameter in model.named_parameters()}
    model = model if in_parts or folder_of_weights(config.model) else model.to(device)
    engine = engine_for(model, config.optimizer, zero.stage, loader.micro_steps, zero.offload, device)
    if in_parts and numbers:
        drawn.write(model, engine, names)
    return engine


def begin_with_weights(config: RunConfig, engine: Engine) -> None:
    """Weights of the folder of the model, if it has any; what is frozen is in no checkpoint, so in a resume too."""
    folder = folder_of_weights(config.model)
    if folder is not None:
        pretrained.load(folder, engine)


def save(saver: Saver, state: TrainState, journal: MetricsLog, last: bool, wait: bool) -> None:
    """Save this moment: the last one of a run before it ends, others behind training's back unless it waits."""
    if last:
        saver.finish(state, journal.recent)
        return
    saver.begin(state, journal.recent)
    if wait:
        saver.finish()


def agree(batch: Batch, status: RankStatus, groups: Groups) -> Agreement:
    """What all ranks say before a step, in one gather from host to host: a GPU goes on with the step before meanwhile.

    Raises:
        InputError: the ranks of a replica were about to compute different batches, tokens of the step were read by no
            rank or by two, or nothing of it could be read.
    """
    weight = torch.tensor([batch.weight], dtype=torch.float64).view(torch.int64)
    numbers = [status.stop, status.due, status.save, batch.digest, batch.received, batch.expected, len(batch.problems)]
    mine = torch.cat((weight, torch.tensor([*numbers, *status.memory.numbers()])))
    everyone = [torch.empty_like(mine) for _ in range(groups.mesh.ranks)]
    dist.all_gather(everyone, mine, group=groups.host)
    told = torch.stack(everyone)
    weights, stops, dues, saves, digests, received, expected, problems = told[:, : 1 + len(numbers)].unbind(1)
    memories = tuple(Memory(*row) for row in told[:, 1 + len(numbers) :].tolist())
    for ranks in groups.mesh.replicas():
        refuse_differences(digests[ranks].tolist(), ranks)
    total = float(weights.view(torch.float64).sum())
    agreed = Agreement(total, bool(stops.any()), bool(dues[0]), tuple(saves.tolist()), (), memories)
    if problems.any():
        found: list[list[Problem]] = [[]] * groups.mesh.ranks
        dist.all_gather_object(found, list(batch.problems), group=groups.host)
        return replace(agreed, problems=tuple(problem for of_rank in found for problem in of_rank))
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
            "longreel data check DATASET --repair; or let the objective's weights count something that is in them",
        )
    return agreed


def refuse_many(unreadable: Collection[str], problems: Sequence[Problem], most: int) -> None:
    """A few samples that cannot be read are no reason to stop; many are a broken dataset."""
    if len(unreadable) > most:
        last = problems[-1]
        raise InputError(
            f"at most data.max_unreadable_samples={most} samples of a run cannot be read",
            f"{len(unreadable)} cannot; the last, {last.file} (sample {last.uid}): {last.reason}",
            "longreel data check DATASET --repair, or a larger data.max_unreadable_samples",
        )


def gradients(
    engine: Engine,
    loader: BatchSource,
    batch: Batch,
    weight: float,
    device: torch.device,
    pulse: HeartbeatBoard,
    poisoned: Callable[[int], bool] = lambda step: False,
) -> float:
    """Add up the gradients of one step; gives the loss of the whole of it."""
    loss, step = torch.zeros((), dtype=torch.float64, device=device), batch.position.step
    for micro in batch.micro_steps:
        pulse.enter("forward", step)
        part, _ = engine.forward(micro.batch, micro.plans)
        if poisoned(step):
            part = part * math.nan  # the fault kit
        pulse.enter("backward", step)
        engine.backward(part / weight)
        loss += part.detach()
    dist.all_reduce(loss)
    return float(loss) / weight


def answer_trouble(
    trouble: str, config: GuardConfig, state: TrainState, batch: Batch, journal: MetricsLog, storage: Storage
) -> None:
    """What `guard.policy` says about a step that made no update, because something was wrong with it.

    Raises:
        RewindError: the run goes back.
        FloatingPointError: it ends.
    """
    ends = config.policy == "end" or (config.policy == "skip" and state.updates.skipped >= config.max_consecutive)
    does = "end" if ends else config.policy
    journal.event("anomaly", step=state.step, reason=trouble, policy=does, samples=list(batch.samples))
    told = f"step {state.step} {trouble}"
    if ends:
        in_a_row = f"; {state.updates.skipped} steps in a row made no update" if state.updates.skipped > 1 else ""
        raise FloatingPointError(f"{told}{in_a_row}")
    if config.policy == "rewind":
        saved = [0]
        if dist.get_rank() == 0:
            found = newest(storage, trusting)[0]
            saved = [found.state.step if found else 0]
            add_window(journal.folder, (saved[0] + 1, state.step))
        dist.broadcast_object_list(saved)  # none fails, and has all killed, before the window is written
        raise RewindError(f"{told}; back to step {saved[0]}, and no update from there to here")


def flops(engine: Engine, config: RunConfig, batch: Batch) -> float:
    """Of one step, forward and backward: 6 x parameters x tokens (Kaplan et al., arXiv:2001.08361, sec. 2.1), and
    for attention 12 x pairs x dim x depth, pairs counted exactly.
    """
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    return float(6.0 * parameters * batch.tokens + 12.0 * batch.area * config.model.dim * config.model.depth)
