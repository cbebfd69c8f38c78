"""What a step took of its device: the fullest rank's memory, MFU, waits of the host; a stand-in plays the GPU."""

from __future__ import annotations

import io
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from data.streams.curriculum import Position
from launcher.batches.loader import Batch
from launcher.core.run_folder import RunFolder
from launcher.supervision.console_view import Screen, of_device
from launcher.training.loop import RankStatus, agree
from launcher.training.peak_flops import bf16_peak
from launcher.training.step_gauge import COUNTED, NOTICE, WAIT, Gauge, Memory, fullest
from parallel.mesh import Groups, Mesh
from tests.support import runs
from tests.support.process_groups import run_world

GIB = 1 << 30
CPU = torch.device("cpu")


class Card:
    """Plays `torch.cuda`: what is allocated is set by hand, the peak is since the last reset."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str = "NVIDIA H200") -> None:
        self.allocated, self.peak, self.reserved, self.mode = 30 * GIB, 71 * GIB, 90 * GIB, 0
        self.told = False
        about = types.SimpleNamespace(total_memory=int(139.8 * GIB))
        for attribute, stand_in in {
            "get_device_name": lambda device: name,
            "get_device_properties": lambda device: about,
            "memory_allocated": lambda device: self.allocated,
            "memory_reserved": lambda device: self.reserved,
            "max_memory_allocated": lambda device: self.peak,
            "reset_peak_memory_stats": self.reset,
            "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": self.set_mode,
        }.items():
            monkeypatch.setattr(torch.cuda, attribute, stand_in)

    def reset(self, device: torch.device) -> None:
        self.peak = self.allocated

    def set_mode(self, mode: Any) -> None:
        if not self.told:
            warnings.warn(f"{NOTICE} feature and does not yet detect all", UserWarning, stacklevel=1)
        self.mode, self.told = {"warn": 1}.get(mode, mode), True

    def wait(self) -> None:
        """What torch does when the host waits."""
        if self.mode:
            warnings.warn(WAIT, UserWarning, stacklevel=1)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", 835), ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989), ("NVIDIA H20", 148), ("NVIDIA B200", 2250), ("NVIDIA GB200", 2500),
        ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L40S", 362), ("NVIDIA L4", 121), ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA RTX A6000", 154.8), ("NVIDIA A10G", 70), ("NVIDIA A10", 125),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None), ("Tesla V100-SXM2-32GB", None), ("AMD Instinct MI300X", None), ("", None),
    ],
)  # fmt: skip
def test_peaks_of_dense_bf16(name: str, tera: float | None) -> None:
    assert bf16_peak(name) == (None if tera is None else pytest.approx(tera * 1e12))


def test_the_fullest_rank_is_the_one_nearest_to_its_end() -> None:
    every = [Memory(1, 2, 70, 140), Memory(1, 2, 60, 80), Memory(0, 0, 0, 0)]
    assert fullest(every) == (1, every[1])


def test_a_step_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch)
    gauge = Gauge(torch.device("cuda", 1), torch.bfloat16, rank=1, ranks=2, kernel="FlashCUDA")
    before = gauge.begin()
    assert before == Memory(30 * GIB, 90 * GIB, 71 * GIB, int(139.8 * GIB))
    assert card.peak == card.allocated, "each step has a peak of its own"
    card.peak = 60 * GIB
    line = gauge.end([Memory(40 * GIB, 95 * GIB, 65 * GIB, int(139.8 * GIB)), before], 2 * 989e12, 2.0)
    assert line == {
        "memory_of": "gpu", "memory_rank": 0, "memory_allocated": 40 * GIB, "memory_reserved": 95 * GIB,
        "memory_bytes": 65 * GIB, "memory_total": int(139.8 * GIB), "flops_per_second_per_rank": 989e12 / 2,
        "kernel": "FlashCUDA", "mfu": pytest.approx(0.5),
    }  # fmt: skip
    card.peak = 80 * GIB
    assert gauge.end([Memory(), before], 1.0, 1.0)["memory_rank"] == 1, "this rank's own figure is that of this step"


def test_a_gpu_that_nobody_knows_or_float32_has_no_mfu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, dtype in (("NVIDIA X1", torch.bfloat16), ("NVIDIA H200", torch.float32)):
        Card(monkeypatch, name)
        gauge = Gauge(torch.device("cuda"), dtype, 0, 1, "FlashCUDA")
        line = gauge.end([gauge.begin()], 3e14, 1.0)
        assert "mfu" not in line
        assert list(of_device(line)) == ["30 of 139 GiB", "300 TFLOP/s a GPU"]


def test_waits_of_the_host_are_counted_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch)
    gauge = Gauge(torch.device("cuda"), torch.bfloat16, 0, 1, "FlashCUDA")
    for step in range(1, COUNTED + 2):
        before = gauge.begin()
        assert card.mode == (step == COUNTED)
        card.wait()
        card.wait()
        line = gauge.end([before], 1.0, 1.0)
        assert card.mode == 0
        assert line.get("host_waits") == (2 if step >= COUNTED else None)


def test_other_warnings_of_that_step_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    Card(monkeypatch)
    gauge = Gauge(torch.device("cuda"), torch.bfloat16, 0, 1, "FlashCUDA")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message="of no interest")
        for _ in range(COUNTED):
            before = gauge.begin()
        warnings.warn("something else", UserWarning, stacklevel=1)
        warnings.warn("of no interest", UserWarning, stacklevel=1)
        assert not told
        gauge.end([before], 1.0, 1.0)
    assert [str(warning.message) for warning in told] == ["something else"]
    assert gauge.waits == 0


def test_on_a_cpu_it_is_the_resident_set_and_nothing_is_made_up() -> None:
    gauge = Gauge(CPU, torch.bfloat16, 0, 1, "FlashCPU")
    line = gauge.end([gauge.begin()], 1e9, 1.0)
    assert line["memory_of"] == "process"
    assert 0 < line["memory_allocated"] <= line["memory_bytes"] <= line["memory_total"]
    assert not line.keys() & {"mfu", "memory_reserved", "host_waits"}
    assert list(of_device(line)) == [f"RSS {line['memory_bytes'] / GIB:.1f} GiB"]


def test_the_screen_shows_it(tmp_path: Path) -> None:
    out = io.StringIO()
    screen = Screen(RunFolder(tmp_path), 20, 0, Console(file=out, width=200))
    screen._step(
        {"step": 20, "loss": 0.5, "tokens_per_second": 1000.0, "seconds": 1.4, "memory_of": "gpu", "mfu": 0.431,
         "memory_bytes": 70.3 * GIB, "memory_total": 139.8 * GIB}
    )  # fmt: skip
    assert "1.40 s/step  71 of 139 GiB  43 % MFU" in out.getvalue()


def test_a_narrow_terminal_shows_how_far_the_run_is(tmp_path: Path) -> None:
    out = io.StringIO()
    screen = Screen(RunFolder(tmp_path), 500, 0, Console(file=out, width=80, force_terminal=True, color_system=None))
    line = {"step": 212, "loss": 0.5, "tokens_per_second": 21902.0, "seconds": 1.4, "memory_of": "gpu", "mfu": 0.431}
    screen._step(line | {"memory_bytes": 70.3 * GIB, "memory_total": 139.8 * GIB})
    screen.close()
    assert "21,902 tokens/s  71 of 139 GiB  43 % MFU" in out.getvalue()
    assert "212/500" in out.getvalue()


def agreed_memories(rank: int, ranks: int) -> Any:
    batch = Batch((), 1.5, 7, 1, ranks, (), Position(), ("a",), 8, 64.0)
    words = RankStatus(False, False, 0, Memory(rank, 10 + rank, 100 + rank, 1000))
    return agree(batch, words, Groups(Mesh(replica=ranks), Mesh(replica=ranks).place(rank)))


def test_all_ranks_hear_of_each_others_memory_in_the_gather_of_the_step() -> None:
    first, second = run_world(2, agreed_memories, 2)
    assert first == second
    assert first.memories == (Memory(0, 10, 100, 1000), Memory(1, 11, 101, 1000))
    assert (first.weight, first.saves, first.stop) == (3.0, (0, 0), False)


def test_a_run_records_it(dataset: Path, tmp_path: Path) -> None:
    lines = runs.train(runs.config(tmp_path / "run", dataset, steps=2, mesh={"ulysses": 2}))
    for line in lines:
        assert line["memory_of"] == "process"
        assert line["memory_rank"] in (0, 1)
        assert line["kernel"] == "FlashCPU"
        assert 100 << 20 < line["memory_allocated"] <= line["memory_bytes"] < line["memory_total"]
        assert line["flops_per_second_per_rank"] == pytest.approx(line["flops"] / line["seconds"] / 2)
