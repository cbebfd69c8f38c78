"""How ranks meet: each on a GPU of its own, groups freed only after success. No GPU is needed: stand-ins tell."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
import torch.distributed as dist

from launcher.cluster import ray_ranks
from launcher.core import hardware
from launcher.core.hardware import device_here, gpus, ranks_here
from launcher.core.heartbeat import HeartbeatBoard
from launcher.preflight import preflight
from launcher.supervision.fork_server import context
from launcher.supervision.local_ranks import free_port
from launcher.supervision.rank_group import run_reporting
from launcher.training import rendezvous
from launcher.training.rendezvous import RankPlace, claim, device_of, join_process_group, visible_index
from launcher.worker import place_from
from parallel.errors import InputError
from parallel.mesh import Mesh, join
from tests.support.process_groups import run_world
from tests.support.runs import config

MINUTE = timedelta(minutes=1)
Environment = dict[str, str]


def place(local_rank: int, local_world: int, rank: int | None = None) -> RankPlace:
    return RankPlace(local_rank if rank is None else rank, local_world, local_rank, local_world, "127.0.0.1:1")


TORCHRUN = [{"RANK": str(r), "WORLD_SIZE": "8", "LOCAL_RANK": str(r % 4), "LOCAL_WORLD_SIZE": "4"} for r in range(8)]
SRUN = {"SLURM_NTASKS": "12", "SLURM_TASKS_PER_NODE": "4(x3)"}
SRUN_EACH_ITS_OWN = [
    {**SRUN, "SLURM_PROCID": str(r), "SLURM_LOCALID": str(r % 4), "SLURM_NODEID": str(r // 4)} for r in range(12)
]


@pytest.mark.parametrize(
    ("started", "visible", "indices"),
    [
        (TORCHRUN, 4, [0, 1, 2, 3] * 2),
        (TORCHRUN, 8, [0, 1, 2, 3] * 2),  # more GPUs than ranks
        (SRUN_EACH_ITS_OWN, 1, [0] * 12),  # --gpus-per-task=1, or --gpus-per-node=4 --gpu-bind=single:1
        (SRUN_EACH_ITS_OWN, 4, [0, 1, 2, 3] * 3),  # --gpus-per-node=4: each task sees all of them
        (SRUN_EACH_ITS_OWN, 2, [0, 1, 0, 1] * 3),  # --gpus-per-task=2, or one for each socket
    ],
)
def test_the_gpu_of_a_rank_is_one_that_it_sees(started: list[Environment], visible: int, indices: list[int]) -> None:
    places = [RankPlace(**place_from(environment), address="") for environment in started]
    assert [visible_index(one, visible) for one in places] == indices


@pytest.mark.parametrize(
    ("ulysses", "visible", "indices"),
    [(2, 2, [0, 1, 0, 1]), (1, 1, [0, 0, 0, 0]), (4, 4, [0, 1, 2, 3]), (2, 8, [0, 1, 2, 3])],
)
def test_ray_numbers_the_gpus_of_a_bundle_anew(ulysses: int, visible: int, indices: list[int]) -> None:
    """Local ranks count over the node: rank 2 has LOCAL_RANK 2 and CUDA_VISIBLE_DEVICES 2,3 with bundles of two."""
    assert [visible_index(place(rank, 4), visible) for rank in range(4)] == indices


def test_tasks_of_a_node_are_what_srun_started_there() -> None:
    uneven = {"SLURM_NTASKS": "7", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "2"}
    told = {"SLURM_TASKS_PER_NODE": "2(x2),3", "SLURM_NTASKS_PER_NODE": "8"}
    assert place_from({**uneven, **told})["local_world"] == 3
    assert place_from({**uneven, "SLURM_NTASKS_PER_NODE": "4"})["local_world"] == 4


def test_more_ranks_than_gpus_share_none() -> None:
    with pytest.raises(InputError) as caught:
        visible_index(place(2, 3), 2)
    assert "3 ranks on a node, of which local rank 2 sees 2 GPUs" in caught.value.value
    store = dist.HashStore()
    for rank in range(2):
        claim(store, place(rank, 4), f"GPU-{rank}")
        claim(store, place(rank, 4), f"GPU-{rank}")  # its own
    with pytest.raises(InputError) as caught:
        claim(store, place(2, 4), "GPU-0")
    assert "ranks 0 and 2 both have GPU GPU-0" in caught.value.value


@contextmanager
def cuda(visible: int = 2, usable: bool = True) -> Iterator[Mock]:
    """A machine with so many GPUs that torch can use, or not."""
    with (
        patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(visible)))}),
        patch("torch.cuda.is_available", return_value=usable),
        patch("torch.cuda.device_count", return_value=visible),
        patch("torch.cuda.set_device") as chosen,
    ):
        yield chosen


def test_the_device_that_is_used_is_the_local_rank_that_others_read() -> None:
    """DeepSpeed takes cuda:LOCAL_RANK."""
    card = Mock(uuid="GPU-a")
    with (
        cuda() as chosen,
        patch("torch.cuda.get_device_properties", return_value=card),
        patch.object(rendezvous, "rendezvous_store", return_value=dist.HashStore()),
        patch.object(dist, "init_process_group") as joined,
        patch.object(dist, "destroy_process_group"),
        join_process_group(place(2, 4), MINUTE) as device,
    ):
        assert device == torch.device("cuda", 0)
        assert os.environ["LOCAL_RANK"] == "0"
        assert os.environ["RANK"] == "2"
        assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
        assert os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "3"
    chosen.assert_called_with(torch.device("cuda", 0))
    assert joined.call_args.args == ("nccl",)
    assert joined.call_args.kwargs["device_id"] == device


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_what_the_user_set_stays(name: str) -> None:
    with cuda(), patch.dict(os.environ, {name: "max_split_size_mb:64"}):
        device_of(place(0, 2))
        others = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} - {name}
        assert os.environ[name] == "max_split_size_mb:64"
        assert not others & os.environ.keys()


def asks_preflight(tmp_path: Path, dataset: Path, **settings: Any) -> None:
    preflight.check(config(tmp_path / "run", dataset, **settings))


def test_gpus_that_torch_cannot_use_are_not_passed_over(tmp_path: Path, dataset: Path) -> None:
    asked: list[Callable[[], object]] = [
        lambda: device_of(place(0, 1)),
        lambda: device_here(),
        lambda: asks_preflight(tmp_path, dataset),
    ]
    for ask in asked:
        with (
            cuda(usable=False),
            patch.object(hardware, "driver", return_value="535.104.05"),
            pytest.raises(InputError) as caught,
        ):
            ask()
        assert caught.value.rule == "torch can use the GPUs of a machine that has some"
        assert "2 NVIDIA GPUs, driver 535.104.05" in caught.value.value
        assert torch.__version__ in caught.value.value
        assert "device=cpu" in caught.value.remedy


def test_what_the_driver_says_is_passed_on() -> None:
    def old() -> bool:
        import warnings

        warnings.warn("The NVIDIA driver on your system is too old (found version 11040)", stacklevel=1)
        return False

    with cuda(), patch("torch.cuda.is_available", old), pytest.raises(InputError, match="too old"):
        device_here()


def test_who_insists_on_the_cpu_gets_it_everywhere(tmp_path: Path, dataset: Path) -> None:
    with cuda(usable=False):
        assert device_here("cpu") == torch.device("cpu")
        assert (gpus(), gpus("cpu")) == (2, 0)
        assert ranks_here("cpu") == hardware.RANKS_PER_CORE * hardware.cores()
        asks_preflight(tmp_path, dataset, device="cpu")
    with cuda():
        assert device_of(place(0, 1), "cpu") == torch.device("cpu")
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""  # libraries that look for GPUs find none


def test_placing_and_starting_follow_the_device() -> None:
    """With GPUs ranks are placed by GPU and spawned, as CUDA does not survive a fork; for the CPU neither."""
    with cuda(), patch("multiprocessing.forkserver.ensure_running"), patch.object(ray_ranks, "connect"):
        assert context(0).get_start_method() == "spawn"
        assert context(0, "cpu").get_start_method() == "forkserver"
        with patch.object(ray_ranks, "Placement") as placement:
            ray_ranks.ActorRanks(None, 2)
            ray_ranks.ActorRanks(None, 2, "cpu")
        assert [on_gpus for (_, _, on_gpus), _ in placement.call_args_list] == [True, False]


@pytest.mark.parametrize(("visible", "seen"), [("0,1", 2), ("", 0), ("-1", 0), ("0,-1,1", 1), ("GPU-8f6a,GPU-1b", 2)])
def test_visible_devices_are_read_as_the_driver_does(visible: str, seen: int) -> None:
    with patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": visible}):
        assert gpus() == seen


def fails_while_others_wait(rank: int, port: int) -> tuple[str, str, bool]:
    """Rank 1 raises while it joins the group, rank 0 sits in a collective. Freeing a group waits, as NCCL does."""
    dist.destroy_process_group()
    freed = threading.Event()

    def free() -> None:
        freed.set()
        threading.Event().wait()

    def work() -> tuple[int, bool]:
        with join_process_group(RankPlace(rank, 2, rank, 2, f"127.0.0.1:{port}"), MINUTE):
            dist.barrier()
            if rank == 1:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            dist.all_reduce(torch.zeros(1))
        return 1, False

    with patch.object(dist, "destroy_process_group", free):
        end = run_reporting(rank, work, HeartbeatBoard())
    return end.how, end.sign, freed.is_set()


def test_an_exception_is_told_while_others_sit_in_a_collective() -> None:
    others, failed = run_world(2, fails_while_others_wait, free_port(), seconds=120)
    assert failed == ("failed", "OutOfMemoryError", False)
    assert others[0] == "failed"  # its peer went away
    assert not others[2]


@pytest.mark.parametrize(
    ("device", "dtype", "precision"),
    [("cuda:1", "float32", "high"), ("cuda:1", "bf16", "highest"), ("cpu", "float32", "highest")],
)
def test_float32_of_a_gpu_uses_its_tensor_cores(device: str, dtype: str, precision: str) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        rendezvous.use_tensor_cores(torch.device(device), dtype)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_an_exception_is_told_before_what_the_rank_had_is_let_go() -> None:
    """The thread that reads data ahead ends with its batch, which may take long: others wait in a collective."""
    order: list[str] = []

    def batches() -> Iterator[int]:
        try:
            yield 1
        finally:
            order.append("let go")

    def work() -> tuple[int, bool]:
        here = batches()
        next(here)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    run_reporting(0, work, HeartbeatBoard(), lambda end: order.append(end.sign))
    assert order == ["OutOfMemoryError", "let go"]


def test_groups_are_freed_after_success() -> None:
    with (
        patch.object(rendezvous, "rendezvous_store", return_value=dist.HashStore()),
        patch.object(dist, "init_process_group"),
        patch.object(dist, "destroy_process_group") as freed,
        patch.dict(os.environ),
    ):
        with join_process_group(place(0, 1), MINUTE, "cpu"):
            freed.assert_not_called()
        freed.assert_called_once_with()


@pytest.mark.parametrize("splits", [False, True])
def test_communicators_start_together(splits: bool) -> None:
    """All groups are made, or split from the world, before the first message goes through any."""
    told: list[Any] = []

    def new_group(members: list[int], timeout: timedelta) -> str:
        told.append(tuple(members))
        return f"group {members}"

    def split_group(split_ranks: list[list[int]], timeout: timedelta) -> str:
        told.append(tuple(map(tuple, split_ranks)))
        return f"group {next(members for members in split_ranks if 5 in members)}"

    mesh = Mesh(2, 2, 2)
    with (
        patch("parallel.mesh._splits", return_value=splits),
        patch.object(dist, "new_group", new_group),
        patch.object(dist, "split_group", split_group),
        patch.object(dist, "get_backend", return_value="nccl"),
        patch.object(dist, "barrier", lambda group: told.append(f"first message in {group}")),
    ):
        groups = join(mesh, 5)
    made: Any = [tuple(map(tuple, axis)) for axis in (mesh.rings(), mesh.ulysses_groups(), mesh.replicas())]
    if not splits:
        made = [members for axis in made for members in axis]
    assert told == [*made, *(f"first message in group {members}" for members in ([5, 7], [4, 5], [4, 5, 6, 7]))]
    assert (groups.ring_ranks, groups.sequence_ranks) == ((5, 7), (4, 5, 6, 7))
