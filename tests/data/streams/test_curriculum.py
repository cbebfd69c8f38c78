"""Mixes, curricula, growing datasets and samples that cannot be read: what a run sees is still what its plan says."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from data.dataset.index import Index
from data.prepare.pipeline import PrepareOptions, prepare
from data.streams.curriculum import Curriculum, Position
from data.synthetic.shapes import synth
from launcher.analysis.data_audit import audit, step_of
from launcher.batches.loader import BatchLoader
from launcher.config.run_config import RunConfig
from launcher.core.run_folder import RunFolder, read_lines
from launcher.preflight.preflight import check as preflight
from launcher.training.loop import build_loader
from launcher.training.rendezvous import RankPlace
from parallel.errors import InputError
from tests.support.runs import config, run, train


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("other")
    synth(root / "clips", 10, seed=9)
    prepare(root / "clips", root / "dataset", PrepareOptions(workers=0))
    return root / "dataset"


def loader_of(settings: RunConfig) -> BatchLoader:
    return build_loader(settings, RankPlace(0, 1, 0, 1, ""), torch.device("cpu"))


def walk(curriculum: Curriculum, steps: int, position: Position | None = None) -> tuple[list[list[str]], Position]:
    """The ids of each step, and the position after them."""
    position, seen = position or Position(), []
    for _ in range(steps):
        _, packs, position = curriculum.next_step(position)
        seen.append([d.uid for pack in packs for d in pack.documents])
    return seen, position


def uids(dataset: Path) -> set[str]:
    index = Index.open(dataset)
    return {index.uid(row) for row in range(len(index))}


def test_a_mix_follows_its_weights(tmp_path: Path, dataset: Path, other: Path) -> None:
    settings = config(tmp_path, dataset, data__dataset={str(dataset): 3, str(other): 1})
    curriculum = loader_of(settings).curriculum
    stream = curriculum.streams[0]
    assert (stream.plan.mix.sizes, stream.plan.mix.weights) == ((24, 10), (3, 1))
    seen, _ = walk(curriculum, 60)
    counts = Counter(uid for step in seen for uid in step)
    mine, theirs = sum(counts[u] for u in uids(dataset)), sum(counts[u] for u in uids(other))
    assert abs(mine - 3 * theirs) < 3 * 34, "exact but for what is still in the window"
    assert max(counts[u] for u in uids(dataset)) - min(counts[u] for u in uids(dataset)) <= 2
    keys = [d.key for _ in range(3) for p in curriculum.next_step(Position())[1] for d in p.documents]
    assert len(set(keys)) * 3 == len(keys), "the same step draws the same noise, each sample its own"


def test_a_mix_in_yaml_says_what_is_wrong(tmp_path: Path, dataset: Path) -> None:
    for mix, message in [({str(dataset): -1, "b": 1}, "positive"), ({}, "has datasets")]:
        with pytest.raises(InputError, match=message):
            config(tmp_path, dataset, data__dataset=mix)


SHORT = {"frames": 2, "pack_tokens": 90}
SEGMENTS: list[dict[str, Any]] = [{"until": 3, "frames": 4}, {"until": 5, "frames": 7}, SHORT]


def test_segments_follow_each_other(tmp_path: Path, dataset: Path, other: Path) -> None:
    segments = [SEGMENTS[0], {**SEGMENTS[1], "dataset": str(other)}, SEGMENTS[2]]
    curriculum = loader_of(config(tmp_path, dataset, data__segments=segments)).curriculum
    assert (curriculum.starts, [s.source.sampling.frames for s in curriculum.streams]) == ((0, 3, 5), [4, 7, 2])
    seen, _ = walk(curriculum, 8)
    assert all(set(step) <= uids(dataset) for step in seen[:3] + seen[5:])
    assert all(set(step) <= uids(other) for step in seen[3:5])
    for stop in range(8):
        _, position = walk(curriculum, stop)
        resumed = Position.from_json(position.to_json())
        curriculum.verify(resumed)
        assert walk(curriculum, 8 - stop, resumed)[0] == seen[stop:]


@pytest.mark.parametrize(
    "segments",
    [[SHORT, SHORT], [{"until": 3}], [{"until": 5}, {"until": 5}, SHORT], [{"until": 5}, {"until": 4}, SHORT]],
)
def test_segments_without_order_are_refused(tmp_path: Path, dataset: Path, segments: list[dict[str, int]]) -> None:
    with pytest.raises(InputError, match="every segment but the last"):
        config(tmp_path, dataset, data__segments=segments)


def test_a_position_of_other_data_is_refused(tmp_path: Path, dataset: Path) -> None:
    curriculum = loader_of(config(tmp_path, dataset)).curriculum
    _, position = walk(curriculum, 1)
    assert position.cursor.pack > 0
    curriculum.verify(position)
    for changes in ({"seed": 1}, {"data__pack_tokens": 1000}, {"data__frames": 8}):
        with pytest.raises(InputError, match="goes on with the samples that it began with"):
            loader_of(config(tmp_path, dataset, **changes)).curriculum.verify(position)


def test_a_run_stays_with_its_generation(tmp_path: Path) -> None:
    synth(tmp_path / "clips", 12, seed=4)
    prepare(tmp_path / "clips", tmp_path / "data", PrepareOptions(workers=0))
    settings = config(tmp_path / "run", tmp_path / "data", steps=2)
    train(settings)
    synth(tmp_path / "more", 6, seed=5)
    prepare(tmp_path / "more", tmp_path / "data", PrepareOptions(workers=0))
    assert len(Index.open(tmp_path / "data")) == 18
    longer = settings.model_copy(update={"steps": 4})
    (note,) = preflight(longer).notes
    assert "has newer samples: this run goes on with generation 1; add data.segments to use them" in note
    train(longer)
    whole = config(tmp_path / "whole", tmp_path / "data", steps=4)
    first = Index.open(tmp_path / "data", settings_digest(tmp_path / "run"))
    assert len(first) == 12
    found = audit(tmp_path / "run")
    assert found.clean
    assert (found.steps, {e.samples for e in found.epochs}) == (4, {12})
    added = longer.model_copy(update={"steps": 6, "data": _with_segment(longer, 4)})
    train(added)
    later = audit(tmp_path / "run")
    assert later.clean
    assert [(e.segment, e.samples) for e in later.epochs][-1] == (1, 18)
    assert train(whole)[0]["samples"] != next(iter(read_lines(RunFolder(tmp_path / "run").metrics)))["samples"]
    with pytest.raises(InputError, match="segment begins"):
        preflight(added.model_copy(update={"steps": 9, "data": _with_segment(longer, 5)}))


def settings_digest(out: Path) -> str:
    """Of the dataset that the newest checkpoint names."""
    newest = max((out / "checkpoints").glob("step-*"))
    ((digest,),) = json.loads((newest / "manifest.json").read_text())["datasets"]
    return str(digest)


def _with_segment(settings: RunConfig, start: int) -> Any:
    raw = settings.data.model_dump() | {"segments": [{"until": start}, {"frames": 7}]}
    return type(settings.data).model_validate(raw)


@pytest.fixture
def damaged(tmp_path: Path, dataset: Path) -> tuple[Path, str]:
    """A copy of the dataset with one flipped bit, and the sample that it is in."""
    shutil.copytree(dataset, tmp_path / "damaged")
    index = Index.open(tmp_path / "damaged")
    row = 11
    part, shard = index.part(row), index.shard(row)
    shard.chmod(0o644)
    data = bytearray(shard.read_bytes())
    data[part.offset + part.size - 40] ^= 4
    shard.write_bytes(data)
    return tmp_path / "damaged", index.uid(row)


def test_an_unreadable_sample_weighs_nothing_on_any_mesh(tmp_path: Path, damaged: tuple[Path, str]) -> None:
    folder, uid = damaged
    lines = {}
    for mesh in ({}, {"replica": 2}, {"ring": 2}):
        out = tmp_path / str(mesh)
        lines[str(mesh)] = train(config(out, folder, steps=3, mesh=mesh))
        events = [e for e in read_lines(RunFolder(out).events) if e["event"] == "unreadable"]
        assert {e["sample"] for e in events} == {uid}
        assert "BLAKE3" in events[0]["reason"]
        assert events[0]["file"].endswith(".mp4")
        steps = {line["step"] for line in lines[str(mesh)] if uid in line["samples"]}
        assert {e["step"] for e in events} == steps
        found = audit(out)
        assert found.clean
        assert found.unreadable == {uid: len(steps)}
        assert [s.uid for s in step_of(out, min(steps)) if s.unreadable] == [uid]
    for other in list(lines.values())[1:]:
        for got, want in zip(other, lines["{}"], strict=True):
            assert got["loss"] == pytest.approx(want["loss"], rel=1e-12)
            assert got["grad_norm"] == pytest.approx(want["grad_norm"], rel=1e-12)


def test_many_unreadable_samples_stop_the_run(tmp_path: Path, damaged: tuple[Path, str]) -> None:
    ends = run(config(tmp_path / "run", damaged[0], steps=3, data__max_unreadable_samples=0))
    assert ends[0].refusal is not None
    assert ends[0].refusal[0] == "at most data.max_unreadable_samples=0 samples of a run cannot be read"
    assert damaged[1] in ends[0].refusal[1]
    assert ".mp4 (sample" in ends[0].refusal[1]


def test_a_record_that_was_changed_is_found(tmp_path: Path, dataset: Path) -> None:
    train(config(tmp_path, dataset, steps=4))
    assert audit(tmp_path).clean
    metrics = RunFolder(tmp_path).metrics
    lines = list(read_lines(metrics))
    other = [{**line} for line in lines]
    other[1]["samples"] = lines[2]["samples"]
    other[3]["chain"] = "0" * 32
    metrics.write_text("".join(json.dumps(line) + "\n" for line in other if line["step"] != 3))
    found = audit(tmp_path)
    assert (found.clean, found.missing, [step for step, _ in found.different]) == (False, [3], [2, 4])
