"""Save on any mesh and ZeRO stage, load on any other: the same state exactly, the same losses to float tolerance."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.checkpoints.reading import Checkpoint, newest
from launcher.checkpoints.storage import LocalStorage
from launcher.config.lr_schedule import learning_rate
from launcher.config.run_config import RunConfig
from launcher.core.heartbeat import HeartbeatBoard
from launcher.core.run_folder import RunFolder
from launcher.training.loop import RankStatus, agree, build_engine, build_loader, gradients
from launcher.training.rendezvous import RankPlace
from launcher.training.resume import resume
from parallel.fragments import Fragment
from parallel.zero.ema import Ema
from tests.support.process_groups import run_world
from tests.support.runs import config, train

MESHES = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (1, 3, 1)]
LAYOUTS = list(product(MESHES, range(4)))
FEW = [((1, 1, 1), 0), ((1, 3, 1), 3), ((2, 1, 1), 2)]  # in every run of the tests; all in the soak
SAVED, AFTER = 4, 5
CPU = torch.device("cpu")
Layout = tuple[tuple[int, int, int], int]


def settings(out: Path, dataset: Path, layout: Layout, **changes: Any) -> RunConfig:
    mesh, stage = layout
    cut = dict(zip(("replica", "ring", "ulysses"), mesh, strict=True))
    changes = {"dtype": "float32", "optimizer__ema": 0.9, **changes}
    return config(out, dataset, steps=SAVED + AFTER, mesh=cut, zero__stage=stage, **changes)


def saved(root: Path, dataset: Path, layout: Layout) -> tuple[Path, list[float]]:
    """A checkpoint in the middle of a run, and the losses of its other half."""
    out = root / f"{layout}"
    lines = train(settings(out, dataset, layout, checkpoint__every=SAVED, checkpoint__keep=9))
    storage = LocalStorage(RunFolder(out).checkpoints)
    for name in storage.names()[1:]:
        storage.remove(name)
    return out, [line["loss"] for line in lines[SAVED:]]


def assert_state_is(found: Checkpoint, fragments: list[Fragment]) -> None:
    for fragment in fragments:
        copy = Fragment(fragment.name, fragment.start, {k: torch.empty_like(t) for k, t in fragment.tensors.items()})
        found.fill([copy], found.manifest.keys)
        for key, tensor in fragment.tensors.items():
            assert torch.equal(copy.tensors[key], tensor), f"{key} of {fragment.name} changed on the way"


def go_on(rank: int, run: RunConfig, sources: list[Path]) -> list[list[float]]:
    """The losses after each of these checkpoints, on this rank's layout."""
    mesh = run.mesh.mesh()
    # as many as ranks of a run take: how some sums are rounded depends on it
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // mesh.ranks))
    loader = build_loader(run, RankPlace(rank, mesh.ranks, rank, mesh.ranks, ""), CPU)
    engine = build_engine(run, loader, CPU)
    ema = Ema(engine, run.optimizer.ema)
    curves = []
    for source in sources:
        found, _ = newest(LocalStorage(RunFolder(source).checkpoints))
        assert found is not None
        state = resume(RunFolder(source), found, loader, engine, ema)
        assert state.step == SAVED
        assert_state_is(found, ema.fragments)
        losses, position = [], state.position
        for step in range(SAVED, SAVED + AFTER):
            batch = loader.batch(position)
            agreed = agree(batch, RankStatus(False, False, 0), loader.groups)
            losses.append(gradients(engine, loader, batch, agreed.weight, CPU, HeartbeatBoard()))
            engine.step(learning_rate(run.optimizer, step, run.steps))
            position = batch.position
        curves.append(losses)
    engine.destroy()
    return curves


def compare(root: Path, dataset: Path, onto: dict[Layout, list[Layout]]) -> None:
    """`onto` names for each layout those whose checkpoints it goes on from."""
    made = {layout: saved(root, dataset, layout) for layout in onto}
    for target, sources in onto.items():
        run = settings(root / "target", dataset, target)
        curves = run_world(run.mesh.mesh().ranks, go_on, run, [made[source][0] for source in sources])[0]
        for source, got in zip(sources, curves, strict=True):
            _, want = made[source]
            assert got == pytest.approx(want, rel=1e-6), f"saved on {source}, loaded on {target}"
            if source == target:
                assert got == want, f"on {source} again, not bit by bit"


def test_a_few_layouts_onto_themselves_and_the_next_one(tmp_path: Path, dataset: Path) -> None:
    compare(tmp_path, dataset, {layout: [layout, FEW[number - 1]] for number, layout in enumerate(FEW)})


@pytest.mark.slow
def test_every_layout_onto_every_other(tmp_path: Path, dataset: Path) -> None:
    compare(tmp_path, dataset, dict.fromkeys(LAYOUTS, LAYOUTS))
