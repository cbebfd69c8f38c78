"""Packs are those of the plan, whatever the samples are: a source brings lengths and documents, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data.chat.chat_index import ChatIndex
from data.dataset.index import Index
from data.planning.clip_sampling import Sampling
from data.planning.data_plan import Cursor
from data.streams.chat_source import ChatOptions, ChatSource
from data.streams.clip_reader import ClipReader, OnError, Piece
from data.streams.clip_source import ClipSource
from data.streams.pack_stream import Pack, PackOptions, PackStream, SampleSource, pack_of
from parallel.errors import InputError
from parallel.random import key_of
from parallel.sequence.geometry import Geometry
from parallel.sequence.packed import Document, Ranges
from parallel.sequence.visual_tokens import Views
from tests.support import conversations, datasets

SEED = 7
FRAME = Geometry(stride=(1, 16, 16), patch=(1, 1, 1))


class Texts:
    """An index and a source of another kind: 5 texts in one dataset and 3 in another, the second of which is empty."""

    folders, digests, starts = (Path("a"), Path("b")), ("a", "b"), (0, 5, 8)
    seed = SEED
    lengths = np.array([3, 0, 5, 4, 2, 6, 1, 3])
    costs = np.array([1.0, 0, 2, 4, 8, 16, 32, 64])
    closed = 0

    @property
    def index(self) -> Texts:
        return self

    def __len__(self) -> int:
        return 8

    def uid(self, row: int) -> str:
        return f"text {row}"

    def file(self, row: int) -> str:
        return f"{row}.txt"

    def check_lengths(self, pack_tokens: int) -> None:
        if self.lengths.max() > pack_tokens:
            raise InputError("a text fits into a pack", f"{self.lengths.max()}", "a larger pack")

    def document(self, row: int, epoch: int) -> Document:
        return Document(self.uid(row), key_of(self.seed, epoch, self.uid(row)), "", (int(self.lengths[row]), 1, 1))

    def layout(self, row: int) -> int:
        return int(self.lengths[row])

    def read(self, pack: Pack, ranges: Ranges, on_error: OnError | None = None) -> list[Piece]:
        return []

    def shards(self) -> dict[Path, int]:
        return {}

    def notes(self) -> Iterator[str]:
        return iter(())

    def close(self) -> None:
        self.closed += 1


def epoch_of(stream: PackStream[SampleSource]) -> list[Pack]:
    """The packs of the first epoch."""
    packs, cursor = [], Cursor()
    while cursor.epoch == 0:
        more, cursor = stream.packs(cursor, 1)
        packs += more
    return packs


def test_a_source_of_any_kind_is_packed() -> None:
    source = Texts()
    stream = PackStream(source, PackOptions(tokens=7))
    packs = epoch_of(stream)
    assert Counter(row for pack in packs for row in pack.rows) == Counter([0, 2, 3, 4, 5, 6, 7]), "but the empty one"
    for pack in packs:
        assert pack.tokens == source.lengths[list(pack.rows)].sum() <= 7
        assert pack.cost == source.costs[list(pack.rows)].sum()
        assert pack.epochs == (0,) * len(pack.rows)
        assert [d.key for d in pack.documents] == [key_of(SEED, 0, f"text {row}") for row in pack.rows]
    assert [stream.uid(sample) for sample in range(7)] == [f"text {row}" for row in (0, 2, 3, 4, 5, 6, 7)]
    assert {stream.dataset_of(row) for row in range(8)} == {0}, "one dataset, as nobody gave weights"
    stream.close()
    assert source.closed == 1


def test_a_mix_draws_datasets_by_weight() -> None:
    stream = PackStream(Texts(), PackOptions(tokens=7, window=8, weights={"a": 1, "b": 3}))
    packs, _ = stream.packs(Cursor(), 60)
    drawn = Counter(stream.dataset_of(row) for pack in packs for row in pack.rows)
    assert abs(drawn[1] - 3 * drawn[0]) < 3 * 8, "exact but for what is still in the window"
    assert stream.plan.mix.sizes == (4, 3)


@pytest.mark.parametrize(
    ("options", "match"),
    [(PackOptions(0), "pack_tokens"), (PackOptions(7, 0), "packs_per_step"), (PackOptions(5), "a text fits")],
)
def test_options_that_cannot_work_are_refused(options: PackOptions, match: str) -> None:
    with pytest.raises(InputError, match=match):
        PackStream(Texts(), options)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of 30 frames in two shards."""
    return datasets.make(tmp_path_factory.mktemp("clips") / "dataset")


def chats_of(clips: Path, out: Path) -> ChatSource:
    """Conversations about each clip; a clip gives a stretch of five frames from where its key says."""
    reader = ClipReader(Index.open(clips), Sampling(FRAME, 5, (16, 16)), SEED)
    return ChatSource(ChatIndex.open(conversations.make(out, clips)), reader, ChatOptions(Views(16, 1)), SEED)


def test_packs_of_clips_and_of_conversations_are_those_of_the_plan(clips: Path, tmp_path: Path) -> None:
    sources: list[SampleSource] = [
        ClipSource(ClipReader(Index.open(clips), Sampling(FRAME, 4), SEED)),
        chats_of(clips, tmp_path / "chats"),
    ]
    for source in sources:
        stream = PackStream(source, PackOptions(int(source.lengths.max()), packs_per_step=2))
        bins, _ = stream.plan.packs(Cursor(), 20)
        packs, _ = stream.packs(Cursor(), 20)
        assert [(pack.rows, pack.epochs) for pack in packs] == [(found.samples, found.epochs) for found in bins]
        for pack in packs:
            assert [d.tokens for d in pack.documents] == source.lengths[list(pack.rows)].tolist()
            uids = [source.index.uid(row) for row in pack.rows]
            keys = [key_of(SEED, epoch, uid) for epoch, uid in zip(pack.epochs, uids, strict=True)]
            assert [(d.uid, d.key) for d in pack.documents] == list(zip(uids, keys, strict=True))


def test_conversations_about_one_clip_see_the_same_frames(clips: Path, tmp_path: Path) -> None:
    """Of one epoch; and other frames in the next, as training on the clip itself would."""
    source = chats_of(clips, tmp_path / "chats")
    alone, both = 0, 4  # about the first clip; about the first two
    pack = pack_of(source, [both, alone, alone], [1, 1, 2])
    pieces = source.read(pack, ((0, 20),))
    assert [piece.document for piece in pieces] == [0, 0, 1, 2]
    frames = [piece.frames for piece in pieces]
    assert np.array_equal(frames[0], frames[2])
    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[2], frames[3])
    (part,) = source.read(pack, ((7, 9),))
    assert frames[1] is not None
    assert np.array_equal(part.frames, frames[1][2:4])


def test_a_clip_that_cannot_be_read_is_told_of_its_conversation(clips: Path, tmp_path: Path) -> None:
    copy = datasets.copy(clips, tmp_path / "copy")
    source = chats_of(copy, tmp_path / "chats")
    index = Index.open(copy)
    index.shard(1).unlink()
    of_first = [row for row in range(4) if index.shard(row) == index.shard(1)]
    pack = pack_of(source, [3, 1], [0, 0])
    assert source.digests == (*source.index.digests, index.digest), "of the conversations, and of their clips"
    told: dict[int, str] = {}
    pieces = source.read(pack, ((0, 10),), lambda number, error: told.update({number: error.value}))
    assert 3 not in of_first
    assert list(told) == [1]
    assert index.uid(1) in told[1]
    assert [bool(piece.frames.any()) for piece in pieces if piece.frames is not None] == [True, False]
    with pytest.raises(InputError, match="No such file"):
        source.read(pack, ((0, 10),))
