"""Guarded parsing: whatever a text holds, there is a value or one `ParseError`, in time that grows as the text does."""

from __future__ import annotations

import json
import math

import pytest

from parallel.parsing import DEEPEST, ParseError, json_elements, parse_json, shorter, text_of, whole_number


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 200_000, "nested deeper"),
        ('{"a":' * 200_000, "nested deeper"),
        ("[" * 200_000 + "]" * 200_000, "nested deeper"),
        ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "nested deeper"),
        ('{"size": ' + "9" * 5000 + "}", "number of 5,000 digits"),
        ('{"size": -' + "9" * 200 + "}", "number of 201 digits"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' stands twice"),
        ('{"a": 1', "not JSON"),
        ("", "not JSON"),
        (b'{"a": "\xff"}', "not UTF-8 (byte 7 is 0xff)"),
        (b"\xff\xfe\x00", "UTF-16"),
        ("1" * 300, "300 bytes, more than 200"),
    ],
)
def test_hostile_json_is_one_error(text: str | bytes, reason: str) -> None:
    with pytest.raises(ParseError, match=r".") as error:
        parse_json(text, limit=200 if reason.endswith("200") else 1 << 22)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"\xef\xbb\xbf[1]", [1]),
        ("\ufeff[1]".encode("utf-16-le"), [1]),
        ("[" * DEEPEST + "]" * DEEPEST, None),
        ('{"id": 340282366920938463463374607431768211455}', {"id": 2**128 - 1}),
        ('{"a": 1.5, "b": -0, "c": "x", "d": null}', {"a": 1.5, "b": 0, "c": "x", "d": None}),
        ("1e999", math.inf),
        (r'"\ud83d"', "\ud83d"),
    ],
)
def test_json_is_read(text: str | bytes, value: object) -> None:
    found = parse_json(text)
    assert value is None or found == value


def test_what_a_library_wrote_is_read() -> None:
    assert math.isnan(parse_json(json.dumps({"loss": math.nan}))["loss"])


def test_many_keys_and_digits_take_no_time() -> None:
    with pytest.raises(ParseError, match="stands twice"):
        parse_json("{" + ",".join(f'"{n}":1' for n in range(100_000)) + ',"99999":1}')
    assert parse_json("1" * 400_000 + ".5") == math.inf


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("007", 7), (b"12", 12), ("9" * 18, 10**18 - 1), ("0" * 5000 + "3", 3)]
)
def test_whole_numbers(text: str | bytes, value: int) -> None:
    assert whole_number(text) == value


@pytest.mark.parametrize("text", ["9" * 5000, "9" * 19, "-1", "1_0", " 1", "", "٣", "1.0", b"\xff"])
def test_other_numbers_are_refused(text: str | bytes) -> None:
    with pytest.raises(ParseError):
        whole_number(text)


def test_text_is_utf8_with_or_without_its_mark() -> None:
    assert text_of(b"\xef\xbb\xbfa") == text_of(b"a") == "a"
    with pytest.raises(ParseError, match="byte 1 is 0xe9"):
        text_of("té".encode("latin-1"))


def test_any_value_is_shown() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert shorter(deep) == "a list"
    assert shorter("\ud83d" * 500).endswith(" ...")
    assert len(shorter("x" * 10_000_000)) <= 120


def test_a_list_of_broken_elements_ends() -> None:
    *odd, last = json_elements("[" + ",".join(['{"a" 1}'] * 20_000) + "]")
    assert len(odd) == 9_999
    assert "neither it nor what follows it" in str(last)
