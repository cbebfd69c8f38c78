"""Conversations are trained on: cut, packing and ZeRO stage do not matter, text alone beside video included."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.streams.curriculum import Position
from launcher.config.run_config import RunConfig
from launcher.training.loop import RankStatus, agree, build_engine, build_loader
from launcher.training.rendezvous import RankPlace
from parallel.errors import InputError
from parallel.sequence.packed import VIDEO
from tests.support import conversations
from tests.support.process_groups import run_world
from tests.support.runs import config, train

MESHES = [
    (1, 2, 1),
    (1, 1, 2),
    (2, 1, 1),
    (1, 2, 2),
    (1, 4, 1),
    (4, 1, 1),
]  # the last with padding packs: 3 packs a step
Lines = list[dict[str, Any]]


def mesh_of(mesh: tuple[int, int, int]) -> dict[str, int]:
    return dict(zip(("replica", "ring", "ulysses"), mesh, strict=True))


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    return conversations.make(tmp_path_factory.mktemp("chats") / "chats", dataset)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, spoken: Path) -> Lines:
    return train(run_of(tmp_path_factory.mktemp("reference"), spoken))


def run_of(out: Path, spoken: Path, **changes: Any) -> RunConfig:
    return config(out, spoken, **{**conversations.settings(spoken), "steps": 4, **changes})


def same(lines: Lines, reference: Lines, within: float) -> None:
    assert [line["step"] for line in lines] == [line["step"] for line in reference]
    for got, want in zip(lines, reference, strict=True):
        assert got["loss"] == pytest.approx(want["loss"], rel=within)
        assert got["grad_norm"] == pytest.approx(want["grad_norm"], rel=within)
        assert got["samples"] == want["samples"]
        assert got["tokens"] == want["tokens"]


@pytest.mark.parametrize(
    "mesh", [pytest.param(m, marks=[pytest.mark.slow] if max(m) == 2 and sum(m) == 4 else []) for m in MESHES], ids=str
)
def test_every_mesh_gives_the_same_run(
    tmp_path: Path, spoken: Path, reference: Lines, mesh: tuple[int, int, int]
) -> None:
    same(train(run_of(tmp_path, spoken, mesh=mesh_of(mesh))), reference, 1e-9)


@pytest.mark.parametrize(("stage", "mesh"), [(1, (2, 1, 1)), (2, (1, 2, 2)), (3, (1, 4, 1)), (3, (4, 1, 1))], ids=str)
def test_zero_gives_the_same_run(
    tmp_path: Path, spoken: Path, reference: Lines, stage: int, mesh: tuple[int, int, int]
) -> None:
    """Ranks without a frame, replicas with a pack of words alone, a padding pack: none waits for another."""
    model = {**conversations.MODEL, "recompute": stage == 3, "mlp_tiles": stage}
    same(
        train(run_of(tmp_path, spoken, mesh=mesh_of(mesh), zero__stage=stage, dtype="float32", model=model)),
        reference,
        1e-5,
    )


def test_packs_are_mixed(tmp_path: Path, spoken: Path) -> None:
    """What the tests above are worth: there are packs of words alone, whose ranks see no frame."""
    settings = run_of(tmp_path, spoken, data__packs_per_step=1)
    loader = build_loader(settings, RankPlace(0, 1, 0, 1, ""), torch.device("cpu"))
    found, position = set(), Position()
    for _ in range(6):
        batch = loader.batch(position)
        position = batch.position
        for micro in batch.micro_steps:
            kinds = micro.batch.packed.kind
            found |= {(bool((kinds == VIDEO).any()), len(micro.batch.visuals.pixels) > 0)}
    assert found == {(True, True), (False, False)}


def gradient(rank: int, settings: RunConfig, steps: int) -> tuple[float, dict[str, Tensor]]:
    """The whole gradient of some first steps as one, and its loss."""
    loader = build_loader(settings, RankPlace(0, 1, 0, 1, ""), torch.device("cpu"))
    engine: Any = build_engine(settings, loader, torch.device("cpu"))
    position, total, weight = Position(), 0.0, 0.0
    for _ in range(steps):
        batch = loader.batch(position)
        agree(batch, RankStatus(False, False, 0), loader.groups)
        position, weight = batch.position, weight + batch.weight
        for micro in batch.micro_steps:
            part, _ = engine.forward(micro.batch, micro.plans)
            engine.backward(part)
            total += float(part.detach())
    return total / weight, {name: grad / weight for name, grad in engine.gradients.items()}


@pytest.mark.parametrize("per", ["token", "sample"])
def test_packing_does_not_matter(tmp_path: Path, spoken: Path, per: str) -> None:
    """An epoch in one pack, in a few, and each conversation by itself: the same gradient, per-kind weights included."""
    objective = {"kind": "next_token", "normalize_by": per, "user": 0.3, "assistant": 0.9}
    found = []
    for tokens, window in ((100_000, 28), (400, 28), (450, 1)):
        data = {"data__pack_tokens": tokens, "data__window": window}
        settings = run_of(tmp_path, spoken, **data, data__packs_per_step=1, objective=objective)
        loader = build_loader(settings, RankPlace(0, 1, 0, 1, ""), torch.device("cpu"))
        steps, position = 0, Position()
        while position.cursor.epoch == 0:
            position, steps = loader.batch(position).position, steps + 1
        found += run_world(1, gradient, settings, steps)
    for (loss, grads), (other_loss, other) in pairwise(found):
        assert loss == pytest.approx(other_loss, rel=1e-12)
        for name, grad in grads.items():
            assert (grad - other[name]).abs().max() <= 1e-12 * max(1.0, float(grad.abs().max())), name


def test_a_planted_leak_is_seen(tmp_path: Path, spoken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above is worth: one causal mask over the pack gives another gradient."""
    settings = run_of(tmp_path, spoken)
    ((loss, _),) = run_world(1, gradient, settings, 1)
    ((leaky, _),) = run_world(1, leaking, settings, 1)
    assert abs(leaky - loss) > 1e-6


def leaking(rank: int, settings: RunConfig, steps: int) -> tuple[float, dict[str, Tensor]]:
    from parallel.masks import mask

    packed = mask.packed
    mask.packed = lambda lengths, causal=False: packed([sum(lengths)], causal)  # in this process alone
    return gradient(rank, settings, steps)


def test_a_resumed_run_is_the_same(tmp_path: Path, spoken: Path, reference: Lines) -> None:
    train(run_of(tmp_path, spoken, steps=2, checkpoint__every=2))
    lines = train(run_of(tmp_path, spoken, mesh={"ring": 2}))
    same(lines, reference, 1e-9)


def test_every_parameter_that_is_trained_learns(tmp_path: Path, spoken: Path) -> None:
    """And what is frozen, or takes no part, is not among them."""
    for freeze, kept in (
        ((), {"vision_tower", "multi_modal_projector", "language_model", "lm_head"}),
        (("vision", "language"), {"multi_modal_projector"}),
    ):
        model = {**conversations.MODEL, "freeze": list(freeze)}
        ((_, grads),) = run_world(1, gradient, run_of(tmp_path, spoken, model=model), 1)
        assert {name.removeprefix("lm.model.").removeprefix("model.").split(".")[0] for name in grads} == kept
        assert all(np.any(grad.numpy()) for grad in grads.values())


def test_unreadable_frames_weigh_nothing(tmp_path: Path, dataset: Path) -> None:
    """A clip that is damaged silences the conversations about it, on whichever rank finds out, and the run goes on."""
    import shutil

    from tests.support.runs import events

    copy = tmp_path / "clips"
    shutil.copytree(dataset, copy)
    spoken = conversations.make(tmp_path / "chats", copy)
    (shard,) = list((copy / "shards").rglob("*.tar"))[:1]
    data = bytearray(shard.read_bytes())
    from data.dataset.index import Index

    part = Index.open(copy).part(0)
    data[part.offset + part.size // 2] ^= 255
    shard.write_bytes(bytes(data))
    one = train(run_of(tmp_path / "one", spoken, steps=8))
    many = train(run_of(tmp_path / "many", spoken, steps=8, mesh={"ring": 2, "replica": 2}))
    assert events(tmp_path / "one", "unreadable")
    same(many, one, 1e-9)


def test_what_cannot_work_is_refused(tmp_path: Path, spoken: Path, dataset: Path) -> None:
    from launcher.preflight.preflight import check

    for changes, match in (
        ({"data__pack_tokens": 30}, r"fits into a pack of data.pack_tokens=30"),
        ({"data__max_positions": 64}, r"no longer than the positions that the model knows\n.*, 64 positions"),
        (
            {"model": {**conversations.MODEL, "language": {**conversations.LANGUAGE, "vocab_size": 200}}},
            r"263 tokens, .* 200 rows",
        ),
        ({"model": {"kind": "video_lm", "language": conversations.LANGUAGE}}, r"has a vision tower"),
        ({"data__dataset": str(dataset)}, r"trains on a chat dataset\n.*no chat.json"),
        ({"data__size": [32, 32]}, r"frames have the size that the model sees"),
        ({"objective": {"kind": "rectified_flow"}}, r"a video_lm learns: next_token"),
        ({"model": {**conversations.MODEL, "spatial_pool": 3}}, r"4 tokens a side, spatial_pool 3"),
        ({"model": {**conversations.MODEL, "language": {"hidden_size": 3}}}, r"model.language has no model_type"),
        (
            {"model": {**conversations.MODEL, "language": {**conversations.LANGUAGE, "hiden_size": 3}}},
            r"did you mean hidden_size",
        ),
        ({"model": {**conversations.MODEL, "language": {"model_type": "gpt2"}}}, r"model_type: gpt2"),
    ):
        with pytest.raises(InputError, match=match):
            check(run_of(tmp_path / "out", spoken, **changes))
