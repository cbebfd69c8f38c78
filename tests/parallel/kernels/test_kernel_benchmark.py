"""The kernel of a run: candidates and why not, measured beside the dense one; with kernels that run on a CPU."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from parallel.errors import InputError
from parallel.kernels import kernel_benchmark
from parallel.kernels.cudnn import CuDNN
from parallel.kernels.flash_cpu import FlashCPU
from parallel.kernels.flash_cuda import FlashCUDA
from parallel.kernels.flash_package import FlashPackage
from parallel.kernels.kernel import kernel_for
from parallel.kernels.kernel_benchmark import (
    Trial,
    candidates,
    choose,
    fastest,
    refuse_never,
    routed,
    take,
    through,
    tried,
)
from parallel.kernels.launch import GradientPart, Launch, Part
from parallel.kernels.reference import Reference
from tests.parallel.kernels.test_kernels import StandIn

CPU, GPU, BF16 = torch.device("cpu"), torch.device("cuda", 0), torch.bfloat16


class Wrong(FlashCPU):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, launch: Launch, scale: float) -> Iterator[Part]:
        return super().forward(q, k, v, launch, 1.1 * scale)


class Breaks(FlashCPU):
    def backward(self, *given: Any) -> Iterator[GradientPart]:
        raise RuntimeError("no kernel image is available")


class Forgets(FlashCPU):
    """The gradient of what a kernel saw, and not of the global output and log-sum-exp."""

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, launch: Launch, scale: float
    ) -> Iterator[GradientPart]:
        own, sums = out.clone(), lse.clone()
        for rows, new, new_lse in self.forward(q, k, v, launch, scale):
            own[rows], sums[:, rows] = new, new_lse
        return super().backward(grad, q, k, v, own, sums, launch, scale)


class Trembles(FlashCPU):
    """As sums by atomics do."""

    turn = 0

    def backward(self, *given: Any) -> Iterator[GradientPart]:
        for rows, dq, columns, dk, dv in super().backward(*given):
            self.turn += 1
            yield rows, dq * (1 + self.turn * 1e-3), columns, dk, dv


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that a CPU computes at once."""
    monkeypatch.setattr(kernel_benchmark, "CHECKED", ((40, 17, 0), (40, 23, 0)))
    monkeypatch.setattr(kernel_benchmark, "SQUARE", 33)
    monkeypatch.setattr(kernel_benchmark, "PACKED", (3, 9, 1))
    monkeypatch.setattr(kernel_benchmark, "TIMED", 64)
    monkeypatch.setattr(kernel_benchmark, "_wait", lambda device: None)


@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (4, 1)], ids=str)
def test_right_kernels_are_right_and_wrong_ones_are_not(small: None, heads: tuple[int, int]) -> None:
    for kernel in (FlashCPU(), Reference()):
        trial = tried(kernel, CPU, torch.float32, *heads, 16)
        assert trial.error < 1e-5
        assert trial.repeats
        assert trial.teraflops > 0
    assert tried(Wrong(), CPU, torch.float32, *heads, 16).error > 1e-2
    assert tried(Forgets(), CPU, torch.float32, *heads, 16).error > 1e-2  # each piece alone is right
    assert not tried(Trembles(), CPU, torch.float32, *heads, 16).repeats


def test_the_fastest_of_those_that_are_right() -> None:
    trials = {
        "aten": Trial(1e-3, 350, True),
        "fa3": Trial(3e-3, 600, False),
        "cudnn": Trial(float("nan"), 900, True),
        "fa4": Trial(0.5, 800, True),
    }
    best, reasons = fastest(trials, 2e-2, deterministic=False)
    assert best == "fa3"
    assert reasons["aten"] == "350 TFLOP/s, fa3 600"
    assert reasons["cudnn"].startswith("it is wrong: off by nan")
    assert reasons["fa4"].startswith("it is wrong")
    best, reasons = fastest(trials, 2e-2, deterministic=True)
    assert best == "aten"
    assert "bit by bit" in reasons["fa3"]
    assert fastest({"fa4": trials["fa4"]}, 2e-2, False)[0] is None


def test_on_a_cpu_there_is_one_and_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_benchmark, "tried", lambda *_: pytest.fail("measured"))
    chosen = choose("auto", CPU, torch.float32, 4, 4, 16)
    assert (chosen.name, type(chosen.kernel), chosen.title, dict(chosen.tried)) == ("aten", FlashCPU, "FlashCPU", {})
    assert chosen.left_out["cudnn"] == "it is for CUDA, not for cpu"
    with pytest.raises(InputError, match="fa3: it is for CUDA") as error:
        choose("fa3", CPU, torch.float32, 4, 4, 16)
    assert error.value.remedy == "attention.kernel=auto"
    assert choose("aten", CPU, BF16, 4, 4, 16, deterministic=True).name == "aten"


@pytest.fixture
def gpu(small: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A Hopper with packages fa2 and fa3; kernels and pieces are those of the CPU."""
    routes: list[str | None] = [None]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    for module in ("flash_attn", "flash_attn.flash_attn_interface", "flash_attn_interface"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    monkeypatch.setattr(kernel_benchmark, "activate_flash_attention_impl", lambda name: routes.append(name))
    monkeypatch.setattr(kernel_benchmark, "restore_flash_attention_impl", lambda: routes.append(None))
    monkeypatch.setattr(kernel_benchmark, "_inputs", _on_cpu(kernel_benchmark._inputs))
    return {"routes": routes}


def _on_cpu(make: Any) -> Any:
    return lambda device, dtype, *rest: make(CPU, dtype, *rest)


def test_what_can_be_had_on_a_gpu_and_why_not_the_others(gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found, missing = candidates(GPU, BF16)
    kinds = {name: type(kernel) for name, kernel in found.items()}
    assert kinds == {"aten": FlashCUDA, "fa2": FlashPackage, "fa3": FlashCUDA, "cudnn": CuDNN}
    assert missing == {"fa4": "flash_attn.cute is not installed"}
    assert "cudnn" not in candidates(GPU, BF16, deterministic=True)[0]
    found, missing = candidates(GPU, torch.float32)
    assert list(found) == ["aten"]
    assert missing["fa3"] == "it takes bf16 and fp16, not float32"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert "compute capability 9, this one has 8" in candidates(GPU, BF16)[1]["fa3"]
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: None)
    assert candidates(GPU, BF16)[1]["cudnn"] == "it needs cuDNN 9, torch has 0"
    with pytest.raises(InputError, match=r"fa4: .*\n.*pip install flash-attn-4") as error:
        choose("fa4", torch.device("cuda"), BF16, 4, 4, 16) if _hopper(monkeypatch) else None
    assert "attention.kernel=auto" in error.value.remedy


def _hopper(monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return True


def test_auto_measures_and_leaves_out_what_is_wrong_or_fails(
    gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    every = {"aten": FlashCPU(), "fa2": Breaks(), "fa3": FlashCPU(), "cudnn": Wrong()}
    monkeypatch.setattr(
        kernel_benchmark, "candidates", lambda *_: (dict(every), {"fa4": "flash_attn.cute is not installed"})
    )
    speeds = {every["aten"]: 350.0, every["fa3"]: 600.0, every["cudnn"]: 900.0}
    monkeypatch.setattr(kernel_benchmark, "_teraflops", lambda kernel, *_: speeds[kernel])
    chosen = choose("auto", GPU, torch.float32, 8, 2, 16)
    assert (chosen.name, chosen.kernel) == ("fa3", every["fa3"])
    assert gpu["routes"] == [None, "FA3", None, "FA3"]  # re-routed while it is tried, and in the end for good
    assert chosen.left_out["fa2"] == "it fails: RuntimeError: no kernel image is available"
    assert chosen.left_out["cudnn"].startswith("it is wrong")
    assert chosen.left_out["aten"] == "350 TFLOP/s, fa3 600"
    record = chosen.record()
    assert (record["kernel"], record["teraflops"]) == ("fa3", {"aten": 350.0, "fa3": 600.0, "cudnn": 900.0})
    gpu["routes"].clear()
    again = choose("auto", GPU, torch.float32, 8, 2, 16, before="fa2")
    assert (again.name, dict(again.tried), gpu["routes"]) == ("fa2", {}, [])
    assert take("fa3", GPU, torch.float32).kernel is every["fa3"]
    assert gpu["routes"] == ["FA3"]
    with pytest.raises(InputError, match=r"fa4: flash_attn\.cute is not installed"):
        take("fa4", GPU, torch.float32)


def test_a_kernel_that_was_asked_for_and_is_wrong_ends_the_run(
    gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_benchmark, "candidates", lambda *_: ({"aten": FlashCPU(), "cudnn": Wrong()}, {}))
    with pytest.raises(InputError, match="cudnn: it is wrong"):
        choose("cudnn", GPU, torch.float32, 8, 2, 16)
    assert choose("aten", GPU, torch.float32, 8, 2, 16).name == "aten"


def test_routes_are_given_back_after_an_error(gpu: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError), routed("fa3"):
        raise RuntimeError
    with routed("aten"), routed("cudnn"):
        pass
    assert gpu["routes"] == [None, "FA3", None]


def test_what_no_machine_can_have_is_refused_before_a_run() -> None:
    refuse_never("auto", "cpu", torch.float32, True)
    refuse_never("fa3", "cuda", BF16, True)
    for asked, device, dtype, strict, reason in (
        ("fa2", "cpu", BF16, False, "for CUDA, not for cpu"),
        ("fa3", "cuda", torch.float32, False, "takes bf16 and fp16, not float32"),
        ("cudnn", "cuda", BF16, True, "does not repeat itself"),
    ):
        with pytest.raises(InputError, match=reason):
            refuse_never(asked, device, dtype, strict)


def test_merging_is_that_of_a_ring(small: None) -> None:
    """Pieces of a stand-in for CUDA through the check: what it gives in float64 is what one dense piece gives."""
    given = kernel_benchmark._inputs(CPU, torch.float64, 40, 40, 4, 2, 8)
    launches = next(kernel_benchmark._cases())[0]
    for got, want in zip(through(StandIn(), given, launches), through(Reference(), given, launches), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert isinstance(kernel_for(CPU, torch.float64), FlashCPU)
