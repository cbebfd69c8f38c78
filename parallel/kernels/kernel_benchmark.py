"""Which attention kernel a run uses on a GPU: measured on a piece of its own shape when it starts.

    aten    what comes with torch: FlashAttention 2; for float32 its memory-efficient op, for float64 a dense one
    fa2     the flash-attn package: the same algorithm, often newer
    fa3     FlashAttention 3, for Hopper, which torch's op is re-routed to
    fa4     FlashAttention 4, for Hopper and Blackwell, likewise
    cudnn   NVIDIA's, which comes with torch: large pieces; the rest by aten

Where attention is nearly all of a step, the kernel decides its speed: FA3 and cuDNN are about twice as fast as FA2 on
Hopper. Each candidate runs forward and backward of small pieces, merged as in a ring, beside the dense kernel in
float64; one that is wrong, or fails, is left out, and the reason is kept. Of the others the fastest is taken. It costs
some seconds a start; FA4 compiles its kernels meanwhile. On a CPU there is one kernel, and nothing is measured.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import activate_flash_attention_impl, restore_flash_attention_impl

from parallel.errors import InputError
from parallel.kernels.cudnn import CuDNN
from parallel.kernels.flash_cuda import FlashCUDA
from parallel.kernels.flash_package import FlashPackage
from parallel.kernels.kernel import HALF, Kernel, kernel_for
from parallel.kernels.launch import Launch, Rows
from parallel.kernels.pieces import merged
from parallel.kernels.reference import Reference
from parallel.masks.rectangles import CAUSAL, FULL

Name = Literal["aten", "fa2", "fa3", "fa4", "cudnn"]
Asked = Literal["auto", "aten", "fa2", "fa3", "fa4", "cudnn"]
MODULES: dict[str, str] = {
    "fa2": "flash_attn.flash_attn_interface",
    "fa3": "flash_attn_interface",
    "fa4": "flash_attn.cute.interface",
}
GENERATIONS: dict[str, tuple[int, ...]] = {"fa3": (9,), "fa4": (9, 10)}  # of GPUs, by major compute capability
INSTALL = {
    "fa2": "pip install flash-attn --no-build-isolation",
    "fa3": "git clone https://github.com/Dao-AILab/flash-attention && pip install ./flash-attention/hopper",
    "fa4": "pip install flash-attn-4",
}
WRONG = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-4, torch.float64: 1e-10}  # relative, Frobenius
CHECKED = ((4096, 1024, FULL), (4096, 1056, FULL))  # rows and keys of pieces whose outputs are merged, large for cuDNN
SQUARE = 2048  # of the causal piece
PACKED = (37, 256, 1, 90)  # lengths of small causal pieces, which are one call
TIMED = 8192  # rows and keys of the piece that is timed
ROUNDS = 3


@dataclass(frozen=True)
class Trial:
    """One candidate, tried.

    Attributes:
        error: the largest relative error (Frobenius) of output, log-sum-exp and gradients.
        teraflops: a second, forward and backward together.
        repeats: whether backward gave the same bits twice.
    """

    error: float
    teraflops: float
    repeats: bool


@dataclass(frozen=True)
class KernelChoice:
    """What a run computes attention with, and why.

    Attributes:
        name: of the kernel.
        kernel: itself; for fa3 and fa4 torch's op is re-routed in this process from now on.
        tried: the candidates that were measured; none where there was nothing to choose.
        left_out: why each of the others is not taken.
    """

    name: Name
    kernel: Kernel
    tried: Mapping[str, Trial] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """For a person: which of torch's own it is, or its name."""
        return titled(self.name, self.kernel)

    def record(self) -> dict[str, object]:
        """For a run's events."""
        return {
            "kernel": self.name,
            "teraflops": {name: round(trial.teraflops, 1) for name, trial in self.tried.items()},
            "errors": {name: trial.error for name, trial in self.tried.items()},
            "left_out": dict(self.left_out),
        }


def titled(name: str, kernel: Kernel) -> str:
    """Of a candidate, for a person: which of torch's own it is, or its name."""
    return type(kernel).__name__ if name == "aten" else name


def candidates(
    device: torch.device, dtype: torch.dtype, deterministic: bool = False
) -> tuple[dict[str, Kernel], dict[str, str]]:
    """The kernels that can be had here, and why each of the others cannot.

    Args:
        device: that computes.
        dtype: of queries, keys and values.
        deterministic: only those whose backward can repeat itself bit by bit.
    """
    found: dict[str, Kernel] = {"aten": kernel_for(device, dtype)}
    missing: dict[str, str] = {}
    for name in get_args(Name)[1:]:
        reason = _reason(name, device, dtype, deterministic)
        if reason:
            missing[name] = reason
        else:
            found[name] = FlashPackage() if name == "fa2" else CuDNN() if name == "cudnn" else FlashCUDA()
    return found, missing


def _reason(name: str, device: torch.device, dtype: torch.dtype, deterministic: bool) -> str:
    """Why a kernel cannot be had; empty if it can."""
    if reason := never(name, device.type, dtype, deterministic):
        return reason
    if name == "cudnn":
        version = torch.backends.cudnn.version() or 0
        return "" if version >= 90000 else f"it needs cuDNN 9, torch has {version}"
    major = torch.cuda.get_device_capability(device)[0]
    if major not in GENERATIONS.get(name, (major,)):
        return f"it is for GPUs of compute capability {' and '.join(map(str, GENERATIONS[name]))}, this one has {major}"
    try:
        importlib.import_module(MODULES[name])
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except Exception as error:  # a build for another torch fails in any way
        return f"{MODULES[name]} cannot be imported: {_line(error)}"
    return ""


def never(name: str, device: str, dtype: torch.dtype, deterministic: bool) -> str:
    """Why a kernel cannot be had on any machine with such a device; empty if it may be."""
    if name == "aten":
        return ""
    if device != "cuda":
        return f"it is for CUDA, not for {device}"
    if dtype not in HALF:
        return f"it takes bf16 and fp16, not {str(dtype).removeprefix('torch.')}"
    return "its backward does not repeat itself bit by bit" if deterministic and name == "cudnn" else ""


def refuse_never(asked: Asked, device: str, dtype: torch.dtype, deterministic: bool) -> None:
    """A kernel that may be had on a machine with such a device.

    Raises:
        InputError: on none.
    """
    if asked != "auto" and (reason := never(asked, device, dtype, deterministic)):
        raise _missing(asked, reason, device, dtype)


def _missing(asked: str, reason: str, device: str, dtype: torch.dtype) -> InputError:
    remedy = "attention.kernel=auto"
    if device == "cuda" and dtype not in HALF:
        remedy += ", or dtype=bf16"
    elif device == "cuda":
        remedy = f"{INSTALL[asked]}; or {remedy}" if "not" in reason and asked in MODULES else remedy
    return InputError("the attention kernel of a run can be had where it runs", f"{asked}: {reason}", remedy)


def take(name: str, device: torch.device, dtype: torch.dtype, deterministic: bool = False) -> KernelChoice:
    """The kernel of this name, without measuring: another rank has.

    Raises:
        InputError: it cannot be had here.
    """
    found, missing = candidates(device, dtype, deterministic)
    if name not in found:
        raise _missing(name, missing[name], device.type, dtype)
    return _taken(name, found, {}, missing)


def choose(
    asked: Asked,
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    head_dim: int,
    deterministic: bool = False,
    before: str | None = None,
) -> KernelChoice:
    """The kernel of a run, ready to be used in this process.

    Args:
        asked: by name, or auto to measure.
        device: that computes; the current one.
        dtype: of queries, keys and values.
        heads: of queries, on one rank.
        kv_heads: of keys, on one rank.
        head_dim: of both.
        deterministic: only those whose backward repeats itself bit by bit.
        before: what was chosen earlier for the same; taken again if it can be had.

    Raises:
        InputError: the kernel that was asked for cannot be had, or it is wrong; or none is right.
    """
    found, missing = candidates(device, dtype, deterministic)
    if asked != "auto" and asked not in found:
        raise _missing(asked, missing[asked], device.type, dtype)
    wanted = found if asked == "auto" else {asked: found[asked]}
    if device.type != "cuda" or isinstance(found["aten"], Reference):  # there is nothing to compare it with
        return KernelChoice("aten", found["aten"], left_out=missing)
    if before is not None and before in wanted:
        return _taken(before, found, {}, missing)
    trials: dict[str, Trial] = {}
    for name, kernel in wanted.items():
        try:
            with routed(name):
                trials[name] = tried(kernel, device, dtype, heads, kv_heads, head_dim)
        except Exception as error:  # of packages that do not fit this torch, or this shape
            missing[name] = f"it fails: {type(error).__name__}: {_line(error)}"
    best, reasons = fastest(trials, WRONG[dtype], deterministic)
    missing |= reasons
    torch.cuda.empty_cache()
    if best is None:
        why = "; ".join(f"{name}: {missing[name]}" for name in wanted)
        remedy = "longreel doctor" if asked in ("auto", "aten") else "attention.kernel=auto"
        raise InputError("a kernel computes attention rightly on this GPU", why, remedy)
    return _taken(best, found, trials, missing)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _taken(
    name: str, found: Mapping[str, Kernel], trials: Mapping[str, Trial], missing: dict[str, str]
) -> KernelChoice:
    if name in ("fa3", "fa4"):
        activate_flash_attention_impl(name.upper())
    return KernelChoice(name, found[name], trials, missing)  # type: ignore[arg-type]  # of the names that were found


def fastest(trials: Mapping[str, Trial], wrong_from: float, deterministic: bool) -> tuple[str | None, dict[str, str]]:
    """The fastest of those that are right, and why each of the others is not taken."""
    reasons = {}
    for name, trial in trials.items():
        if not trial.error < wrong_from:  # nan is wrong too
            reasons[name] = f"it is wrong: off by {trial.error:.1e}"
        elif deterministic and not trial.repeats:
            reasons[name] = "its backward does not repeat itself bit by bit"
    right = {name: trial.teraflops for name, trial in trials.items() if name not in reasons}
    best = max(right, key=lambda name: right[name]) if right else None
    slower = {
        name: f"{speed:.0f} TFLOP/s, {best} {right[best]:.0f}" for name, speed in right.items() if best and name != best
    }
    return best, reasons | slower


@contextmanager
def routed(name: str) -> Iterator[None]:
    """Torch's flash op goes to FlashAttention 3 or 4 meanwhile, for those names."""
    if name not in ("fa3", "fa4"):
        yield
        return
    activate_flash_attention_impl(name.upper())
    try:
        yield
    finally:
        restore_flash_attention_impl()


def tried(kernel: Kernel, device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int) -> Trial:
    """How far a kernel is from the dense one, whether it repeats itself, and how fast it is."""
    groups = heads // kv_heads
    errors, repeats = [], True
    few = (2 * groups, 2) if kv_heads > 1 else (groups, 1)
    for launches, queries, keys in _cases():
        given = _inputs(device, dtype, queries, keys, *few, head_dim)
        got = through(kernel, given, launches)
        want = through(Reference(), [x.double() for x in given], launches)  # float32 may be TF32
        errors += [relative(mine, exact) for mine, exact in zip(got, want, strict=True)]
        repeats &= all(torch.equal(a, b) for a, b in zip(got, through(kernel, given, launches), strict=True))
    return Trial(max(errors), _teraflops(kernel, device, dtype, heads, kv_heads, head_dim), repeats)


def _cases() -> Iterator[tuple[list[Launch], int, int]]:
    """Launches, and rows of queries and keys: large pieces merged as in a ring, a causal square, small pieces."""
    offsets = np.cumsum([0, *(keys for _, keys, _ in CHECKED)])
    rows = CHECKED[0][0]
    merging = [
        Launch(kind, _range(0, rows), _range(start, start + keys), fresh=start == 0)
        for (_, keys, kind), start in zip(CHECKED, offsets.tolist(), strict=False)
    ]
    yield merging, rows, int(offsets[-1])
    yield [Launch(CAUSAL, _range(0, SQUARE), _range(0, SQUARE), fresh=True)], SQUARE, SQUARE
    stops = np.cumsum(np.array(PACKED, np.int64))
    documents = Rows(stops - np.array(PACKED), stops)
    yield [Launch(CAUSAL, documents, documents, fresh=True)], sum(PACKED), sum(PACKED)


def _range(start: int, stop: int) -> Rows:
    return Rows(np.array([start]), np.array([stop]))


def _inputs(
    device: torch.device, dtype: torch.dtype, queries: int, keys: int, heads: int, kv_heads: int, dim: int
) -> list[Tensor]:
    """q, k, v and the gradient of the output."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((queries, heads), (keys, kv_heads), (keys, kv_heads), (queries, heads))
    return [torch.randn(*shape, dim, generator=draw).to(device, dtype) for shape in shapes]


def through(kernel: Kernel, given: list[Tensor], launches: list[Launch]) -> list[Tensor]:
    """Output, log-sum-exp and gradients of launches on the same rows, as the ring merges and sums them."""
    q, k, v, grad = given
    scale = q.shape[2] ** -0.5
    exact = torch.promote_types(q.dtype, torch.float32)
    out = q.new_zeros(q.shape, dtype=exact)
    lse = out.new_full((len(q), q.shape[1]), -torch.inf)
    for launch in launches:
        for rows, new, new_lse in kernel.forward(q, k, v, launch, scale):
            out[rows], lse[rows] = merged(out[rows], lse[rows], new, new_lse.T)
    whole, sums = out.to(q.dtype), lse.T.contiguous()
    dq, dk, dv = (x.new_zeros(x.shape, dtype=exact) for x in (q, k, v))
    for launch in launches:
        for rows, new_dq, columns, new_dk, new_dv in kernel.backward(grad, q, k, v, whole, sums, launch, scale):
            for total, where, new in ((dq, rows, new_dq), (dk, columns, new_dk), (dv, columns, new_dv)):
                total[where] += new
    return [out, sums, dq, dk, dv]


def relative(got: Tensor, want: Tensor) -> float:
    """Frobenius; absolute where the answer is 0."""
    if got.shape != want.shape:
        return float("inf")
    norm = float(want.double().norm())
    return float((got.double() - want.double()).norm()) / (norm if norm > 1e-9 else want.numel() ** 0.5)


def _teraflops(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int
) -> float:
    q, k, v, grad = _inputs(device, dtype, TIMED, TIMED, heads, kv_heads, head_dim)
    launch, scale = Launch(FULL, _range(0, TIMED), _range(0, TIMED), fresh=True), head_dim**-0.5
    ((_, out, lse),) = kernel.forward(q, k, v, launch, scale)
    out = out.to(dtype)

    def both() -> None:
        list(kernel.forward(q, k, v, launch, scale))
        list(kernel.backward(grad, q, k, v, out, lse, launch, scale))

    return 3.5 * 4e-12 * TIMED**2 * heads * head_dim / seconds(both, device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median of a few rounds, after one that warms up."""
    took = []
    for _ in range(ROUNDS + 1):
        _wait(device)
        begin = time.perf_counter()
        work()
        _wait(device)
        took.append(time.perf_counter() - begin)
    return statistics.median(took[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
