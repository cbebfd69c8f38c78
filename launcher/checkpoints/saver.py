"""Saving while training goes on.

    step n    begin: the copy to host memory starts, in a thread of each rank
    step n+1  forward and backward change no state; before the update the copy must be there
              each rank's thread writes, hashes and flushes its part
    step n+k  each rank's status in the step's gather is "written": rank 0 commits, in its thread, and removes old ones

A save that fails on one rank is abandoned by all, told, and tried again later with the state of then: the checkpoint
before it stays, and training goes on. All ranks decide alike, because they decide by what was gathered.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from launcher.checkpoints.checkpoint_manifest import Manifest, TrainState, name_of
from launcher.checkpoints.part import Part, file_of, write_part
from launcher.checkpoints.storage import Storage
from parallel.fragments import Fragment

IDLE, BUSY, WRITTEN, FAILED = range(4)  # the status of a rank's save
LONGEST_WAIT = 300.0  # seconds before a failed save is tried again
LAST_TRIES = 5  # of the save that ends a run, with waits of 1, 2, 4, 8 s
SPARE_BYTES = 1 << 20  # that a disk keeps for the records of a run


class UnsavedError(OSError):
    """The last save of a run did not succeed."""


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the newest, and those of every so many steps."""

    newest: int
    every: int | None = None

    def for_ever(self, step: int) -> bool:
        """Whether the checkpoint of this step stays, however many newer ones there are."""
        return self.every is not None and step % self.every == 0


@dataclass
class _Save:
    """One save under way on this rank."""

    state: TrainState
    recent: tuple[dict[str, Any], ...]
    began: float
    stalled: float
    copied: Future[None]
    written: Future[Part]


class Saver:
    """Saves the state of an engine. Methods marked *collective* are called by all ranks at the same point.

    Args:
        storage: where checkpoints are committed.
        fragments: what this rank answers for; the engine's own memory.
        make_manifest: from (state, parts, recent lines), on rank 0.
        keep: which checkpoints stay.
        retry_seconds: after which a save that failed is due again; doubled with each failure.
        on_event: told "checkpoint" and "unsaved", with their fields, on rank 0.
    """

    def __init__(
        self,
        storage: Storage,
        fragments: Sequence[Fragment],
        make_manifest: Callable[[TrainState, Sequence[Part], Sequence[dict[str, Any]]], Manifest],
        keep: Keep,
        retry_seconds: float,
        on_event: Callable[..., None],
    ) -> None:
        self.storage, self.fragments, self.make_manifest, self.keep = storage, fragments, make_manifest, keep
        self.retry_seconds, self.on_event, self.rank = retry_seconds, on_event, dist.get_rank()
        self._gpu = _gpu_of(fragments)
        self._threads = ThreadPoolExecutor(1, "checkpoint", initializer=_use, initargs=(self._gpu,))
        self._save: _Save | None = None
        self._commit: Future[dict[str, Any]] | None = None
        self._committed: _Save | None = None
        self._copies: list[Fragment] = []
        self._failures, self._retry_at = 0, math.inf
        self._last = (errno.EIO, "")
        self._ending: tuple[float, ...] | None = None  # of the last save of a run: seconds to the next try, if any

    def begin(self, state: TrainState, recent: Sequence[dict[str, Any]] = ()) -> None:
        """Start to save this moment. Collective.

        While an earlier save is under way, none is started: this one is due as soon as that has ended, with the state
        of then. But one that stays for ever is of its very step: training waits for the earlier one.
        """
        began = time.perf_counter()
        if self._save is not None and self.keep.for_ever(state.step):
            self._wait()
        if self._save is not None:
            self._retry_at = 0.0
            return
        self._hear_commit(wait=True)
        self._retry_at = math.inf
        refusal = self._no_room()
        if refusal is not None:
            self._tell_failure(state.step, OSError(errno.ENOSPC, refusal))
            return
        ready = _mark(self._gpu)
        copied = self._threads.submit(self._copy, ready)
        written = self._threads.submit(self._write, state, copied)
        self._save = _Save(state, tuple(recent), began, time.perf_counter() - began, copied, written)

    def wait_copied(self) -> None:
        """Before state changes again."""
        if self._save is None or self._save.copied.done():
            return
        began = time.perf_counter()
        self._save.copied.exception()
        self._save.stalled += time.perf_counter() - began

    def save_status(self) -> int:
        """What this rank tells the others in the step's gather."""
        if self._save is None:
            return IDLE
        if not self._save.written.done():
            return BUSY
        return FAILED if self._save.written.exception() else WRITTEN

    def is_due(self) -> bool:
        """On rank 0: whether a save that failed should be tried again now."""
        return self._save is None and time.monotonic() >= self._retry_at

    def resolve(self, statuses: Sequence[int]) -> None:
        """Commit or abandon the save under way, once every rank has written or failed. Collective."""
        self._hear_commit(wait=False)
        if self._save is None or BUSY in statuses:
            return
        save, self._save = self._save, None
        error = save.written.exception()
        found: list[tuple[Part | None, BaseException | None]] = [(None, None)] * dist.get_world_size()
        mine = (None if error else save.written.result(), _plain(error))
        dist.all_gather_object(found, mine)
        failed = next((e for _, e in found if e is not None), None)
        if failed is not None:
            if self.rank == 0:
                self.storage.abandon()
            self._tell_failure(save.state.step, failed)
        elif self.rank == 0:
            parts = [part for part, _ in found if part is not None and part.fragments]
            self._committed = save
            self._commit = self._threads.submit(self._commit_now, save, parts)

    def finish(self, state: TrainState | None = None, recent: Sequence[dict[str, Any]] = ()) -> None:
        """Wait until what was begun is committed, and then save `state` too, if it is given. Collective.

        Raises:
            UnsavedError: `state` could not be saved after several tries.
        """
        if state is not None:
            self._ending = ()
        self._wait()
        for number in range(LAST_TRIES if state is not None else 0):
            assert state is not None
            self._ending = (2.0**number,) if number + 1 < LAST_TRIES else ()
            self.begin(state, recent)
            if self._wait():
                self._ending = None
                return
            for seconds in self._ending:
                time.sleep(seconds)
        if state is not None:
            why = [self._last]
            dist.broadcast_object_list(why)  # rank 0 alone hears how a commit went
            number, said = why[0]
            raise UnsavedError(number, f"the checkpoint of step {state.step}, the last, could not be saved: {said}")

    def close(self) -> None:
        """Let the thread end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _wait(self) -> bool:
        """Until no save is under way; whether the last one was committed, which all ranks hear."""
        while self._save is not None:
            self._save.written.exception()
            statuses: list[int] = [IDLE] * dist.get_world_size()
            dist.all_gather_object(statuses, self.save_status())
            self.resolve(statuses)
        self._hear_commit(wait=True)
        fine = [self._failures == 0]
        dist.broadcast_object_list(fine)
        return fine[0]

    def _no_room(self) -> str | None:
        """What rank 0 sees of the room for all parts, if it is too little; the same on all ranks."""
        need: list[int] = [0] * dist.get_world_size()
        dist.all_gather_object(need, sum(t.nbytes for f in self.fragments for t in f.tensors.values()))
        said: list[str | None] = [None]
        if self.rank == 0:
            free = self.storage.free()
            if free is not None and free < sum(need) + SPARE_BYTES:
                said[0] = f"a checkpoint takes {sum(need):,} bytes, {free:,} are free"
        dist.broadcast_object_list(said)
        return said[0]

    def _copy(self, ready: Any) -> None:
        if not self._copies:
            self._copies = [
                Fragment(f.name, f.start, {k: _host_memory(t) for k, t in f.tensors.items()}) for f in self.fragments
            ]
        with _copying(ready, self._gpu):
            for source, copy in zip(self.fragments, self._copies, strict=True):
                for key, tensor in source.tensors.items():
                    copy.tensors[key].copy_(tensor, non_blocking=True)

    def _write(self, state: TrainState, copied: Future[None]) -> Part:
        copied.result()
        return write_part(self.storage, name_of(state.step), file_of(self.rank), self._copies)

    def _commit_now(self, save: _Save, parts: Sequence[Part]) -> dict[str, Any]:
        name = name_of(save.state.step)
        manifest = self.make_manifest(save.state, parts, save.recent)
        self.storage.commit(name, [part.file for part in parts], manifest.to_json())
        told = {"step": save.state.step, "path": self.storage.where(name), "bytes": manifest.size}
        passed_over = self._retire(name)
        return {**told, "passed_over": passed_over} if passed_over else told

    def _retire(self, saved: str) -> list[str]:
        """Remove what need not stay; gives those of later steps than the one just saved.

        A resume has passed them over, as broken or distrusted: the run has taken another course since. Left there,
        they would be the newest, push out what is saved now, and be gone on from once they can be read again.
        """
        names = self.storage.names()
        passed_over = [name for name in names if name > saved]
        old = [name for name in names if name <= saved][: -self.keep.newest]
        for name in [*passed_over, *(n for n in old if not self.keep.for_ever(int(n.rpartition("-")[2])))]:
            self.storage.remove(name)
        return passed_over

    def _hear_commit(self, wait: bool) -> None:
        """On rank 0, tell how the commit went."""
        if self._commit is None or not (wait or self._commit.done()):
            return
        assert self._committed is not None
        commit, save, self._commit = self._commit, self._committed, None
        error = commit.exception()
        if error is not None:
            self._tell_failure(save.state.step, error)
            return
        self._failures = 0
        seconds = time.perf_counter() - save.began
        told = commit.result()
        passed_over = told.pop("passed_over", ())
        self.on_event("checkpoint", **told, seconds=save.stalled, write_seconds=seconds)
        for name in passed_over:
            self.on_event("removed", checkpoint=name, step=save.state.step)

    def _tell_failure(self, step: int, error: BaseException) -> None:
        self._failures += 1
        self._last = (getattr(error, "errno", None) or errno.EIO, _words(error))
        wait = min(LONGEST_WAIT, self.retry_seconds * 2 ** (self._failures - 1))
        self._retry_at = time.monotonic() + wait
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        told: dict[str, Any] = {"again_in": wait}
        if self._ending is not None:  # tried again by `finish`, after which there is nothing to train
            told = {"again_in": self._ending[0], "last": True} if self._ending else {"last": True}
        self.on_event("unsaved", step=step, reason=_words(error), cause="full" if full else "store", **told)


def _words(error: BaseException) -> str:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return said if isinstance(error, OSError) else f"{type(error).__name__}: {said}"


def _plain(error: BaseException | None) -> BaseException | None:
    """An error that travels between ranks: drivers of stores raise some that cannot be pickled."""
    if error is None:
        return None
    return OSError(getattr(error, "errno", None) or errno.EIO, _words(error))


def _host_memory(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


def _gpu_of(fragments: Sequence[Fragment]) -> torch.device | None:
    """Where they lie; None for the memory of the host."""
    return next((t.device for f in fragments for t in f.tensors.values() if t.is_cuda), None)


def _use(gpu: torch.device | None) -> None:
    """A new thread begins with the first GPU, whatever the others of its process use."""
    if gpu is not None:
        torch.cuda.set_device(gpu)


def _mark(gpu: torch.device | None) -> Any:
    """On a GPU, the moment at which what was queued before is done."""
    if gpu is None:
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(gpu))
    return event


@contextmanager
def _copying(ready: Any, gpu: torch.device | None) -> Iterator[None]:
    """On a GPU, a stream of its own for the copies inside, which begin after `ready` and end with the block.

    It is a stream of the GPU that is copied from: copies between other devices would go beside it, and not be waited
    for.
    """
    if gpu is None:
        yield
        return
    stream = torch.cuda.Stream(gpu)
    stream.wait_event(ready)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        stream.synchronize()
