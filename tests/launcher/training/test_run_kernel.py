"""The kernel of a run: what is refused before a rank starts, one choice for all ranks, and every plan names it."""

from __future__ import annotations

import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from data.streams.curriculum import Position
from launcher.config.run_config import RunConfig
from launcher.core.append_log import AppendLog
from launcher.core.run_folder import RunFolder
from launcher.preflight import preflight
from launcher.training import run_kernel
from launcher.training.loop import build_loader
from launcher.training.rendezvous import RankPlace
from launcher.training.run_kernel import (
    be_deterministic,
    chosen_before,
    heads_of_rank,
    kernel_of,
)
from models.core.specs import HeadShape
from models.registry import spec_of
from parallel.attention.plan import Plan
from parallel.errors import InputError
from parallel.kernels.flash_cpu import FlashCPU
from parallel.kernels.kernel_benchmark import KernelChoice, Trial
from parallel.kernels.reference import Reference
from tests.support import conversations
from tests.support.process_groups import run_world
from tests.support.runs import MODEL, config, events, train

CPU = torch.device("cpu")
LLAMA: dict[str, Any] = {"model_type": "llama", "hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2}


def speaking(out: Path, **language: Any) -> RunConfig:
    model = {"kind": "video_lm", "language": {**LLAMA, "num_hidden_layers": 2, **language}}
    return config(out, out, model=model, objective={"kind": "next_token"}, dtype="bf16")


def test_heads_of_each_kind_of_attention(tmp_path: Path) -> None:
    drawing = config(tmp_path, tmp_path, mesh={"ulysses": 2})
    own, text = spec_of(drawing.model).head_shapes(drawing.model)
    assert own == HeadShape("model.dim / model.heads", 4, 4, 12)
    assert text == HeadShape("model.text.dim / model.text.heads", 2, 2, 16)
    assert heads_of_rank(drawing) == (2, 2, 12)
    assert spec_of(speaking(tmp_path).model).head_shapes(speaking(tmp_path).model) == (
        HeadShape("the language model", 8, 2, 16),
    )
    assert heads_of_rank(speaking(tmp_path, head_dim=32)) == (8, 2, 32)


def test_heads_that_no_kernel_takes_are_refused_before_a_rank_starts(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "gpus", lambda device="auto": 4 * (device == "auto"))
    with pytest.raises(InputError, match=r"head_dim 12 \(model.dim / model.heads\)"):
        preflight.check(config(tmp_path, dataset, dtype="bf16"), 4)
    model = {**MODEL, "dim": 96, "heads": 4, "text": {"dim": 24, "depth": 1, "heads": 2}}
    with pytest.raises(InputError, match=r"head_dim 12 \(model.text.dim / model.text.heads\)"):
        preflight.check(config(tmp_path, dataset, dtype="bf16", model=model), 4)
    with pytest.raises(InputError, match=r"head_dim 12 \(the language model\)"):
        run_kernel.refuse_kernels(speaking(tmp_path, head_dim=12), "cuda")
    preflight.check(config(tmp_path, dataset, dtype="float32"), 4)
    preflight.check(config(tmp_path, dataset, dtype="bf16", device="cpu"), 4)
    monkeypatch.setattr(preflight, "gpus", lambda device="auto": 0)
    preflight.check(config(tmp_path, dataset, dtype="bf16"), 4)


def test_a_kernel_that_the_device_never_has_is_refused_before_a_rank_starts(tmp_path: Path, dataset: Path) -> None:
    for kernel in ("fa2", "fa3", "fa4", "cudnn"):
        with pytest.raises(InputError, match=f"{kernel}: it is for CUDA") as error:
            preflight.check(config(tmp_path, dataset, attention={"kernel": kernel}))
        assert error.value.remedy == "attention.kernel=auto"
    strict = config(tmp_path, dataset, dtype="bf16", attention={"kernel": "cudnn"}, determinism="strict")
    with pytest.raises(InputError, match="does not repeat itself"):
        run_kernel.refuse_kernels(strict, "cuda")
    with pytest.raises(InputError, match="aten"):
        config(tmp_path, dataset, attention={"kernel": "fastest"})


def chosen(rank: int, settings: RunConfig, how: str) -> Any:
    """What a rank computes with, where rank 0 finds fa2 the fastest, or finds none."""
    patch = pytest.MonkeyPatch()

    def choose(*given: Any, **named: Any) -> KernelChoice:
        assert rank == 0, "only rank 0 chooses"
        if how == "none":
            raise InputError("a", "b", "c")
        return KernelChoice("fa2", Reference(), {"fa2": Trial(0.0, 1.0, True)})

    patch.setattr(run_kernel, "choose", choose)
    patch.setattr(run_kernel, "take", lambda name, *_: KernelChoice(name, FlashCPU()))
    try:
        found = kernel_of(settings, CPU, RunFolder(settings.out))
        return found.name, type(found.kernel).__name__
    except InputError as error:
        return error.args
    finally:
        patch.undo()


def test_rank_0_chooses_for_all(tmp_path: Path, dataset: Path) -> None:
    settings = config(tmp_path, dataset)
    assert run_world(2, chosen, settings, "fa2") == [("fa2", "Reference"), ("fa2", "FlashCPU")]
    assert run_world(2, chosen, settings, "none") == [("a", "b", "c")] * 2


def test_a_run_that_goes_on_keeps_its_kernel(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tmp_path / "run", dataset)
    folder = RunFolder(settings.out)
    folder.root.mkdir()
    key = run_kernel.about(settings, CPU)
    assert chosen_before(folder, key) is None
    log = AppendLog(folder)
    for name, of in (("fa3", key), ("cudnn", "another GPU"), ("fa2", key)):
        log.append(folder.events, {"event": "kernel", "for": of, "kernel": name})
    assert chosen_before(folder, key) == "fa2"
    seen: list[Any] = []
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "broadcast_object_list", lambda _: None)
    monkeypatch.setattr(
        run_kernel, "choose", lambda *_, before, **__: seen.append(before) or KernelChoice("aten", None)
    )
    kernel_of(settings, CPU, folder)
    kernel_of(config(tmp_path / "run", dataset, attention={"kernel": "aten"}), CPU, folder)
    assert seen == ["fa2", None]


def plans_in(made: Any) -> list[Plan]:
    if isinstance(made, Plan):
        return [made]
    if isinstance(made, dict):
        made = list(made.values())
    if isinstance(made, list | tuple):
        return [plan for one in made for plan in plans_in(one)]
    if is_dataclass(made):
        return [plan for field in fields(made) for plan in plans_in(getattr(made, field.name))]
    return []


def test_every_plan_of_a_step_names_the_kernel(tmp_path: Path, dataset: Path) -> None:
    def made(rank: int, settings: RunConfig) -> list[str]:
        loader = build_loader(settings, RankPlace(0, 1, 0, 1, ""), CPU, kernel=Reference())
        return [type(plan.kernel).__name__ for plan in plans_in(loader.batch(Position()).micro_steps)]

    drawing = made(0, config(tmp_path, dataset))
    assert len(drawing) >= 3  # self attention, words, captions
    assert set(drawing) == {"Reference"}
    spoken = conversations.make(tmp_path / "chats", dataset)
    speaking = made(0, config(tmp_path, dataset, **conversations.settings(spoken)))
    assert speaking
    assert set(speaking) == {"Reference"}


def test_strict_tells_torch_on_a_gpu_alone(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", told.append)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # to be taken back in the end
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    strict = config(tmp_path, dataset, determinism="strict")
    be_deterministic(strict)
    assert told == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    be_deterministic(config(tmp_path, dataset))
    assert told == []
    be_deterministic(strict)
    assert told == [True]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.utils.deterministic.fill_uninitialized_memory


def test_a_run_on_a_cpu_measures_nothing_and_says_what_it_uses(tmp_path: Path, dataset: Path) -> None:
    settings = config(tmp_path / "run", dataset, steps=1, determinism="strict")
    (line,) = train(settings)
    assert line["kernel"] == "FlashCPU"
    assert events(settings.out, "kernel") == []
