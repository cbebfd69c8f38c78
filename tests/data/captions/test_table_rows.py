"""Rows of files that others wrote: one odd row costs itself, and every row is known by its line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from data.captions.table_rows import LONGEST_ROW, csv_rows, half_character, json_rows
from parallel.parsing import ParseError


def told(rows: Any) -> list[tuple[str, Any]]:
    """Rows, with the words of what is wrong."""
    return [(where, str(row) if isinstance(row, ParseError) else row) for where, row in rows]


def written(folder: Path, data: str | bytes) -> Path:
    path = folder / "rows"
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
    return path


BEFORE, AFTER = '{"path": "a.mp4", "n": 1}\n', '\r\n{"path": "z.mp4"}'


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("5", 5),
        ("[1, 2]", [1, 2]),
        ('"text"', "text"),
        (r'{"path": "\ud83d"}', {"path": "\ud83d"}),
        ("\ufeff{}", "it is not JSON"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('{"a": Infinity}', {"a": float("inf")}),
        ("[" * 200_000, "nested deeper"),
        ('{"a": ' + "9" * 5000 + "}", "a number of 5,000 digits"),
        ("\0\0\0", "it is not JSON"),
        ('{"a": "x', "Unterminated string starting, at column 7"),
        ('{"a": "' + "x" * 3_000_000 + '"}', {"a": "x" * 3_000_000}),
        ('{"a": "' + "x" * LONGEST_ROW + '"}', "it has more than"),
        ('{"a": "\u2028\x85"}', {"a": "\u2028\x85"}),
    ],
    ids=str.split("number list text half mark twice infinite deep digits nul broken megabytes endless separators"),
)
def test_an_odd_line_costs_itself(tmp_path: Path, row: str, expected: Any) -> None:
    first, odd, last = told(json_rows(written(tmp_path, f"\n{BEFORE}\n{row}{AFTER}")))
    assert first == ("line 2", {"path": "a.mp4", "n": 1})
    assert last == ("line 5", {"path": "z.mp4"})
    assert odd[0] == "line 4"
    assert odd[1] == expected or (isinstance(expected, str) and expected in odd[1])


def test_an_odd_record_of_a_list_costs_itself(tmp_path: Path) -> None:
    odd = ['{"a": 1, "a": 2}', "[" * 300 + "]" * 300, "9" * 5000, '"text"', "NaN"]
    rows = told(json_rows(written(tmp_path, "[\n" + ",\n".join(['{"a": "["}', *odd, '{"z": 1}']) + "\n]\n")))
    assert [where for where, _ in rows] == [f"record {n}" for n in range(1, 8)]
    assert (rows[0][1], rows[-1][1], rows[4][1]) == ({"a": "["}, {"z": 1}, "text")
    assert [part in rows[n][1] for n, part in ((1, "twice"), (2, "deeper"), (3, "5,000 digits"))] == [True] * 3


@pytest.mark.parametrize(
    ("text", "kept", "reason"),
    [
        ('[{"a": 1}, {"b": "cut o', 1, "Unterminated string starting, at column 18; neither it nor what follows"),
        ('[{"a": 1}, {"b": 2} {"c": 3}]', 1, "no comma follows it; neither it"),
        ('[{"a": 1}]\n{"b": 2}', 1, "it stands behind the end"),
        ("[" * 200_000, 0, "nested deeper"),
    ],
)
def test_what_follows_a_broken_list_is_told(tmp_path: Path, text: str, kept: int, reason: str) -> None:
    rows = told(json_rows(written(tmp_path, text.replace("\n", "\n" * (len(text) > 30), 1))))
    assert rows[:kept] == [("record 1", {"a": 1})][:kept]
    assert reason in rows[kept][1]
    assert len(rows) == kept + 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("[]", []),
        ('[1]\n{"a": 1}\n', [("line 1", [1]), ("line 2", {"a": 1})]),
        (b"\xef\xbb\xbf[1]", [("record 1", 1)]),
        ('{"a": "é"}'.encode("utf-16"), [("line 1", {"a": "é"})]),
        (b'{"a": "\xe9"}\n2', [("line 1", {"a": "\udce9"}), ("line 2", 2)]),
        (" [\n1]", [("record 1", 1)]),
    ],
)
def test_lines_or_a_list(tmp_path: Path, text: str | bytes, expected: list[tuple[str, Any]]) -> None:
    assert told(json_rows(written(tmp_path, text))) == expected


def test_numbers_as_they_are_written(tmp_path: Path) -> None:
    rows = json_rows(written(tmp_path, '{"a": [1.50, 1e5, -0]}\n{"a": 007}\n'), str)
    assert told(rows)[0] == ("line 1", {"a": ["1.50", "1e5", "-0"]})


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["a,1", "b,2"], [("line 2", ["a", "1"]), ("line 3", ["b", "2"])]),
        (['a,"1', '2"', "b,2"], [("line 2", ["a", "1\n2"]), ("line 4", ["b", "2"])]),
        (['a,"1', "b,2", "c,3"], [("line 2", "never closed"), ("line 3", ["b", "2"]), ("line 4", ["c", "3"])]),
        (['a,"1', 'b,"2"', "c,3"], [("line 2", "twice"), ("line 3", ["b", "2"]), ("line 4", ["c", "3"])]),
        (["a,1", 'b,"2'], [("line 2", ["a", "1"]), ("line 3", "never closed")]),
        (['a,"red" car', "b,2"], [("line 2", ["a", '"red" car']), ("line 3", ["b", "2"])]),
        (["", "a,1", " , ", ",,", "b,2"], [("line 3", ["a", "1"]), ("line 6", ["b", "2"])]),
        (["a," + "x" * LONGEST_ROW, "b,2"], [("line 2", "it has more than"), ("line 3", ["b", "2"])]),
        (["a," + "x" * 3_000_000, "b,2"], [("line 2", ["a", "x" * 3_000_000]), ("line 3", ["b", "2"])]),
        (["a,\0", "b,2"], [("line 2", ["a", "\0"]), ("line 3", ["b", "2"])]),
        (["a,1,2", "b"], [("line 2", ["a", "1", "2"]), ("line 3", ["b"])]),
    ],
    ids=str.split("plain lines unclosed closed_late last lenient blank endless megabytes nul ragged"),
)
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_an_odd_row_costs_itself(tmp_path: Path, rows: list[str], expected: list[Any], ending: str) -> None:
    first, *found = told(csv_rows(written(tmp_path, "\ufeff" + ending.join(["path,words", *rows]))))
    assert first == ("line 1", ["path", "words"])
    found = [
        (at, [c.replace("\r\n", "\n").replace("\r", "\n") for c in row] if isinstance(row, list) else row)
        for at, row in found
    ]
    assert [at for at, _ in found] == [at for at, _ in expected]
    for (_, row), (_, meant) in zip(found, expected, strict=True):
        assert row == meant or (isinstance(meant, str) and meant in row)


def test_half_characters() -> None:
    assert half_character("whole é 🎥") is None
    assert half_character("a\ud83d") == "half a character, '\\ud83d'"
    assert half_character("caf\udce9") == "the byte 0xe9, which is not UTF-8"


@pytest.mark.parametrize("seed", range(30))
def test_any_list_is_what_json_says(tmp_path: Path, seed: int) -> None:
    """However it is written, in lines or none."""
    draw = random.Random(seed)

    def value(depth: int) -> Any:
        kind = draw.choice("ntsxdl" if depth else "ntsx")
        if kind == "d":
            return {draw.choice('ab["]{'): value(depth - 1) for _ in range(draw.randint(0, 3))}
        if kind == "l":
            return [value(depth - 1) for _ in range(draw.randint(0, 3))]
        return {"n": draw.choice((0, -7, 1.5, 1e300)), "t": draw.choice((True, None)), "s": '],"{\\', "x": "é\n\u2028"}[
            kind
        ]

    listed = [value(3) for _ in range(draw.randint(0, 9))]
    text = json.dumps(listed, indent=draw.choice((None, 0, 2)), ensure_ascii=draw.random() < 0.5)
    rows = list(json_rows(written(tmp_path, draw.choice(("", "\n ", "\ufeff")) + text + draw.choice(("", "\n\n")))))
    assert [row for _, row in rows] == listed
    assert [where for where, _ in rows] == [f"record {n + 1}" for n in range(len(listed))]
