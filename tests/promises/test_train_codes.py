"""Visuals as words: the cut and the packing do not matter, and what is learned is drawn and read again, exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from data.chat.chat_builder import ChatBuildOptions, write
from data.chat.chat_index import ChatIndex
from data.chat.records import records_of
from data.chat.tokenizers import byte_tokenizer
from data.dataset.index import Index
from data.media.video import Frames, decode, probe
from data.streams.chat_layout import ChatLayout
from data.streams.chat_source import ChatSource
from data.streams.curriculum import Position
from launcher.batches.datasets import open_curriculum
from launcher.batches.visual_codes import Coding, Drawn, coder_for, coding_of, refuse_other_mask, write_drawn
from launcher.cli.app import app
from launcher.config.loading import to_yaml
from launcher.config.run_config import RunConfig
from launcher.core.run_folder import RunFolder
from launcher.preflight.preflight import check
from launcher.training.loop import build_loader
from launcher.training.rendezvous import RankPlace
from models.objectives.masked_token import MaskedToken, MaskedTokenConfig
from parallel.errors import InputError
from parallel.random import key_of
from parallel.sequence.packed import ASSISTANT, IGNORED, USER, VISUAL_CODE
from tests.promises.test_train_chat import gradient, mesh_of, same
from tests.support import conversations
from tests.support.process_groups import run_world
from tests.support.runs import config, train

CODES = "colour:16:4"  # 2 x 2 codes a frame of the tests' clips, of 64 words
WORDS, FRAMES = 64, 2
FIRST = len(byte_tokenizer())
MASK = FIRST + WORDS
OBJECTIVES: list[dict[str, Any]] = [
    {"kind": "next_token", "visual_code": 0.7, "user": 0.2},
    {"kind": "masked_token", "mask_token": MASK},
]


def model(**changes: Any) -> dict[str, Any]:
    return {"kind": "video_lm", "language": {**conversations.LANGUAGE, "vocab_size": MASK + 1, **changes}}


def drawing(name: str, file: str) -> dict[str, Any]:
    """The assistant draws."""
    return {"id": f"draw {name}", "video": file, "conversations": conversations.said(f"Draw {name}.", "<video>")}


def reading(name: str, file: str) -> dict[str, Any]:
    """The assistant reads."""
    return {"id": f"read {name}", "video": file, "conversations": conversations.said("<video>\nWhat is it?", name)}


def film(file: Path, coding: Coding) -> Frames:
    """All frames of a file that could be coded."""
    return decode(file, 0, probe(file).frames, coding.stride, coding.size)


def run_of(out: Path, coded: Path, **changes: Any) -> RunConfig:
    settings = conversations.settings(coded, model=model())
    return config(out, coded, **{**settings, "steps": 3, "data__pack_tokens": 180, **changes})


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """Each clip is drawn, or read; some words alone."""
    out, index = tmp_path_factory.mktemp("codes") / "chats", Index.open(dataset)
    records = [(drawing if row % 2 else reading)(str(row), index.file(row)) for row in range(len(index))]
    records.append({"id": "words", "conversations": conversations.said("Count.", "1 2 3")})
    named = [(str(record["id"]), record) for record in records]
    coder = coder_for(CODES, dataset, None, FRAMES, 3)
    write(named, byte_tokenizer(), out, dataset, ChatBuildOptions(coder=coder))
    return out


def test_codes_are_those_of_the_first_frames(coded: Path, dataset: Path) -> None:
    found, index = ChatIndex.open(coded), Index.open(dataset)
    coding = coding_of(found)
    assert coding is not None
    assert (found.tokenizer["tokens"], found.tokenizer["mask"]) == (MASK + 1, MASK)
    assert found.tokenizer["codes"] == {
        "kind": CODES, "identity": "colours patch=16 levels=4", "first": FIRST, "words": WORDS, "grid": [2, 2],
        "size": [32, 32], "frames": FRAMES, "stride": 3,
    }  # fmt: skip
    assert not found.clips, "conversations need them no more"
    for row in range(len(index)):
        file = dataset.parent / "clips" / index.file(row)
        tokens, kinds, visual_positions = found.tokens(row)
        here = tokens[kinds == VISUAL_CODE]
        frames = film(file, coding)
        assert len(frames) == 3
        assert here.tolist() == coding.tokens(frames).tolist()
        assert here.reshape(FRAMES, 2, 2)[1].tolist() == coding.tokens(frames[1:2]).reshape(2, 2).tolist()
        assert index.file(row) in found.text(row)
        assert not len(visual_positions)
        assert not found.visuals(row)
        drawn = coding.drawn(tokens.tolist())
        assert coding.tokens(drawn.visuals[0]).tolist() == here.tolist()
        assert drawn.left == 0


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective["kind"])
def test_every_mesh_gives_the_same_run(tmp_path: Path, coded: Path, objective: dict[str, Any]) -> None:
    one = train(run_of(tmp_path / "one", coded, objective=objective))
    for mesh in ((1, 2, 1), (2, 1, 1)):
        many = run_of(tmp_path / f"{mesh}", coded, objective=objective, mesh=mesh_of(mesh))
        same(train(many), one, 1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective["kind"])
def test_packing_does_not_matter(tmp_path: Path, coded: Path, objective: dict[str, Any]) -> None:
    """An epoch in one pack, and each conversation by itself; what is hidden of it is the same."""
    found = []
    for tokens, packs in ((10_000, 1), (30, 25)):
        data = {"data__pack_tokens": tokens, "data__window": 25, "data__packs_per_step": packs}
        settings = run_of(tmp_path, coded, **data, objective=objective)
        loader = build_loader(settings, RankPlace(0, 1, 0, 1, ""), torch.device("cpu"))
        batch = loader.batch(Position())
        assert len(set(batch.samples)) == 25
        assert [len(micro.batch.packed.documents) for micro in batch.micro_steps] == [25 // packs] * packs
        found += run_world(1, gradient, settings, 1)
    for (loss, grads), (other_loss, other) in pairwise(found):
        assert loss == pytest.approx(other_loss, rel=1e-12)
        for name, grad in grads.items():
            assert (grad - other[name]).abs().max() <= 1e-12 * max(1.0, float(grad.abs().max())), name


def hidden(source: ChatSource, layout: ChatLayout, row: int, seed: int, epoch: int) -> list[int]:
    """Which tokens of a conversation are hidden; checks all else that is said of them."""
    objective = MaskedToken(MaskedTokenConfig(mask_token=MASK))
    key = key_of(seed, epoch, source.index.uid(row))
    learned = objective.prepare(layout.tokens, layout.labels, layout.kinds, layout.visual, key)
    where = np.flatnonzero(learned.tokens != layout.tokens)
    codes = np.flatnonzero(layout.tokens >= FIRST)
    assert set(where) <= set(codes), "words are never hidden"
    assert (learned.tokens[where] == MASK).all()
    assert (learned.labels[where] == layout.tokens[where]).all()
    assert (np.delete(learned.labels, where) == IGNORED).all()
    assert np.flatnonzero(learned.weight).tolist() == where.tolist()
    assert len(where) > 0 or not len(codes)
    return where.tolist()


def test_what_is_hidden_depends_on_seed_epoch_and_sample(tmp_path: Path, coded: Path) -> None:
    """As the feeds of two packings hand it to the model, and as the objective draws it by itself."""
    objective = {"kind": "masked_token", "mask_token": MASK}
    by_uid: list[dict[str, list[int]]] = []
    for tokens in (180, 400):
        settings = run_of(tmp_path, coded, objective=objective, data__pack_tokens=tokens, data__window=25)
        loader = build_loader(settings, RankPlace(0, 1, 0, 1, ""), torch.device("cpu"))
        (stream,), position, seen = loader.curriculum.streams, Position(), dict[str, list[int]]()
        while position.cursor.epoch == 0:
            batch = loader.batch(position)
            position = batch.position
            for micro in batch.micro_steps:
                packed = micro.batch.packed
                for number, document in enumerate(packed.documents):
                    here = micro.batch.labels[packed.document == number] != IGNORED
                    seen.setdefault(document.uid, here.nonzero().flatten().tolist())
        by_uid.append(seen)
    assert by_uid[0] == by_uid[1]
    source = stream.source
    assert isinstance(source, ChatSource)
    draws = {
        (seed, epoch): [hidden(source, source.layout(row), row, seed, epoch) for row in range(len(source.index))]
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert draws[0, 0] == [by_uid[0][stream.uid(row)] for row in range(len(stream.index))]
    assert all(draws[one] != draws[other] for one in draws for other in draws if one != other)


def test_kinds_of_what_is_read_and_of_what_is_drawn(coded: Path) -> None:
    """A drawing stands between the words before the assistant's turn and the end of it."""
    codes = [VISUAL_CODE] * FRAMES * 4
    found = ChatIndex.open(coded)
    (_, read, _), (_, drawn, _) = found.tokens(0), found.tokens(1)
    assert drawn.tolist() == [USER] * len("xDraw 1.xx") + codes + [ASSISTANT] * 2
    assert read.tolist() == [USER] + codes + [USER] * len("\nWhat is it?xx") + [ASSISTANT] * 2


def longreel(*arguments: object) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "160"})
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    return done.stdout


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """A run that knows two clips by heart, to draw and to read."""
    root, index = tmp_path_factory.mktemp("learned"), Index.open(dataset)
    of_row = {name: index.file(row) for name, row in zip("AB", _different(dataset), strict=True)}
    records = [make(name, file) for name, file in of_row.items() for make in (drawing, reading)]
    (root / "chat.json").write_text(json.dumps(records))
    flags = ("--codes", CODES, "--code-frames", FRAMES, "--code-size", "32x32", "--code-stride", 3)
    said = longreel("data", "chat", root / "chat.json", "--clips", dataset, "--out", root / "chats", *flags)
    assert f"objective.mask_token={MASK}" in said
    asked = [
        {"id": name, "video": file, "question": "What is it?", "answer": name, **more}
        for name, file in of_row.items()
        for more in ({}, {"choices": ["A", "B"]})
    ]
    (root / "asked.json").write_text(json.dumps(asked))
    (root / "files.json").write_text(json.dumps(of_row))
    settings = run_of(
        root / "run", root / "chats", steps=60, dtype="float32", model=model(hidden_size=48, initializer_range=0.05),
        objective={"kind": "next_token", "visual_code": 1.0},
        data={"dataset": str(root / "chats"), "pack_tokens": 400, "packs_per_step": 1},
        optimizer={"learning_rate": 1e-2, "warmup_steps": 5, "schedule": "cosine"},
    )  # fmt: skip
    assert train(settings)[-1]["loss"] < 0.05
    RunFolder(settings.out).config.write_text(to_yaml(settings))
    return root


def _different(dataset: Path) -> tuple[int, int]:
    """Two clips whose codes differ."""
    coder, index = coder_for(CODES, dataset, None, FRAMES, 3), Index.open(dataset)
    codes = [coder.code([index.uid(row)]).tolist() for row in range(len(index))]
    return 0, next(row for row in range(len(index)) if codes[row] != codes[0])


@pytest.mark.parametrize("name", ["A", "B"])
def test_what_was_learned_is_drawn(learned: Path, dataset: Path, name: str) -> None:
    """The codes exactly, and colours of the mp4 that are theirs."""
    coding = coding_of(ChatIndex.open(learned / "chats"))
    assert coding is not None
    told = json.loads(longreel("sample", learned / "run", "--prompt", f"Draw {name}.", "--json").splitlines()[-1])
    assert told["answer"] == ""
    assert told["codes_left"] == 0
    (file,) = map(Path, told["drawn"])
    assert file.parent == RunFolder(learned / "run").samples
    shown = film(file, replace(coding, stride=1))
    clip = film(dataset.parent / "clips" / json.loads((learned / "files.json").read_text())[name], coding)
    assert coding.tokens(shown).tolist() == coding.tokens(clip).tolist()
    painted = coding.drawn(coding.tokens(clip).tolist()).visuals[0]
    assert shown.shape == painted.shape
    inside = np.abs(shown.astype(int) - painted).reshape(-1, 2, 16, 2, 16, 3)[:, :, 4:12, :, 4:12]
    assert inside.max() <= 12, "compression alone"


def test_what_was_learned_is_read(learned: Path, dataset: Path) -> None:
    """A file, and clips of the dataset."""
    for name, file in json.loads((learned / "files.json").read_text()).items():
        asked = ("--video", dataset.parent / "clips" / file, "--prompt", "What is it?")
        assert f"What is it?\n  {name}\n" in longreel("sample", learned / "run", *asked)
    scores = json.loads(longreel("eval", learned / "run", learned / "asked.json", "--clips", dataset, "--json"))
    assert [(score["questions"], score["right"]) for score in scores["scores"]] == [(4, 4)]


def test_answers_that_were_drawn_are_not_judged(learned: Path, dataset: Path) -> None:
    (_, record), *_ = list(records_of(learned / "chat.json"))
    (learned / "drawn.json").write_text(json.dumps([record]))
    done = CliRunner().invoke(app, ["eval", str(learned / "run"), str(learned / "drawn.json"), "--clips", str(dataset)])
    assert isinstance(done.exception, InputError)
    assert "has words alone" in str(done.exception)


def test_drawn_files_have_the_expected_colours(coded: Path, tmp_path: Path) -> None:
    """One frame is a PNG, exactly; what fills no frame is counted."""
    coding = coding_of(ChatIndex.open(coded))
    assert coding is not None
    codes = [FIRST + code for code in (0, 63, 48, 3)]  # black, white, red, blue
    drawn = coding.drawn([65, *codes, 66, *codes, *codes[:3], MASK, 67])
    assert (len(drawn.visuals), drawn.left) == (2, 3)
    first, second = write_drawn(drawn, tmp_path / "samples", "a", 8)
    assert (first.name, second.name) == ("a.png", "a-2.png")
    with Image.open(first) as picture:
        seen = np.asarray(picture.resize((2, 2), Image.Resampling.NEAREST))
    assert seen.tolist() == [[[0, 0, 0], [255, 255, 255]], [[255, 0, 0], [0, 0, 255]]]
    several = Drawn((np.concatenate(drawn.visuals),), 0)
    (written,) = write_drawn(several, tmp_path / "samples", "b", 8)
    assert written.suffix == ".mp4"
    assert coding.tokens(film(written, replace(coding, stride=1))).tolist() == codes * 2


def test_a_folder_of_codes_is_kept_with_the_conversations(tmp_path: Path, dataset: Path) -> None:
    import diffusers

    torch.manual_seed(0)
    tiny: dict[str, Any] = {"block_out_channels": (4, 8), "norm_num_groups": 2, "num_vq_embeddings": 37}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    diffusers.VQModel(**kinds, **tiny, latent_channels=4).save_pretrained(tmp_path / "vq")
    record = drawing("it", Index.open(dataset).file(0))

    def make(name: str) -> None:
        coder = coder_for(name, dataset, (16, 16), 1, 1)
        write([("it", record)], byte_tokenizer(), tmp_path / "chats", dataset, ChatBuildOptions(coder=coder))

    make(str(tmp_path / "vq"))
    (tmp_path / "vq" / "config.json").unlink()
    found = ChatIndex.open(tmp_path / "chats")
    coding = coding_of(found)
    assert coding is not None
    tokens, kinds_of, _ = found.tokens(0)
    assert (kinds_of == VISUAL_CODE).sum() == 64
    assert found.tokenizer["tokens"] == FIRST + 37 + 1
    assert coding.drawn(tokens.tolist()).visuals[0].shape == (1, 16, 16, 3)
    make(str(tmp_path / "chats" / "codes"))
    assert ChatIndex.open(tmp_path / "chats").digests == found.digests
    (weights,) = (tmp_path / "chats" / "codes").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match="codes are decoded by what made them"):
        coding_of(found)
    make("colour:8")
    assert not (tmp_path / "chats" / "codes").exists()


def test_what_cannot_work_is_refused(tmp_path: Path, coded: Path, dataset: Path) -> None:
    for flags, match in (
        (("--codes", "colours:8"), r"codes are colour:PATCH, colour:PATCH:LEVELS, or a folder"),
        (("--codes", "colour:0"), r"colour codes have patches of a pixel or more"),
        (("--codes", "colour:16", "--code-size", "40x32"), r"codes cover a frame\n.*40 x 32 pixels"),
        (("--codes", "colour:16", "--code-size", "large"), r"a size is HEIGHTxWIDTH"),
        (("--code-frames", "2"), r"sizes of codes are for visuals that are coded"),
    ):
        asked = ["data", "chat", "--captions", "--clips", str(dataset), "--out", str(tmp_path / "no"), *flags]
        done = CliRunner().invoke(app, asked)
        assert isinstance(done.exception, InputError), done.output
        with pytest.raises(InputError, match=match):
            raise done.exception
    watched = {"id": "w", "video": Index.open(dataset).file(0), "conversations": conversations.said("<video>", "x")}
    with pytest.raises(InputError, match="no clips are given"):
        coder_for(CODES, None, None, 2, 1)
    options = ChatBuildOptions(coder=coder_for(CODES, None, (32, 32), 2, 1))
    with pytest.raises(InputError, match="no clips were given"):
        write([("w", watched)], byte_tokenizer(), tmp_path / "w", None, options)
    small = model(vocab_size=MASK)
    with pytest.raises(InputError, match=f"{MASK + 1} tokens, the model has {MASK} rows"):
        check(run_of(tmp_path / "out", coded, model=small))
    plain = conversations.make(tmp_path / "plain", dataset, "w")
    with pytest.raises(InputError, match="a run has one tokenizer"):
        check(run_of(tmp_path / "out", coded, data__dataset={str(coded): 1, str(plain): 1}))
    curriculum = open_curriculum(run_of(tmp_path / "out", coded))
    refuse_other_mask(curriculum, MASK)
    with pytest.raises(InputError, match=f"objective.mask_token={MASK}$"):
        refuse_other_mask(curriculum, MASK - 1)
    of_words = open_curriculum(run_of(tmp_path / "out", plain, data__pack_tokens=400))
    with pytest.raises(InputError, match="masked_token hides codes"):
        refuse_other_mask(of_words, MASK)
    with pytest.raises(InputError, match="a token that no code has"):
        MaskedToken(MaskedTokenConfig(mask_token=FIRST)).prepare(
            np.array([1, FIRST]), np.array([FIRST, IGNORED]), np.array([VISUAL_CODE, USER]), np.zeros(2, bool), 0
        )
