"""Chat datasets: what is made of records, what is refused, and how a conversation is laid out for a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from data.chat.chat_builder import ChatBuildOptions, ChatBuildSummary, write
from data.chat.chat_index import LEFT_OUT, MANIFEST, ChatIndex
from data.chat.records import captions_of, records_of, refuse_unread
from data.chat.temporal_annotations import speaks
from data.chat.tokenizers import SILENCE_TOKEN, TEMPLATE, byte_tokenizer, open_tokenizer
from data.dataset.index import Index
from data.media.timeline import Timeline
from data.media.video import Frames
from data.planning.clip_sampling import Sampling
from data.streams.chat_layout import ChatLayout, VisualSpan, layout_of, times_of
from data.streams.chat_source import ChatOptions, ChatSource
from data.streams.clip_reader import ClipReader
from data.streams.pack_stream import pack_of
from models.objectives.next_token import NextTokenConfig
from parallel.errors import InputError
from parallel.sequence.geometry import Geometry
from parallel.sequence.packed import ASSISTANT, IGNORED, SILENCE, USER
from parallel.sequence.visual_tokens import Views
from tests.support import datasets
from tests.support.conversations import said

FPS, FRAMES = 8, 30
# source and first frame of clips 0 to 3: film.mp4 has two shots, the second of which comes first in the index
SHOTS = (("film.mp4", FRAMES), ("film.mp4", 0), ("a/x.mp4", 0), ("b/x.mp4", 0))
FILM = {"id": "film", "video": "film.mp4"}
ASK = said("<video>\nWhat?", "It.")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film in two shots, and two files of one name."""
    plain = datasets._row

    def row(number: int) -> dict[str, Any]:
        file, start = SHOTS[number]
        times = {"time_rows": (0,), "time_seconds": (start / FPS,)}
        return {**plain(number), **times, "file": file, "start": start, "stop": start + FRAMES}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "_row", row)
        return datasets.make(tmp_path_factory.mktemp("chats") / "clips")


@pytest.fixture(scope="module")
def made(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations about one clip, both shots of a film, two files, a stream, and nothing."""
    out = tmp_path_factory.mktemp("made") / "chats"
    both = {"id": "both", "video": ["film.mp4", "a/x.mp4"], "conversations": said("<video>\n<video>\nAlike?", "No.")}
    stream = {**FILM, "stream": [{"time": 1.0, "text": "It comes."}, {"time": 5.0, "text": "It goes."}]}
    build([both, {"id": "one", "video": "b/x.mp4", "conversations": ASK}, stream, words("Words.")], out, clips)
    return out


def build(
    records: list[Any], out: Path, clips: Path | None = None, tokenizer: Any = None, **more: Any
) -> ChatBuildSummary:
    """Write a chat dataset of these records."""
    named = [(f"record {n}", record) for n, record in enumerate(records, 1)]
    return write(named, tokenizer or byte_tokenizer(), out, clips, ChatBuildOptions(**more))


def words(text: str) -> dict[str, Any]:
    """A record without a visual."""
    return {"conversations": said("?", text)}


def source_of(folder: Path, stride: int = 1, views: Views = Views(16, 2), frames: int | None = None) -> ChatSource:
    """Conversations as a model with such views has them."""
    chats = ChatIndex.open(folder)
    sampling = Sampling(Geometry(stride=(1, 16, 16), patch=(1, 1, 1)), frames, (16, 16), stride)
    seen = ClipReader(Index.open(chats.clips[0][0]), sampling, 0) if chats.clips else None
    return ChatSource(chats, seen, ChatOptions(views), 0)


def names_of(folder: Path) -> dict[str, list[list[str]]]:
    """Of each conversation, the clips of its visuals."""
    chats = ChatIndex.open(folder)
    return {chats.text(row): [visual["clips"] for visual in chats.visuals(row)] for row in range(len(chats))}


def by_file(clips: Path) -> dict[tuple[str, int], str]:
    """Uids by file and first frame."""
    rows = Index.open(clips).table.select(["file", "start", "uid"]).to_pylist()
    return {(row["file"], row["start"]): row["uid"] for row in rows}


@pytest.mark.parametrize(
    ("key", "value"),
    [("video_id", "film"), ("vid", "a/x"), ("id", "film.mp4"), ("metadata", {"clip": "a/x"}), ("source", ["b/x.mp4"])],
)
def test_words_alone_that_name_a_clip(clips: Path, tmp_path: Path, key: str, value: Any) -> None:
    """Their video is not lost in silence; a record that has it may be called as it."""
    lost = {key: value, **words("It.")}
    with pytest.raises(InputError, match=f"in a key that is read\n.*{key}.*\n.*--ignore {key}"):
        build([lost], tmp_path / "chats", clips)
    assert build([lost], tmp_path / "chats", clips, ignored=(key,)).kept == 1
    shows = {"video": "film.mp4", "conversations": ASK, key: value}
    assert build([{key: "other", **words("It.")}, shows], tmp_path / "chats", clips).kept == 2
    assert build([lost if key != "id" and "mp4" not in str(value) else words("?")], tmp_path / "words").kept == 1


def test_the_same_arguments_write_the_same_bytes(made: Path, clips: Path, tmp_path: Path) -> None:
    """Also over a dataset of others, of which nothing stays."""
    records = [words("one"), {"video": "nowhere.mp4", "conversations": ASK}]
    build(records, tmp_path / "fresh", clips, leave_out=True)
    build(records, tmp_path / "other", clips, leave_out=True)
    assert datasets.tree(tmp_path / "other") == datasets.tree(tmp_path / "fresh")
    build([words("one")], tmp_path / "clean", clips)
    build([words("one")], tmp_path / "fresh", clips)
    assert datasets.tree(tmp_path / "fresh") == datasets.tree(tmp_path / "clean")
    assert not (tmp_path / "fresh" / LEFT_OUT).exists()


def test_what_is_written(tmp_path: Path, clips: Path) -> None:
    told = build([{"id": "one", "video": "a/x.mp4", "conversations": ASK}], tmp_path / "chats", clips)
    chats, tokenizer = ChatIndex.open(tmp_path / "chats"), byte_tokenizer()
    tokens, kinds, visual_positions = chats.tokens(0)
    assert tokenizer.decode(tokens) == "<|user|><video>\nWhat?<|end|><|assistant|>It.<|end|>"
    assert visual_positions.tolist() == [1]
    assert tokenizer.decode(tokens[kinds == ASSISTANT]) == "It.<|end|>"
    assert (told.kept, told.tokens, told.answers, told.visuals) == (1, len(tokens) - 1, 4, 1)
    assert chats.tokenizer["silence"] == tokenizer.convert_tokens_to_ids(SILENCE_TOKEN)
    assert (chats.text(0), chats.file(0)) == ("What? It.", "a/x.mp4")
    assert chats.clips == [(clips.resolve(), Index.open(clips).digest)]
    assert chats.lengths.tolist() == [told.tokens]


def test_words_alone_are_all_learned(tmp_path: Path) -> None:
    """With the end, and without what makes the assistant speak."""
    told = build([{"text": "Words."}, {"messages": [{"role": "assistant", "content": "First."}]}], tmp_path / "chats")
    tokenizer = byte_tokenizer()
    for row, text in enumerate(("Words.<|end|>", "First.<|end|>")):
        tokens, kinds, _ = ChatIndex.open(tmp_path / "chats").tokens(row)
        assert tokenizer.decode(tokens) == f"<|assistant|>{text}"
        assert tokenizer.decode(tokens[kinds == ASSISTANT]) == text
    assert (told.kept, told.answers) == (2, 14)


def test_names(tmp_path: Path, clips: Path) -> None:
    """By uid, by path, by the last part of it; the shots of a file in the order in which they were cut."""
    uid = by_file(clips)
    shots = [uid["film.mp4", 0], uid["film.mp4", FRAMES]]
    names = {"film.mp4": shots, "elsewhere/film.mp4": shots, "a/x.mp4": [uid["a/x.mp4", 0]], shots[1]: [shots[1]]}
    records = [{"video": name, "conversations": said(f"<video>\n{name}", ".")} for name in names]
    build(records, tmp_path / "chats", clips)
    assert names_of(tmp_path / "chats") == {f"{name} .": [found] for name, found in names.items()}


@pytest.mark.parametrize(
    ("begin", "end", "seconds"),
    [
        (None, None, [0.0, 29 / 8, 30 / 8, 59 / 8]),
        (1, 2, [1.0, 2.0]),
        (1.01, 1.99, [9 / 8, 15 / 8]),
        (0, 0.25, [0.0, 0.25]),
        (3.5, 4, [28 / 8, 29 / 8, 30 / 8, 32 / 8]),  # over the cut between both shots
        (7, None, [56 / 8, 59 / 8]),
    ],
)
def test_a_moment_is_all_that_is_seen(
    tmp_path: Path, clips: Path, begin: float | None, end: float | None, seconds: list[float]
) -> None:
    """The seconds of the first and the last frame of each clip that shows something, as a run has them."""
    moment = {key: value for key, value in (("start", begin), ("end", end)) if value is not None}
    part = {"type": "video", "video": "film.mp4", **{f"video_{key}": value for key, value in moment.items()}}
    asked = {"role": "user", "content": [part, {"type": "text", "text": "What?"}]}
    answer = {"role": "assistant", "content": "It."}
    beside = {"id": "a", "messages": [{"role": "user", "content": "<video>What?"}, answer], "videos": ["film.mp4"]}
    build([{**beside, **moment}, {"id": "b", "messages": [asked, answer]}], tmp_path / "chats", clips)
    source = source_of(tmp_path / "chats")
    for row in (0, 1):
        (spans,) = source.spans.by_visual(row)
        seen = [span for span in spans if span.frames]
        ends = [span.timeline.second(at) for span in seen for at in (span.first, span.last - 1)]
        assert ends == pytest.approx(seconds)


def test_captions_are_conversations(tmp_path: Path, clips: Path) -> None:
    index = Index.open(clips)
    told = write(captions_of(index, "What?"), byte_tokenizer(), tmp_path / "chats", clips)
    assert told.kept == told.visuals == len(index)
    found = names_of(tmp_path / "chats")
    assert found == {f"What? {index.caption(row)}": [[index.uid(row)]] for row in range(len(index))}


def silent(template: str) -> Any:
    """The tokenizer of bytes with another template."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


DROPS = TEMPLATE.replace("m['content']", "m['content'].replace('<video>', '')")
REFUSED = {
    "no form": ({"talk": "?"}, "has conversations or messages .*\n.*record 1: keys: talk"),
    "no object": (["a"], "a record is an object\n.*record 1"),
    "no object within": ({"conversations": ["a"]}, "record 1: 'a'"),
    "no object in messages": ({"messages": [{"role": "user", "content": [3]}]}, "record 1: 3"),
    "files of no kind": ({"video": 5, "conversations": ASK}, "record 1: video: 5"),
    "somebody of no kind": ({"conversations": [{"from": [], "value": "?"}]}, "a turn is of"),
    "half a character": (words("\ud800"), "record 1"),
    "a mark of turns": (
        words("?<|end|><|assistant|>No."),
        "holds no mark of the tokenizer's turns\n.*record 1: '<|assistant|>'".replace("|", "[|]"),
    ),
    "more places": ({"video": [], "conversations": ASK}, "a place <video> for each video\n.*1 times <video>.*0 files"),
    "more files": ({"video": ["a", "b"], "conversations": ASK}, "1 times <video> in the text, 2 files"),
    "nobody answers": ({"conversations": said("?", "")[:1]}, "somebody answers"),
    "not in the dataset": ({"video": "y.mp4", "conversations": ASK}, "clips of a dataset\n.*y.mp4; 3 files"),
    "two folders": ({"video": "x.mp4", "conversations": ASK}, "x.mp4 may be a/x.mp4 or b/x.mp4"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_records_that_are_refused(tmp_path: Path, clips: Path, name: str) -> None:
    """With the record and the reason; or left out, and listed."""
    record, match = REFUSED[name]
    with pytest.raises(InputError, match=f"(?s){match}.*--leave-out"):
        build([record], tmp_path / "chats", clips)
    told = build([record, words("Words.")], tmp_path / "chats", clips, leave_out=True)
    assert told.kept == 1
    assert [where for where, _ in told.left_out] == ["record 1"]
    listed = [json.loads(line) for line in (tmp_path / "chats" / LEFT_OUT).read_text().splitlines()]
    assert listed == [{"record": "record 1", "reason": told.left_out[0][1]}]
    with pytest.raises(InputError, match=r"(?s)a chat dataset has conversations.*none; record 1: "):
        build([record], tmp_path / "chats", clips, leave_out=True)
    with pytest.raises(InputError, match=f"no {MANIFEST}"):  # what was there before is gone
        ChatIndex.open(tmp_path / "chats")


def test_a_conversation_stands_once(tmp_path: Path) -> None:
    one = {"id": "a", "conversations": said("?", "!")}
    with pytest.raises(InputError, match=r"stands once\n.*record 2"):
        build([one, one], tmp_path / "chats")
    assert build([one, {**one, "id": "b"}, one], tmp_path / "chats", leave_out=True).kept == 2


def test_tokenizers_that_are_refused(tmp_path: Path, clips: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "good")
    assert open_tokenizer(str(tmp_path / "good")).get_vocab() == byte_tokenizer().get_vocab()
    silent("").save_pretrained(tmp_path / "plain")
    (tmp_path / "empty").mkdir()
    for name, match in (
        ("plain", r"has a chat template\n.*plain: none"),
        ("empty", "a folder as transformers saves it"),
        ("nowhere", "no such folder"),
    ):
        with pytest.raises(InputError, match=match):
            open_tokenizer(str(tmp_path / name))
    asked = {"id": "one", "video": "a/x.mp4", "conversations": ASK}
    with pytest.raises(InputError, match=r"keeps one place for each video\n.*one: 0 times '<video>' in .* of 1"):
        build([asked], tmp_path / "chats", clips, silent(DROPS))
    with pytest.raises(InputError, match="is one token of the tokenizer"):
        build([asked], tmp_path / "chats", clips, places={"video": "<clip>", "image": "<image>"})
    with pytest.raises(InputError, match="no clips were given"):
        build([asked], tmp_path / "chats")


def test_folders_that_are_refused(tmp_path: Path) -> None:
    folder, other = tmp_path / "chats", tmp_path / "other"
    other.mkdir()
    (other / "mine").write_text("")
    (tmp_path / "file").write_text("")
    for out, match in ((other, "other has: mine"), (tmp_path / "file", "is a file")):
        with pytest.raises(InputError, match=match):
            build([words("a")], out)
    with pytest.raises(InputError, match=r"a chat dataset has conversations\n.*none"):
        build([], folder)
    build([words("a" * 300)], folder)
    (part,) = (folder / "parts").iterdir()
    whole = part.read_bytes()
    for damaged in (whole[:-1], whole.replace(b"a" * 50, b"b" * 50)):
        part.write_bytes(damaged)
        with pytest.raises(InputError, match=r"(?s)does not change.*not what chat.json says"):
            ChatIndex.open(folder)
    part.unlink()
    with pytest.raises(InputError, match=r"00000\.arrow is missing"):
        ChatIndex.open(folder)
    part.write_bytes(whole)
    assert len(ChatIndex.open(folder)) == 1
    with pytest.raises(InputError, match="goes on with the samples that it began with"):
        ChatIndex.open(folder, "0" * 32)
    manifest = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(manifest.replace('"rows": 1', '"rows": 2'))
    with pytest.raises(InputError, match=MANIFEST):
        ChatIndex.open(folder)


def test_folders_are_joined(tmp_path: Path, made: Path) -> None:
    """Those of one tokenizer."""
    build([words("a")], tmp_path / "one")
    build([words("a")], tmp_path / "two", tokenizer=silent(TEMPLATE.replace("<|end|>", "<|end|>\n")))
    one, two, other = (ChatIndex.open(folder) for folder in (made, tmp_path / "one", tmp_path / "two"))
    both = ChatIndex.join([one, two])
    assert (len(both), both.starts, both.clips) == (5, (0, 4, 5), one.clips)
    assert [both.uid(row) for row in range(5)] == [*(one.uid(row) for row in range(4)), two.uid(0)]
    with pytest.raises(InputError, match="a run has one tokenizer"):
        ChatIndex.join([one, other])


def test_files_of_records(tmp_path: Path) -> None:
    """A list, or an object a line; separators of Unicode are no ends of lines."""
    rows = [{"text": "a\u2028b"}, {"text": "c"}]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    for text in (json.dumps(rows), lines, "\ufeff" + lines, lines.replace("\n", "\r\n")):
        (tmp_path / "rows").write_text(text, encoding="utf-8", newline="")
        assert [record for _, record in records_of(tmp_path / "rows")] == rows
    by_video: dict[str, Any] = {
        "v_1": {"duration": 2.0, "timestamps": [[0, 1]], "sentences": ["A."]},
        "v_2": {"video": "b.mp4"},
    }
    for indent in (None, 1):
        (tmp_path / "rows").write_text(json.dumps(by_video, indent=indent))
        assert [record for _, record in records_of(tmp_path / "rows")] == [
            {"video": "v_1", **by_video["v_1"]},
            by_video["v_2"],
        ]
    (tmp_path / "rows").write_text(json.dumps(rows[0], indent=1))
    assert list(records_of(tmp_path / "rows")) == [(f"{tmp_path}/rows, record 1", rows[0])]
    for data, match in ((b"[1", "rows, record 1: "), (b'{"a": 1}\n{', "rows, line 2: "), (b"\xff", "rows, line 1: ")):
        (tmp_path / "rows").write_bytes(data)
        where, record = list(records_of(tmp_path / "rows"))[-1]
        with pytest.raises(InputError, match=match):
            refuse_unread(record, where)
    with pytest.raises(InputError, match="No such file"):
        list(records_of(tmp_path / "nowhere"))


def test_the_command(tmp_path: Path, clips: Path) -> None:
    from launcher.cli.app import app

    file = tmp_path / "talks.jsonl"
    file.write_text(json.dumps(words("Words.")) + '\n{"talk": 1}\n')
    asked = ["data", "chat", str(file), "--clips", str(clips), "--captions", "--leave-out", "--out"]
    done = CliRunner().invoke(app, [*asked, str(tmp_path / "one"), "--json"], catch_exceptions=False)
    told = json.loads(done.stdout)
    assert (told["kept"], told["visuals"], told["left_out"][0][0]) == (5, 4, f"{file}, line 2")
    done = CliRunner().invoke(app, [*asked, str(tmp_path / "two")], catch_exceptions=False)
    assert "conversations" in done.output
    assert f"left out: {file}, line 2" in done.output
    assert datasets.tree(tmp_path / "one") == datasets.tree(tmp_path / "two")


def test_one_odd_record_costs_itself(tmp_path: Path) -> None:
    """It is told with its line, the reason and what to do; --strict stops there."""
    from launcher.cli.app import app

    file = tmp_path / "talks.jsonl"
    file.write_text("\n".join([json.dumps(words("One.")), "[1", '{"talk": 1}', "7", json.dumps(words("Two."))]))
    asked = ["data", "chat", str(file), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0
    assert "3 of 5 records cannot be used:" in done.output
    listed = [json.loads(line) for line in (tmp_path / "out" / LEFT_OUT).read_text().splitlines()]
    assert [one["record"] for one in listed] == [f"{file}, line {n}" for n in (2, 3, 4)]
    assert all(f"left out: {one['record']}: {one['reason']}" in done.output for one in listed)
    assert listed[0]["reason"].endswith("mend it there, or take it out")
    assert len(ChatIndex.open(tmp_path / "out").lengths) == 2
    with pytest.raises(InputError, match=r"line 2"):
        CliRunner().invoke(app, [*asked, "--strict"], catch_exceptions=False)


U, V, B, E = 1, 9, 2, 4  # a turn of the user, a visual, a turn of the assistant, the end


def test_a_chat_dataset_of_schema_1_is_refused_and_made_anew(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "chats"
    build([words("a")], out, clips)
    (out / "chat.json").rename(out / "talks.json")
    with pytest.raises(InputError, match="must be of schema 2") as told:
        ChatIndex.open(out)
    assert (told.value.value, "longreel data chat" in told.value.remedy) == (f"{out / 'talks.json'}: schema 1", True)
    build([words("a")], out, clips)
    assert (len(ChatIndex.open(out)), (out / "talks.json").exists()) == (1, False)


def test_a_layout_by_hand() -> None:
    """Two visuals, the second in two clips; 5 frames in views of 2 are 3 views, of 4, 1 and 4 rows."""
    tokens = np.array([U, V, 5, V, 6, B, 7, E])
    kinds = np.array([USER] * 6 + [ASSISTANT] * 2)
    spans = [[VisualSpan(0, 0, 5)], [VisualSpan(1, 2, 3), VisualSpan(2, 0, 3)]]
    layout = layout_of(tokens, kinds, np.array([1, 3]), spans, Views(16, side=2, temporal_pool=2, slow_fast=2), None)
    assert layout.tokens.tolist() == [U, *[V] * 9, 5, *[V] * 4, *[V] * 5, 6, B, 7, E]
    no = IGNORED
    assert layout.labels.tolist() == [no, *[no] * 8, 5, no, *[no] * 8, 6, B, 7, E, no]
    assert layout.kinds.tolist() == [*[USER] * 21, ASSISTANT, ASSISTANT, USER]
    assert layout.visual.tolist() == [False, *[True] * 9, False, *[True] * 9, *[False] * 4]
    assert (layout.starts.tolist(), layout.rows.tolist()) == ([1, 5, 6, 11, 15, 19], [4, 1, 4, 4, 4, 1])
    frames = [("frame", 4), ("frame", 1), ("frame", 4)]
    assert layout.runs == (
        ("words", 1), *frames, ("words", 1), ("frame", 4), ("frame", 4), ("frame", 1), ("words", 4),
    )  # fmt: skip
    before = layout.before(11)
    assert (len(before), before.runs) == (11, layout.runs[:5])
    assert layout.spans == (VisualSpan(0, 0, 5), VisualSpan(1, 2, 3), VisualSpan(2, 0, 3))


def test_a_watched_layout_by_hand() -> None:
    """Silence after each view but the last before an answer; after that the model begins to speak."""
    tokens, kinds = np.array([U, V, 5, B, 7, E, U, V, E]), np.array([USER] * 4 + [ASSISTANT] * 2 + [USER] * 3)
    spans = [[VisualSpan(0, 0, 3, True)], [VisualSpan(0, 3, 5, True)]]
    quiet = 8
    layout = layout_of(tokens, kinds, np.array([1, 7]), spans, Views(16, side=1), quiet)
    assert layout.tokens.tolist() == [U, V, V, V, 5, B, 7, E, U, V, V, E]
    no = IGNORED
    assert layout.labels.tolist() == [no, quiet, quiet, 5, B, 7, E, U, no, quiet, quiet, no]
    kinds_of = {USER: "-", ASSISTANT: "a", SILENCE: "s"}
    assert "".join(kinds_of[kind] for kind in layout.kinds.tolist()) == "-ssa-aa--ss-"
    weights = NextTokenConfig(assistant=2, user=0.5, silence=0.25).weigh(layout.kinds, layout.labels >= 0)
    assert weights.tolist() == [0, 0.25, 0.25, 2, 0.5, 2, 2, 0.5, 0, 0.25, 0.25, 0]
    with pytest.raises(InputError, match="a token that says nothing"):
        layout_of(tokens, kinds, np.array([1, 7]), spans, Views(16, side=1), None)


def test_words_alone_are_laid_out_without_views() -> None:
    none: list[list[VisualSpan]] = []
    layout = layout_of(np.array([3, 4]), np.array([ASSISTANT, ASSISTANT]), np.zeros(0, np.int64), none, None, None)
    assert (layout.labels.tolist(), layout.runs) == ([4, IGNORED], (("words", 2),))


@pytest.mark.parametrize(
    "views", [Views(16, 2), Views(16, 2, temporal_pool=2, slow_fast=2), Views(16, 1, temporal_pool=3)], ids=str
)
@pytest.mark.parametrize("stride", [1, 4])
def test_lengths_are_those_of_layouts(made: Path, views: Views, stride: int) -> None:
    source = source_of(made, stride, views)
    layouts = [source.layout(row) for row in range(len(source.index))]
    assert source.lengths.tolist() == [len(one) for one in layouts]
    frames = -(-FRAMES // stride)
    seen = [sum(span.frames for span in one.spans) for one in layouts]
    assert seen == [3 * frames, frames, 2 * frames, 0]
    for one in layouts:
        assert one.visual.sum() == one.rows.sum()
        assert sum(rows for _, rows in one.runs) == len(one)


def test_the_shots_of_a_film_are_seen_in_order(made: Path, clips: Path) -> None:
    """Any stretch of the frames of a pack is that stretch of its clips, laid end to end."""
    source = source_of(made, 4)
    assert source.clips is not None
    pack = pack_of(source, (0, 3, 2, 1), (0, 0, 0, 0))
    problems = dict[int, str]()

    def shown(begin: int, end: int) -> Frames:
        pieces = source.read(pack, ((begin, end),), lambda number, error: problems.update({number: error.value}))
        return np.concatenate([piece.frames for piece in pieces if piece.frames is not None])

    uid, rows = by_file(clips), {source.clips.index.uid(row): row for row in range(4)}
    film = [rows[uid["film.mp4", 0]], rows[uid["film.mp4", FRAMES]]]
    order = [*film, rows[uid["a/x.mp4", 0]], *film, rows[uid["b/x.mp4", 0]]]
    expected = np.concatenate([source.clips.frames(row) for row in order])
    assert len(expected) == 6 * 8
    assert not problems
    for begin, end in ((0, 48), (3, 11), (22, 40), (47, 48)):
        assert np.array_equal(shown(begin, end), expected[begin:end])
    source.close()


def heard(layout: ChatLayout) -> list[int]:
    """What is learned after each view."""
    last = layout.starts + layout.rows - 1
    assert not (layout.kinds == SILENCE)[np.setdiff1d(np.arange(len(layout)), last)].any()
    return [int(kind) for kind in layout.kinds[last]]


STREAMS = {
    "at a frame": [1.0, 2.5],
    "between": [1.03, 2.49, 6.99],
    "before the first frames": [0.0, 0.0, 0.01],
    "in one frame": [1.0, 1.01, 1.02, 1.9],
    "in each shot": [3.0, 3.74, 3.75, 3.8, 7.4],
    "second shot alone": [6.0],
    "at the end": [7.5],
}


@pytest.mark.parametrize("times", STREAMS.values(), ids=STREAMS)
def test_a_stream_is_silent_and_speaks_as_annotations_say(clips: Path, tmp_path: Path, times: list[float]) -> None:
    """Over two shots of a film, for several strides: after the frames that `speaks` names."""
    record = {**FILM, "duration": 7.5, "stream": [{"time": time, "text": f"At {time}."} for time in times]}
    build([record], tmp_path / "chats", clips)
    for stride in (1, 3, 7, 29):
        at = np.concatenate([np.arange(0, FRAMES, stride), FRAMES + np.arange(0, FRAMES, stride)]) / FPS
        layout = source_of(tmp_path / "chats", stride).layout(0)
        assert len(layout.starts) == len(at)
        spoken = speaks(at, record)
        assert heard(layout) == [ASSISTANT if spoken[n] else SILENCE for n in range(len(at))], stride
        silence = layout.labels[layout.kinds == SILENCE]
        assert (silence == byte_tokenizer().convert_tokens_to_ids(SILENCE_TOKEN)).all()


def test_views_of_several_frames_are_watched(clips: Path, tmp_path: Path) -> None:
    """A view ends where a stretch does; the row that learns is the last of the view."""
    record = {**FILM, "duration": 7.5, "stream": [{"time": 1.0, "text": "A."}]}
    build([record], tmp_path / "chats", clips)
    layout = source_of(tmp_path / "chats", 3, Views(16, 2, temporal_pool=2, slow_fast=2)).layout(0)
    # frames at 0, 3/8, 6/8 | 9/8 ...: views of 2 and 1 frames, then of the first shot 7 frames, then 10 of the second
    assert layout.rows.tolist() == [4, 1, *[4, 1, 4, 1], *[4, 1, 4, 1, 4]]
    assert heard(layout) == [SILENCE, ASSISTANT, *[SILENCE] * 9]


def test_a_query_is_asked_before_the_video(clips: Path, tmp_path: Path) -> None:
    record = {**FILM, "query": "When?", "start": 1.0, "end": 2.0}
    build([record], tmp_path / "chats", clips)
    layout = source_of(tmp_path / "chats", 2).layout(0)
    assert heard(layout) == [*[SILENCE] * 8, ASSISTANT, *[SILENCE] * 21]
    assert byte_tokenizer().decode(layout.tokens[: layout.starts[0]]) == "<|user|>When?"


def chance(folder: Path) -> ChatSource:
    """A stretch from a random start."""
    return source_of(folder, 1, frames=5)


def blind(folder: Path) -> ChatSource:
    """No eyes."""
    return ChatSource(ChatIndex.open(folder), None, ChatOptions(), 0)


@pytest.mark.parametrize(
    ("opened", "match"),
    [(chance, r"see clips whole\n.*data.frames=5"), (blind, r"has a vision tower\n.*film.mp4")],
)
def test_streams_that_are_refused(
    clips: Path, tmp_path: Path, opened: Callable[[Path], ChatSource], match: str
) -> None:
    build([{**FILM, "stream": [{"time": 1.0, "text": "A."}]}], tmp_path / "chats", clips)
    with pytest.raises(InputError, match=match):
        opened(tmp_path / "chats")


def test_an_image_beside_a_stream(clips: Path, made: Path) -> None:
    """It has no rate; nothing is divided by that."""
    index = Index.open(clips)
    column = index.table.schema.get_field_index("fps")
    rates = [0.0 if index.file(row) == "b/x.mp4" else FPS for row in range(4)]
    table = index.table.set_column(column, "fps", pa.array(rates, pa.float64()))
    sampling = Sampling(Geometry(stride=(1, 16, 16), patch=(1, 1, 1)), None, (16, 16))
    reader = ClipReader(replace(index, table=table), sampling, 0)
    source = ChatSource(ChatIndex.open(made), reader, ChatOptions(Views(16, 2)), 0)
    assert source.lengths.tolist() == source_of(made).lengths.tolist()


def test_conversations_about_other_clips_are_refused(clips: Path, made: Path, tmp_path: Path) -> None:
    sampling = Sampling(Geometry(stride=(1, 16, 16), patch=(1, 1, 1)), None, (16, 16))
    other = ClipReader(Index.open(datasets.make(tmp_path / "other", ((7,),))), sampling, 0)
    with pytest.raises(InputError, match=r"are in their dataset\n.*are not, the first is"):
        ChatSource(ChatIndex.open(made), other, ChatOptions(Views(16, 2)), 0)


def test_times_stand_before_views() -> None:
    """By hand: views of two frames, four a second, of a clip that begins at 3 s in its source, from its third on."""

    class Letters:
        def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
            return {"input_ids": [ord(letter) for letter in text]}

    times = times_of(Letters())
    tokens, kinds = np.array([1, 9, 2, 3]), np.array([USER, USER, USER, ASSISTANT])
    views = Views(pixels=4, side=1, temporal_pool=2)
    layout = layout_of(
        tokens, kinds, np.array([1]), [[VisualSpan(0, 2, 5, False, Timeline((0,), (3.0,), 4.0))]], views, None, times
    )
    stamps = [[ord(letter) for letter in text] for text in ("3.5s", "4.0s")]
    assert layout.tokens.tolist() == [1, *stamps[0], 9, *stamps[1], 9, 2, 3]
    assert layout.starts.tolist() == [5, 10]
    assert layout.rows.tolist() == [1, 1]
    assert layout.visual.sum() == 2
    assert layout.labels[[4, 9]].tolist() == [IGNORED, IGNORED]  # rows are not said
    assert layout.labels[5] == ord("4")
