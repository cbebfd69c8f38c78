"""What steps take of their device: memory of the busiest rank, speed beside the device's own peak, waits of the host.

    every rank: Memory of the step before --agree--> the fullest --> metrics.jsonl --> screen, report

The busiest rank is seldom rank 0 (uneven heads, other documents), so each tells its memory in the gather that precedes
a step anyway: no collective and no wait are added, at the price that the other ranks' figures are those of the step
before. On a GPU memory is the allocator's, on the CPU the resident set of the rank's process, and named as such.
"""

from __future__ import annotations

import os
import resource
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from launcher.core.hardware import memory as memory_here
from launcher.training.peak_flops import bf16_peak

COUNTED = 3  # the step of an attempt whose waits are counted: by then all that is set up once is set up
WAIT = "called a synchronizing CUDA operation"  # torch's words for one, under set_sync_debug_mode
NOTICE = "Synchronization debug mode is a prototype"  # torch's words when that mode is set for the first time
Of = Literal["gpu", "process"]


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank.

    Attributes:
        allocated: by tensors; of a process, its resident set.
        reserved: by the allocator, of which `allocated` is used; 0 of a process.
        peak: the most that was allocated in the step; of a process, since it began.
        total: of the device; of a process, of the machine or the container.
    """

    allocated: int = 0
    reserved: int = 0
    peak: int = 0
    total: int = 0

    def numbers(self) -> tuple[int, int, int, int]:
        """For a gather; `Memory(*numbers)` is the way back."""
        return self.allocated, self.reserved, self.peak, self.total


NO_MEMORY = Memory()


def fullest(every: Sequence[Memory]) -> tuple[int, Memory]:
    """The rank that is nearest to its device's end, and its memory."""
    rank = max(range(len(every)), key=lambda r: every[r].peak / max(1, every[r].total))
    return rank, every[rank]


class Gauge:
    """Measures one rank.

    Args:
        device: of the rank.
        dtype: of the run.
        rank: of all.
        ranks: of the run.
        kernel: of attention.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, rank: int, ranks: int, kernel: str) -> None:
        self.device, self.rank, self.ranks, self.kernel = device, rank, ranks, kernel
        self.of: Of = "gpu" if device.type == "cuda" else "process"
        name = torch.cuda.get_device_name(device) if self.of == "gpu" else ""
        self.total = torch.cuda.get_device_properties(device).total_memory if self.of == "gpu" else memory_here()[0]
        self.peak_flops = bf16_peak(name) if dtype == torch.bfloat16 else None
        self.waits: int | None = None
        self._steps = 0
        self._counting = ExitStack()

    def memory(self) -> Memory:
        """Now; the peak is that of the time since the last `begin`."""
        if self.of == "process":
            now, most = resident(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            return Memory(now, 0, max(now, most), self.total)  # the system counts the most a little later
        allocated, reserved = torch.cuda.memory_allocated(self.device), torch.cuda.memory_reserved(self.device)
        return Memory(allocated, reserved, torch.cuda.max_memory_allocated(self.device), self.total)

    def begin(self) -> Memory:
        """A step begins: the memory of the one before, whose peak is then forgotten."""
        before = self.memory()
        if self.of == "gpu":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._steps += 1
            if self._steps == COUNTED:
                self._counting.enter_context(self._waits_counted())
        return before

    def end(self, others: Sequence[Memory], flops: float, seconds: float) -> dict[str, Any]:
        """A step has ended: its figures for metrics.jsonl.

        Args:
            others: of all ranks, as `begin` gave them.
            flops: of the whole step, over all ranks.
            seconds: that it took.
        """
        self._counting.close()
        now = list(others)
        now[self.rank] = self.memory()
        rank, most = fullest(now)
        speed = flops / seconds / self.ranks
        line: dict[str, Any] = {
            "memory_of": self.of,
            "memory_rank": rank,
            "memory_allocated": most.allocated,
            "memory_bytes": most.peak,
            "memory_total": most.total,
            "flops_per_second_per_rank": speed,
            "kernel": self.kernel,
        }
        if self.of == "gpu":
            line["memory_reserved"] = most.reserved
        if self.peak_flops is not None:
            line["mfu"] = speed / self.peak_flops
        if self.waits is not None:
            line["host_waits"] = self.waits
        return line

    @contextmanager
    def _waits_counted(self) -> Iterator[None]:
        """Count where torch makes the host wait for the GPU; other warnings are passed on.

        Waits of all threads count; those that are asked for by `torch.cuda.synchronize` or an event are not seen.
        """
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as told:
            warnings.filterwarnings("always", message=WAIT)  # the others as they were
            warnings.filterwarnings("ignore", message=NOTICE)
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode(before)
        self.waits = sum(WAIT in str(warning.message) for warning in told)
        for warning in told:
            if WAIT not in str(warning.message):
                warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
