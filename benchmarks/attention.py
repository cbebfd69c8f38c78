"""Attention on 4 ranks beside one process and beside peers: time, bytes sent, memory, and who waits for whom.

    python -m benchmarks.attention [--tokens 8192] [--rounds 5] [--peers FOLDER] [--quick]

Four gloo processes with 1 thread each against one process with 2 threads, on the same 2 cores: with no communication,
no merging and no imbalance the ratio would be 1. 8 heads of 64, float32 and bf16, forward and backward; the masks are
full, causal, packed (32 causal documents of log-normal lengths) and window (16 frames that see 2 before them).

- Ways take turns within each round; the slowest rank counts; medians over rounds. Nobody else runs meanwhile: those
  whose turn it is not wait for a message. Plans, process groups and masks are made before (once a batch in training).
- One process is torch's scaled_dot_product_attention, of the window the better of one call with a dense mask and a
  loop over frames. "x one" is its seconds to those of a way: above 1 is faster than one process.
- Before anything is timed, each way's output and gradients at 512 tokens are compared with dense attention in float64;
  "error" is the largest relative one (Frobenius). A way that is wrong is not timed.
- Bytes sent are counted where they are handed to torch.distributed, of the rank that sends most, without those that a
  rank sends to itself; peak memory is the growth of the resident set of the fullest rank over its inputs. Both in fresh
  processes, off the clock, which give freed memory back at once: workspaces of kernels and of gloo are in the peak.
- max/mean is the mask area of the busiest rank to that of the mean one: that much every other rank waits.

Peers are no dependencies. DeepSpeed is there; for yunchang:  pip install --no-deps --target FOLDER yunchang
"""

from __future__ import annotations

import argparse
import inspect
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import distributions
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.attention_ways import ALONE, RANKED, RANKS, Cannot, Way, Work, rows_of
from benchmarks.machine import machine, write_result

HEADS, DIM = 8, 64
MASKS = ("full", "causal", "packed", "window")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
CHECKED = 512  # tokens of the comparison with dense attention
ERROR = {"float32": 1e-5, "bf16": 3e-2}  # the largest that counts as right: some 10 times that of one kernel
PATIENCE = 900  # seconds that an answer may take
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # larger blocks of glibc's malloc go back to the system when freed

Case = tuple[str, str, str]  # dtype, mask, way


@dataclass(frozen=True)
class Ask:
    """What a process is asked: `verb` ("error", "seconds" or "bytes") of one way to do one work."""

    verb: str
    way: str
    work: Work
    dtype: str


def main() -> None:
    """Check, measure, print a table, write the result."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tokens", type=int, default=8192)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--peers", help="folder that peers were installed to with pip install --target")
    options.add_argument("--quick", action="store_true", help="512 tokens, 2 rounds, nothing written: does it run?")
    given = options.parse_args()
    if given.quick:
        given.tokens, given.rounds = 512, 2
    if given.tokens % 128:
        options.error("--tokens is a multiple of 128: whole frames, and equal shares for peers that need them")
    about = {"machine": machine(), "tokens": given.tokens, "heads": HEADS, "head_dim": DIM, "rounds": given.rounds}
    about["peers"] = peer_versions(given.peers)
    cases = [(d, m, w) for d in DTYPES for m in MASKS for w in (*ALONE, *RANKED)]
    rows: dict[Case, dict[str, Any]] = {case: {} for case in cases}
    with Processes(given.peers) as processes:
        for case in cases:
            rows[case] = checked(processes, case)
        able = [case for case in cases if "why" not in rows[case]]
        for number in range(given.rounds):
            for case in able:
                for name, found in merged(processes.ask("seconds", case, given.tokens)).items():
                    rows[case].setdefault(f"{name}_rounds", []).append(found)
            print(f"round {number + 1} of {given.rounds} done", file=sys.stderr)
    with Processes(given.peers, GIVE_BACK) as processes:
        for case in able:
            rows[case] |= merged(processes.ask("bytes", case, given.tokens))
    summarise(rows)
    print(table(rows))
    if not given.quick:
        named = [{"dtype": d, "mask": m, "way": w} | row for (d, m, w), row in rows.items()]
        print(write_result("attention", about | {"rows": named}))


def checked(processes: Processes, case: Case) -> dict[str, Any]:
    """The error of a way, or why it is not measured."""
    answers = processes.ask("error", case, CHECKED)
    refusals = [answer for answer in answers if isinstance(answer, str)]
    if refusals:
        return {"why": refusals[0]}
    sums = torch.tensor([answer["sums"] for answer in answers]).sum(dim=0)  # of ranks: [2, output and gradients]
    error = float((sums[0] / sums[1]).sqrt().max())
    right = error < ERROR[case[0]]  # false for nan too
    known = {name: answers[0][name] for name in ("split", "imbalance")}
    return known | {"error": error} | ({} if right else {"why": f"wrong: error {error:.1g}"})


def merged(answers: list[Any]) -> dict[str, float]:
    """The worst rank's numbers."""
    names = dict.fromkeys(name for answer in answers for name in answer)
    return {name: max(answer[name] for answer in answers if name in answer) for name in names}


def summarise(rows: dict[Case, dict[str, Any]]) -> None:
    """Medians, and ratios to the better way of one process."""
    for row in rows.values():
        for name in ("forward_seconds", "backward_seconds"):
            if f"{name}_rounds" in row:
                row[name] = statistics.median(row[f"{name}_rounds"])
    for (dtype, name, _), row in rows.items():
        alone = [rows[dtype, name, way] for way in ALONE if "forward_seconds" in rows[dtype, name, way]]
        if "forward_seconds" in row:
            row["x_one_forward"] = min(x["forward_seconds"] for x in alone) / row["forward_seconds"]
        if "backward_seconds" in row:
            row["x_one_both"] = min(map(both_seconds, alone)) / both_seconds(row)


def both_seconds(row: dict[str, Any]) -> float:
    """Forward and backward."""
    seconds: float = row["forward_seconds"] + row["backward_seconds"]
    return seconds


def table(rows: dict[Case, dict[str, Any]]) -> str:
    """One block for each dtype and mask."""
    columns = (
        ("s forward", "forward_seconds", "{:.3f}", 1.0),
        ("backward", "backward_seconds", "{:.3f}", 1.0),
        ("x one forward", "x_one_forward", "{:.2f}", 1.0),
        ("both", "x_one_both", "{:.2f}", 1.0),
        ("MiB sent forward", "forward_sent", "{:.2f}", 2**-20),
        ("backward", "backward_sent", "{:.2f}", 2**-20),
        ("peak MiB forward", "forward_peak", "{:.0f}", 2**-20),
        ("both", "both_peak", "{:.0f}", 2**-20),
        ("max/mean", "imbalance", "{:.3f}", 1.0),
        ("error", "error", "{:.0e}", 1.0),
    )
    lines, before = [], ("", "")
    for (dtype, name, way), row in rows.items():
        if (dtype, name) != before:
            before = dtype, name
            lines += ["", f"{dtype + ', ' + name:28}{'split':11}" + "  ".join(title for title, *_ in columns)]
        if "why" in row:
            if way not in ALONE:
                lines.append(f"{way:28}{row['why']}")
            continue
        cells = [
            (form.format(row[key] * unit) if key in row else "-").rjust(len(title))
            for title, key, form, unit in columns
        ]
        lines.append(f"{way:28}{row['split']:11}" + "  ".join(cells))
    return "\n".join(lines)


def peer_versions(folder: str | None) -> dict[str, str]:
    """Of what lies in the folder."""
    return {d.metadata["Name"]: d.version for d in distributions(path=[folder])} if folder else {}


class Processes:
    """Four ranks with a thread each and one process with two, all waiting; `ask` wakes those whose turn it is.

    Args:
        peers: folder to import peers from.
        environment: of the processes, beside the present one.
    """

    def __init__(self, peers: str | None, environment: dict[str, str] | None = None) -> None:
        self.folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []
        with mock.patch.dict(os.environ, {"DS_ACCELERATOR": "cpu"} | (environment or {})):
            for rank in range(-1, RANKS):
                here, there = context.Pipe()
                self.processes.append(context.Process(target=answer, args=(there, rank, self.folder.name, peers)))
                self.processes[-1].start()
                there.close()
                self.pipes.append(here)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.folder.cleanup()

    def ask(self, verb: str, case: Case, tokens: int) -> list[Any]:
        """The answer of each process that takes part: a dictionary, or why it cannot.

        Raises:
            RuntimeError: one failed, died or kept silent.
        """
        dtype, name, way = case
        taking_part = self.pipes[:1] if way in ALONE else self.pipes[1:]
        for pipe in taking_part:
            pipe.send(Ask(verb, way, Work(name, tokens), dtype))
        found = []
        for pipe in taking_part:
            if not pipe.poll(PATIENCE):
                raise RuntimeError(f"{verb} of {case}: no answer in {PATIENCE} s; see {self.logs()}")
            try:
                good, value = pipe.recv()
            except EOFError:
                raise RuntimeError(f"{verb} of {case}: a process died\n{self.logs()}") from None
            if not good:
                raise RuntimeError(f"{verb} of {case} failed\n{value}")
            found.append(value)
        return found

    def logs(self) -> str:
        """The end of what the processes printed."""
        return "\n".join(file.read_text()[-2000:] for file in Path(self.folder.name).glob("log*"))


def answer(pipe: Connection, rank: int, folder: str, peers: str | None) -> None:
    """The life of a process: rank -1 is the one alone. What peers print goes to a file."""
    log = os.open(f"{folder}/log{rank}", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if peers:
        sys.path.append(peers)
    torch.set_num_threads(2 if rank < 0 else 1)
    if rank >= 0:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_RANK=str(rank))
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    verbs: dict[str, Callable[[Way, Ask], dict[str, Any]]] = {
        "error": error_of,
        "seconds": seconds_of,
        "bytes": bytes_of,
    }
    while True:
        try:
            ask: Ask = pipe.recv()
        except EOFError:
            os._exit(0)
        try:
            pipe.send((True, verbs[ask.verb](way_of(ask.way, ask.work), ask)))
        except Cannot as reason:
            pipe.send((True, str(reason)))
        except Exception:
            pipe.send((False, traceback.format_exc()))


@lru_cache(maxsize=len(ALONE) + len(RANKED))
def way_of(name: str, work: Work) -> Way:
    """Made once for each mask, as plans are."""
    return (ALONE.get(name) or RANKED[name])(work)


@lru_cache(maxsize=1)
def inputs(work: Work) -> list[Tensor]:
    """q, k, v and the gradient of the output of the whole sequence, in float32."""
    generator = torch.Generator().manual_seed(work.tokens)
    return [torch.randn(work.tokens, HEADS, DIM, generator=generator) for _ in range(4)]


def held(way: Way, ask: Ask) -> tuple[list[Tensor], Tensor]:
    """This process's rows: q, k and v as leaves, and the gradient."""
    rows = rows_of(way.ranges)
    *leaves, grad = (x[rows].to(DTYPES[ask.dtype]) for x in inputs(ask.work))
    return [x.requires_grad_() for x in leaves], grad


def run(way: Way, leaves: list[Tensor], grad: Tensor, after: Callable[[str], None]) -> list[Tensor]:
    """Output and gradients; ranks start forward and backward together, and `after` each of them is told."""
    with way.context():
        together()
        after("start")
        out = way.attend(*leaves)
        after("forward")
        if not way.backward:
            return [out.detach()]
        together()
        after("start")
        grads = torch.autograd.grad(out, leaves, grad)
        after("backward")
        return [out.detach(), *grads]


def together() -> None:
    """Wait for the other ranks, if there are any."""
    if dist.is_initialized():
        dist.barrier()


def error_of(way: Way, ask: Ask) -> dict[str, Any]:
    """Squared errors of this rank's rows of output and gradients, and squares of what they should be."""
    found = run(way, *held(way, ask), lambda _: None)
    rows, wanted = rows_of(way.ranges), dense(ask.work, ask.dtype)
    if found[0].shape != wanted[0][rows].shape:
        raise Cannot("wrong shape")
    sums = [
        [float((got.double() - want[rows]).square().sum()), float(want[rows].square().sum())]
        for got, want in zip(found, wanted, strict=False)
    ]
    return {"sums": list(zip(*sums, strict=True)), "split": way.split, "imbalance": way.imbalance}


@lru_cache(maxsize=1)
def dense(work: Work, dtype: str) -> list[Tensor]:
    """Output and gradients in float64, of inputs rounded to `dtype`; pair by pair from the mask's rectangles."""
    seen = torch.zeros(work.tokens, work.tokens, dtype=torch.bool)
    back = torch.arange(work.tokens)[:, None] - torch.arange(work.tokens)
    for q0, q1, k0, k1, low, high in work.mask.table.tolist():
        seen[q0:q1, k0:k1] |= (low <= back[q0:q1, k0:k1]) & (back[q0:q1, k0:k1] <= high)
    *leaves, grad = (x.to(DTYPES[dtype]).double() for x in inputs(work))
    q, k, v = (x.requires_grad_() for x in leaves)
    scores = torch.einsum("qhd,khd->hqk", q, k) * DIM**-0.5
    out = torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)
    return [out.detach(), *torch.autograd.grad(out, [q, k, v], grad)]


def seconds_of(way: Way, ask: Ask) -> dict[str, Any]:
    """Of forward and of backward."""
    given, found, begin = held(way, ask), {}, 0.0

    def after(what: str) -> None:
        nonlocal begin
        now = time.perf_counter()
        if what != "start":
            found[f"{what}_seconds"] = now - begin
        begin = now

    run(way, *given, after)
    return found


def bytes_of(way: Way, ask: Ask) -> dict[str, Any]:
    """Bytes sent, and growth of the resident set to its peak over inputs; of the second of two runs."""
    run(way, *held(way, ask), lambda _: None)
    leaves, grad = held(way, ask)
    found: dict[str, Any] = {}
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    with counted() as sent:

        def after(what: str) -> None:
            if what != "start":
                found["forward_peak" if what == "forward" else "both_peak"] = resident("VmHWM") - before
                if sent:
                    found[f"{what}_sent"] = sum(sent)
            sent.clear()

        run(way, leaves, grad, after)
    return found


@contextmanager
def counted() -> Iterator[list[int]]:
    """Bytes of each message that this rank hands to torch.distributed for others, as it does."""
    total: list[int] = []
    batch, all_to_all = dist.batch_isend_irecv, dist.all_to_all_single

    def batched(ops: list[Any]) -> Any:
        total.extend(op.tensor.nbytes for op in ops if op.op is dist.isend)
        return batch(ops)

    def exchanged(*given: Any, **named: Any) -> Any:
        call = inspect.signature(all_to_all).bind(*given, **named).arguments
        leaving, group, splits = call["input"], call.get("group"), call.get("input_split_sizes")
        me, ranks = dist.get_rank(group), dist.get_world_size(group)
        own = splits[me] if splits else len(leaving) // ranks
        total.append(leaving.nbytes - own * leaving[:1].nbytes)
        return all_to_all(*given, **named)

    with mock.patch.multiple(dist, batch_isend_irecv=batched, all_to_all_single=exchanged):
        yield total


def resident(which: str) -> int:
    """Bytes: VmRSS now, VmHWM at its peak."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(which))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
