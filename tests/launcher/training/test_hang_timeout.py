"""How long a step may take: long enough for a million tokens on one GPU, and no longer than ever for what is small."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data.streams.curriculum import Position
from launcher.batches.datasets import open_curriculum
from launcher.config.run_config import RunConfig
from launcher.config.sections import RestartConfig
from launcher.core.heartbeat import Heartbeat
from launcher.preflight import preflight
from launcher.supervision.watchdog import LEAST_SECONDS as LEAST_STEP
from launcher.supervision.watchdog import SLOW_SECONDS, Watchdog
from launcher.training.hang_timeout import LEAST_SECONDS, group_seconds, pack_flops, patience, step_seconds
from parallel.mesh import Mesh
from tests.launcher.supervision.test_watchdog import History
from tests.support.runs import MODEL, config

TOKENS, DIM, DEPTH = 1_048_320, 1536, 30  # 672 frames of 30 x 52, in the size of Wan 1.3B
REAL = 3.5 * 4 * TOKENS**2 * DIM * DEPTH / 350e12  # seconds on one GPU: attention at a speed that FlashAttention 2 has


def million(dataset: Path, tmp_path: Path, **changes: Any) -> tuple[RunConfig, float]:
    """A run of one sample of a million tokens, and the operations of its pack."""
    model = {**MODEL, "dim": DIM, "depth": DEPTH, "heads": 12}
    settings = config(tmp_path / "run", dataset, model=model, dtype="bf16", **changes)
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"packs_per_step": 1})})
    lengths, costs = np.array([TOKENS, 1560]), np.array([TOKENS**2 + 6.0 * DIM * TOKENS, 1560.0**2])
    stream: Any = SimpleNamespace(plan=SimpleNamespace(costs=costs, lengths=lengths), pack_tokens=TOKENS)
    curriculum: Any = SimpleNamespace(streams=(stream,))
    return settings, pack_flops(settings.model, curriculum)


def test_a_million_tokens_on_one_gpu_are_no_hang(tmp_path: Path, dataset: Path) -> None:
    """Half an hour in one phase, of the first step and of later ones."""
    settings, flops = million(dataset, tmp_path)
    assert 1800 < REAL < 2400
    longest = patience(flops, settings.data.packs_per_step, Mesh(), "cuda", settings.dtype)
    assert 3 * REAL < longest < 20 * REAL
    history = History()
    history.watchdog = Watchdog(RestartConfig(), longest)
    assert history.hold({0: (1, "backward")}, most=1.5 * REAL) is None
    history.train(1, 25, seconds=5, first=2)  # packs of short samples, and then one that is long
    assert history.hold({0: (27, "backward")}, most=1.5 * REAL) is None
    assert history.hold({0: (27, "backward")}, most=longest) is not None  # it is found in the end
    assert group_seconds(None, longest) == longest


def test_more_ranks_wait_less(tmp_path: Path, dataset: Path) -> None:
    settings, flops = million(dataset, tmp_path)
    alone = step_seconds(flops, settings.data.packs_per_step, Mesh(), "cuda", settings.dtype)
    assert step_seconds(flops, settings.data.packs_per_step, Mesh(1, 2, 4), "cuda", settings.dtype) == alone / 8
    assert (
        step_seconds(flops, settings.data.packs_per_step, Mesh(2, 1, 1), "cuda", settings.dtype) == alone
    )  # one pack: a replica has none
    assert step_seconds(flops, settings.data.packs_per_step, Mesh(), "cpu", settings.dtype) == alone * 20_000
    three = settings.model_copy(update={"data": settings.data.model_copy(update={"packs_per_step": 3})})
    assert step_seconds(flops, three.data.packs_per_step, Mesh(2, 1, 1), "cuda", three.dtype) == 2 * alone


def test_no_pack_of_a_run_is_dearer_than_the_bound(tmp_path: Path, dataset: Path) -> None:
    settings = config(tmp_path / "run", dataset)
    curriculum = open_curriculum(settings)
    position, dearest = Position(), 0.0
    for _ in range(4):
        _, packs, position = curriculum.next_step(position)
        dearest = max(dearest, *(pack.cost for pack in packs))
    unit = 12 * settings.model.dim * settings.model.depth
    assert 0.5 < unit * dearest / pack_flops(settings.model, curriculum) <= 1


def test_hangs_of_small_runs_are_found_as_soon_as_ever(tmp_path: Path, dataset: Path) -> None:
    settings = config(tmp_path / "run", dataset)
    ready = preflight.check(settings)
    longest = patience(ready.flops, settings.data.packs_per_step, settings.mesh.mesh(), "cpu", settings.dtype)
    assert 0 < longest < LEAST_STEP
    watchdog = Watchdog(RestartConfig(), longest)
    assert watchdog.deadline(Heartbeat(1, "forward", 0, 0)) == SLOW_SECONDS
    assert group_seconds(None, longest) == LEAST_SECONDS == group_seconds(None)


def test_what_the_user_chose_is_kept_and_told(tmp_path: Path, dataset: Path) -> None:
    settings, flops = million(
        dataset, tmp_path, restart={"hang_timeout_seconds": 700, "collective_timeout_seconds": 50}
    )
    longest = patience(flops, settings.data.packs_per_step, Mesh(), "cuda", settings.dtype)
    assert group_seconds(50, longest) == 50
    assert Watchdog(settings.restart, longest).deadline(Heartbeat(1, "backward", 0, 0)) == 700
    history = History()
    history.watchdog = Watchdog(RestartConfig(hang_timeout_seconds=7), longest)
    history.train(1, 3)
    assert history.hold({0: (4, "backward")}, most=9) is not None
    told = list(preflight.notes_on_time(settings, flops, "cuda"))
    assert [note.split(" ")[0] for note in told] == [
        "restart.collective_timeout_seconds=50",
        "restart.hang_timeout_seconds=700",
    ]
    assert (
        f"{step_seconds(flops, settings.data.packs_per_step, Mesh(), 'cuda', settings.dtype):,.0f} s at 100 TFLOP/s"
        in told[0]
    )
    fine, flops = million(dataset, tmp_path, restart={"hang_timeout_seconds": 90_000})
    assert list(preflight.notes_on_time(fine, flops, "cuda")) == []


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_the_supervisor_asks_what_its_ranks_compute_on(kind: Any, tmp_path: Path, dataset: Path) -> None:
    from unittest.mock import patch

    from launcher.supervision.local_ranks import ProcessRanks
    from tests.support.process_groups import server

    ranks = ProcessRanks(server())
    with patch("launcher.supervision.local_ranks.gpus", lambda wanted: 2 * (kind == "cuda" and wanted == "auto")):
        assert ranks.kind() == kind
        ranks.device = "cpu"
        assert ranks.kind() == "cpu"
