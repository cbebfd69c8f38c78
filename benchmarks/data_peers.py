"""Peers of benchmarks/data_resume.py, run with an interpreter that has them: python -m benchmarks.data_peers NAME ...

MosaicML streaming (pip install mosaicml-streaming) and Megatron Energon (pip install megatron-energon), each in a
virtual environment of its own, since they are no dependencies. Defaults throughout, but for shuffling, which is on, and
the number of workers, which is 0: batches come fastest so. Samples are texts of 2 KB.

Energon resumes on another number of ranks by its tool `energon checkpoint redist`, which deals out the states of
workers: ranks times workers must stay the same. So it runs with one worker in each rank too.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import types
import warnings
from dataclasses import replace
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.data_ranks import RANKS, STEP_SAMPLES, Loading, serve

TEXT = b"a text of no importance. " * 82  # 2 KB
TARS = 20


class Streaming:
    """MosaicML streaming."""

    name = "mosaicml-streaming"

    def __init__(self) -> None:
        for module in ("", ".datasets", ".transforms", ".transforms.functional", ".io"):
            sys.modules.setdefault(f"torchvision{module}", _Stub(f"torchvision{module}"))  # no CPU build; not used
        import streaming

        self.version = version(self.name)
        self.streaming = streaming

    def write(self, folder: str, samples: int) -> None:
        """Shards of MDS."""
        with self.streaming.MDSWriter(out=folder, columns={"id": "int", "text": "bytes"}, size_limit=1 << 22) as writer:
            for number in range(samples):
                writer.write({"id": number, "text": TEXT})

    def join(self, rank: int, ranks: int) -> None:
        """A process group, which its loaders meet in."""
        import torch

        torch.set_num_threads(1)
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(ranks))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(20000 + os.getppid() % 20000))
        torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)

    def load(self, folder: str, rank: int, ranks: int, state: Any) -> Loading:
        """A loader of one epoch."""
        size = STEP_SAMPLES // ranks
        data = self.streaming.StreamingDataset(local=folder, shuffle=True, shuffle_seed=1, batch_size=size)
        loader = self.streaming.StreamingDataLoader(data, batch_size=size, num_workers=0)
        if state is not None:
            loader.load_state_dict(state)
        return Loading((batch["id"].tolist() for batch in loader), loader.state_dict)

    def convert(self, states: list[Any], ranks: int) -> list[Any]:
        """One state for all."""
        return states[:1] * ranks


class Energon:
    """Megatron Energon with so many workers in a rank."""

    name = "megatron-energon"

    def __init__(self, workers: int) -> None:
        from megatron import energon

        self.version = version(self.name)
        self.energon, self.workers = energon, workers

    def write(self, folder: str, samples: int) -> None:
        """Tars, which its own command indexes."""
        each, place = samples // TARS, Path(folder)
        place.mkdir(parents=True)
        for shard in range(TARS):
            with tarfile.open(place / f"{shard:03d}.tar", "w") as tar:
                for number in range(shard * each, samples if shard == TARS - 1 else (shard + 1) * each):
                    info = tarfile.TarInfo(f"{number:06d}.txt")
                    info.size = len(TEXT)
                    tar.addfile(info, io.BytesIO(TEXT))
        command = [str(Path(sys.executable).parent / "energon"), "prepare", "--non-interactive", folder]
        command += ["--split-ratio", "1,0,0", "--sample-type", "TextSample", "--field-map", '{"text": "txt"}']
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def join(self, rank: int, ranks: int) -> None:
        """Nothing: its ranks do not talk."""

    def load(self, folder: str, rank: int, ranks: int, state: Any) -> Loading:
        """A loader of one epoch."""
        workers = len(state.worker_states) if state is not None and self.workers else self.workers
        data = self.energon.get_train_dataset(
            folder,
            worker_config=self.energon.WorkerConfig(rank=rank, world_size=ranks, num_workers=workers),
            batch_size=STEP_SAMPLES // RANKS,
            shuffle_buffer_size=100,
            max_samples_per_sequence=100,
            repeat=False,
        )
        loader = self.energon.get_savable_loader(data)
        if state is not None:
            loader.restore_state_rank(state)
        return Loading((_ids(batch) for batch in loader), loader.save_state_rank)

    def convert(self, states: list[Any], ranks: int) -> list[Any]:
        """As `energon checkpoint redist` does."""
        if ranks == len(states):
            return states
        if not self.workers:
            raise ValueError("refused: without workers a state is of one number of ranks")
        workers = [worker for state in states for worker in state.worker_states]
        if len(workers) % ranks:
            raise ValueError(f"refused: {len(workers)} workers do not divide over {ranks} ranks")
        each = len(workers) // ranks
        return [replace(states[0], worker_states=workers[r * each :][:each], next_worker_id=0) for r in range(ranks)]


def _ids(batch: Any) -> list[int]:
    return [int(key.rpartition("/")[2]) for key in batch.__key__]


class _Stub(types.ModuleType):
    """A module whose names are all classes without content."""

    __version__ = "0"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__, self.__path__ = ModuleSpec(name, None), []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


PEERS = {
    "streaming": Streaming,
    "energon": partial(Energon, 0),
    "energon with a worker": partial(Energon, 1),
}

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    serve(PEERS[sys.argv[1]](), sys.argv[2], int(sys.argv[3]))
