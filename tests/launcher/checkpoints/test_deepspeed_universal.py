"""What DeepSpeed saved, converted by its own tool, becomes the first checkpoint of a run: exactly, and it trains on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from launcher.checkpoints.reading import newest
from launcher.checkpoints.storage import open_storage
from launcher.cli.app import app
from launcher.config.loading import to_yaml
from launcher.config.run_config import RunConfig
from launcher.core.run_folder import RunFolder
from models.codecs.open_codec import open_codec
from models.registry import build
from parallel.errors import InputError
from parallel.optimizers.adamw import AdamWConfig
from parallel.zero.stages import engine_for
from tests.parallel.zero.test_engine import State, export
from tests.support.process_groups import run_world
from tests.support.runs import config, events, train

TENSOR_NAMES = AdamWConfig().tensor_names
UPDATES = 3


def settings(out: Path, dataset: Path) -> RunConfig:
    return config(out, dataset, dtype="float32", zero__stage=2, mesh={"ulysses": 2}, steps=2)


def saved(rank: int, run: RunConfig, place: str) -> State:
    """A few updates of the run's model, saved by DeepSpeed; gives all its state."""
    channels = open_codec(run.codec, run.model.patch).geometry.channels
    engine: Any = engine_for(build(run.model, channels, 7, torch.float32), run.optimizer, 2, 1)
    for _ in range(UPDATES):
        engine.backward(sum(p.square().sum() for p in engine.module.parameters()))
        engine.step(1e-2)
    engine.engine.save_checkpoint(place, tag="one")
    return export(engine)


@pytest.fixture(scope="module")
def universal(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> tuple[Path, State]:
    folder = tmp_path_factory.mktemp("deepspeed")
    (state, _) = run_world(2, saved, settings(folder / "run", dataset), str(folder / "saved"))
    tool = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    places = ["--input_folder", folder / "saved" / "one", "--output_folder", folder / "universal"]
    workers = ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    subprocess.run([*tool, *places, *workers], check=True, capture_output=True, timeout=600)
    return folder / "universal", state


def imported(source: Path, run: RunConfig, *options: str) -> str:
    file = run.out.with_suffix(".yaml")
    file.write_text(to_yaml(run))
    done = CliRunner().invoke(app, ["checkpoint", "import", str(source), str(file), *options])
    if isinstance(done.exception, InputError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_all_state_arrives_and_trains_on(tmp_path: Path, dataset: Path, universal: tuple[Path, State]) -> None:
    source, state = universal
    run = settings(tmp_path / "run", dataset)
    assert f"after {UPDATES} updates" in imported(source, run)
    found, _ = newest(open_storage(RunFolder(run.out).checkpoints))
    assert found is not None
    assert found.manifest.shapes.keys() == state.keys()
    for name, tensors in state.items():
        for key in TENSOR_NAMES:
            assert torch.equal(found.parameter(name, key).flatten(), tensors[key]), (name, key)
    assert [line["step"] for line in train(run)] == [1, 2]
    assert events(run.out, "resume")[0]["step"] == 0
    newer, _ = newest(open_storage(RunFolder(run.out).checkpoints))
    assert newer is not None
    assert newer.state.updates.done == UPDATES + 2
    with pytest.raises(InputError, match="a run that has not begun"):
        imported(source, run)


def test_what_does_not_fit_is_refused(tmp_path: Path, dataset: Path, universal: tuple[Path, State]) -> None:
    source, _ = universal
    with pytest.raises(InputError, match="has a folder zero"):
        imported(source / "zero", settings(tmp_path / "a", dataset))
    wider = config(tmp_path / "b", dataset, model__dim=64, mesh={"ulysses": 2})
    with pytest.raises(InputError, match="has the size that the model gives it"):
        imported(source, wider)
    deeper = config(tmp_path / "c", dataset, model__depth=3, mesh={"ulysses": 2})
    with pytest.raises(InputError, match=r"lacks blocks\.2\."):
        imported(source, deeper)
    assert not RunFolder(tmp_path / "b").checkpoints.exists() or not list(
        RunFolder(tmp_path / "b").checkpoints.iterdir()
    )
