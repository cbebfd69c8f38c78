"""Rows of files that others wrote, JSON lines, JSON lists and CSV: each with where it stands, or with what is wrong.

    list.jsonl                              list.csv
    1  {"path": "a.mp4"}    a value         1    path,caption
    2                       blank           2    a.mp4,"two       one row,
    3  {"path": "b.mp4",    ParseError      3    lines"           of lines 2 and 3
    4  [1, 2]               a value         4    b.mp4,"never     ParseError, and line 5 is a row again

One odd row costs itself. Rows are read one at a time, so a file may be larger than memory; a JSON list is read whole.
Cost: about 3 us a row of CSV and 5 us a row of JSON.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from data.containers.regular_file import open_regular
from parallel.parsing import Pairs, ParseError, json_elements, parse_json

LONGEST_ROW = 16 << 20  # characters
PEEKED = 1 << 16  # characters in which a file begins with something
MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
Number = Callable[[str], Any]


def json_rows(file: Path, number: Number | None = None, pairs: Pairs | None = None) -> Iterator[tuple[str, Any]]:
    """(where, value or `ParseError`) of a file with a JSON value a line, or of a JSON list.

    A file whose first line is a list, or the beginning of one, is a JSON list if nothing else follows it.

    Args:
        file: whose rows are read.
        number: makes the value of a number from how it is written; None: int and float.
        pairs: makes the value of an object; None: a dict, and a key twice is an error.

    Raises:
        OSError: it cannot be read.
    """
    if _is_list(file):
        with opened(file, "\n") as lines:
            elements = json_elements(lines.read(), number, pairs)
        yield from ((f"record {n}", element) for n, element in enumerate(elements, 1))
        return
    with opened(file, "\n") as lines:
        for at, line in _lines(lines):
            if line is None:
                yield f"line {at}", ParseError(f"it has more than {LONGEST_ROW:,} characters")
            elif line.strip():
                yield f"line {at}", _parsed(line.strip(), number, pairs)


def csv_rows(file: Path, delimiter: str = ",") -> Iterator[tuple[str, list[str] | ParseError]]:
    """(where, cells or `ParseError`) of a CSV file (RFC 4180), its header among them; rows without any text are none.

    A quote that is never closed, or closed where no cell ends, costs the line that it stands in.

    Raises:
        OSError: it cannot be read.
    """
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_ROW))  # of this process: else 128 KB
    with opened(file, "") as lines:
        source = _Source(_lines(lines))
        reader = csv.reader(source, delimiter=delimiter, strict=True, skipinitialspace=True)
        while True:
            source.begin()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except (csv.Error, _LongLineError) as error:
                row = _leniently(source.taken, delimiter)
                yield source.where, ParseError(_why(error, source)) if row is None else row
                source.give_back()
                continue
            if any(cell.strip() for cell in cells):
                yield source.where, cells


def opened(file: Path, newline: str) -> TextIOWrapper:
    """A file as text: UTF-8, or UTF-16 if it begins so; bytes that are no text become half characters.

    Raises:
        OSError: it cannot be read.
    """
    raw = open_regular(file)
    head = raw.read(4)
    encoding = next((name for mark, name in MARKS.items() if head.startswith(mark)), "utf-8-sig")
    raw.seek(0)
    errors = "surrogateescape" if encoding == "utf-8-sig" else "surrogatepass"
    return TextIOWrapper(raw, encoding, errors, newline=newline)


def half_character(text: str) -> str | None:
    """What in a text is no character, as JSON and bytes that are not UTF-8 may give it; None if all of it is."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = text[error.start]
        if "\udc80" <= found <= "\udcff":
            return f"the byte 0x{ord(found) - 0xDC00:02x}, which is not UTF-8"
        return f"half a character, {found!a}"
    return None


class _LongLineError(Exception):
    """A line is too long for a row."""


class _Source:
    """Lines for a csv reader; those of a row that is none are given back, but for the first.

    Attributes:
        taken: lines of the row that is being read.
        ended: whether the reader asked for more than there is.
    """

    def __init__(self, lines: Iterator[tuple[int, str | None]]) -> None:
        self.lines, self.back = lines, list[tuple[int, str | None]]()
        self.taken: list[str] = []
        self.at, self.ended = 0, False
        self._numbered: list[tuple[int, str | None]] = []

    def begin(self) -> None:
        """A row begins with the next line."""
        self.taken, self._numbered, self.ended = [], [], False

    def give_back(self) -> None:
        """All lines of this row but its first are read again."""
        self.back += reversed(self._numbered[1:])

    @property
    def where(self) -> str:
        """Of the row."""
        return f"line {self._numbered[0][0]}"

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        found = self.back.pop() if self.back else next(self.lines, None)
        if found is None:
            self.ended = True
            raise StopIteration
        self._numbered.append(found)
        if found[1] is None:
            raise _LongLineError
        self.taken.append(found[1])
        return found[1]


def _lines(file: TextIOWrapper) -> Iterator[tuple[int, str | None]]:
    """(number from 1, line); None for one that is too long, which is passed over."""
    number = 0
    while line := file.readline(LONGEST_ROW):
        number += 1
        if len(line) < LONGEST_ROW or line[-1] in "\r\n":
            yield number, line
            continue
        while (more := file.readline(LONGEST_ROW)) and more[-1] not in "\r\n":
            pass
        yield number, None


def _parsed(line: str, number: Number | None, pairs: Pairs | None) -> Any:
    try:
        return parse_json(line, pairs=pairs, number=number)
    except ParseError as error:
        return ParseError(f"{error}; it holds NULs, and may be UTF-16 without a mark") if "\0" in line else error


def _is_list(file: Path) -> bool:
    with opened(file, "\n") as text:
        lines = (line for _, line in _lines(text) if line is None or line.strip())
        first = next(lines, "")
        if first is not None and not first.lstrip().startswith("["):
            return False
        if first is not None and next(lines, "") == "":
            return True
    with opened(file, "\n") as text:
        return text.read(PEEKED).lstrip().startswith("[") and (first is None or not _is_whole(first))


def _is_whole(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError, MemoryError):
        return False
    return True


def _leniently(taken: list[str], delimiter: str) -> list[str] | None:
    """The cells of one line with a quote where none belongs, such as `a.mp4,"red" car`; None if it is not clear.

    Who quotes cells does not write that, so the quotes are words; unless they are escaped, as in
    `a.mp4,"a \\"red\\" car"`.
    """
    if len(taken) != 1 or taken[0].count('"') % 2:
        return None
    if '\\"' in taken[0]:
        try:
            return next(csv.reader(taken, delimiter=delimiter, escapechar="\\", doublequote=False, strict=True), None)
        except csv.Error:
            return None
    return next(csv.reader(taken, delimiter=delimiter, quoting=csv.QUOTE_NONE, skipinitialspace=True), None)


def _why(error: Exception, source: _Source) -> str:
    if isinstance(error, _LongLineError) and not source.taken:
        return f"it has more than {LONGEST_ROW:,} characters"
    if source.ended:
        return "a quote in it is never closed"
    if len(source.taken) > 1 or isinstance(error, _LongLineError) or "field larger" in str(error):
        return "a quote in it is not closed where its cell ends: write a quote inside of a cell twice"
    return f"it is no row of CSV: {error}"
