"""Answers are transformers' own, kept keys change nothing, and questions are counted as they should be."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from data.chat.chat_index import ChatIndex
from data.chat.tokenizers import TEMPLATE
from data.chat.turns import Conversation, Turn, Visual
from data.dataset.index import Index
from data.media import video
from data.streams.chat_layout import ChatLayout
from data.streams.chat_source import ChatSource
from data.streams.pack_stream import pack_of
from data.streams.visual_lookup import FrameIndexer
from launcher.batches.datasets import open_curriculum
from launcher.cli.app import app
from launcher.generation.answers import (
    AnswerGenerator,
    Asked,
    answer_generator_of,
    conversation_about,
    open_answer_generator,
)
from launcher.generation.evaluation import (
    Question,
    as_record,
    evaluate,
    indexer_for,
    plain,
    question_of,
    questions_of,
    scores_of,
)
from launcher.generation.trained_model import open_run
from models.language.attention_mask import MaskConfig, masks_of
from models.language.kv_cache import Streamer
from parallel.attention.plan import local_plan
from parallel.errors import InputError
from tests.support import conversations
from tests.support.runs import config, train

WORDS = 24  # of an answer that is compared
FRAMES = 5  # that a run of `conversations.settings` takes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """A model of two steps, one row for each patch."""
    spoken = conversations.make(tmp_path_factory.mktemp("chats") / "chats", dataset)
    out = tmp_path_factory.mktemp("runs") / "run"
    model = {**conversations.MODEL, "spatial_pool": 1}
    train(config(out, spoken, **{**conversations.settings(spoken), "steps": 2, "dtype": "float32", "model": model}))
    return out


@pytest.fixture(scope="module")
def answerer(run: Path) -> AnswerGenerator:
    return open_answer_generator(run)


@pytest.fixture(scope="module")
def files(dataset: Path) -> list[Path]:
    """The videos that the clips of the dataset are of."""
    return sorted((dataset.parent / "clips").glob("*.mp4"))


def with_mask(answerer: AnswerGenerator, **mask: Any) -> AnswerGenerator:
    """The same weights, used with another mask."""
    model = answerer.builder.model.model_copy(update={"mask": MaskConfig(**mask)})
    return replace(answerer, builder=replace(answerer.builder, model=model))


def asked_about(answerer: AnswerGenerator, *videos: Path, prompt: str = "What is it?") -> tuple[ChatLayout, Asked]:
    layout, frames = answerer.layout(conversation_about(videos, prompt), FrameIndexer(answerer.sampling).frames)
    return layout, answerer.asked(layout, frames)


def by_transformers(answerer: AnswerGenerator) -> Any:
    """The model as transformers itself computes it."""
    from transformers import LlavaForConditionalGeneration

    own = answerer.model.lm.model
    made: Any = LlavaForConditionalGeneration
    found = made._from_config(deepcopy(own.config), attn_implementation="eager").eval()
    found.load_state_dict(own.state_dict())
    return found


@torch.no_grad()
def test_answers_are_those_of_transformers(run: Path, answerer: AnswerGenerator, files: list[Path]) -> None:
    """The words, and how likely the first one is; of two videos, and a question."""
    layout, asked = asked_about(answerer, *files[:2])
    own, stop = by_transformers(answerer), len(asked.embeddings)
    side = 16
    frames = np.concatenate([video.decode(file, 1, 1 + FRAMES, 1, (side, side)) for file in files[:2]])
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    places = torch.from_numpy(layout.visual[:stop])
    tokens = torch.from_numpy(layout.tokens[:stop].copy()).masked_fill(places, own.config.image_token_id)[None]
    assert places.sum() == 2 * FRAMES * 16
    given = {"input_ids": tokens, "pixel_values": pixels, "attention_mask": torch.ones_like(tokens)}
    hidden = Streamer(answerer.model.lm).feed(asked.embeddings, asked.plans)[-1:]
    logits = answerer.model.lm.logits(hidden)[0]
    assert torch.allclose(logits, own(**given).logits[0, -1], rtol=1e-4, atol=1e-5)
    said = own.generate(**given, max_new_tokens=256, do_sample=False, eos_token_id=sorted(answerer.ends))[0, stop:]
    answer = answerer.tokenizer.decode([word for word in said.tolist() if word not in answerer.ends]).strip()
    assert answer == answerer.answer(asked)
    options = [option for file in files[:2] for option in ("--video", str(file))]
    done = CliRunner().invoke(app, ["sample", str(run), *options, "--prompt", "What is it?", "--json"])
    told = json.loads(done.stdout)
    assert (told["answer"], told["step"], told["videos"]) == (answer, 2, [str(file) for file in files[:2]])


MASKS: dict[str, dict[str, Any]] = {
    "past": {},
    "itself": {"visual": "self_only"},
    "frame": {"visual": "own_frame"},
    "whole": {"visual": "bidirectional_frames"},
    "window": {"window": 30, "sinks": 3},
    "itself in windows": {"visual": "self_only", "window": 7, "sinks": 2},
}


@torch.no_grad()
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_kept_keys_change_nothing(answerer: AnswerGenerator, files: list[Path], mask: dict[str, Any]) -> None:
    """As computing everything anew at every word, with the mask of training."""
    masked = with_mask(answerer, **mask)
    layout, asked = asked_about(masked, files[0])
    runs, lm = list(layout.before(len(asked.embeddings)).runs), answerer.model.lm
    embeddings, found = asked.embeddings, []
    for _ in range(WORDS):
        plans = {
            w: local_plan(m)
            for w, m in masks_of(masked.builder.model.windows, masked.builder.model.mask, [runs]).items()
        }
        hidden = lm.hidden(embeddings, torch.arange(len(embeddings)), plans)
        found.append(int(lm.logits(hidden[-1:]).argmax()))
        embeddings = torch.cat((embeddings, lm.embed(torch.tensor(found[-1:]))))
        runs[-1] = (runs[-1][0], runs[-1][1] + 1)
    streamed = list(masked._streamer().generate(asked.embeddings, WORDS, asked.plans))
    assert streamed == found


@torch.no_grad()
@pytest.mark.parametrize("mask", [{}, {"visual": "self_only", "window": 7, "sinks": 2}], ids=["past", "itself"])
def test_a_likelihood_is_that_of_one_pass(answerer: AnswerGenerator, files: list[Path], mask: dict[str, Any]) -> None:
    masked, text = with_mask(answerer, **mask), "A red one."
    layout, asked = asked_about(masked, files[0])
    runs, lm = list(layout.before(len(asked.embeddings)).runs), answerer.model.lm
    end = answerer.tokenizer.convert_tokens_to_ids("<|end|>")
    words = torch.tensor([*answerer.tokenizer(text)["input_ids"], end])
    runs[-1] = (runs[-1][0], runs[-1][1] + len(words) - 1)
    plans = {
        w: local_plan(m) for w, m in masks_of(masked.builder.model.windows, masked.builder.model.mask, [runs]).items()
    }
    embeddings = torch.cat((asked.embeddings, lm.embed(words[:-1])))
    hidden = lm.hidden(embeddings, torch.arange(len(embeddings)), plans)[-len(words) :]
    of_each = lm.logits(hidden).double().log_softmax(1)[torch.arange(len(words)), words]
    assert masked.likelihood(asked, text) == pytest.approx(float(of_each.mean()), rel=1e-5)
    assert masked.likelihood(asked, "") == pytest.approx(
        float(lm.logits(hidden[:1]).double().log_softmax(1)[0, end]), rel=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize(
    "changes", [{}, {"temporal_pool": 2, "slow_fast": 2}, {"mask": MaskConfig(visual="own_frame")}], ids=str
)
def test_an_answer_is_as_likely_as_training_says(run: Path, answerer: AnswerGenerator, changes: dict[str, Any]) -> None:
    """The loss of a conversation is that of its answer, the end included."""
    model = answerer.builder.model.model_copy(update=changes)
    builder = replace(answerer.builder, model=model)
    (stream,) = open_curriculum(open_run(run)[0].model_copy(update={"model": model})).streams
    source = stream.source
    assert isinstance(source, ChatSource)
    pack, layout = pack_of(source, [0], [0]), source.layout(0)
    (frames,) = (piece.frames for piece in source.read(pack, ((0, FRAMES),)))
    assert frames is not None
    batch, plans = builder.prepare(pack.documents, [layout], lambda begin, end: frames[begin:end])
    summed, weight = builder.objective.loss(answerer.model, batch, plans)
    loss = summed / weight
    asked = replace(answerer, builder=builder).asked(layout, frames)
    answer = answerer.tokenizer.decode(asked.words[:-1])
    assert answer.startswith("It is number")
    assert replace(answerer, builder=builder).likelihood(asked, answer) == pytest.approx(-float(loss), rel=1e-5)
    stream.close()


def test_what_comes_before_the_answer(answerer: AnswerGenerator) -> None:
    """Earlier answers are heard, the last one is not."""
    turns = (Turn("user", ("A?",)), Turn("assistant", ("B.",)), Turn("user", ("C?",)), Turn("assistant", ("D.",)))
    layout, frames = answerer.layout(Conversation("", turns), lambda name: [])
    asked, decode = answerer.asked(layout, frames), answerer.tokenizer.decode
    heard = decode(layout.tokens[: len(asked.embeddings)])
    assert heard == "<|user|>A?<|end|><|assistant|>B.<|end|><|user|>C?<|end|><|assistant|>"
    assert decode(asked.words) == "D.<|end|>"
    assert torch.equal(
        asked.embeddings, answerer.model.lm.embed(torch.from_numpy(layout.tokens[: len(asked.embeddings)]))
    )


ENDS = {
    "another word after the end": (TEMPLATE.replace("<|end|>{% endfor", "<|end|>\n{% endfor"), "<|end|>"),
    "no end": (TEMPLATE.replace("<|end|>{% endfor", "{% endfor"), ""),
}


@pytest.mark.parametrize("name", ENDS)
def test_templates_that_end_otherwise(answerer: AnswerGenerator, name: str) -> None:
    """The first word that follows an answer ends it; where none does, that of the text ends it."""
    tokenizer = deepcopy(answerer.tokenizer)
    tokenizer.chat_template, end = ENDS[name]
    other = replace(answerer, tokenizer=tokenizer)
    _, asked = asked_about(other)
    assert other.ends == {tokenizer.eos_token_id}
    words = torch.tensor([*tokenizer("Yes")["input_ids"], *tokenizer(end)["input_ids"]])
    with torch.no_grad():
        lm = answerer.model.lm
        hidden = Streamer(lm).feed(torch.cat((asked.embeddings, lm.embed(words[:-1]))))[-len(words) :]
        of_each = lm.logits(hidden).double().log_softmax(1)[torch.arange(len(words)), words]
    assert other.likelihood(asked, "Yes") == pytest.approx(float(of_each.mean()), rel=1e-5)
    assert isinstance(other.answer(asked, 4), str)


def ask(**record: Any) -> Question:
    return question_of(record, "line 1")


def test_answers_are_judged(answerer: AnswerGenerator, files: list[Path]) -> None:
    """Exact but for capitals, spaces and a full stop; the likeliest of the choices; a number is one of them."""
    indexer = FrameIndexer(answerer.sampling, None, files[0].parent)
    about = {"video": files[0].name, "question": "What is it?"}
    _, asked = asked_about(answerer, files[0])
    said = answerer.answer(asked, 8)
    choices = ["red", "a square that moves", "green"]
    best = int(np.argmax([answerer.likelihood(asked, choice) for choice in choices]))
    questions = [
        ask(**about, answer=f" {said.swapcase()}. ", about="words"),
        ask(**about, answer=f"{said} not", about="words"),
        ask(**about, answer=best, choices=choices, about="choices"),
        ask(**about, answer=choices[best - 1], choices=choices, about="choices"),
        ask(**about, answer=choices[best], choices=choices, about="choices"),
        ask(messages=messages_of(files[0].name, said), id="m"),
    ]
    seen: list[tuple[int, int]] = []
    found = evaluate(answerer, questions, indexer, most=8, on_progress=lambda d, t: seen.append((d, t)))
    assert [one.right for one in found] == [plain(said) == plain(said.swapcase()), False, True, False, True, True]
    assert {one.said for one in found} == {said, choices[best]}
    assert seen == [(n, 6) for n in range(1, 7)]
    scores = scores_of(questions, found)
    assert [(s.kind, s.questions, s.right, s.choices) for s in scores] == [
        ("words", 2, sum(one.right for one in found[:2]), 0), ("choices", 3, 2, 3), ("no kind", 1, 1, 0),
        ("all", 6, sum(one.right for one in found), 0),
    ]  # fmt: skip
    record = as_record(scores, found)
    assert record["scores"][1]["accuracy"] == 2 / 3
    assert record["answers"][5] == {"id": "m", "kind": "", "expected": said, "said": said, "right": True}


def messages_of(name: str, answer: str) -> list[dict[str, Any]]:
    """Messages."""
    content = [{"type": "video", "video": name}, {"type": "text", "text": "What is it?"}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def test_choices_that_are_numbers(answerer: AnswerGenerator) -> None:
    """An answer that is one of the choices is that one, and no place in the list."""
    assert ask(question="?", choices=[3, 1, 2], answer="2").expected == "2"
    assert ask(question="?", choices=["a", "b"], answer=1).expected == "b"


class Recorder:
    """Asks for the order in which frames are shown."""

    def __init__(self) -> None:
        self.orders: list[list[int] | None] = []

    def layout(
        self, conversation: Conversation, look: Any, order: Callable[[int], Any] | None, seconds: Any
    ) -> tuple[None, None]:
        self.orders.append(None if order is None else order(9).tolist())
        return None, None

    def asked(self, *_: None) -> None: ...

    def answer(self, *_: Any) -> str:
        return ""


def test_shuffled_frames(answerer: AnswerGenerator, files: list[Path]) -> None:
    """In an order that the id alone decides."""
    recorder: Any = Recorder()
    indexer = FrameIndexer(answerer.sampling)
    questions = [ask(id=uid, question=q, answer="a", about=q) for uid, q in (("a", "1"), ("a", "2"), ("b", "1"))]
    evaluate(recorder, questions, indexer, shuffle=True)
    one, again, other = recorder.orders
    assert one == again != other
    assert sorted(one) == sorted(other) == list(range(9))
    evaluate(recorder, questions[:1], indexer)
    assert recorder.orders[3] is None
    conversation = conversation_about(files[:2], "What?")
    _, plainly = answerer.layout(conversation, indexer.frames)
    _, shuffled = answerer.layout(conversation, indexer.frames, lambda n: np.arange(n)[::-1])
    assert np.array_equal(shuffled, np.concatenate([plainly[FRAMES - 1 :: -1], plainly[: FRAMES - 1 : -1]]))


def test_videos_of_a_dataset(answerer: AnswerGenerator, dataset: Path, files: list[Path]) -> None:
    """By name: a stretch of the clip, as a file gives it."""
    indexer = indexer_for(answerer, dataset, Path())
    index = Index.open(dataset)
    (found,) = indexer.frames(index.file(3))
    assert found.shape == (FRAMES, 16, 16, 3)
    by_name = {file.name: file for file in files}
    decoded = video.decode(by_name[Path(index.file(3)).name], 0, 8, 1, (16, 16))
    assert any(np.array_equal(found, decoded[start : start + FRAMES]) for start in range(4))
    assert np.array_equal(indexer.frames(index.uid(3))[0], found)
    with pytest.raises(InputError, match="clips of a dataset"):
        indexer.frames("nowhere.mp4", "q")


def test_an_image_is_a_video_of_one_frame(answerer: AnswerGenerator, tmp_path: Path) -> None:
    """Also where the conversations had no image, if the tokenizer has a place for one."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (frames,) = FrameIndexer(answerer.sampling, None, tmp_path).frames("a.png")
    assert frames.shape == (1, 16, 16, 3)
    layout, asked = asked_about(answerer, tmp_path / "a.png")
    assert layout.rows.tolist() == [16]
    assert isinstance(answerer.answer(asked, 2), str)
    picture = Conversation("", (Turn("user", (Visual("image", "a.png"), "?")), Turn("assistant", ("",))))
    only_videos = replace(answerer, places={"video": "<video>"})
    layout, shown = only_videos.layout(picture, FrameIndexer(answerer.sampling, None, tmp_path).frames)
    assert (layout.rows.tolist(), np.array_equal(shown, frames)) == ([16], True)


QUESTIONS = {
    "no object": ("a", "a record is an object"),
    "no answer": ({"question": "?"}, "a question has an answer\n.*answer: None"),
    "yes or no": ({"question": "?", "answer": True}, "answer: True"),
    "no such choice": ({"question": "?", "answer": 2, "choices": ["a", "b"]}, "answer: 2"),
    "none of the choices": ({"question": "?", "answer": "c", "choices": ["a", "b"]}, "'c' of .'a', 'b'"),
    "choices of no kind": ({"question": "?", "answer": "c", "choices": "cd"}, "choices: 'cd'"),
    "files of no kind": ({"question": "?", "answer": "c", "video": 5}, "video: 5"),
    "the user speaks last": ({"messages": [{"role": "assistant", "content": "!"}, {"role": "user", "content": "?"}]},
                             "the last turn is of the user"),
    "a moment": ({"video": "a", "duration": 2.0, "stream": [{"time": 2.0, "text": "b"}]}, "about whole videos"),
    "a moment of a video": ({"video": "a", "conversations": [{"from": "human", "value": "<video>?"},
                             {"from": "gpt", "value": "b"}], "end": 2.0}, "about whole videos"),
    "a key that nobody reads": ({"question": "?", "answer": "c", "video": "a", "start": 2}, "'start' in the record: 2"),
    "no form": ({"a": 1}, "conversations or messages"),
}  # fmt: skip


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_that_are_refused(name: str) -> None:
    record: Any
    record, match = QUESTIONS[name]
    with pytest.raises(InputError, match=match):
        question_of(record, "line 1")


def test_odd_questions_are_left_out_if_that_is_wished(tmp_path: Path) -> None:
    """Else the first one stops the work; each is told with its line."""
    file = tmp_path / "q.jsonl"
    lines = ['{"question": "?", "answer": "a"}', "5", '{"question": "?", "answer": "b", "fps": 2}', "[" * 99_999]
    file.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"(?s)q\.jsonl, line 2: .*--leave-out"):
        questions_of(file)
    left_out: list[tuple[str, str]] = []
    assert [question.expected for question in questions_of(file, None, (), left_out)] == ["a"]
    assert [where for where, _ in left_out] == [f"{file}, line {number}" for number in (2, 3, 4)]
    assert ["an object" in left_out[0][1], "'fps'" in left_out[1][1], "nested deeper" in left_out[2][1]] == [True] * 3
    left_out.clear()
    assert len(questions_of(file, None, ["fps"], left_out)) == 2
    assert len(as_record([], [], left_out)["left_out"]) == 2


def test_what_is_refused(run: Path, answerer: AnswerGenerator, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(InputError, match=r"a file of questions has some\n.*none"):
        questions_of(tmp_path / "empty")
    indexer = FrameIndexer(answerer.sampling, None, tmp_path)
    with pytest.raises(InputError, match=r"nowhere\.mp4: no such file"):
        evaluate(answerer, [ask(question="?", answer="a", video="nowhere.mp4")], indexer)
    with pytest.raises(InputError, match=r"empty\.mp4"):
        indexer.frames("empty.mp4")
    with pytest.raises(InputError, match=r"a question has words"):
        conversation_about([], " ")
    command = ["eval", str(run), str(tmp_path / "empty")]
    assert isinstance(CliRunner().invoke(app, command).exception, InputError)


def test_a_run_that_draws_is_asked_nothing(tmp_path: Path, dataset: Path, run: Path) -> None:
    _, found = open_run(run)
    with pytest.raises(InputError, match=r"for a language model\n.*video_dit"):
        answer_generator_of(config(tmp_path, dataset), found)
    contrast = config(tmp_path, dataset, **{**conversations.settings(dataset), "objective": {"kind": "video_text"}})
    with pytest.raises(InputError, match=r"has learned next_token\n.*video_text"):
        answer_generator_of(contrast, found)


def test_the_commands(run: Path, dataset: Path, tmp_path: Path) -> None:
    """JSON for a script, a table for a person; all answers in a file."""
    name = Index.open(dataset).file(0)
    records: list[dict[str, Any]] = [
        {"id": "a", "video": name, "question": "?", "answer": 0, "choices": ["a", "b"], "about": "letters"},
        {"id": "b", "question": "?", "answer": "y"},
    ]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, records)))
    asked = ["eval", str(run), str(tmp_path / "asked.jsonl"), "--clips", str(dataset), "--max-new-tokens", "3"]
    done = CliRunner().invoke(app, [*asked, "--json"], catch_exceptions=False)
    told = json.loads(done.stdout)
    rows = [(s["kind"], s["questions"], s["choices"]) for s in told["scores"]]
    assert rows == [("letters", 1, 2.0), ("no kind", 1, 0.0), ("all", 2, 0.0)]
    assert Path(told["file"]) == run / "eval" / "asked-step-2.json"
    written = json.loads(Path(told["file"]).read_text())
    assert [one["id"] for one in written["answers"]] == ["a", "b"]
    assert written["scores"] == told["scores"]
    out = tmp_path / "made" / "out.json"
    done = CliRunner().invoke(app, [*asked, "--shuffle-frames", "--limit", "1", "--out", str(out)])
    assert "letters" in done.stdout
    assert "50%" in done.stdout
    assert "shuffled" in done.stdout
    assert [one["id"] for one in json.loads(out.read_text())["answers"]] == ["a"]
    done = CliRunner().invoke(app, ["sample", str(run), "--prompt", "One?", "--prompt", "Two?", "--json"])
    assert [json.loads(line)["prompt"] for line in done.stdout.splitlines()] == ["One?", "Two?"]
    done = CliRunner().invoke(app, ["sample", str(run), "--prompt", "One?"])
    assert done.stdout.startswith("One?\n")
    with_others = [*asked, "--limit", "1", "--json"]  # of the same name: none of them writes over another
    files = [json.loads(CliRunner().invoke(app, with_others).stdout)["file"] for _ in range(2)]
    assert files == [str(run / "eval" / "asked-step-2-2.json")] * 2
    assert json.loads(Path(told["file"]).read_text()) == written


def test_without_a_prompt_questions_of_its_conversations_are_asked(run: Path) -> None:
    """They are about the clips that the conversations are about; the same again gives the same answers."""
    done = [CliRunner().invoke(app, ["sample", str(run), "--json"], catch_exceptions=False) for _ in range(2)]
    assert done[0].stdout == done[1].stdout
    told = [json.loads(line) for line in done[0].stdout.splitlines()]
    data = ChatIndex.open(open_run(run)[0].data.folders[0])
    texts = [data.text(row) for row in range(len(data))]
    assert 1 <= len(told) <= 4
    for one in told:
        assert any(" ".join(text.split()).startswith(one["prompt"]) for text in texts)
    uids = {uid for row in range(len(data)) for visual in data.visuals(row) for uid in visual["clips"]}
    assert {uid for one in told for uid in one["videos"]} <= uids
    assert any(one["videos"] for one in told)
