"""Where ranks meet: one process group of all, with the run's timeout, and the device of each.

    place --device_of--> cuda:i, which no other rank has, or cpu --init_process_group--> work --ended well--> freed
                                                                                         +--raised--> left alone

A group is freed only after success. NCCL, to be freed, waits for peers that sit in a collective, and those wait for the
rank that raised: nobody would hear of it before the run's timeout. A rank that raised says so, and its process ends.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from launcher.core.hardware import Device, refuse_unusable_gpus
from launcher.core.network import interface_towards
from parallel.errors import InputError

OF_CUDA = {  # unless the user has set them, by either name
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # packs differ in tokens, so fixed blocks would not fit again
}
OLD_NAMES = {
    "PYTORCH_ALLOC_CONF": "PYTORCH_CUDA_ALLOC_CONF",
    "TORCH_FR_BUFFER_SIZE": "TORCH_NCCL_TRACE_BUFFER_SIZE",
    "TORCH_FR_DUMP_TEMP_FILE": "TORCH_NCCL_DEBUG_INFO_TEMP_FILE",
}
OF_NCCL = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",  # a collective that fails or takes too long ends its process
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    "TORCH_FR_BUFFER_SIZE": "2000",  # newest collectives of each rank, for the dump
    "NCCL_DEBUG": "WARN",
}
TRACES = "nccl"  # folder of a run in which NCCL and torch leave what they know of a hang


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


@contextmanager
def join_process_group(
    place: RankPlace, timeout: timedelta, wanted: Device = "auto", folder: Path | None = None
) -> Iterator[torch.device]:
    """Join the other ranks; gives this rank's device.

    Args:
        place: of this rank.
        timeout: how long ranks wait for each other.
        wanted: "cpu" for that, also where there are GPUs.
        folder: of the run, for traces of NCCL.

    Raises:
        InputError: torch cannot use the GPUs that are here, or there are fewer than ranks.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed uses old names
    host, _, port = place.address.rpartition(":")
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // place.local_world))
    device = device_of(place, wanted)
    # DeepSpeed and others take the device of this number, of those that they see.
    index = place.local_rank if device.index is None else device.index
    os.environ.update(RANK=str(place.rank), WORLD_SIZE=str(place.world), LOCAL_RANK=str(index))
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=port)
    if device.type == "cuda":
        _prepare_nccl(folder)
    _choose_interfaces(host)
    store = rendezvous_store(place, timeout)
    if device.type == "cuda":
        claim(store, place, str(torch.cuda.get_device_properties(device).uuid))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.world,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,  # so that smaller groups are split from the world
    )
    yield device
    dist.destroy_process_group()


def device_of(place: RankPlace, wanted: Device = "auto") -> torch.device:
    """The device of a rank, which this process uses from now on.

    Raises:
        InputError: torch cannot use the GPUs that are here, or there are fewer than ranks.
    """
    if wanted == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # libraries that look for GPUs find none either
        return torch.device("cpu")
    refuse_unusable_gpus()
    if not torch.cuda.is_available():
        return torch.device("cpu")
    _set_unless(OF_CUDA)
    device = torch.device("cuda", visible_index(place, torch.cuda.device_count()))
    torch.cuda.set_device(device)
    return device


def visible_index(place: RankPlace, visible: int) -> int:
    """Which of the GPUs that this process sees is its own.

        who starts                  ranks of a node   each sees   index
        torchrun, plain processes   0 1 2 3           0 1 2 3     0 1 2 3
        Ray, bundles of two         0 1   2 3         0 1   2 3   0 1   0 1     numbered anew in each process
        srun --gpus-per-task=1      0  1  2  3        0  1  2  3  0  0  0  0

    Args:
        place: of the rank.
        visible: GPUs that this process sees.

    Raises:
        InputError: neither does it see one for each rank of the node, nor do so many ranks share what each sees.
    """
    if visible < place.local_world and place.local_world % visible:
        found = f"{place.local_world} ranks on a node, of which local rank {place.local_rank} sees {visible} GPUs"
        raise InputError("each rank has a GPU of its own", found, _fewer(place))
    return place.local_rank % visible


def claim(store: Store, place: RankPlace, gpu: str) -> None:
    """Take a GPU for this rank alone.

    Args:
        store: of all ranks.
        place: of this one.
        gpu: a name that no other GPU of the world has.

    Raises:
        InputError: another rank has it.
    """
    owner = store.compare_set(f"gpu/{gpu}", "", str(place.rank))
    rank = owner.decode() if isinstance(owner, bytes) else str(owner)
    if rank != str(place.rank):
        sees = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        found = f"ranks {rank} and {place.rank} both have GPU {gpu}; CUDA_VISIBLE_DEVICES is {sees}"
        raise InputError("each rank has a GPU of its own", found, _fewer(place))


def use_tensor_cores(device: torch.device, dtype: str) -> None:
    """Let float32 products of a GPU be made in TF32: six times as fast, with 10 bits of each factor instead of 23.

    Sums stay in float32. Who wants every digit takes dtype=float64, or device=cpu.
    """
    if device.type == "cuda" and dtype == "float32":
        torch.set_float32_matmul_precision("high")


def set_timeouts(timeout: timedelta) -> None:
    """Give every process group the run's timeout: DeepSpeed clones its own, with half an hour."""
    for group in dist.distributed_c10d._world.pg_map:
        dist.distributed_c10d._set_pg_timeout(timeout, group)


def rendezvous_store(place: RankPlace, timeout: timedelta) -> Store:
    """Where ranks find each other: torchrun's own store, or one of rank 0 that listens on the given address alone."""
    host, _, port = place.address.rpartition(":")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return PrefixStore(f"attempt-{attempt}", TCPStore(host, int(port), place.world, False, timeout))
    if place.rank > 0:
        return TCPStore(host, int(port), place.world, False, timeout)
    listener = socket.create_server((host, int(port)))
    return TCPStore(host, int(port), place.world, True, timeout, master_listen_fd=listener.detach())


def _fewer(place: RankPlace) -> str:
    return f"start no more ranks on a node than it has GPUs, and show them to all {place.local_world}; or device=cpu"


def _prepare_nccl(folder: Path | None) -> None:
    _set_unless(OF_NCCL)
    if folder is not None:
        traces = folder / TRACES
        traces.mkdir(exist_ok=True)
        _set_unless({"TORCH_FR_DUMP_TEMP_FILE": f"{traces}/trace_", "NCCL_DEBUG_FILE": f"{traces}/%h.%p.log"})


def _choose_interfaces(host: str) -> None:
    """Listen on loopback only, or where the other machines are."""
    if host in ("127.0.0.1", "localhost"):
        _set_unless({"GLOO_SOCKET_IFNAME": "lo"})
    elif name := interface_towards(host):
        _set_unless({"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"})


def _set_unless(settings: dict[str, str]) -> None:
    """Set environment variables that the user has not."""
    for name, value in settings.items():
        if OLD_NAMES.get(name, name) not in os.environ:
            os.environ.setdefault(name, value)
