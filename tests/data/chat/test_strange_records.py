"""Records and rows drawn at random: exactly the right words and videos come out, or a reason that names the cause."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

from data.chat.formats import conversation_of
from data.chat.record_fields import HARMLESS
from data.chat.records import records_of, refuse_unread
from data.chat.turns import Kind, Turn, Visual
from data.sources.files import SourceFile, Unusable
from data.sources.find_files import find
from parallel.errors import InputError

Said = list[tuple[str, list[Any]]]  # turns, each of words and visuals


def conversation(draw: random.Random) -> Said:
    """What a record says."""
    said: Said = [("system", ["Be short."])] if draw.random() < 0.3 else []
    for turn in range(draw.randint(1, 3)):
        seen = [
            Visual(kind, f"{draw.choice('abc')}/{turn}{n}.{'mp4' if kind == 'video' else 'png'}")
            for n in range(draw.choice((0, 0, 1, 1, 2)))
            for kind in [draw.choice(("video", "image"))]
        ]
        said.append(("user", [*seen, draw.choice(("What?", "Où, 🎥?", "a\nb", "1 < 2", "<b>"))]))
        said.append(("assistant", [draw.choice(("It.", "7", "No\n\nway.", "{}"))]))
    return said


def text(parts: list[Any]) -> str:
    """Parts as words with places in them."""
    return "".join(part if isinstance(part, str) else f"<{part.kind}>\n" for part in parts)


def files(said: Said, kind: Kind) -> list[str]:
    return [part.name for _, parts in said for part in parts if isinstance(part, Visual) and part.kind == kind]


def lists(draw: random.Random, said: Said) -> dict[str, Any]:
    """The visuals in lists of a record, under any of their names."""
    found = {}
    for kind in ("video", "image"):
        names = files(said, kind)
        named = draw.choice((kind, f"{kind}s"))
        if names or draw.random() < 0.3:
            found[named] = names[0] if len(names) == 1 and draw.random() < 0.5 else names
    return found


def conversations(draw: random.Random, said: Said) -> dict[str, Any]:
    names = draw.choice(({"user": "human", "assistant": "gpt"}, {"user": "user", "assistant": "assistant"}))
    turns = [{"from": names.get(role, role), "value": text(parts)} for role, parts in said]
    return {"conversations": turns, **lists(draw, said)}


def messages(draw: random.Random, said: Said) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text(parts)} for role, parts in said], **lists(draw, said)}


def parts(draw: random.Random, said: Said) -> dict[str, Any]:
    def one(part: Any) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        url = draw.choice((part.name, {"url": part.name}))
        return draw.choice(
            ({"type": part.kind, part.kind: part.name}, {"type": f"{part.kind}_url", f"{part.kind}_url": url})
        )

    return {"messages": [{"role": role, "content": [one(part) for part in parts]} for role, parts in said]}


def without_system(said: Said) -> tuple[Said, dict[str, Any]]:
    if said[0][0] != "system":
        return said, {}
    return said[1:], {"system": said[0][1][0]}


def alpaca(draw: random.Random, said: Said) -> dict[str, Any]:
    turns, more = without_system(said)
    pairs = [[text(turns[n][1]), text(turns[n + 1][1])] for n in range(0, len(turns), 2)]
    asked, answered = draw.choice((("instruction", "output"), ("query", "response")))
    return {asked: pairs[-1][0], answered: pairs[-1][1], "history": pairs[:-1], **more, **lists(draw, said)}


def sharegpt(draw: random.Random, said: Said) -> dict[str, Any]:
    turns, more = without_system(said)
    pairs = [{"human": text(turns[n][1]), "assistant": text(turns[n + 1][1])} for n in range(0, len(turns), 2)]
    return {"conversation": pairs, **more, **lists(draw, said)}


FORMS = (conversations, messages, parts, alpaca, sharegpt)


def spoil(draw: random.Random, record: dict[str, Any], said: Said) -> str:
    """Change a record so that something of it would be lost; gives what a refusal must name."""
    first = next(iter(record))
    visuals = [kind for kind in ("video", "image") if files(said, kind)]
    kind = draw.choice(("key", "moment", "file", "roles", "system", "twice"))
    if kind == "key":
        key = draw.choice(
            ("clip", "audios", "fps", "rejected_response", "tools", "objects", "label", "chosen", "start_frame")
        )
        record[key] = draw.choice(("x.mp4", ["x"], {"a": 1}, False, 3))
        return repr(key)
    if kind == "moment":
        record["start"], record["end"] = draw.choice(((2, 1), (-1, 3), ("0", 1), (1, True)))
        return "moment"
    if kind == "file":
        name = draw.choice(("video", "image"))
        there = next((key for key in (name, f"{name}s") if key in record), f"{name}s")
        record[there] = [
            *([record[there]] if isinstance(record.get(there), str) else record.get(there, [])),
            "more.mp4",
        ]
        return f"times <{name}> in the text" if name in visuals or len(visuals) < 2 else "times <"
    if kind == "roles" and first in ("conversations", "messages"):
        record[first] = [
            *record[first],
            {"from" if first == "conversations" else "role": "tool", "value": "?", "content": "?"},
        ]
        return "'tool'|says one thing once"
    if kind == "system":
        record["system"] = ["a"]
        return "one system prompt"
    record["videos"], record["video"] = ["a"], ["b"]
    return "video and videos"


@pytest.mark.parametrize("seed", range(150))
def test_a_drawn_record(seed: int) -> None:
    draw = random.Random(seed)
    said = conversation(draw)
    record = draw.choice(FORMS)(draw, said)
    extra = {draw.choice(sorted(HARMLESS)): draw.choice((1, "x", None, [1])) for _ in range(draw.randint(0, 3))}
    record = dict(draw.sample(list({**extra, **record}.items()), len({**extra, **record})))
    record = json.loads(json.dumps(record))
    if draw.random() < 0.5:
        found = conversation_of(record, "line 3").turns
        expected = [Turn(role, tuple(parts)) for role, parts in said]  # type: ignore[arg-type]
        assert found == tuple(expected)
        return
    reason = spoil(draw, record, said)
    with pytest.raises(InputError, match=rf"(?s)(?=.*line 3: ).*({reason})"):
        conversation_of(record, "line 3")


BAD_LINES = (
    "5",
    "[]",
    '"a"',
    '{"id": 1, "id": 2}',
    "[" * 3000,
    '{"n": ' + "1" * 5000 + "}",
    "{",
    "\x00",
    "nul",
    '{"a": "\ud800',
)


@pytest.mark.parametrize("seed", range(40))
def test_drawn_lines_of_records(tmp_path: Path, seed: int) -> None:
    """Each record is known by its line; those that are none are told, and no others."""
    draw, lines, expected = random.Random(seed), [], {}
    for number in range(1, draw.randint(2, 12)):
        bad = draw.random() < 0.3
        lines.append(
            draw.choice(BAD_LINES) if bad else draw.choice(("", " \t")) if draw.random() < 0.2 else f'{{"n": {number}}}'
        )
        if lines[-1].strip():
            expected[number] = None if bad else {"n": number}
    ending = draw.choice(("\n", "\r\n"))
    data = draw.choice(("", "\ufeff")) + '{"first": 0}' + "".join(ending + line for line in lines)
    (tmp_path / "r.jsonl").write_bytes(data.encode("utf-8", "surrogatepass"))
    found = {}
    for where, record in records_of(tmp_path / "r.jsonl"):
        try:
            refuse_unread(record, where)
            found[int(where.rpartition(" ")[2])] = record
        except InputError as error:
            assert where in error.value  # noqa: PT017 - it says where
            found[int(where.rpartition(" ")[2])] = None
    assert found == {1: {"first": 0}, **{number + 1: record for number, record in expected.items()}}


WORDS = ("A dog.", "a, b", 'say "hi"', "two\nlines", "é 🎥", "0050", "x" * 200_000, "true", " spaced ")


def cells(draw: random.Random, name: str) -> tuple[Any, Any, bool]:
    """Path and caption of a row of JSON, and whether it can be used."""
    words: Any = draw.choice(WORDS)
    if draw.random() < 0.6:
        return name, words, True
    return draw.choice(
        [(None, words, False), ("", words, False), (name, {}, False), (name, [0.5, {}], False), (name, "\ud83d", False),
         (f"{name}\0", words, False), (name, True, False), ([name], words, False), (name, ["", words], True)]
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_drawn_rows_of_a_table(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    path, caption = draw.choice(("path", "Video", "file_name")), draw.choice(("caption", "TEXT", "prompt"))
    (tmp_path / "sure.mp4").touch()
    good, odd, rows = {"sure.mp4": "sure"}, 0, [("sure.mp4", "sure")]
    for number in range(draw.randint(1, 8)):
        name = f"{number}.mp4"
        (tmp_path / name).touch()
        where, words, fine = cells(draw, name)
        rows.insert(draw.randint(0, len(rows)), (where, words))
        odd += not fine
        if fine:
            good[name] = (words[1] if isinstance(words, list) else words).strip()
    source = tmp_path / draw.choice(("t.jsonl", "t.json"))
    objects = [json.dumps({path: p, "n": 1.5, caption: c}) for p, c in rows]
    mark, ending = draw.choice(("", "\ufeff")), draw.choice(("\n", "\r\n", "\n\n"))
    listed = source.suffix == ".json" or draw.random() < 0.2
    body = f"[{', '.join(objects)}]" if listed else ending.join(objects)
    source.write_bytes((mark + body).encode())
    found = list(find(str(source)))
    assert {one.name: one.caption.short for one in found if isinstance(one, SourceFile)} == good
    bad = [one for one in found if isinstance(one, Unusable)]
    assert len(bad) == odd
    assert all(f"({source.name}, {'record' if listed else 'line'} " in one.reason for one in bad)


@pytest.mark.parametrize("seed", range(40))
def test_drawn_rows_of_csv(tmp_path: Path, seed: int) -> None:
    """Rows that a writer of CSV wrote, and rows that nobody should have written."""
    draw = random.Random(seed)
    delimiter, ending = draw.choice((",", ";", "\t")), draw.choice(("\n", "\r\n"))
    (tmp_path / "sure.mp4").touch()
    good, bad, text = {"sure.mp4": "sure"}, set(), f"path{delimiter}caption{ending}sure.mp4{delimiter}sure{ending}"
    for number in range(draw.randint(1, 8)):
        name, at = f"{number}.mp4", len(text.splitlines()) + 1
        (tmp_path / name).touch()
        kind = draw.choice(("fine", "fine", "fine", "ragged", "blank", "nameless", "byte", "nul", "quote"))
        words = draw.choice(WORDS)
        line = io.StringIO()
        csv.writer(line, delimiter=delimiter, lineterminator=ending).writerow([name, words])
        row = line.getvalue()
        if kind == "fine":
            good[name] = words.strip()
        elif kind == "blank":
            row = draw.choice(("", " ", delimiter)) + ending
        else:
            row = {
                "ragged": f"{name}{delimiter}a{delimiter}b",
                "nameless": f"{delimiter}a",
                "byte": f"{name}{delimiter}\udce9",
                "nul": f"\0{name}{delimiter}a",
                "quote": f'{name}{delimiter}"a"b"',
            }[kind] + ending
            bad.add(f"(t.csv, line {at})")
        text += row
    (tmp_path / "t.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    found = list(find(str(tmp_path / "t.csv")))
    assert {one.name: one.caption.short for one in found if isinstance(one, SourceFile)} == good
    assert {f"({one.reason.rpartition('(')[2]}" for one in found if isinstance(one, Unusable)} == bad
