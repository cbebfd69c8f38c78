"""The loader: this rank's part of each step, made ready in a background thread while the step before is computed.

    position --curriculum--> packs of the step --assign--> mine --builder--> micro-steps: input, target, plans
                                                              launcher/batches/diffusion_batches.py,
                                                              launcher/batches/language_batches.py

Packs are dealt to replicas by cost; a replica with one less gets a padding pack: the smallest sample of the step with
weight zero, so that every rank does the same number of micro-steps (ZeRO-3 hangs otherwise). At most `AHEAD` steps are
held ready. The position that goes with a batch is the one after it: of what was consumed, never of what was prefetched.

A sample that cannot be read does not stop the others: its frames are black here, and once every rank has heard of it
(launcher/training/loop.py) its tokens weigh nothing anywhere, shapes unchanged.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Protocol

import torch

from data.planning import packing
from data.streams.curriculum import Curriculum, Position
from data.streams.pack_stream import Pack
from launcher.batches.checksum import CHECKSUM, checksum
from launcher.batches.family import BatchBuilder, MicroStep
from parallel.device_stream import Handover
from parallel.mesh import Groups

AHEAD = 2
SWITCH_SECONDS = 2e-4  # of the interpreter, between two threads


@dataclass(frozen=True)
class Problem:
    """A sample that a rank could not read.

    Attributes:
        replica, micro_step, document: which one of the step.
        uid: of the sample.
        tokens: that it adds to the step; 0 in a padding pack.
        reason: that it could not be read for.
        file: the source that it was cut from.
    """

    replica: int
    micro_step: int
    document: int
    uid: str
    tokens: int
    reason: str
    file: str = ""


class BatchSource(Protocol):
    """What a rank needs to know of its loader to build an engine and to compute gradients."""

    @property
    def builder(self) -> BatchBuilder:
        """Of micro-steps."""

    @property
    def micro_steps(self) -> int:
        """Of one step."""


@dataclass(frozen=True)
class Batch:
    """One step of this rank.

    Attributes:
        micro_steps: as many on every rank.
        weight: loss weight of this rank's tokens.
        digest: of all that the ranks of a replica must agree on.
        received: checksum of the tokens that this rank has read; over all ranks it must be `expected`.
        expected: checksum of the tokens of the step.
        problems: samples that this rank could not read.
        position: after this step.
        samples: ids of the whole step, all replicas.
        tokens: of the whole step.
        area: query-key pairs of the whole step, for one head, in the mean over layers.
    """

    micro_steps: tuple[MicroStep, ...]
    weight: float
    digest: int
    received: int
    expected: int
    problems: tuple[Problem, ...]
    position: Position
    samples: tuple[str, ...]
    tokens: int
    area: float


Filled = tuple[Batch, Handover] | BaseException  # what the thread hands on


@dataclass(frozen=True)
class BatchLoader:
    """What it takes to make batches.

    Raises InputError if the builder cannot make any of this data.

    Attributes:
        curriculum: what each step sees.
        builder: of micro-steps.
    """

    curriculum: Curriculum
    builder: BatchBuilder

    @property
    def groups(self) -> Groups:
        """Of this rank."""
        return self.builder.groups

    def __post_init__(self) -> None:
        self.builder.check(self.curriculum)

    @property
    def micro_steps(self) -> int:
        """Of one step: as many as the replica with most packs needs."""
        return -(-self.curriculum.packs_per_step // self.groups.mesh.replica)

    def batch(self, position: Position) -> Batch:
        """The step after `position`."""
        stream, packs, after = self.curriculum.next_step(position)
        mine = assign(packs, self.groups.mesh.replica, self.groups.place.replica)
        steps = tuple(self.builder.micro_step(stream, pack) for pack in mine)
        replica = self.groups.place.replica
        problems = [
            Problem(
                replica, micro, number, d.uid, d.tokens if d.weight else 0, reason, stream.index.file(pack.rows[number])
            )
            for micro, (step, pack) in enumerate(zip(steps, mine, strict=True))
            for number, reason in step.problems.items()
            for d in (pack.documents[number],)
        ]
        documents = [document for pack in packs for document in pack.documents]
        return Batch(
            micro_steps=steps,
            weight=weight_of(steps),
            digest=digest_of(steps, packs),
            received=sum(step.received for step in steps) & CHECKSUM,
            expected=sum(checksum(d.uid, d.tokens) for d in documents) & CHECKSUM,
            problems=tuple(problems),
            position=after,
            samples=tuple(d.uid for d in documents),
            tokens=sum(d.tokens for d in documents),
            area=sum(self.builder.area(stream, pack) for pack in packs),
        )

    def without(self, batch: Batch, problems: Sequence[Problem]) -> Batch:
        """The batch with weight zero for samples that any rank of any replica could not read; shapes unchanged."""
        steps, received, expected = list(batch.micro_steps), batch.received, batch.expected
        for problem in {(p.replica, p.micro_step, p.document): p for p in problems}.values():
            expected -= checksum(problem.uid, problem.tokens)
            if problem.replica == self.groups.place.replica:
                step = steps[problem.micro_step]
                steps[problem.micro_step], tokens = silenced(step, problem.document)
                if problem.tokens and problem.document not in step.problems:  # this rank's part was read
                    received -= checksum(problem.uid, tokens)
        return replace(
            batch,
            micro_steps=tuple(steps),
            weight=weight_of(steps),
            received=received & CHECKSUM,
            expected=expected & CHECKSUM,
            problems=(),
        )

    def datasets(self, position: Position) -> tuple[tuple[str, ...], ...]:
        """Digests of the datasets of each segment that has begun before `position`."""
        begun = self.curriculum.segment(max(0, position.step - 1)) + 1
        return tuple(stream.index.digests for stream in self.curriculum.streams[:begun])

    def batches(self, position: Position) -> Generator[Batch, None, None]:
        """Batches for ever from `position` on, prefetched; closing the iterator ends the thread.

        They are made on a stream of the thread's own, and work that the caller queues for one waits until it is there.
        """
        ready: queue.Queue[Filled] = queue.Queue(AHEAD)
        closed = threading.Event()
        thread = threading.Thread(target=self._fill, args=(position, ready, closed), daemon=True, name="loader")
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                batch, hand_over = item
                hand_over(batch)
                yield batch
        finally:
            closed.set()
            while thread.is_alive():  # it may be waiting for room
                _drain(ready)
                thread.join(0.05)

    def _fill(self, position: Position, ready: queue.Queue[Filled], closed: threading.Event) -> None:
        stream = self.builder.stream
        try:
            step_aside()
            with stream.entered():
                while not closed.is_set():
                    batch = self.batch(position)
                    position = batch.position
                    ready.put((batch, stream.mark()))
        except BaseException as error:  # it belongs to the rank's own thread
            ready.put(error)


def step_aside() -> None:
    """Let this thread have only what the training thread leaves.

    With as many compute threads as cores, each of their barriers would wait for a core that this thread sits on: on 2
    cores a step of 42 ms took 83. And when this thread holds the interpreter, the training thread waits for it: 5 ms,
    unless told otherwise, which cost 3 % of that step.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    torch.set_num_threads(1)  # of this thread's own operators
    with suppress(OSError):  # not every system lets a thread lower its priority
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)


def assign(packs: Sequence[Pack], replicas: int, replica: int) -> list[Pack]:
    """The packs of one replica, filled up with padding packs to as many as the others have."""
    shares = packing.assign([pack.cost for pack in packs], replicas)
    mine = [packs[number] for number in shares[replica]]
    return mine + [padding_pack_of(packs)] * (max(map(len, shares)) - len(mine))


def padding_pack_of(packs: Sequence[Pack]) -> Pack:
    """The smallest sample of a step, alone and with weight zero."""
    pack, at = min(((p, n) for p in packs for n in range(len(p.rows))), key=lambda x: x[0].documents[x[1]].tokens)
    alone = slice(at, at + 1)
    quiet = replace(pack.documents[at], weight=0.0)
    return Pack(pack.rows[alone], (quiet,), pack.epochs[alone], 0.0)


def silenced(step: MicroStep, document: int) -> tuple[MicroStep, int]:
    """The micro-step with weight zero for one document, and how many of its tokens are here."""
    packed = step.batch.packed
    here = packed.document == document
    quiet = replace(packed, weight=packed.weight.masked_fill(here, 0.0))
    return replace(step, batch=replace(step.batch, packed=quiet)), int(here.sum())


def weight_of(steps: Sequence[MicroStep]) -> float:
    """The loss weight of this rank's tokens."""
    return float(sum(s.batch.packed.weight.double().sum() for s in steps))


def digest_of(steps: Sequence[MicroStep], packs: Sequence[Pack]) -> int:
    """63 bits of the plans of this replica and of what the step trains on: samples, captions, random keys."""
    plans = [plan.digest for step in steps for plan in step.each_plan]
    text = repr((plans, [(pack.rows, pack.documents) for pack in packs]))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _drain(ready: queue.Queue[Filled]) -> None:
    while True:
        try:
            ready.get_nowait()
        except queue.Empty:
            return
