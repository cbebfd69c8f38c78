"""Tables with an odd row: the good rows are prepared, the odd one is told with its line and the true reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from data.sources.caption_files import given_captions
from data.sources.files import SourceFile, Unusable
from data.sources.find_files import find
from parallel.errors import InputError

SHARED = Path(__file__).parents[4] / "shared" / "cases" / "J1"
BIG = "x" * 3_000_000


def told(source: Path, **more: Any) -> tuple[dict[str, str], dict[str, str]]:
    """{file: caption} of what can be prepared, and {file or line: reason} of what cannot."""
    listing = find(str(source), **more)
    found = list(listing)
    assert listing.total == len(found)
    good = {one.name: one.caption.short for one in found if isinstance(one, SourceFile)}
    return good, {one.name: one.reason for one in found if isinstance(one, Unusable)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("odd")
    for name in ("a.mp4", "b.mp4", "z.mp4", "5"):
        (made / name).touch()
    return made


JSON = {  # a line, and what is told of it: of its path if it names one; or its caption
    "a number for a caption": ('{"path": "b.mp4", "caption": 5.50}', "b.mp4", "5.50", ""),
    "a number for a path": ('{"path": 5, "caption": "B"}', "5", "B", ""),
    "a number": ("5", "t.jsonl, line 3", "", "it is no object with a path and a caption, but '5'"),
    "a list": ('["b.mp4", "B"]', "t.jsonl, line 3", "", "it is no object with a path and a caption"),
    "a list of captions": ('{"path": "b.mp4", "caption": ["B", "C"]}', "b.mp4", "B", ""),
    "a list of no captions": ('{"path": "b.mp4", "caption": [true]}', "b.mp4", "", "its caption is a list: [True]"),
    "an object": ('{"path": "b.mp4", "caption": {"en": "B"}}', "b.mp4", "", "its caption is an object"),
    "true": ('{"path": "b.mp4", "caption": true}', "b.mp4", "", "its caption is true or false: True"),
    "NaN": ('{"path": "b.mp4", "caption": NaN}', "b.mp4", "", "no caption"),
    "null": ('{"path": null, "caption": "B"}', "t.jsonl, line 3", "", "it names no video"),
    "another column": ('{"path": null, "video": "b.mp4", "caption": "B"}', "b.mp4", "B", ""),
    "no column": ('{"clop": "b.mp4"}', "t.jsonl, line 3", "", "it names no video; its columns: 'clop'"),
    "half a character": (r'{"path": "b.mp4", "caption": "\ud83d B"}', "b.mp4", "", r"half a character, '\ud83d'"),
    "half a character in a path": (r'{"path": "b\ud83d.mp4"}', r"b\ud83d.mp4", "", r"half a character, '\ud83d'"),
    "a NUL in a path": (r'{"path": "b\u0000.mp4", "caption": "B"}', r"b\0.mp4", "", "its path holds a NUL"),
    "a long path": (
        '{"path": "' + "b" * 5000 + '.mp4", "caption": "B"}',
        "b" * 5000 + ".mp4",
        "",
        "File name too long",
    ),
    "a key twice": (
        '{"path": "b.mp4", "path": "z.mp4"}',
        "t.jsonl, line 3",
        "",
        "path stands there twice, with different words",
    ),
    "a caption twice": ('{"path": "b.mp4", "caption": "B", "caption": "C"}', "b.mp4", "", "caption stands there twice"),
    "another key twice": ('{"path": "b.mp4", "caption": "B", "n": 1, "n": 2}', "b.mp4", "B", ""),
    "the same twice": ('{"path": "b.mp4", "caption": "B", "caption": "B"}', "b.mp4", "B", ""),
    "capitals": ('{"path": "b.mp4", "Caption": "B", "CAPTION": "C"}', "t.jsonl, line 3", "", "different names"),
    "megabytes": ('{"path": "b.mp4", "caption": "' + BIG + '"}', "b.mp4", BIG, ""),
    "200,000 brackets": ("[" * 200_000, "t.jsonl, line 3", "", "nested deeper"),
    "broken": ('{"path": "b.mp4", "caption": "B', "t.jsonl, line 3", "", "it is not JSON: Unterminated string"),
    "a mark": ('\ufeff{"path": "b.mp4"}', "t.jsonl, line 3", "", "it is not JSON"),
}


@pytest.mark.parametrize("name", JSON)
def test_an_odd_line_of_json(folder: Path, name: str) -> None:
    row, label, caption, reason = JSON[name]
    text = f'\ufeff{{"path": "a.mp4", "caption": "A"}}\r\n\n{row}\n{{"path": "z.mp4", "caption": "Z"}}'
    (folder / "t.jsonl").write_bytes(text.encode("utf-8", "surrogatepass"))
    good, bad = told(folder / "t.jsonl")
    assert good == {"a.mp4": "A", "z.mp4": "Z", **({label: caption} if caption else {})}
    assert list(bad) == ([] if caption else [label])
    assert all(reason in why and "(t.jsonl, line 3)" in why for why in bad.values())


CSV = {
    "a number": ("b.mp4,5.50", "b.mp4", "5.50", ""),
    "more cells": ("b.mp4,red, and blue", "b.mp4", "", "3 cells for 2 columns, separated by a comma: put a text"),
    "fewer cells": ("b.mp4", "b.mp4", "", "1 cells for 2 columns"),
    "no path": (",B", "t.csv, line 4", "", "it names no video"),
    "no caption": ("b.mp4,", "b.mp4", "", "no caption"),
    "a quote": ('b.mp4,"red', "t.csv, line 4", "", "a quote in it is never closed"),
    "a quote within": ('b.mp4,"red" car', "b.mp4", '"red" car', ""),
    "escaped quotes": (r'b.mp4,"a \"red\", new car"', "b.mp4", 'a "red", new car', ""),
    "single quotes": ("b.mp4,'red, new'", "b.mp4", "", "put a text with a separator in it into double quotes"),
    "Latin-1": ("b.mp4,caf\udce9", "b.mp4", "", "the byte 0xe9, which is not UTF-8: save the file as UTF-8"),
    "a NUL in a path": ("b\0.mp4,B", r"b\0.mp4", "", "its path holds a NUL"),
    "a NUL in a caption": ("b.mp4,B\0", "b.mp4", "B\0", ""),
    "megabytes": (f"b.mp4,{BIG}", "b.mp4", BIG, ""),
    "lines": ('b.mp4,"B\nC"', "b.mp4", "B\nC", ""),
    "nothing at all": (" , ", "", "", ""),
}


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("name", CSV)
def test_an_odd_row_of_csv(folder: Path, name: str, ending: str) -> None:
    row, label, caption, reason = CSV[name]
    text = ending.join(["\ufeffpath,caption", "a.mp4,A", "", row, "z.mp4,Z", ""])
    (folder / "t.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    good, bad = told(folder / "t.csv")
    assert good == {"a.mp4": "A", "z.mp4": "Z", **({label: caption} if caption else {})}
    assert list(bad) == ([label] if reason else [])
    assert all(reason in why and "(t.csv, line 4)" in why for why in bad.values())


@pytest.mark.parametrize(
    ("columns", "good", "bad"),
    [
        ({"path": ["a.mp4", None, "z.mp4"]}, {"a.mp4", "z.mp4"}, {"t.parquet, row 2": "it names no video"}),
        ({"path": [b"a.mp4", b"\xff.mp4"]}, {"a.mp4"}, {"\\udcff.mp4": "the byte 0xff"}),
        ({"path": ["a.mp4", "b.mp4"], "caption": [["A"], None]}, {"a.mp4"}, {"b.mp4": "no caption"}),
        (
            {"video": [{"path": "a.mp4", "bytes": None}, {"path": "b.mp4", "bytes": b"film"}]},
            {"a.mp4"},
            {"t.parquet, row 2": "its path is the bytes of a file: write them to a file"},
        ),
        ({"path": ["a.mp4", "a\0.mp4"]}, {"a.mp4"}, {"a\\0.mp4": "its path holds a NUL"}),
    ],
    ids=["null", "bytes", "lists", "Hugging Face", "NUL"],
)
def test_an_odd_row_of_parquet(folder: Path, columns: dict[str, Any], good: set[str], bad: dict[str, str]) -> None:
    pa.parquet.write_table(pa.table(columns), folder / "t.parquet")
    found, reasons = told(folder / "t.parquet", need_captions="caption" in columns)
    assert found.keys() == good
    assert reasons.keys() == bad.keys()
    assert all(bad[name] in why for name, why in reasons.items())


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ('[{"path": "a.mp4", "caption": "A"}, {"path": "b.mp4", "path": "z.mp4"}, 7]', {"a.mp4": "A"}, 2),
        ('{"a.mp4": "A", "b.mp4": "B", "b.mp4": "C", "z.mp4": "Z"}', {"a.mp4": "A", "z.mp4": "Z"}, 1),
        ('{"path": "a.mp4", "caption": "A"}\n{"path": "b.mp4", "caption": "B"}\n', {"a.mp4": "A", "b.mp4": "B"}, 0),
        ('{"videos": [{"path": "a.mp4", "caption": "A"}, {"path": ""}], "n": 1}', {"a.mp4": "A"}, 1),
    ],
    ids=["a list", "an object", "lines", "a list within"],
)
def test_an_odd_entry_of_json(folder: Path, text: str, good: dict[str, str], bad: int) -> None:
    (folder / "t.json").write_text(text)
    found, reasons = told(folder / "t.json")
    assert (found, len(reasons)) == (good, bad)
    assert all("(t.json, " in why for why in reasons.values())


def test_a_column_of_parquet_that_is_there_twice(folder: Path) -> None:
    columns = [pa.array(["a.mp4"]), pa.array(["A"]), pa.array(["B"])]
    pa.parquet.write_table(pa.Table.from_arrays(columns, names=["path", "text", "text"]), folder / "t.parquet")
    with pytest.raises(InputError, match="'text' twice"):
        told(folder / "t.parquet")


def test_odd_rows_of_captions_cost_their_videos(folder: Path) -> None:
    lines = ['{"path": "a.mp4", "caption": "A"}', '{"path": "b.mp4", "caption": [{}]}', "[]"]
    (folder / "words.jsonl").write_text("\n".join(lines))
    captions, notes = given_captions(folder / "words.jsonl", folder)
    assert captions.of("a.mp4").short == "A"
    with pytest.raises(InputError) as error:
        captions.of("b.mp4")
    assert error.value.value == f"{folder}/words.jsonl, line 2: its caption is a list: [{{}}]"
    assert [f"{folder}/words.jsonl: 1 rows cannot be used: line 3: it is no object" in note for note in notes] == [True]


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("t.csv", "path,caption\nx,\0\n,B\n", ""),
        ("t.csv", "path,caption\n,A\n,B\n", "none of 2 rows can be; the first, line 2: it names no video"),
        ("t.jsonl", '{"path": ""}\n', "its only row line 1: it names no video"),
        ("t.csv", 'path,"caption\n', "line 1, with the names of the columns: a quote in it is never closed"),
        ("t.csv", "path,caption,caption\na.mp4,A,B\n", "'caption' twice"),
    ],
)
def test_a_table_of_which_nothing_can_be_used(folder: Path, name: str, text: str, found: str) -> None:
    (folder / name).write_text(text)
    if not found:
        assert told(folder / name)[1].keys() == {"x", "t.csv, line 3"}
        return
    with pytest.raises(InputError, match=name) as error:
        told(folder / name, need_captions=False)
    assert found in error.value.value


def test_moments_in_a_table_are_told(folder: Path) -> None:
    (folder / "t.csv").write_text("path,caption,Start,end time,score\na.mp4,A,1,2,3\n")
    assert find(str(folder / "t.csv")).notes == ["t.csv: 'Start', 'end time' not used: each file is prepared whole"]
    (folder / "t.jsonl").write_text('{"path": "a.mp4", "caption": "A", "timestamp": [1, 2]}\n')
    assert find(str(folder / "t.jsonl")).notes == ["t.jsonl: 'timestamp' not used: each file is prepared whole"]


CASES: dict[str, Callable[[dict[str, str], dict[str, str]], bool]] = {
    "num.jsonl": lambda good, bad: good == {"a.mp4": "5", "b.mp4": "x"},
    "bom.jsonl": lambda good, bad: good == {"a.mp4": "one", "b.mp4": "x"},
    "halfsurrogate.jsonl": lambda good, bad: good == {"b.mp4": "x"} and "halfsurrogate.jsonl, line 1" in bad["a.mp4"],
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/cases is not there")
@pytest.mark.parametrize("name", CASES)
def test_cases_that_people_reported(folder: Path, name: str) -> None:
    (folder / name).write_bytes((SHARED / name).read_bytes())
    assert CASES[name](*told(folder / name))


def test_a_row_like_any_other_is_no_odd_one(folder: Path) -> None:
    """Rows of JSON lines are what those of CSV are."""
    rows = [("a.mp4", "1.0"), ("b.mp4", "007"), ("z.mp4", "true")]
    (folder / "t.csv").write_text("path,caption\n" + "".join(f"{p},{c}\n" for p, c in rows))
    (folder / "t.jsonl").write_text("".join(json.dumps({"path": p, "caption": c}) + "\n" for p, c in rows))
    assert told(folder / "t.csv") == told(folder / "t.jsonl") == (dict(rows), {})


def test_a_file_of_conversations_is_no_table(folder: Path) -> None:
    (folder / "c.jsonl").write_text('{"messages": [{"role": "user", "content": "?"}]}\n')
    with pytest.raises(InputError) as error:
        find(str(folder / "c.jsonl"))
    assert error.value.remedy.startswith(f"longreel data chat {folder}/c.jsonl --clips DATASET --out CHATS")
