"""`dry_run`: one step of one rank with the real parts of `launcher/training/loop.py`, counted and not computed.

    model, engine        build_engine     its ZeRO stage and offload, DeepSpeed's own code at stages 1 to 3
    state to save        engine.held      what the saver holds from the first step on
    batch                the builder      plans, layout, noise levels; values are not drawn
    forward, backward    gradients        recompute, tiles, offload, ring and ulysses, all as in training
    update               engine.step

All state is there before the step begins, as in every step of training but the first. Of more than three micro-steps
three are run: the first, the last, which ends the step, and one that stands for all between them.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from launcher.batches.datasets import builder_of
from launcher.batches.drawn_packs import DrawnPack
from launcher.batches.loader import AHEAD
from launcher.config.run_config import RunConfig
from launcher.core.heartbeat import HeartbeatBoard
from launcher.dryrun.fake_batches import DryLoader
from launcher.dryrun.fake_kernels import gpu_kernel
from launcher.dryrun.fake_packs import longest_segment, mesh_of, micro_steps_of, packs_for
from launcher.dryrun.fake_tensors import every_tensor, fake_world, made_up
from launcher.dryrun.memory_timeline import Boundary, Moment, kept, moments
from launcher.dryrun.operation_counter import Count, Counter
from launcher.training.loop import build_engine, gradients
from models.core.specs import memory_of
from models.registry import DTYPES
from parallel.attention.ulysses import share_heads
from parallel.errors import InputError
from parallel.fragments import Fragment, trained
from parallel.mesh import Groups, Mesh, join
from parallel.zero.ema import Ema
from parallel.zero.engine import Engine

RATE = 1e-4  # of the update; any will do


@dataclass(frozen=True)
class DryRun:
    """What a step of one rank takes.

    Attributes:
        mesh, rank: whose step.
        device: "cuda" or "cpu": whose kernels.
        tokens: of this rank's part of a pack.
        parameters: of the whole model.
        pack: where the pack came from, in words.
        micro_steps: of the step.
        peak_bytes: the most of the device's memory that lives at once.
        peak: when, and what it is.
        kept_bytes: made by the forward pass and alive after it: activations, without weights, states or the batch.
        prefetched_bytes: batches that training has ready ahead, beside the one that the step is fed.
        host_bytes: the most in the host's memory: what is offloaded, and what the loader has there.
        largest_tensor_bytes: the largest tensor of the step.
        largest_tensor: by what it was made.
        flops: of this rank's step, products of matrices and attention; of attention alone.
        attention_flops: of attention alone.
        launches: kernels at least.
        host_waits: of the host for the device, by place.
        host_transfers: from pageable memory of the host to the device, from forward to update, by place.
        sent: bytes that leave this rank, by collective.
        notes: what of the run is not counted, one sentence each.
        timeline: memory from forward to update.
    """

    mesh: Mesh
    rank: int
    device: str
    tokens: int
    parameters: int
    pack: str
    micro_steps: int
    peak_bytes: int
    peak: Moment
    kept_bytes: int
    prefetched_bytes: int
    host_bytes: int
    largest_tensor_bytes: int
    largest_tensor: str
    flops: int
    attention_flops: int
    launches: int
    host_waits: dict[str, int]
    host_transfers: dict[str, int]
    sent: dict[str, int]
    notes: tuple[str, ...]
    timeline: tuple[Moment, ...]


def dry_run(
    config: RunConfig,
    rank: int | None = None,
    device: str = "cuda",
    documents: int | None = None,
    segment: int | None = None,
) -> DryRun:
    """Count one step. This process must be no rank of anything; it needs no GPU, no weights and no dataset.

    Args:
        config: of the run.
        rank: of the mesh; the busiest one if not given.
        device: "cuda" for what a GPU would do, "cpu" for what this machine would.
        documents: see `packs_for`.
        segment: of the curriculum; the one with the longest packs if not given.

    Raises:
        InputError: the run cannot work.
    """
    segments = len(config.data.merged())
    if segment is not None and segment >= segments:
        found = f"segment {segment} of {segments}"
        raise InputError("segments of a curriculum are counted from 0", found, f"--segment {segments - 1}")
    segment = longest_segment(config) if segment is None else segment
    mesh = mesh_of(config, segment)
    if rank is not None and rank >= mesh.ranks:
        raise InputError("ranks of a mesh are counted from 0", f"rank {rank} of {mesh}", f"--rank {mesh.ranks - 1}")
    rank = busiest(mesh, config.model.heads) if rank is None else rank
    packs = packs_for(config, mesh.place(rank), segment, documents)
    counter = Counter("meta" if device == "cuda" else "cpu", made_up)
    with fake_world(mesh, rank, counter, config.zero.stage > 0):
        dry = Dry(config, segment, join(mesh, rank), counter, packs, device)
        dry.step()
        return dry.found(rank)


def busiest(mesh: Mesh, heads: int) -> int:
    """The first rank of those that compute the most heads."""
    shares = share_heads(heads, heads, mesh.ulysses).queries
    return max(range(mesh.ulysses), key=lambda place: len(shares[place]))


def notes_on(config: RunConfig) -> tuple[str, ...]:
    """What of a run on GPUs a dry run does not count."""
    found = []
    compiled = memory_of(config.model).compile
    if compiled != "none":
        found.append(f"model.compile={compiled} is counted as none: launches are fewer, memory is less")
    if config.attention.kernel not in ("auto", "aten"):
        found.append(f"attention.kernel={config.attention.kernel} is counted as aten")
    if config.zero.offload != "nothing":
        found.append("zero.offload: DeepSpeed's pinned memory is counted as pageable")
    return tuple(found)


class Dry:
    """One step of one rank, as a counter sees it: in a fake world, or in a real one to compare with.

    Args:
        config: of the run.
        segment: of its curriculum.
        groups: of this rank.
        counter: on.
        packs: of this rank's replica, one a micro-step.
        kernels: "cuda" or "cpu".
    """

    def __init__(
        self, config: RunConfig, segment: int, groups: Groups, counter: Counter, packs: list[DrawnPack], kernels: str
    ) -> None:
        self.config, self.segment, self.groups, self.counter = config, segment, groups, counter
        self.packs, self.kernels = packs, kernels
        self.boundaries: list[Boundary] = []
        self.device = torch.device(counter.device)
        with counter.phase("model"):
            kernel = gpu_kernel(config.model, DTYPES[config.dtype]) if kernels == "cuda" else None
            builder, rope = builder_of(config, groups, self.device, kernel), config.data.merged()[segment].rope_items
            self.loader = DryLoader(builder, len(packs), rope)
        with counter.phase("engine"):
            self.engine: Engine = build_engine(config, self.loader, self.device, numbers=False)
            held = self.engine.held()  # as the saver does: from then on there is all state
        # DeepSpeed keeps meta tensors of all parameters, to lay them out: no memory, though our device is called so too
        laid_out = getattr(getattr(self.engine, "optimizer", None), "round_robin_bit16_meta", [])
        counter.forget(list(every_tensor(laid_out)))
        self._tell_apart(held)
        with counter.phase("average"):
            self.ema = Ema(self.engine, config.optimizer.ema) if config.optimizer.ema else None
        counter.adopt(self.ema.averages if self.ema is not None else [], "average")
        with counter.phase("batch"):
            self.batch = self.loader.batch(packs)
        of_device = [t for t in every_tensor(self.batch) if t.device.type == counter.device]
        counter.adopt(of_device, "batch")
        self.batch_bytes = sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in of_device}.values())

    def step(self) -> None:
        """The whole of it."""
        heartbeat = HeartbeatBoard(self._enter)
        gradients(self.engine, self.loader, self.batch, 1.0, self.device, heartbeat)
        heartbeat.enter("update", 1)
        self.engine.step(RATE)
        if self.ema is not None:
            self.ema.update(1)
        heartbeat.enter("end", 1)

    def found(self, rank: int) -> DryRun:
        """What was counted."""
        peak, timeline = moments(self.counter.pieces, self.boundaries)
        first = self.boundaries[0].moment
        largest = max(
            (p for p in self.counter.pieces if not p.on_host and p.born >= first), key=lambda p: p.size, default=None
        )
        micro_steps = micro_steps_of(self.config, self.segment)
        counts = self._whole(micro_steps)
        return DryRun(
            mesh=self.groups.mesh,
            rank=rank,
            device=self.kernels,
            tokens=self.loader.tokens(self.batch),
            parameters=sum(getattr(p, "ds_numel", p.numel()) for p in self.engine.module.parameters()),
            pack=self.packs[0].words,
            micro_steps=micro_steps,
            peak_bytes=peak.bytes,
            peak=peak,
            kept_bytes=kept(self.counter.pieces, self.boundaries),
            prefetched_bytes=(AHEAD + 1) * self.batch_bytes if self.kernels == "cuda" else 0,
            host_bytes=moments(self.counter.pieces, self.boundaries, on_host=True)[0].bytes,
            largest_tensor_bytes=largest.size if largest else 0,
            largest_tensor=largest.made_by if largest else "",
            flops=sum(c.flops for c in counts),
            attention_flops=sum(c.attention_flops for c in counts),
            launches=sum(c.launches for c in counts),
            host_waits=dict(sum((c.waits for c in counts), Tally())),
            host_transfers=dict(sum((c.transfers for c in counts), Tally())),
            sent=dict(sum((c.sent for c in counts), Tally())),
            notes=notes_on(self.config) if self.kernels == "cuda" else (),
            timeline=timeline,
        )

    def _whole(self, micro_steps: int) -> list[Count]:
        """Counts of all micro-steps, the middle one of those that ran standing for the others, and of the update."""
        ran = [c for name, c in self.counter.counts.items() if name.partition(" ")[0] in ("forward", "backward")]
        middle = [c for name, c in self.counter.counts.items() if name in ("forward 2", "backward 2")]
        return [*ran, *middle * (micro_steps - len(self.packs)), self.counter.counts.get("update", Count())]

    def _enter(self, phase: str, step: int) -> None:
        if phase == "forward":
            self.micro_step = getattr(self, "micro_step", 0) + 1
        number = f" {self.micro_step}" if phase in ("forward", "backward") else ""
        self.counter.within = "" if phase == "end" else phase + number
        self.boundaries.append(Boundary(self.counter.moment, phase))

    def _tell_apart(self, held: Sequence[Fragment]) -> None:
        """Which of the engine's storages are parameters, states and gradients."""
        known: list[tuple[Tensor, str]] = []
        for parameter in self.engine.module.parameters():
            known.append((getattr(parameter, "ds_tensor", parameter).data, "parameters"))
        for fragment in held:
            known += [(fragment.tensors[name], "optimizer") for name in self.engine.tensor_names]
        for piece in self.counter.live.values():
            if piece.phase == "engine" and not piece.kind:
                piece.kind = "gradients"  # what an engine holds beside them is where gradients are summed
        for tensor, kind in reversed(known):  # a master may be the parameter itself
            self.counter.mark(tensor, kind)
        for parameter in trained(self.engine.module).values():
            parameter.register_post_accumulate_grad_hook(self._gradient)

    def _gradient(self, parameter: Tensor) -> None:
        self.counter.mark(parameter.grad, "gradients")
