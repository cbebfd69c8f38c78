"""Small gloo worlds for tests: run one function on n ranks, in processes forked from a server that has torch loaded.

A fork costs some 30 ms where a fresh interpreter needs seconds to import torch and DeepSpeed.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any

PRELOAD = [
    "torch._dynamo",
    "pytest",
    "parallel.zero.preloaded_deepspeed",
    "launcher.training.loop",
    "tests.support.process_groups",
]


def run_world(ranks: int, function: Callable[..., Any], *args: Any, seconds: float = 900) -> list[Any]:
    """What `function(rank, *args)` returned on each rank, with torch.distributed (gloo) up over all of them."""
    context = server()
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(ranks):
            here, there = context.Pipe()
            process = context.Process(  # type: ignore[attr-defined]
                target=_rank, args=(there, f"{folder}/store", rank, ranks, function, args)
            )
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
        try:
            answers = [_answer(pipe, seconds) for pipe in pipes]
        finally:
            for process in processes:
                process.kill()
                process.join()
    failures = [f"rank {rank} failed:\n{value}" for rank, (ok, value) in enumerate(answers) if not ok]
    if failures:
        raise RuntimeError("\n".join(failures))
    return [value for _, value in answers]


def run_alone(function: Callable[..., Any], *args: Any, seconds: float = 900) -> Any:
    """What `function(*args)` returned in a process of its own, where torch.distributed is down."""
    context = server()
    pipe, there = context.Pipe()
    process = context.Process(target=_alone, args=(there, function, args))  # type: ignore[attr-defined]
    process.start()
    there.close()
    try:
        fine, value = _answer(pipe, seconds)
    finally:
        process.kill()
        process.join()
    if not fine:
        raise RuntimeError(value)
    return value


def server() -> BaseContext:
    """The server that processes are forked from; it starts once, with everything that a rank imports."""
    context = multiprocessing.get_context("forkserver")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before the server imports DeepSpeed
    context.set_forkserver_preload(PRELOAD)
    return context


def _answer(pipe: Connection, seconds: float) -> tuple[bool, Any]:
    if not pipe.poll(seconds):
        return False, f"no answer in {seconds} s"
    try:
        answer: tuple[bool, Any] = pickle.loads(pipe.recv_bytes())
    except EOFError:
        return False, "died without an answer"
    return answer


def _alone(pipe: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        answer = (True, function(*args))
    except BaseException:
        answer = (False, traceback.format_exc())
    pipe.send_bytes(pickle.dumps(answer))
    os._exit(0)


def _rank(
    pipe: Connection, store: str, rank: int, ranks: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank))
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timedelta(seconds=120)
        )
        answer = (True, function(rank, *args))
    except BaseException:
        answer = (False, traceback.format_exc())
    pipe.send_bytes(pickle.dumps(answer))  # plain pickle: torch would share memory that dies with this process
    pipe.close()
    os._exit(0)  # DeepSpeed and gloo sometimes abort at interpreter exit, after the work is done
