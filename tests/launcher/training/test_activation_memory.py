"""Settings that save memory of activations: recompute, offload, both. Losses and gradients are the same bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from data.streams.curriculum import Position
from launcher.config.run_config import RunConfig
from launcher.core.heartbeat import HeartbeatBoard
from launcher.training.loop import build_engine, build_loader, gradients
from launcher.training.rendezvous import RankPlace
from parallel.memory import activation_offload
from parallel.memory.activation_offload import PLACES, Places, Traffic
from parallel.zero.plain import PlainEngine
from tests.support import conversations
from tests.support.process_groups import run_world
from tests.support.runs import config

CPU = torch.device("cpu")
WAYS = ((False, False), (True, False), (False, True), (True, True))  # of recompute and offload


def steps(rank: int, runs: list[RunConfig]) -> list[tuple[float, Tensor, int]]:
    """Of each run the loss of its first step, all gradients, and bytes that went to the host: from a CPU to itself."""
    found = []
    PLACES.set(Places(("cuda", "cpu")))
    for run in runs:
        loader = build_loader(run, RankPlace(rank, 1, rank, 1, ""), CPU)
        engine = build_engine(run, loader, CPU)
        assert isinstance(engine, PlainEngine)
        stores: list[Traffic] = []

        def counted(stores: list[Traffic] = stores) -> Traffic:
            stores.append(Traffic())
            return stores[-1]

        with patch.object(activation_offload, "Traffic", counted), patch.object(activation_offload, "LIMIT_BYTES", 0):
            loss = gradients(engine, loader, loader.batch(Position()), 1.0, CPU, HeartbeatBoard())
        found.append((loss, engine.flat_gradient, sum(each.moved_bytes for each in stores)))
    return found


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    return conversations.make(tmp_path_factory.mktemp("spoken") / "chats", dataset)


@pytest.mark.parametrize("family", ["video_dit", "video_lm"])
def test_losses_and_gradients_are_the_same_bit_for_bit(
    tmp_path: Path, dataset: Path, spoken: Path, family: str
) -> None:
    data, of_model = (dataset, {}) if family == "video_dit" else (spoken, conversations.settings(spoken))
    runs = []
    for recompute, offload in WAYS:
        changes: dict[str, Any] = {"model__recompute": recompute, "model__offload": offload, "dtype": "float64"}
        runs.append(config(tmp_path, data, **{**of_model, **changes}))
    (found,) = run_world(1, steps, runs)
    (loss, gradient, _), moved = found[0], [bytes_ for _, _, bytes_ in found]
    assert gradient.abs().max() > 0
    for way, (other_loss, other, _) in zip(WAYS, found, strict=True):
        assert other_loss == loss, way
        assert torch.equal(other, gradient), way
    assert moved[:2] == [0, 0]
    assert moved[2] > 2 * moved[3] > 0, "recompute keeps far less, and that goes to the host too"
