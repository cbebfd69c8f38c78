"""Where ranks meet: one process group of all, with the run's timeout, and the device of each."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from launcher.cluster import interface_towards


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
def meet(place: RankPlace, timeout: timedelta) -> Iterator[torch.device]:
    """Join the other ranks; gives this rank's device."""
    os.environ.update(RANK=str(place.rank), WORLD_SIZE=str(place.world), LOCAL_RANK=str(place.local_rank))
    host, _, port = place.address.rpartition(":")
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=port)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed uses old names
    if torch.cuda.is_available():
        visible = torch.cuda.device_count()  # Ray shows a rank its own GPU alone
        device, backend = torch.device("cuda", place.local_rank % visible), "nccl"
        torch.cuda.set_device(device)
    else:
        device, backend = torch.device("cpu"), "gloo"
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // place.local_world))
        if host in ("127.0.0.1", "localhost"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # listen on loopback only
        elif device_name := interface_towards(host):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", device_name)
    store = meeting_store(place, timeout)
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, timeout=timeout)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def set_timeouts(timeout: timedelta) -> None:
    """Give every process group the run's timeout: DeepSpeed clones its own, with half an hour."""
    for group in dist.distributed_c10d._world.pg_map:
        dist.distributed_c10d._set_pg_timeout(timeout, group)


def meeting_store(place: RankPlace, timeout: timedelta) -> Store:
    """Where ranks find each other: torchrun's own store, or one of rank 0 that listens on the given address alone."""
    host, _, port = place.address.rpartition(":")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return PrefixStore(f"attempt-{attempt}", TCPStore(host, int(port), place.world, False, timeout))
    if place.rank > 0:
        return TCPStore(host, int(port), place.world, False, timeout)
    listener = socket.create_server((host, int(port)))
    return TCPStore(host, int(port), place.world, True, timeout, master_listen_fd=listener.detach())
