"""Memory that runs out: what held it, and the settings that would help, from the words that libraries say."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.config.run_config import RunConfig
from launcher.core.heartbeat import HeartbeatBoard
from launcher.preflight.memory_savers import relief
from launcher.supervision.failure_causes import cause_of
from launcher.supervision.rank_group import End, run_reporting
from launcher.training.gpu_out_of_memory import Shortage
from models.diffusion.video_dit import VideoDiTConfig
from parallel.optimizers.adamw import AdamWConfig
from parallel.zero.stages import engine_for
from tests.support.runs import config

GIB = 1 << 30
TORCH = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.19 GiB is free."
    " Including non-PyTorch memory, this process has 77.91 GiB memory in use. Of the allocated memory 70.12 GiB is"
    " allocated by PyTorch, and 6.55 GiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is"
    " large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)
NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled cuda error (run with"
    " NCCL_DEBUG=INFO for details), NCCL version 2.27.5\nncclUnhandledCudaError: Call to CUDA function failed.\n"
    "Last error:\nCuda failure 2 'out of memory'"
)
CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
DRIVER = "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"
BIG = {"mesh": {"replica": 2, "ring": 1, "ulysses": 2}, "zero__stage": 2, "dtype": "bf16"}


class DistBackendError(RuntimeError):
    """Called as torch calls it."""


def run_config(tmp_path: Path, **changes: Any) -> RunConfig:
    return config(tmp_path / "run", tmp_path / "data", **changes)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 79 GiB, of which torch has reserved 77 and uses 70."""
    for name, value in (
        ("memory_allocated", 70 * GIB), ("memory_reserved", 77 * GIB),
        ("get_device_properties", types.SimpleNamespace(total_memory=79 * GIB)),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)


class Engine:
    """What an engine holds, in tensors that take no memory."""

    def __init__(self) -> None:
        half = {"dtype": torch.bfloat16, "device": "meta"}
        self.module = torch.nn.Module()
        self.module.weight = torch.nn.Parameter(torch.empty(GIB, **half))  # type: ignore[call-overload]
        self.module.weight.grad = torch.empty(GIB, **half)  # type: ignore[call-overload]

    def held(self) -> list[Any]:
        states = ("master", "exp_avg", "exp_avg_sq")
        return [types.SimpleNamespace(tensors={name: torch.empty(GIB, device="meta") for name in states})]


@pytest.mark.parametrize(
    ("error", "asked", "outside"),
    [
        (torch.OutOfMemoryError(TORCH), "CUDA out of memory. Tried to allocate 2.00 GiB", False),
        (DistBackendError(NCCL), "NCCL: Cuda failure 2 'out of memory'; of", True),
        (RuntimeError(CUBLAS), "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when", True),
        (RuntimeError(DRIVER), "CUDA error: out of memory", False),
    ],
    ids=["allocator", "nccl", "cublas", "driver"],
)
def test_a_rank_says_what_held_its_gpu(
    card: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, asked: str, outside: bool
) -> None:
    def work() -> tuple[int, bool]:
        with Shortage(torch.device("cuda")) as shortage:
            monkeypatch.setattr("launcher.training.gpu_out_of_memory._bytes", of_meta)
            shortage.holds(Engine())  # type: ignore[arg-type]
            raise error

    end = run_reporting(1, work, HeartbeatBoard())
    assert end.sign == "GpuMemoryError"
    assert type(error).__name__ in end.message, "the words of the library are kept"
    cause = cause_of(end, config=run_config(tmp_path, **BIG))
    assert cause.kind == "memory"
    assert cause.words.startswith(f"ran out of GPU memory: {asked}")
    assert (
        "of 79.0 GiB: parameters 2.0, optimizer 12.0, gradients 2.0, activations and buffers 54.0,"
        " reserved and unused 7.0" in cause.words
    )
    assert ("take what torch's allocator leaves" in cause.words) == outside


def of_meta(tensors: Any, device: torch.device) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def test_other_errors_and_those_of_a_cpu_are_left_alone(card: None) -> None:
    with pytest.raises(KeyError), Shortage(torch.device("cuda")):
        raise KeyError("x")
    with pytest.raises(RuntimeError, match="CUBLAS"), Shortage(torch.device("cpu")):
        raise RuntimeError(CUBLAS)


def test_an_engine_is_counted_once(one_rank: None) -> None:
    """In float32 the masters are the parameters themselves; AdamW keeps two numbers for each."""
    from launcher.training.gpu_out_of_memory import kept_by

    engine = engine_for(torch.nn.Linear(256, 128), AdamWConfig(), 0, 1)
    numbers = 256 * 128 + 128
    assert kept_by(engine, torch.device("cpu")) == {"parameters": 4 * numbers, "optimizer": 8 * numbers}
    engine = engine_for(torch.nn.Linear(256, 128, dtype=torch.bfloat16), AdamWConfig(), 0, 1)
    assert kept_by(engine, torch.device("cpu")) == {"parameters": 2 * numbers, "optimizer": 12 * numbers}


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_settings_that_are_not_set_yet_in_order_of_their_price(tmp_path: Path) -> None:
    told = relief(run_config(tmp_path, **BIG), "gpu")
    expected = ["model.recompute=true", "mesh.ring=2 mesh.ulysses=1", "mesh.replica=1 mesh.ring=2", "zero.stage=3",
                "zero.offload=optimizer", "data.pack_tokens=350"]  # fmt: skip
    for key, setting in (("offload", "model.offload=true"), ("mlp_tiles", "model.mlp_tiles=8")):
        if key in VideoDiTConfig.model_fields:
            expected.insert(1 + (key == "mlp_tiles" and "model.offload=true" in expected), setting)
    assert list(told) == expected


def test_what_is_set_is_never_proposed(tmp_path: Path) -> None:
    everything: dict[str, Any] = {"recompute": True}
    everything |= {k: v for k, v in {"offload": True, "mlp_tiles": 8}.items() if k in VideoDiTConfig.model_fields}
    of_model = {f"model__{key}": value for key, value in everything.items()}
    settings = run_config(
        tmp_path, **of_model, mesh={"ring": 4}, zero={"stage": 3, "offload": "parameters"}, dtype="bf16"
    )
    assert relief(settings, "gpu") == ("mesh.ring=8 (twice the ranks)", "data.pack_tokens=350")
    settings = run_config(tmp_path, **of_model, zero={"stage": 3, "offload": "optimizer"}, dtype="bf16")
    assert "zero.offload=parameters" in relief(settings, "gpu")
    alone = run_config(tmp_path, zero={"stage": 0})
    assert not any("zero" in setting for setting in relief(alone, "gpu")), "one rank has nobody to share with"


def test_host_memory_is_not_relieved_by_more_of_it(tmp_path: Path) -> None:
    settings = run_config(tmp_path, zero={"stage": 2, "offload": "optimizer"}, mesh={"ring": 2}, dtype="bf16")
    told = relief(settings, "host")
    assert "zero.offload=nothing" in told
    assert not any(setting in ("model.offload=true", "zero.offload=parameters") for setting in told)
    killed = End(0, "died", 3, "killed by the memory killer", sign="SIGKILL", for_memory=True)
    cause = cause_of(killed, config=settings)
    assert cause.remedy == f"less memory: {', or '.join(told[:3])}"


def test_a_curriculum_names_its_segment(tmp_path: Path) -> None:
    segments = [{"until": 2, "pack_tokens": 300}, {"pack_tokens": 600}]
    assert relief(run_config(tmp_path, data__segments=segments), "gpu")[-1].endswith("of data.segments")


def test_the_screen_and_why_say_three_settings(tmp_path: Path) -> None:
    end = End(1, "failed", 7, f"Traceback\ntorch.OutOfMemoryError: {TORCH}", phase="backward", sign="OutOfMemoryError")
    found = cause_of(end, config=run_config(tmp_path, **BIG))
    assert found.remedy.count(", or ") == 2
    assert found.remedy.startswith("less memory: model.recompute=true")
    file = tmp_path / "run" / "config.yaml"
    typed = [f"longreel {command} {file} model.recompute=true" for command in ("dryrun", "train")]
    assert found.commands == tuple(typed), "first what it saves"
