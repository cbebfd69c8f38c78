"""Objectives, masks and ways to see train alike on any mesh; so does a curriculum whose mesh changes on the way."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from data.chat.chat_builder import write
from data.chat.tokenizers import byte_tokenizer
from data.dataset.index import Index
from data.streams.chat_source import ChatSource
from data.streams.curriculum import Position
from launcher.config.lr_schedule import learning_rate
from launcher.config.run_config import RunConfig
from launcher.core.heartbeat import HeartbeatBoard
from launcher.supervision.local_ranks import ProcessRanks
from launcher.supervision.run import train as supervise
from launcher.training.loop import RankStatus, agree, build_engine, build_loader, gradients
from launcher.training.rendezvous import RankPlace
from parallel.sequence.packed import SILENCE, VIDEO
from tests.support import conversations
from tests.support.process_groups import run_world, server
from tests.support.runs import config, events, lines

MESHES = [(1, 2, 1), (2, 1, 1), (1, 2, 2)]
Steps = list[tuple[float, float]]  # loss and norm of the gradient


def masked(**mask: Any) -> dict[str, Any]:
    """The settings of a model with this mask."""
    return {"model": {**conversations.MODEL, "mask": mask}}


WAYS: dict[str, dict[str, Any]] = {
    "past": {},
    "video_text": {"objective": {"kind": "video_text", "embedding_dim": 8}, "data__pack_tokens": 700},
    "itself": masked(visual="self_only"),
    "whole": masked(visual="bidirectional_frames"),
    "frame": masked(visual="own_frame"),
    "window": masked(window=40, sinks=3),
    "whole in windows": masked(visual="bidirectional_frames", window=30, sinks=2),
    "chunks": masked(chunk=50, overlap=20, sinks=3),
    "merge and slow": {"model": {**conversations.MODEL, "temporal_pool": 2, "slow_fast": 2}},
    "stream": {"data__frames": None, "data__stride": 2},
    "times": {"data__frames": None, "data__timestamps": True},
}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    return conversations.make(tmp_path_factory.mktemp("chats") / "chats", dataset)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """Streams of all clips, words at the first and in the middle of the frames, and one question."""
    index, out = Index.open(dataset), tmp_path_factory.mktemp("watched") / "chats"
    fps = float(index.table["fps"][0].as_py())
    records: list[tuple[str, Any]] = [
        (f"{row}", {"video": index.file(row), "stream": [{"time": n / fps, "text": f"It is at {n}."} for n in (0, 4)]})
        for row in range(len(index))
    ]
    write([*records, conversations.records(index)[0]], byte_tokenizer(), out, dataset)
    return out


def run_of(out: Path, spoken: Path, **changes: Any) -> RunConfig:
    return config(out, spoken, **{**conversations.settings(spoken), "steps": 2, **changes})


def mesh_of(mesh: tuple[int, int, int]) -> dict[str, int]:
    return dict(zip(("replica", "ring", "ulysses"), mesh, strict=True))


def trained(rank: int, runs: list[RunConfig]) -> list[Steps]:
    """What each of these runs computes, without what is around it; one world for all."""
    device, found = torch.device("cpu"), []
    for settings in runs:
        place = RankPlace(rank, settings.mesh.mesh().ranks, rank, settings.mesh.mesh().ranks, "")
        loader, words, steps = build_loader(settings, place, device), RankStatus(False, False, 0), []
        engine, position = build_engine(settings, loader, device), Position()
        for done in range(settings.steps):
            batch = loader.batch(position)
            position = batch.position
            agreed = agree(batch, words, loader.groups)
            loss = gradients(engine, loader, batch, agreed.weight, device, HeartbeatBoard())
            norm = engine.step(learning_rate(settings.optimizer, done, settings.steps), math.inf)
            steps.append((loss, norm))
        engine.destroy()
        found.append(steps)
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, spoken: Path, watched: Path) -> dict[str, Steps]:
    """Every way on one rank; and the curriculum below."""
    out = tmp_path_factory.mktemp("alone")
    runs = {way: run_of(out, watched if way == "stream" else spoken, **WAYS[way]) for way in WAYS}
    runs["curriculum"] = curriculum(out, spoken, with_meshes=False)
    (found,) = run_world(1, trained, list(runs.values()))
    return dict(zip(runs, found, strict=True))


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_mesh_gives_the_same_run(
    tmp_path: Path, spoken: Path, watched: Path, alone: dict[str, Steps], mesh: tuple[int, int, int]
) -> None:
    runs = [run_of(tmp_path, watched if way == "stream" else spoken, mesh=mesh_of(mesh), **WAYS[way]) for way in WAYS]
    for found in run_world(math.prod(mesh), trained, runs):
        for way, steps in zip(WAYS, found, strict=True):
            assert np.array(steps) == pytest.approx(np.array(alone[way]), rel=1e-9), way


def test_ways_differ(alone: dict[str, Steps]) -> None:
    """What the test above is worth: each has another loss, and its gradient is not nothing."""
    assert len({round(steps[0][0], 9) for steps in alone.values()}) == len(alone)
    assert all(norm > 0 for steps in alone.values() for _, norm in steps)


def test_streams_learn_to_be_silent(tmp_path: Path, watched: Path) -> None:
    """And the first frame of each begins to speak: what the test of the stream is worth."""
    settings = run_of(tmp_path, watched, **WAYS["stream"])
    source = build_loader(settings, RankPlace(0, 1, 0, 1, ""), torch.device("cpu")).curriculum.streams[0].source
    assert isinstance(source, ChatSource)
    layouts = [source.layout(row) for row in range(len(source.index))]
    assert [int((one.kinds == SILENCE).sum()) for one in layouts] == [2] * (len(layouts) - 1) + [0]
    batch = build_loader(settings, RankPlace(0, 1, 0, 1, ""), torch.device("cpu")).batch(Position())
    assert all(bool((micro.batch.packed.kind == VIDEO).any()) for micro in batch.micro_steps)


SEGMENTS: list[dict[str, Any]] = [
    {"until": 2, "pack_tokens": 400, "frames": 4},
    {"until": 4, "pack_tokens": 500, "mesh": {"ring": 2}, "rope_scaling": {"rope_theta": 100000.0}},
    {"pack_tokens": 800, "mesh": {"ring": 2, "ulysses": 2}, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
]


def curriculum(out: Path, spoken: Path, with_meshes: bool, **changes: Any) -> RunConfig:
    """A run of three segments."""
    segments = [{k: v for k, v in one.items() if with_meshes or k != "mesh"} for one in SEGMENTS]
    return run_of(out, spoken, data__segments=segments, **{"steps": 6, **changes})


def under_supervision(settings: RunConfig) -> Steps:
    """As `longreel train --no-ray` does it."""
    said = io.StringIO()
    assert supervise(settings, lambda: ProcessRanks(server()), Console(file=said)) == 0, said.getvalue()
    return [(line["loss"], line["grad_norm"]) for line in lines(settings.out)]


def test_a_curriculum_of_meshes_and_frequencies(tmp_path: Path, spoken: Path, alone: dict[str, Steps]) -> None:
    """Context, frequencies and mesh change at the borders; resumed within a segment, it is the run of one rank."""
    under_supervision(curriculum(tmp_path, spoken, with_meshes=True, steps=3))
    settings = curriculum(tmp_path, spoken, with_meshes=True)
    assert np.array(under_supervision(settings)) == pytest.approx(np.array(alone["curriculum"]), rel=1e-9)
    begun = [(event["step"], event["mesh"]) for event in events(tmp_path, "start")]
    assert begun == [(step, str(settings.mesh_after(step))) for step in (0, 3)]
    used = [event["mesh"] for event in events(tmp_path, "ranks")]
    assert used == [str(settings.mesh_after(step)) for step in (0, 2, 3, 4)]
