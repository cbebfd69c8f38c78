"""Every frame of every clip reaches exactly one rank in each epoch, whatever the topology, and whatever is killed.

Asserted from pixels: each clip is 16 x 16, its frames carry the clip's number and their own as black and white cells,
and what is counted is what the model would be given. Ranks are played one after the other in one process, each with a
feed of its own; a kill throws away everything but the JSON of the last position that was saved.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from data.curation.clips import CutOptions
from data.media import video
from data.prepare.pipeline import PrepareOptions, prepare
from data.streams.curriculum import Position
from launcher.batches.checksum import CHECKSUM
from launcher.batches.loader import BatchLoader
from launcher.training.loop import build_loader
from launcher.training.rendezvous import RankPlace
from parallel.mesh import Groups, Mesh
from tests.support.runs import MODEL, config

CLIPS, MOST_FRAMES = 90, 7
REPLICAS, SEQUENCE, WORKERS = (1, 2, 3, 5, 8), (1, 2, 4, 8), (0, 1, 3)
TOPOLOGIES = list(itertools.product(REPLICAS, SEQUENCE, WORKERS))


def frames_of(clip: int) -> np.ndarray:
    """uint8 [frames, 16, 16, 3]: bits of clip and frame number in cells of 4 x 4."""
    frames = np.zeros((2 + clip * 7 % (MOST_FRAMES - 1), 16, 16, 3), np.uint8)
    for number, frame in enumerate(frames):
        for bit in range(16):
            on = (clip << 4 | number) >> bit & 1
            y, x = divmod(bit, 4)
            frame[4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = 235 if on else 16
    return frames


def read_back(token: np.ndarray) -> tuple[int, int]:
    """(clip, frame) of one token, a frame scaled to -1 .. 1."""
    cells = token.reshape(3, 4, 4, 4, 4).mean(axis=(0, 2, 4)).reshape(-1)
    value = sum(int(cell > 0) << bit for bit, cell in enumerate(cells))
    return value >> 4, value & 15


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("numbered")
    (root / "clips").mkdir()
    for clip in range(CLIPS):
        (root / "clips" / f"{clip:04d}.mp4").write_bytes(video.encode(iter(frames_of(clip)), Fraction(8)))
    options = PrepareOptions(allow_missing_captions=True, cut=CutOptions(min_frames=1), workers=0, shard_files=20)
    prepare(root / "clips", root / "dataset", options)
    return root / "dataset"


def feeds_of(dataset: Path, replicas: int, sequence: int, workers: int) -> list[BatchLoader]:
    """One for each rank; the streams of one process are shared, because they hold no state but what they have read."""
    settings = config(
        Path("unused"),
        dataset,
        dtype="float32",
        data={"dataset": str(dataset), "pack_tokens": 16, "packs_per_step": 8, "window": 64, "workers": workers},
        model={**MODEL, "heads": 8, "patch": [1, 16, 16]},
        objective={"kind": "rectified_flow", "predict": "clean"},
    )
    alone = build_loader(settings, RankPlace(0, 1, 0, 1, ""), torch.device("cpu"))
    ulysses = 2 if sequence % 2 == 0 else 1
    mesh = Mesh(replicas, sequence // ulysses, ulysses)
    made = [replace(alone.builder, groups=Groups(mesh, mesh.place(rank))) for rank in range(mesh.ranks)]  # type: ignore[type-var]
    return [replace(alone, builder=builder) for builder in made]


def step(feeds: list[BatchLoader], position: Position) -> tuple[Counter[tuple[int, int]], Position]:
    """One step on all ranks: the (clip, frame) that count, as received, and the position after it."""
    received: Counter[tuple[int, int]] = Counter()
    batches = [loader.batch(position) for loader in feeds]
    assert len({(b.position, b.samples, b.expected) for b in batches}) == 1
    assert len({len(b.micro_steps) for b in batches}) == 1
    assert sum(b.received for b in batches) & CHECKSUM == batches[0].expected
    for batch in batches:
        for micro in batch.micro_steps:
            counts = [micro.batch.packed.documents[d].weight > 0 for d in micro.batch.packed.document.tolist()]
            for token, real in zip(micro.batch.target.numpy(), counts, strict=True):
                received[read_back(token)] += real
    return +received, batches[0].position


def chain_of_plan(dataset: Path, steps: int) -> str:
    """The chain of an undisturbed run on one rank."""
    position = Position()
    curriculum = feeds_of(dataset, 1, 1, 0)[0].curriculum
    for _ in range(steps):
        position = curriculum.next_step(position)[2]
    return position.chain


def whole_epochs(dataset: Path, order: list[tuple[int, int, int]], seed: int, most: int) -> None:
    """Train at least one epoch through `order`, over and over: a topology for 1 to `most` steps, until it is killed."""
    chance, saved = random.Random(seed), Position()
    size = sum(len(frames_of(clip)) for clip in range(CLIPS))
    kept: list[tuple[Position, Counter[tuple[int, int]]]] = []
    number = 0
    while saved.cursor.epoch < 1 or number < len(order):
        feeds = feeds_of(dataset, *order[number % len(order)])
        position = Position.from_json(saved.to_json())
        feeds[0].curriculum.verify(position)
        since: list[tuple[Position, Counter[tuple[int, int]]]] = []
        for _ in range(chance.randint(1, most)):
            got, position = step(feeds, position)
            since.append((position, got))
            if chance.random() < 0.6:
                kept += since
                since, saved = [], position
        feeds[0].curriculum.close()
        number += 1
    received = Counter(itertools.chain.from_iterable(got.elements() for _, got in kept))
    assert max(received.values()) - min(received.values()) <= 1, "a frame came again before another came once"
    assert len(received) == size, "every frame came"
    assert kept[-1][0].step == len(kept) == saved.step
    assert saved.chain == chain_of_plan(dataset, saved.step)
    assert len(saved.to_json()) < 1024


def test_every_topology_in_one_walk(numbered: Path) -> None:
    order = TOPOLOGIES[:]
    random.Random(1).shuffle(order)
    small = [t for t in order if t[0] * t[1] <= 16]
    whole_epochs(numbered, small, seed=1, most=1)


@pytest.mark.slow
@pytest.mark.parametrize("first", TOPOLOGIES, ids=str)
def test_an_epoch_from_every_topology(numbered: Path, first: tuple[int, int, int]) -> None:
    chance = random.Random(str(first))
    others = chance.sample(TOPOLOGIES, 4)
    whole_epochs(numbered, [first, *others], seed=chance.randrange(1 << 30), most=4)
