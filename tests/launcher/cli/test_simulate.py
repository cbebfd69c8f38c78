"""`longreel data simulate`: the figures of a run are those of its own steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from launcher.cli.app import app
from launcher.config.loading import to_yaml
from parallel.errors import InputError
from tests.support.runs import config, train


def simulated(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["data", "simulate", *map(str, arguments), "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_run_is_simulated_as_it_is_trained(tmp_path: Path, dataset: Path) -> None:
    settings = config(tmp_path / "out", dataset, steps=12)
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(settings))
    for packs in (1, 2, 5):
        found = simulated(file, f"data.packs_per_step={packs}")
        assert (found["replicas"], found["sequence"], found["packs_per_step"]) == (1, 1, packs)
        assert found["steps"] == -(-found["packs"] // packs)
        assert found["samples"] == 24
        assert found["share_of_a_rank"] == 1
    (epoch,) = {found["steps"] for found in (simulated(file), simulated(file, "--packs", 2))}
    lines = train(settings)[:epoch]
    assert len({sample for line in lines for sample in line["samples"]}) == 24  # an epoch has so many steps
    found = simulated(file, "mesh={replica: 2, ring: 3}")
    assert (found["replicas"], found["sequence"]) == (2, 3)
    found = simulated(file, "--ranks", 512, "--sequence", 4, "--packs", 2)
    assert (found["replicas"], found["packs_per_step"]) == (128, 256)
    with pytest.raises(InputError, match="7 ranks, 2 each"):
        simulated(file, "--ranks", 7, "--sequence", 2)


def test_made_up_lengths() -> None:
    found = simulated("--samples", 50_000, "--ranks", 16, "--sequence", 4, "--pack-tokens", 65_536)
    assert (found["replicas"], found["packs_per_step"], found["samples"]) == (4, 16, 50_000)
    assert found["fill"] > 0.99
    assert found["state_bytes"] < 1024
    assert simulated("--samples", 10_000, "--ranks", 7)["sequence"] == 1
