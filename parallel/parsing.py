"""Guarded parsing: text that somebody else wrote costs its file or its row, never the whole job.

    bytes --text_of--> text --parse_json--> value            or ParseError, whose words are a reason for people
                            --whole_number--> int

Python's parsers end with more than a `ValueError`: 200,000 brackets are a `RecursionError`, a size of 5,000 digits a
`ValueError` of another kind, a file of gigabytes a `MemoryError`; and what they do take may end whoever comes next,
such as a value nested so deeply that it cannot be printed. Here all of that is one error, for every format and every
floor, which is why this lies beside `errors`. Cost beside `json.loads`: about 0.1 us a whole number and 0.2 us an
object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

LARGEST = 256 << 20  # bytes of one text; the value may take ten times as much memory
DEEPEST = 64  # brackets within brackets; records of people have about 8
DIGITS = 100  # of a whole number: identifiers of 128 bits have 39, floats end at 308
WHOLE_DIGITS = 18  # of a number that counts bytes or rows: 64 bits hold it
MOST_BROKEN = 10_000  # elements of a list, after which it is none: to tell where each is costs time with its place
BLANK = re.compile(r"[ \t\n\r]*")
SCALAR = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[^\s,\[\]{}"]+', re.DOTALL)
BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
Pairs = Callable[[list[tuple[str, Any]]], Any]


class ParseError(ValueError):
    """A text is not what it should be, or too much; `str` of it is the reason, on one line, without the file's name."""


def text_of(data: bytes) -> str:
    """The text of UTF-8 bytes, without the byte order mark that some editors put first.

    Raises:
        ParseError: they are not UTF-8; says what they may be instead.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError:
            raise ParseError("it begins as UTF-16 and is not: save it as UTF-8") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ParseError(
            f"it is not UTF-8 (byte {error.start} is 0x{data[error.start]:02x}): save it as UTF-8"
        ) from None


def parse_json(
    text: str | bytes | bytearray,
    limit: int = LARGEST,
    pairs: Pairs | None = None,
    number: Callable[[str], Any] | None = None,
) -> Any:
    """The value of a JSON text. NaN and Infinity are taken, as `json.dumps` writes them.

    Args:
        text: of one value; bytes are UTF-8.
        limit: bytes (or characters) of it, at most.
        pairs: makes the value of each object from its (key, value) pairs; None: a dict, and a key twice is an error.
        number: makes the value of each number from how it is written; None: int and float.

    Raises:
        ParseError: no JSON, a key stands twice in an object, or it is too long, too deep, or has too long a number.
    """
    if len(text) > limit:
        raise ParseError(f"it has {len(text):,} bytes, more than {limit:,}")
    if not isinstance(text, str):
        text = text_of(bytes(text))
    return _guarded(lambda: _decoder(pairs, number).decode(text))


def json_elements(text: str, number: Callable[[str], Any] | None = None, pairs: Pairs | None = None) -> Iterator[Any]:
    """The elements of a JSON list, each guarded on its own: one that is odd is a `ParseError`, the next one is read.

    Args:
        text: of the list.
        number, pairs: see `parse_json`.
    """
    decoder, at, broken = _decoder(pairs, number), _past_blanks(text, 0) + 1, 0
    while True:
        at = _past_blanks(text, at)
        if text[at : at + 1] == "]":
            rest = text[_past_blanks(text, at + 1) :]
            if rest:
                yield ParseError(f"it stands behind the end of the list: {shorter(rest[:80])}")
            return
        try:
            element, stop = _guarded(partial(decoder.raw_decode, text, at))
        except ParseError as error:
            broken += 1
            element, stop = error, _after(text, at) if broken < MOST_BROKEN else None
        following = None if stop is None else _past_blanks(text, stop)
        if following is None or text[following : following + 1] not in (",", "]"):
            reason = element if isinstance(element, ParseError) else "no comma follows it"
            yield ParseError(f"{reason}; neither it nor what follows it can be read")
            return
        yield element
        at = following + (text[following] == ",")


@lru_cache(maxsize=16)
def _decoder(pairs: Pairs | None, number: Callable[[str], Any] | None) -> json.JSONDecoder:
    hook = _unique if pairs is None else pairs
    return json.JSONDecoder(parse_int=number or _integer, parse_float=number, object_pairs_hook=hook)


def _guarded(parse: Callable[[], Any]) -> Any:
    """What `parse` gives; every error of a parser of JSON as a `ParseError`."""
    try:
        value = parse()
    except ParseError:
        raise
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}" if "\n" in error.doc else f"column {error.colno}"
        raise ParseError(f"it is not JSON: {error.msg.removesuffix(' at')}, at {at}") from None
    except RecursionError:
        raise ParseError(f"its brackets are nested deeper than {DEEPEST} levels") from None
    except MemoryError:
        raise ParseError("it needs more memory than there is") from None
    except ValueError as error:
        raise ParseError(f"it is not JSON: {error}") from None
    _refuse_depth(value)
    return value


def _past_blanks(text: str, at: int) -> int:
    found = BLANK.match(text, at)
    assert found is not None, "it matches nothing, too"
    return found.end()


def _after(text: str, at: int) -> int | None:
    """Where a value that begins at `at` ends, by its brackets; None if it does not."""
    if text[at : at + 1] not in ("{", "["):
        scalar = SCALAR.match(text, at)
        return scalar.end() if scalar else None
    depth = 0
    for found in BRACKETS.finditer(text, at):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(found[0], 0)
        if depth == 0:
            return found.end()
    return None


def whole_number(text: str | bytes) -> int:
    """A number of bytes or rows that is written in ASCII digits alone, below 10^18.

    Raises:
        ParseError: it is written otherwise, or is larger.
    """
    shown = text.decode("ascii", "backslashreplace") if isinstance(text, bytes) else text
    if not (shown.isascii() and shown.isdigit()):
        raise ParseError(f"{shorter(shown)} is no whole number")
    if len(shown.lstrip("0")) > WHOLE_DIGITS:
        raise ParseError(f"a number of {len(shown):,} digits")
    return int(shown.lstrip("0") or "0")


def shorter(value: object, most: int = 120) -> str:
    """`repr` of any parsed value for a message, cut to `most` characters; also of one that cannot be printed."""
    try:
        shown = repr(value if not isinstance(value, (str, bytes)) else value[: most + 1])
    except (RecursionError, ValueError, MemoryError):
        shown = f"a {type(value).__name__}"
    shown = shown.encode("utf-8", "backslashreplace").decode()
    return shown if len(shown) <= most else f"{shown[: most - 4]} ..."


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ParseError(f"it has a number of {len(digits):,} digits")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        again = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ParseError(f"the key {shorter(again)} stands twice in one object")
    return found


def _refuse_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list, tuple))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise ParseError(f"its brackets are nested deeper than {DEEPEST} levels")
