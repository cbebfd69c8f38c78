"""A second optimizer is one file and one call: every mesh, ZeRO stage, checkpoint, export and dry run works with it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launcher.checkpoints.compatibility import changed_settings, refuse_changes
from launcher.checkpoints.deepspeed_universal import import_universal
from launcher.checkpoints.export import export
from launcher.checkpoints.reading import Checkpoint, newest
from launcher.checkpoints.storage import open_storage
from launcher.config.loading import check, to_yaml
from launcher.config.run_config import RunConfig
from launcher.core.run_folder import RunFolder
from launcher.dryrun.dry_step import dry_run
from launcher.preflight.memory_floor import demand_of, parameters_of
from parallel.errors import InputError
from parallel.optimizers.adamw import AdamWConfig
from parallel.optimizers.optimizer_registry import OPTIMIZERS
from tests.support.runs import config, train

Mesh = tuple[int, int, int]
ONE: Mesh = (1, 1, 1)
HALF, STEPS = 3, 6
MODULE = "tests.extending.optimizer"
LIKE_SGD = {"kind": "momentum", "learning_rate": 0.1, "warmup_steps": 2, "weight_decay": 0.01, "momentum": 0.8}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """For these tests alone: others go through every optimizer that there is."""
    importlib.import_module(MODULE)
    yield
    del OPTIMIZERS._entries["momentum"]


def settings(out: Path, dataset: Path, mesh: Mesh = ONE, **changes: Any) -> RunConfig:
    cut = dict(zip(("replica", "ring", "ulysses"), mesh, strict=True))
    usual = {"extensions": [MODULE], "optimizer": LIKE_SGD, "steps": STEPS, "mesh": cut}
    return config(out, dataset, **{**usual, **changes})


def checkpoint(out: Path) -> Checkpoint:
    found, _ = newest(open_storage(RunFolder(out).checkpoints))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> tuple[Path, list[float]]:
    """A run of one rank in float64 that nobody stopped, and its losses."""
    out = tmp_path_factory.mktemp("whole")
    lines = train(settings(out, dataset))
    return out, [line["loss"] for line in lines]


def test_another_optimizer_has_other_losses(tmp_path: Path, dataset: Path, whole: tuple[Path, list[float]]) -> None:
    adamw = [line["loss"] for line in train(settings(tmp_path, dataset, steps=2, optimizer={"learning_rate": 0.1}))]
    assert adamw[0] == whole[1][0]
    assert adamw[1] != pytest.approx(whole[1][1], rel=1e-3)


@pytest.mark.parametrize(
    ("first", "second", "stages", "rel"),
    [
        ((1, 2, 1), (1, 2, 2), (0, 0), 1e-9),
        ((1, 1, 2), (1, 1, 1), (0, 0), 1e-9),
        ((1, 2, 1), (1, 1, 2), (2, 3), 1e-5),
        ((1, 2, 1), (1, 2, 2), (3, 1), 1e-5),
    ],
    ids=str,
)
def test_every_mesh_and_stage_and_a_resume_on_another(
    tmp_path: Path,
    dataset: Path,
    whole: tuple[Path, list[float]],
    first: Mesh,
    second: Mesh,
    stages: tuple[int, int],
    rel: float,
) -> None:
    """Half of the steps on one mesh, the others after a resume on another: the losses of the run on one rank."""
    dtype = "float32" if any(stages) else "float64"
    before = settings(tmp_path, dataset, first, steps=HALF, zero__stage=stages[0], dtype=dtype)
    train(before)
    kept = checkpoint(tmp_path).manifest
    assert (kept.state.step, kept.keys) == (HALF, ("master", "momentum_buffer"))
    lines = train(settings(tmp_path, dataset, second, zero__stage=stages[1], dtype=dtype))
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in lines] == pytest.approx(whole[1], rel=rel)


def test_weights_are_exported(tmp_path: Path, whole: tuple[Path, list[float]]) -> None:
    found = checkpoint(whole[0])
    export(found, tmp_path / "weights.safetensors", None, "float32")
    for name, tensor in load_file(tmp_path / "weights.safetensors").items():
        assert torch.equal(tensor, found.parameter(name, "master").float())


def test_another_kind_is_refused_and_no_kind_is_adamw(whole: tuple[Path, list[float]]) -> None:
    found = checkpoint(whole[0])
    written: dict[str, Any] = found.manifest.config
    with pytest.raises(InputError, match="resumes with the model") as refused:
        refuse_changes(found, check({**written, "optimizer": {"kind": "adamw"}}))
    assert "optimizer.kind: momentum became adamw" in refused.value.value
    refuse_changes(found, check(written))
    found.manifest.config["optimizer"] = {"learning_rate": 0.1}  # as runs wrote it that knew AdamW alone
    now = check({**written, "optimizer": {"kind": "adamw", "learning_rate": 0.1}})
    refuse_changes(found, now)
    assert changed_settings(found, now) == []


def test_memory_is_counted_as_it_is_kept(tmp_path: Path, dataset: Path) -> None:
    """One number beside a parameter instead of two; in bf16 its master beside it."""
    for dtype, ratio in (("float32", 1 / 2), ("bf16", 2 / 3)):
        runs = [settings(tmp_path, dataset, dtype=dtype, optimizer=kind) for kind in ("momentum", "adamw")]
        floor = [demand_of(run, run.mesh.mesh(), parameters_of(run), 700, False).optimizer for run in runs]
        assert floor[0] == ratio * floor[1]
    assert dry_run(runs[0], device="cpu").peak.by_kind["optimizer"] == pytest.approx(floor[0], rel=1e-3)


def test_state_that_deepspeed_saved_is_imported(tmp_path: Path, dataset: Path) -> None:
    place = tmp_path / "universal" / "zero" / "w"
    place.mkdir(parents=True)
    tensors = {"fp32": torch.arange(4.0), "momentum_buffer": torch.arange(4.0) + 9}
    for name, tensor in tensors.items():
        torch.save({"param": tensor}, place / f"{name}.pt")
    run = settings(tmp_path / "run", dataset, dtype="float32")
    import_universal(tmp_path / "universal", run, {"w": (2, 2)}, updates=5)
    found = checkpoint(run.out)
    assert found.state.updates.done == 5
    assert torch.equal(found.parameter("w", "momentum_buffer").flatten(), tensors["momentum_buffer"])


def test_a_run_names_it_and_its_keys(tmp_path: Path, dataset: Path) -> None:
    run = settings(tmp_path, dataset)
    assert "kind: momentum" in to_yaml(run)
    assert settings(tmp_path, dataset, optimizer={"learning_rate": 0.1}).optimizer == AdamWConfig(learning_rate=0.1)
    with pytest.raises(InputError, match=r"is a key of optimizer\.kind=momentum") as refused:
        settings(tmp_path, dataset, optimizer={"kind": "adamw", "momentum": 0.5})
    assert refused.value.remedy == "optimizer.kind=momentum, or leave optimizer.momentum out"
    with pytest.raises(InputError, match="an optimizer is one of: adamw, momentum"):
        settings(tmp_path, dataset, optimizer="momentun")


def test_a_stage_that_it_does_not_run_at(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OPTIMIZERS["momentum"], "stages", (0, 1))
    with pytest.raises(InputError, match="momentum runs at ZeRO stage 0, 1") as refused:
        settings(tmp_path, dataset, zero__stage=2)
    assert (refused.value.value, refused.value.remedy) == ("optimizer.kind=momentum, zero.stage=2", "zero.stage=1")
    assert settings(tmp_path, dataset, zero__stage=1).zero.stage == 1
