"""The loader and checkpoints: every sample once an epoch on any mesh, padding packs weigh nothing, files are whole."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.planning.data_plan import Cursor
from data.streams.curriculum import Position
from data.streams.pack_stream import Pack
from launcher.batches.checksum import CHECKSUM
from launcher.batches.loader import BatchLoader, assign
from launcher.config.lr_schedule import learning_rate
from launcher.core.run_folder import append_line, keep_steps, read_lines
from launcher.training.loop import build_loader
from launcher.training.rendezvous import RankPlace
from parallel.mesh import Groups, Mesh
from parallel.optimizers.adamw import AdamWConfig
from parallel.sequence.packed import Document
from tests.support.runs import config


def loader_of(dataset: Path, mesh: Mesh, rank: int) -> BatchLoader:
    settings = config(Path("unused"), dataset, dtype="float32")
    alone = build_loader(settings, RankPlace(0, 1, 0, 1, ""), torch.device("cpu"))
    return replace(alone, builder=replace(alone.builder, groups=Groups(mesh, mesh.place(rank))))  # type: ignore[type-var]


@pytest.mark.parametrize("mesh", [Mesh(1, 1, 1), Mesh(1, 3, 1), Mesh(2, 1, 2), Mesh(3, 1, 1)], ids=str)
def test_an_epoch_shows_every_token_once(dataset: Path, mesh: Mesh) -> None:
    """Asserted from the values that each rank got, not from the plan."""
    feeds = [loader_of(dataset, mesh, rank) for rank in range(mesh.ranks)]
    positions = [Position()] * mesh.ranks
    tokens: Counter[tuple[str, int]] = Counter()
    samples: list[str] = []
    while positions[0].cursor.epoch == 0:
        batches = [loader.batch(position) for loader, position in zip(feeds, positions, strict=True)]
        assert len({(b.position, b.samples, b.tokens, b.area, b.expected) for b in batches}) == 1
        assert sum(b.received for b in batches) & CHECKSUM == batches[0].expected
        assert len({len(b.micro_steps) for b in batches}) == 1
        for batch in batches:
            for micro in batch.micro_steps:
                packed = micro.batch.packed
                assert len(packed.values) == len(packed.weight) == len(micro.batch.target)
                for document, position, weight in zip(packed.document, packed.position, packed.weight, strict=True):
                    if packed.documents[document].weight:
                        tokens[packed.documents[document].uid, int(position)] += 1
                    else:
                        assert weight == 0
        positions = [b.position for b in batches]
        samples += batches[0].samples
    index = feeds[0].curriculum.streams[0].index
    first_epoch = samples[: len(index)]
    assert sorted(first_epoch) == sorted(index.uid(row) for row in range(len(index)))
    assert all(tokens[uid, p] >= 1 for uid in first_epoch for p in range(7 * 4 * 4))
    once = Counter(samples)
    assert all(n == once[uid] for (uid, _), n in tokens.items())


def test_prefetching_changes_nothing(dataset: Path) -> None:
    loader = loader_of(dataset, Mesh(), 0)
    ahead = loader.batches(Position())
    position = Position()
    for _ in range(4):
        got, want = next(ahead), loader.batch(position)
        assert torch.equal(got.micro_steps[0].batch.target, want.micro_steps[0].batch.target)
        assert got.position == want.position
        position = want.position
    ahead.close()


def test_an_error_in_the_thread_reaches_the_rank(dataset: Path) -> None:
    loader = loader_of(dataset, Mesh(), 0)
    with pytest.raises(ValueError, match="cursor"):
        next(loader.batches(Position(1, Cursor(0, 0, 10_000))))


@given(st.integers(1, 9), st.integers(1, 6))
def test_packs_are_dealt_out_once(packs: int, replicas: int) -> None:
    made = [Pack((i,), (Document(str(i), i, "", (1, 1, 1)),), (0,), 1.0) for i in range(packs)]
    shares = [assign(made, replicas, r) for r in range(replicas)]
    assert len({len(s) for s in shares}) == 1
    real = [p.rows[0] for share in shares for p in share if p.documents[0].weight]
    assert sorted(real) == list(range(packs))


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    for step in range(1, 6):
        append_line(file, {"step": step, "loss": step / 3})
    with open(file, "ab") as f:
        f.write(b'{"step": 6, "lo')  # a kill
    missing, kept, after = keep_steps(file, 3)
    assert (missing, [x["step"] for x in kept], [x["step"] for x in after]) == (0, [1, 2, 3], [4, 5])
    assert [(x["step"], x["loss"]) for x in read_lines(file)] == [(1, 1 / 3), (2, 2 / 3), (3, 1.0)]
    file.write_bytes(file.read_bytes().replace(b'{"step": 2', b'{"stop" 2'))
    missing, kept, after = keep_steps(file, 3)
    assert (missing, [x["step"] for x in kept], after) == (1, [1, 3], [])


def test_learning_rate() -> None:
    cosine = AdamWConfig(learning_rate=1.0, warmup_steps=4, schedule="cosine", final_ratio=0.1)
    rates = [learning_rate(cosine, done, 105) for done in range(105)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[54] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    constant = AdamWConfig(learning_rate=0.5)
    assert {learning_rate(constant, done, 10) for done in range(10)} == {0.5}


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize(("steps", "warmup"), [(2, 0), (3, 2), (8, 0), (100, 10)])
def test_the_last_step_has_the_last_rate(schedule: str, steps: int, warmup: int) -> None:
    settings = {"learning_rate": 2.0, "warmup_steps": warmup, "schedule": schedule, "final_ratio": 0.25}
    config = AdamWConfig.model_validate(settings)
    rates = [learning_rate(config, done, steps) for done in range(steps)]
    assert max(rates) == 2.0
    assert rates[-1] == pytest.approx(0.5)
    assert learning_rate(config, steps + 5, steps) == pytest.approx(0.5)


def test_a_run_of_one_step_has_the_highest_rate() -> None:
    for schedule in ("constant", "cosine", "wsd"):
        assert learning_rate(AdamWConfig(learning_rate=2.0, schedule=schedule), 0, 1) == 2.0
