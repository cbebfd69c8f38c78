"""Ways to save and load one state, run on each rank of a gloo world: ours, DeepSpeed's, torch's DCP, and the bare disk.

Every way begins with files that are not in memory: what a resume after a reboot finds.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from data.streams.curriculum import Position
from launcher.checkpoints.checkpoint_manifest import Manifest, TrainState
from launcher.checkpoints.part import Part
from launcher.checkpoints.reading import newest, trusting
from launcher.checkpoints.saver import Keep, Saver
from launcher.checkpoints.storage import LocalStorage
from parallel.optimizers.adamw import AdamWConfig
from parallel.zero.deepspeed_engine import DeepSpeedEngine
from parallel.zero.stages import engine_for

TENSOR_NAMES = AdamWConfig().tensor_names
DIM = 1024  # of square matrices: a layer has DIM^2 parameters
BLOCK = 16 << 20


class Layers(nn.Module):
    """Square matrices, one after the other."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(DIM, DIM, bias=False) for _ in range(count)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, DIM] -> [rows, DIM]"""
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def trained(layers: int, stage: int) -> DeepSpeedEngine:
    """An engine after one step, so that it has all of its state."""
    torch.manual_seed(0)
    engine = engine_for(Layers(layers), AdamWConfig(), stage, 1)
    assert isinstance(engine, DeepSpeedEngine)
    step(engine, 64)
    return engine


def step(engine: DeepSpeedEngine, rows: int, saver: Saver | None = None) -> float:
    """One step of training on this many rows; seconds."""
    began = time.perf_counter()
    if saver is not None:
        settle(saver)
    loss = engine.forward(torch.ones(rows, DIM)).square().sum() / rows
    engine.backward(loss)
    if saver is not None:
        saver.wait_copied()
    engine.step(1e-4)
    return time.perf_counter() - began


def settle(saver: Saver) -> None:
    """What a rank does before a step."""
    words = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(words, torch.tensor([saver.save_status()]))
    saver.resolve([int(word) for word in words])


def saver_of(engine: DeepSpeedEngine, folder: Path, told: list[dict[str, Any]]) -> Saver:
    """As the launcher makes it."""
    shapes = {name: tuple(parameter.shape) for name, parameter in engine.module.named_parameters()}

    def manifest(state: TrainState, parts: Sequence[Part], recent: Sequence[dict[str, Any]]) -> Manifest:
        return Manifest(state, {}, "benchmark", {}, (), shapes, tuple(parts))

    def tell(event: str, **fields: Any) -> None:
        told.append({"event": event, **fields})

    return Saver(LocalStorage(folder), engine.owned(), manifest, Keep(1), 1.0, tell)


def together(work: Callable[[], Any]) -> float:
    """Seconds until the last rank has done it."""
    dist.barrier()
    began = time.perf_counter()
    work()
    dist.barrier()
    return time.perf_counter() - began


def forget(folder: Path) -> None:
    """Files leave memory: written back, then dropped."""
    dist.barrier()
    if dist.get_rank() == 0:
        for path in folder.rglob("*"):
            if path.is_file():
                file = os.open(path, os.O_RDONLY)
                os.fsync(file)
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(file)
    dist.barrier()


def stalls(rank: int, folder: Path, layers: int, rows: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a blocking save, and that training waits for one behind its back, in turns; and of steps around it."""
    engine, told = trained(layers, 2), list[dict[str, Any]]()
    saver = saver_of(engine, folder, told)
    found: dict[str, list[float]] = {"blocking": [], "stall": [], "quiet": [], "busy": [], "written": []}
    for number in range(1, 2 * rounds + 1, 2):
        found["blocking"].append(together(lambda n=number: saver.finish(TrainState(Position(n), ()))))
        found["quiet"] += [step(engine, rows, saver) for _ in range(3)]
        told.clear()
        saver.begin(TrainState(Position(number + 1), ()))
        while not all_hear(bool(told)):
            found["busy"].append(step(engine, rows, saver))
        found["stall"].append(told[0]["seconds"] if told else 0.0)
        found["written"].append(told[0]["write_seconds"] if told else 0.0)
    saver.close()
    engine.destroy()
    return found


def all_hear(mine: bool) -> bool:
    """What rank 0 says."""
    said = [mine]
    dist.broadcast_object_list(said)
    return said[0]


def rates(rank: int, folder: Path, layers: int, rounds: int) -> dict[str, list[float]]:
    """Seconds to save and to load, by way, in turns; the bare disk writes and reads as many bytes."""
    engine = trained(layers, 2)
    found: dict[str, list[float]] = {}
    mine = sum(t.nbytes for f in engine.owned() for t in f.tensors.values())
    ways = {
        "disk": (lambda place: write_bare(place, rank, mine), lambda place: read_bare(place, rank)),
        "ours": (lambda place: save_ours(engine, place), lambda place: load_ours(engine, place)),
        "ours, read": (None, lambda place: read_ours(engine, place)),
        "ours, verified": (None, lambda place: load_ours(engine, place, verify=True)),
        "deepspeed": (
            lambda place: engine.engine.save_checkpoint(str(place), tag="one"),
            lambda place: engine.engine.load_checkpoint(str(place), tag="one"),
        ),
        "dcp": (lambda place: save_dcp(engine, place), lambda place: load_dcp(engine, place)),
    }
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            save, load = ways[name]
            place = folder / name.partition(",")[0]
            if save is None:
                together(lambda p=place: save_ours(engine, p))
            else:
                found.setdefault(f"save {name}", []).append(together(lambda s=save, p=place: s(p)))
            forget(place)
            found.setdefault(f"load {name}", []).append(together(lambda f=load, p=place: f(p)))
            if rank == 0:
                shutil.rmtree(place)
            dist.barrier()
    found["bytes"] = [float(mine)]
    engine.destroy()
    return found


def save_ours(engine: DeepSpeedEngine, place: Path) -> None:
    """To the commit."""
    saver = saver_of(engine, place, [])
    saver.finish(TrainState(Position(1), ()))
    saver.close()


def read_ours(engine: DeepSpeedEngine, place: Path) -> None:
    """Every byte to where it belongs in the engine's memory, which does not follow it yet."""
    found, _ = newest(LocalStorage(place), trusting)
    assert found is not None
    found.fill(engine.held(), TENSOR_NAMES)


def load_ours(engine: DeepSpeedEngine, place: Path, verify: bool = False) -> None:
    """Into the engine; `verify` also compares the hashes, each rank of its own part."""
    from launcher.checkpoints.checkpoint_manifest import verify as compare

    found, _ = newest(LocalStorage(place), trusting)
    assert found is not None
    if verify:
        assert (
            compare(found.storage, found.name, found.manifest.parts[dist.get_rank() :: dist.get_world_size()]) is None
        )
    found.fill(engine.held(), TENSOR_NAMES)
    engine.refresh(1)


def dcp_state(engine: DeepSpeedEngine) -> dict[str, Any]:
    """What DCP saves of the same tensors: each rank's under names of its own, so that both write as much."""
    rank = dist.get_rank()
    return {f"{rank}.{f.name}.{key}": t for f in engine.owned() for key, t in f.tensors.items()}


def save_dcp(engine: DeepSpeedEngine, place: Path) -> None:
    """torch.distributed.checkpoint, to disk."""
    import torch.distributed.checkpoint as dcp

    dcp.save(dcp_state(engine), checkpoint_id=str(place))


def load_dcp(engine: DeepSpeedEngine, place: Path) -> None:
    """Into the same tensors."""
    import torch.distributed.checkpoint as dcp

    dcp.load(dcp_state(engine), checkpoint_id=str(place))
    engine.refresh(1)


def write_bare(place: Path, rank: int, size: int) -> None:
    """So many bytes, flushed."""
    place.mkdir(parents=True, exist_ok=True)
    block = memoryview(os.urandom(BLOCK))
    with open(place / str(rank), "wb", buffering=0) as file:
        for start in range(0, size, BLOCK):
            file.write(block[: min(BLOCK, size - start)])
        os.fsync(file.fileno())


def read_bare(place: Path, rank: int) -> None:
    """All of them."""
    block = bytearray(BLOCK)
    with open(place / str(rank), "rb", buffering=0) as file:
        while file.readinto(block):
            pass
