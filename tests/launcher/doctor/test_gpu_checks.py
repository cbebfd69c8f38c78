"""The doctor on machines with GPUs, which stand-ins play: driver, cards, links, network, kernels."""

from __future__ import annotations

import resource
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.doctor import attention_checks, finding, gpu_checks
from launcher.doctor.attention_checks import ERRORS, attention_error, found_on, kernels_here
from launcher.doctor.finding import Finding
from launcher.doctor.gpu_checks import build_for, driver_version, has_code_for, link_kinds, needed_driver
from parallel.kernels.kernel import FlashCPU

CPU = torch.device("cpu")
TOPOLOGY = (
    "\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\n"
    "GPU0\t X \tNV18\tNV18\tSYS\tPIX\t0-47\t0\t\tN/A\n"
    "GPU1\tNV18\t X \tNV18\tSYS\tSYS\t0-47\t0\t\tN/A\n"
    "GPU2\tNV18\tNV18\t X \tPHB\tSYS\t0-47\t0\t\tN/A\n"
    "GPU3\tSYS\tSYS\tPHB\t X \tSYS\t48-95\t1\t\tN/A\n"
    "NIC0\tPIX\tSYS\tSYS\tSYS\t X \n\nLegend:\n\n  X    = Self\n  NV#  = Connection traversing NVLinks\n"
)
BUILT = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


def only(check: Any) -> Finding:
    (found,) = check
    assert isinstance(found, Finding)
    return found


class Node:
    """Plays a machine with H200s."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int = 2, driver: str = "580.65.06") -> None:
        self.patch, self.free, self.apart = monkeypatch, 139 << 30, set[tuple[int, int]]()
        self.card = types.SimpleNamespace(name="NVIDIA H200", total_memory=140 << 30, major=9, minor=0)
        for name, stand_in in {
            "is_available": lambda: True,
            "device_count": lambda: count,
            "get_device_properties": lambda number: self.card,
            "get_device_capability": lambda *_: (self.card.major, self.card.minor),
            "mem_get_info": lambda number: (self.free, 140 << 30),
            "get_arch_list": lambda: BUILT,
            "can_device_access_peer": lambda a, b: (a, b) not in self.apart,
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(torch.cuda, "nccl", types.SimpleNamespace(version=lambda: (2, 27, 5)))
        monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))
        monkeypatch.setattr(gpu_checks, "driver_version", lambda: driver)
        monkeypatch.setattr(gpu_checks, "_smi", lambda *arguments: "")


@pytest.mark.parametrize(
    ("cuda", "needed"), [("13.0", (580,)), ("12.8", (525, 60, 13)), ("12.6", (525, 60, 13)), ("11.8", (450, 80, 2))]
)
def test_the_driver_that_a_version_of_cuda_needs(cuda: str, needed: tuple[int, ...]) -> None:
    assert needed_driver(cuda) == needed


@pytest.mark.parametrize(
    ("driver", "works", "cuda", "status", "words"),
    [
        ("580.65.06", True, "13.0", "ok", "580.65.06; torch for CUDA 13.0 needs 580 or newer"),
        ("570.86.15", False, "13.0", "problem", "make setup TORCH=cu126"),
        ("570.86.15", True, "13.0", "note", "compatibility package"),
        ("525.60.13", True, "12.6", "ok", "525.60.13"),
        ("", True, "13.0", "note", "unknown"),
        ("570.86.15", False, None, "problem", "built without CUDA"),
    ],
)
def test_the_driver_beside_torch(
    monkeypatch: pytest.MonkeyPatch, driver: str, works: bool, cuda: str | None, status: str, words: str
) -> None:
    node = Node(monkeypatch, driver=driver)
    node.patch.setattr(torch.cuda, "is_available", lambda: works)
    node.patch.setattr(torch.version, "cuda", cuda)
    found = only(gpu_checks.driver())
    assert found.status == status
    assert words in found.found + found.remedy
    assert (build_for("570.86.15"), build_for("580.1"), build_for("")) == ("cu126", "cu130", "cu130")


def test_without_gpus_nothing_is_said_of_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for check in (gpu_checks.driver, gpu_checks.links, gpu_checks.nccl):
        assert torch.cuda.is_available() or list(check()) == []


def test_the_driver_is_read_or_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  X")
    assert driver_version() == "570.86.15"

    def missing(self: Path) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(gpu_checks, "_smi", lambda *arguments: "580.65.06\n580.65.06\n")
    assert driver_version() == "580.65.06"


def test_a_gpu_that_torch_cannot_use_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch can use it here")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    found = only(gpu_checks.gpus())
    assert found.status == "problem"
    assert found.found.startswith("2 NVIDIA GPUs")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert only(gpu_checks.gpus()) == Finding("gpu", "ok", "none: CPU and gloo, same code path")


def test_each_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch)
    first, second = gpu_checks.gpus()
    assert (first.name, second.name) == ("gpu 0", "gpu 1")
    assert first.found == "NVIDIA H200, 139 of 140 GiB free, compute 9.0, BF16"
    assert first.status == "ok"
    node.free = 60 << 30
    assert next(iter(gpu_checks.gpus())).found.endswith("60 of 140 GiB free, compute 9.0, BF16; others use it")
    node.free, node.card.major = 139 << 30, 7
    found = next(iter(gpu_checks.gpus()))
    assert (found.status, "torch has code for" in found.found) == ("problem", True)
    node.card.minor = 5
    assert next(iter(gpu_checks.gpus())).remedy == "dtype=float32: this GPU has no BF16 arithmetic"


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((9, 0), BUILT, True), ((8, 9), BUILT, True), ((8, 7), BUILT, True), ((7, 0), BUILT, False),
        ((12, 1), BUILT, True), ((10, 3), BUILT, True), ((9, 0), ["sm_80"], False), ((9, 0), ["compute_80"], True),
        ((9, 0), ["sm_90a"], True), ((8, 0), ["sm_86"], False),
    ],
)  # fmt: skip
def test_code_that_a_gpu_runs(capability: tuple[int, int], built: Sequence[str], runs: bool) -> None:
    assert has_code_for(capability, built) == runs


def test_links_between_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert link_kinds(TOPOLOGY, 4) == {"NV18": 3, "SYS": 2, "PHB": 1}
    assert link_kinds("", 4) == {}
    node = Node(monkeypatch, count=4)
    assert only(gpu_checks.links()) == Finding("peer access", "ok", "all 4 GPUs reach each other's memory")
    node.apart = {(0, 3), (3, 0)}
    monkeypatch.setattr(gpu_checks, "_smi", lambda *arguments: TOPOLOGY)
    peer, kinds = gpu_checks.links()
    assert (peer.status, "2 of 12 pairs do not reach each other: 0-3, 3-0" in peer.found) == ("note", True)
    assert kinds.found == "not all by NVLink: NV18 3 pairs, PHB 1 pairs, SYS 2 pairs"
    monkeypatch.setattr(gpu_checks, "_smi", lambda *arguments: TOPOLOGY.replace("SYS", "NV18").replace("PHB", "NV18"))
    assert list(gpu_checks.links())[1].status == "ok"
    Node(monkeypatch, count=1)
    assert list(gpu_checks.links()) == []


def test_the_network_between_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Node(monkeypatch)
    monkeypatch.setattr(gpu_checks, "SYSTEM", tmp_path)
    assert list(gpu_checks.network()) == []
    port = tmp_path / "class" / "infiniband" / "mlx5_0" / "ports" / "1"
    port.mkdir(parents=True)
    for name, text in (("state", "4: ACTIVE"), ("rate", "400 Gb/sec (4X NDR)"), ("link_layer", "InfiniBand")):
        (port / name).write_text(f"{text}\n")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 << 20, 8 << 20))
    net, direct = gpu_checks.network()
    assert (net.status, "memlock" in net.remedy) == ("note", True)
    assert net.found.startswith("mlx5_0 InfiniBand 400 Gb/sec (4X NDR) ACTIVE; memlock at most 0.0 GiB")
    assert "modprobe nvidia-peermem" in direct.remedy
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    (tmp_path / "module" / "nvidia_peermem").mkdir(parents=True)
    assert [f.status for f in gpu_checks.network()] == ["ok", "ok"]
    (port / "state").write_text("1: DOWN\n")
    assert next(iter(gpu_checks.network())).remedy == "no port is active: NCCL will use TCP"


def test_nccl_and_its_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    Node(monkeypatch)
    monkeypatch.setattr(gpu_checks, "free_bytes", lambda path: 64 << 20)
    found = only(gpu_checks.nccl())
    assert (found.status, found.found) == ("note", "2.27.5; 0.1 GiB of shared memory")
    monkeypatch.setattr(gpu_checks, "free_bytes", lambda path: 64 << 30)
    assert only(gpu_checks.nccl()).status == "ok"
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    assert only(gpu_checks.nccl()).status == "problem"


def test_flash_attention_is_told_as_it_can_be_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node = Node(monkeypatch)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    found = only(gpu_checks.flash())
    assert found == Finding("flash attention", "ok", "no package of it; torch's own kernel and that of cuDNN")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: None)
    found = only(gpu_checks.flash())
    assert found.found == "no package of it; torch's own kernel"
    assert (found.status, "FA3" in found.remedy) == ("note", True), "this GPU would be faster with it"
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "flash_attn_interface.py").write_text("")
    (tmp_path / "flash_attn_interface.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = only(gpu_checks.flash())
    assert found.found == ("FA2; torch's own kernel; cannot be imported: FA3: ImportError: undefined symbol: _ZN3c10")
    (tmp_path / "flash_attn_interface.py").write_text("")
    assert only(gpu_checks.flash()) == Finding("flash attention", "ok", "FA2, FA3; torch's own kernel")
    node.card.major = 8
    monkeypatch.setattr(gpu_checks, "IMPLEMENTATIONS", {})
    assert only(gpu_checks.flash()).status == "ok", "no such kernel is faster on this GPU"


def test_nvidia_smi_that_fails_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_checks._smi("topo", "-m") == ""
    program.write_text("#!/bin/sh\necho said; exit 9")
    program.chmod(0o755)
    assert gpu_checks._smi("topo", "-m") == ""
    program.write_text("#!/bin/sh\necho said $1")
    assert gpu_checks._smi("topo", "-m") == "said topo\n"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [16, 128])
def test_attention_is_compared_with_a_dense_reference(dtype: torch.dtype, dim: int) -> None:
    ((name, kernel),) = kernels_here(CPU, dtype).items()
    assert name == "FlashCPU"
    assert 0 < attention_error(kernel, CPU, dtype, dim) < ERRORS[str(dtype).removeprefix("torch.")]


class Wrong(FlashCPU):
    """Off by a per cent in one gradient."""

    def backward(self, *arguments: Any) -> Any:
        for rows, dq, columns, dk, dv in super().backward(*arguments):
            yield rows, dq, columns, dk * 1.01, dv


class Refuses(FlashCPU):
    """Has no backward."""

    def backward(self, *arguments: Any) -> Any:
        raise NotImplementedError("no such kernel")


def test_a_wrong_kernel_is_a_problem_and_the_others_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    every = {"right": FlashCPU(), "wrong": Wrong(), "refuses": Refuses()}
    monkeypatch.setattr(attention_checks, "kernels_here", lambda device, dtype: every)
    found = found_on(CPU, ["float64"])
    assert (found.name, found.status) == ("attention on cpu", "problem")
    assert "float64 by wrong 1e-02" in found.found
    assert "float64 by refuses fails with NotImplementedError: no such kernel" in found.found
    assert "float64 by right" in found.found


def test_on_a_gpu_each_kernel_is_timed_with_usual_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    dims = []

    def error(kernel: Any, device: torch.device, dtype: torch.dtype, dim: int) -> float:
        dims.append(dim)
        return 1e-6

    monkeypatch.setattr(attention_checks, "kernels_here", lambda device, dtype: {"FlashCUDA": FlashCPU()})
    monkeypatch.setattr(attention_checks, "attention_error", error)
    monkeypatch.setattr(attention_checks, "attention_speed", lambda kernel, device: (612.3, 401.9))
    found = found_on(torch.device("cuda", 1), ["float32", "bfloat16"])
    assert (found.name, found.status) == ("attention on cuda:1", "ok")
    assert found.found.endswith("float32 by FlashCUDA 1e-06; bfloat16 by FlashCUDA 1e-06, 612 and 402 TFLOP/s")
    assert set(dims) == {64, 128}


def test_speed_is_of_the_exact_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_checks, "TIMED_ROWS", 64)
    seconds = iter((0.5, 2.0))
    monkeypatch.setattr(attention_checks, "_seconds", lambda work, device: (work(), next(seconds))[1])
    forward, backward = attention_checks.attention_speed(FlashCPU(), CPU)
    assert forward == pytest.approx(4e-12 * 64 * 64 * 8 * 128 / 0.5)
    assert backward == pytest.approx(2.5 * 4e-12 * 64 * 64 * 8 * 128 / 2.0)


def test_a_package_that_is_missing_says_how_to_get_it() -> None:
    assert finding.install("torch") == finding.TORCH
    assert finding.install("av").startswith("pip install 'av")
