"""Loaders on several ranks, stopped and resumed: the part that ours and its peers share. Standard library alone.

Each rank is a forked process. A loader is built, set to a state and asked for its first batch. The slowest rank counts;
imports and process groups do not, nor do CPU-seconds of worker processes. One epoch is read on RANKS ranks, its state
saved at 10, 50 and 90 %; then each state is resumed on 4, 2 and 3 ranks. After 50 %, in the first round, the rest of
the epoch is read too, and what came twice or never is counted.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

RANKS, AGAIN = 4, (4, 2, 3)
SHARES = (0.1, 0.5, 0.9)
COUNTED = 0.5  # the share after which the rest is read
STEP_SAMPLES = 64  # of all ranks
PATIENCE = 120  # seconds


class Loading(NamedTuple):
    """What a rank gives: ids of each batch, and its state (of this rank, or the same of all) after that batch."""

    batches: Iterator[list[int]]
    state: Callable[[], Any]


class Loader(Protocol):
    """One library.

    Attributes:
        name: of it.
        version: of it.
    """

    name: str
    version: str

    def write(self, folder: str, samples: int) -> None:
        """Makes the dataset."""

    def join(self, rank: int, ranks: int) -> None:
        """What a job does once before it loads anything; not timed."""

    def load(self, folder: str, rank: int, ranks: int, state: Any) -> Loading:
        """A loader of one epoch, from the start if `state` is None."""

    def convert(self, states: list[Any], ranks: int) -> list[Any]:
        """States of `ranks` ranks from those that were saved.

        Raises:
            ValueError: it cannot be done, and why.
        """


def serve(loader: Loader, folder: str, samples: int) -> None:
    """Writes the dataset, reads most of an epoch, then answers each line of the standard input with a line of JSON."""
    together(1, _write, loader, folder, samples)  # by itself: threads that it starts would be lost in forks
    steps = [int(samples * share) // STEP_SAMPLES for share in SHARES]
    saved = together(RANKS, _begin, loader, folder, RANKS, steps)
    print(json.dumps({"name": loader.name, "version": loader.version}), flush=True)
    for number, _ in enumerate(sys.stdin):
        print(json.dumps(one_round(loader, folder, samples, saved, steps, number == 0)), flush=True)


def one_round(
    loader: Loader, folder: str, samples: int, saved: list[Any], steps: list[int], to_the_end: bool
) -> dict[str, Any]:
    """Of the slowest rank seconds and CPU-seconds to the first batch, by "share ranks"; by ranks what was lost and what
    came twice, or why it cannot be.
    """
    seconds: dict[str, tuple[float, float]] = {}
    exact: dict[str, Any] = {}
    for number, share in enumerate(SHARES):
        states = [states[number] for states, _ in saved]
        counted = to_the_end and share == COUNTED
        for ranks in AGAIN:
            try:
                found = together(ranks, _resume, loader, folder, ranks, loader.convert(states, ranks), counted)
            except (ValueError, RuntimeError) as error:
                exact[str(ranks)] = str(error).splitlines()[-1]
                continue
            seconds[f"{share:g} {ranks}"] = max(wall for wall, _, _ in found), max(cpu for _, cpu, _ in found)
            if counted:
                seen = [i for _, batches in saved for batch in batches[: steps[number]] for i in batch]
                times = Counter(seen + [i for _, _, ids in found for i in ids])
                twice = sum(n - 1 for n in times.values())
                exact[str(ranks)] = {"lost": samples - len(times), "twice": twice}
    return {"seconds": seconds, "exact": exact}


def _write(rank: int, loader: Loader, folder: str, samples: int) -> None:
    loader.write(folder, samples)


def _begin(rank: int, loader: Loader, folder: str, ranks: int, steps: list[int]) -> tuple[list[Any], list[list[int]]]:
    """The states after so many steps, and the ids of every batch until then."""
    loader.join(rank, ranks)
    loading = loader.load(folder, rank, ranks, None)
    states, batches = [], []
    for batch in loading.batches:
        batches.append(batch)
        if len(batches) in steps:
            states.append(loading.state())
        if len(batches) == steps[-1]:
            break
    return states, batches


def _resume(
    rank: int, loader: Loader, folder: str, ranks: int, states: list[Any], to_the_end: bool
) -> tuple[float, float, list[int]]:
    """Seconds and CPU-seconds to the first batch, and the ids of it or of all that follow."""
    loader.join(rank, ranks)
    gc.collect()  # a fork pays once for pages that it writes to, and some loaders begin with this
    began = time.perf_counter(), time.process_time()
    batches = loader.load(folder, rank, ranks, states[rank]).batches
    ids = list(next(batches))
    wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    if to_the_end:
        ids += [i for batch in batches for i in batch]
    return wall, cpu, ids


def together(ranks: int, work: Callable[..., Any], *given: Any) -> list[Any]:
    """What work(rank, *given) returns in each of `ranks` forked processes.

    Raises:
        RuntimeError: one failed, died or kept silent; the last line says why.
    """
    context = multiprocessing.get_context("fork")
    pipes, processes = [], []
    for rank in range(ranks):
        here, there = context.Pipe(duplex=False)
        processes.append(context.Process(target=_child, args=(there, pipes, work, rank, given)))
        processes[-1].start()
        there.close()
        pipes.append(here)
    try:
        found = []
        for pipe in pipes:
            if not pipe.poll(PATIENCE):
                raise RuntimeError(f"no answer in {PATIENCE} s")
            try:
                good, value = pipe.recv()
            except EOFError:
                raise RuntimeError("a rank died") from None
            if not good:
                raise RuntimeError(value)
            found.append(value)
        return found
    finally:
        for process in processes:
            process.kill()
            process.join()


def _child(pipe: Any, others: list[Any], work: Callable[..., Any], rank: int, given: tuple[Any, ...]) -> None:
    for other in others:
        other.close()
    os.dup2(2, 1)  # the standard output is for answers
    try:
        pipe.send((True, work(rank, *given)))
    except BaseException:
        pipe.send((False, traceback.format_exc().strip()))
    time.sleep(PATIENCE)  # until all have answered: the one that leaves first may take another down
