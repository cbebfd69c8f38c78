"""Words cost what they cost: captions are read up to a limit, which is told, and count where work is shared out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.captions.captions import LONG_CAPTION
from data.curation.clips import CutOptions
from data.dataset.index import Index
from data.prepare.pipeline import PrepareOptions, prepare
from data.streams.curriculum import Position
from data.synthetic.shapes import synth
from launcher.analysis.attention_plan import words_notes
from launcher.analysis.packing_simulation import words_of
from launcher.batches.clip_family import FREE_BYTES, words_cost
from launcher.batches.datasets import builder_of, open_curriculum
from launcher.config.run_config import RunConfig
from launcher.generation.videos import Request, long_prompts
from launcher.preflight.preflight import check
from launcher.tables.check_tables import long_captions
from models.diffusion.byte_encoder import START, ByteBatch, ByteEncoderConfig, byte_tokens
from models.diffusion.video_dit import VideoDiTConfig, batch_of
from parallel.mesh import Groups, Mesh
from parallel.sequence.packed import Document, lay_out
from tests.support.runs import config

LONG = 40_000  # bytes


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Four clips, one of them with a caption of 40 KB; and what `prepare` said of it."""
    root = tmp_path_factory.mktemp("talkative")
    synth(root / "clips", 4, seed=0)
    captions = json.loads((root / "clips" / "captions.json").read_text())
    captions["clip-00002.mp4"] = "x" * LONG
    (root / "clips" / "captions.json").write_text(json.dumps(captions))
    summary = prepare(root / "clips", root / "dataset", PrepareOptions(workers=0))
    return root / "dataset", summary.notes


def run_of(dataset: Path, out: Path, **text: int) -> RunConfig:
    settings = config(out, dataset)
    model = settings.model.model_copy(update={"text": ByteEncoderConfig(dim=16, depth=1, heads=2, **text)})
    return settings.model_copy(update={"model": model, "data": settings.data.model_copy(update={"frames": None})})


@pytest.mark.parametrize(
    ("text", "limit", "read"),
    [
        ("abcd", 4, b"abcd"),
        ("abcde", 4, b"abcd"),
        ("abc\u00fcd", 4, b"abc"),  # two bytes, of which one would fit
        ("ab\u65e5", 4, b"ab"),
        ("\u65e5\u672c", 3, "\u65e5".encode()),
        ("\U0001f600", 3, b""),
        ("abcde", None, b"abcde"),
    ],
)
def test_whole_characters_up_to_the_limit_are_read(text: str, limit: int | None, read: bytes) -> None:
    assert byte_tokens(text, limit) == [START, *read]


def test_a_pack_of_captions_costs_in_proportion_to_their_number() -> None:
    few, many = (ByteBatch.of(["x" * 99] * count).plan.area for count in (2, 8))
    assert (few, many) == (2 * 100**2, 8 * 100**2)


def test_the_model_reads_no_more_than_the_limit() -> None:
    documents = [Document("a", 0, "x" * 5000, (1, 2, 2)), Document("b", 1, "short", (1, 2, 2))]
    packed = lay_out(documents, ((0, 8),), torch.zeros(8, 3))
    assert batch_of(packed, np.zeros(8), text=ByteEncoderConfig(max_bytes=1024)).captions.lengths == (1025, 6)
    assert batch_of(packed, np.zeros(8), text=ByteEncoderConfig(max_bytes=9000)).captions.lengths == (5001, 6)


def test_prepare_tells_of_what_the_default_cuts(talkative: tuple[Path, list[str]]) -> None:
    assert ByteEncoderConfig().max_bytes == LONG_CAPTION
    (note,) = talkative[1]
    assert "1 caption has more than 1,024 bytes" in note
    assert "the longest has 40,000 (clip-00002.mp4)" in note
    assert "40,000" in str(long_captions(talkative[0]))


def test_prepare_tells_of_clips_that_share_a_caption(tmp_path: Path) -> None:
    synth(tmp_path / "clips", 3, seed=1)
    (tmp_path / "clips" / "captions.json").write_text('{"clip-00000.mp4": "a", "clip-00001.mp4": "b"}')
    options = PrepareOptions(cut=CutOptions(min_frames=2, max_frames=4), workers=0, allow_missing_captions=True)
    summary = prepare(tmp_path / "clips", tmp_path / "dataset", options)
    assert summary.kept == 6
    told = "2 files were cut into several clips (4 in all), each with the caption of the whole file"
    assert told in summary.notes


def test_words_are_counted_as_they_are_computed() -> None:
    model = VideoDiTConfig(dim=96, depth=3, heads=4, text=ByteEncoderConfig(dim=32, depth=2, heads=2, max_bytes=2000))
    sizes, lengths = np.array([0, FREE_BYTES, FREE_BYTES + 1, 1000, 2000, LONG]), np.full(6, 64)
    costs = words_cost(model, sizes, lengths)

    def operations(tokens: int) -> float:  # of a forward pass, by layer; three times that with the backward pass
        encoder = 2 * (2 * 12 * 32**2 * tokens + 4 * 32 * tokens**2)
        cross = 3 * (2 * 2 * 32 * 96 * tokens + 4 * 96 * 64 * tokens)
        return 3 * (encoder + cross)

    free, unit = operations(FREE_BYTES + 1), 12 * 96 * 3
    expected = [(operations(min(n, 2000) + 1) - free) / unit for n in (FREE_BYTES + 1, 1000, 2000, LONG)]
    np.testing.assert_allclose(costs, [0, 0, *expected], rtol=1e-12, atol=1e-9)


def test_packs_are_dealt_by_their_words_too(talkative: tuple[Path, list[str]], tmp_path: Path) -> None:
    settings = run_of(talkative[0], tmp_path / "run", max_bytes=8192)
    curriculum = open_curriculum(settings)
    (stream,) = curriculum.streams
    row = int(Index.open(talkative[0]).caption_bytes().argmax())
    assert np.flatnonzero(stream.source.caption_costs).tolist() == [row]
    _, packs, _ = curriculum.next_step(Position())
    costs = {uid: pack.cost for pack in packs for uid in pack.rows}
    assert costs[row] >= stream.source.caption_costs[row] > 0
    found = words_of(settings, curriculum)
    assert found["cut_captions"] == 1
    assert 0.5 < found["share_of_words"] < 1


def test_training_reads_no_more_than_the_limit(talkative: tuple[Path, list[str]], tmp_path: Path) -> None:
    settings = run_of(talkative[0], tmp_path / "run", max_bytes=512)
    mesh = Mesh(1, 1, 1)
    builder = builder_of(settings, Groups(mesh, mesh.place(0)), torch.device("cpu"))
    stream, packs, _ = open_curriculum(settings).next_step(Position())
    read = [n for pack in packs for n in builder.micro_step(stream, pack).batch.input.captions.lengths]
    assert max(read) <= 513
    longest = [max(len(d.text) for d in pack.documents) for pack in packs]
    assert (LONG in longest) == (513 in read)


def test_a_run_and_its_plan_tell_of_captions_that_are_cut(talkative: tuple[Path, list[str]], tmp_path: Path) -> None:
    settings = run_of(talkative[0], tmp_path / "run")
    told = "1 of 4 captions are read up to their first 1,024 bytes (model.text.max_bytes): the longest has 40,000"
    assert any(told in note for note in check(settings, 0).notes)
    assert any(told in note for note in words_notes(settings))
    longer = run_of(talkative[0], tmp_path / "run", max_bytes=65536)
    assert not any("captions are read" in note for note in check(longer, 0).notes)


def test_long_prompts_are_told(talkative: tuple[Path, list[str]], tmp_path: Path) -> None:
    from launcher.config.loading import to_yaml

    settings = run_of(talkative[0], tmp_path)
    (tmp_path / "config.yaml").write_text(to_yaml(settings))
    assert long_prompts(tmp_path, Request(("short",))) == []
    (note,) = long_prompts(tmp_path, Request(("short", "y" * 1025)))
    assert "has 1,025 bytes: the model reads the first 1,024" in note
