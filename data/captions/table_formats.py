"""Formats of tables: the rows of CSV, TSV, Parquet, JSON lines and lists in JSON, as {column: cell}.

All is text throughout: a folder of videos called 001, 002 must not become the numbers 1 and 2, nor 0.50 become 0.5.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from data.captions.caption_columns import LONG_COLUMNS, PATH_COLUMNS, SHORT_COLUMNS, delimiter_of, is_known, plain
from data.captions.captions import object_of
from data.captions.table_rows import csv_rows, half_character, json_rows, opened
from data.containers.open_media import MEDIA_SUFFIXES
from data.containers.regular_file import open_regular, read_regular
from parallel.errors import InputError
from parallel.parsing import ParseError, parse_json

HEAD = 1 << 16  # characters among which a CSV's first line ends
ROWS_AT_A_TIME = 4096
NOT_UTF_8 = "save the file as UTF-8; if it is Latin-1: iconv -f LATIN1 -t UTF-8"

Cells = Mapping[str, Any]
Rows = Iterator[tuple[str, Cells | ParseError]]  # where each stands


SEPARATOR = re.compile(r"sep=([,;|\t])", re.IGNORECASE)


class Written(str):
    """A number as it was written, and no text of its own."""


def _read_csv(file: Path, usual: str = ",") -> tuple[list[str], Rows]:
    with opened(file, "") as text:
        lines = (line for line in text.read(HEAD).splitlines() if line.strip())
        first = next(lines, "")
        said = SEPARATOR.fullmatch(first)  # as Excel writes it
        delimiter = said[1] if said else delimiter_of(first, usual)
    rows = csv_rows(file, delimiter)
    if said:
        next(rows)
    where, names = next(rows, ("line 1", ParseError("it is empty")))
    if isinstance(names, ParseError):
        raise ValueError(f"{where}, with the names of the columns: {names}")
    half = half_character("".join(names))
    if half is not None:
        raise ValueError(f"{where}, with the names of the columns, holds {half}: {NOT_UTF_8}")
    _refuse_twice(names, file)
    known = [(at, name) for at, name in enumerate(names) if is_known(name)]

    def cells(row: list[str]) -> Cells:
        if len(row) < len(names) or any(cell.strip() for cell in row[len(names) :]):
            path = next((row[at] for at, name in known if name in PATH_COLUMNS and at < len(row)), "")
            raise _OddCellsError(path, len(row), len(names), delimiter)
        return {name: row[at] for at, name in known}

    def read() -> Rows:
        for where, row in rows:
            try:
                yield where, row if isinstance(row, ParseError) else cells(row)
            except ParseError as error:
                yield where, error

    return names, read()


def _refuse_twice(names: Sequence[str], file: Path) -> None:
    twice = next((name for name in names if is_known(name) and names.count(name) > 1), None)
    if twice is not None:
        raise InputError("columns of a table have different names", f"{file}: {twice!r} twice", "rename one of them")


class _OddCellsError(ParseError):
    """A row of CSV has more or fewer cells than there are columns."""

    def __init__(self, path: str, cells: int, columns: int, delimiter: str) -> None:
        what = (
            "put a text with a separator in it into double quotes"
            if cells > columns
            else "write an empty cell as nothing"
        )
        shown = {",": "a comma", "\t": "a tab"}.get(delimiter, repr(delimiter))
        super().__init__(f"{cells} cells for {columns} columns, separated by {shown}: {what}")
        self.path = path.strip()


def _read_parquet(file: Path) -> tuple[list[str], Rows]:
    open_regular(file).close()
    parquet = pyarrow.parquet.ParquetFile(file)
    names: list[str] = parquet.schema_arrow.names
    known = [name for name in dict.fromkeys(names) if is_known(name)]
    _refuse_twice(names, file)

    def read() -> Rows:
        number = 0
        for batch in parquet.iter_batches(ROWS_AT_A_TIME, columns=known):
            columns = [_as_text(batch.column(name)) for name in known]
            for values in zip(*columns, strict=True):
                number += 1
                yield f"row {number}", dict(zip(known, values, strict=True))

    return names, read() if known else iter(())


def _as_text(column: pa.Array) -> list[Any]:
    """A column as text, where it can be."""
    try:
        found: list[Any] = column.cast(pa.string()).to_pylist()
    except pa.ArrowException:
        found = column.to_pylist()
    return found


def _read_jsonl(file: Path) -> tuple[list[str], Rows]:
    return [], json_rows(file, Written, object_of)


def _read_json(file: Path) -> tuple[list[str], Rows]:
    """A list of objects, one object {file: caption}, or an object with one list of objects; or an object a line."""
    with opened(file, "\n") as text:
        begins = text.read(HEAD).lstrip()[:1]
    if begins != "{":
        return _read_jsonl(file)
    try:
        value = parse_json(read_regular(file), pairs=object_of, number=Written)
    except ParseError as error:
        if "Extra data" in str(error):
            return _read_jsonl(file)
        raise
    inner = rows_in(value)
    if isinstance(inner, list):
        return [], ((f"record {number}", row) for number, row in enumerate(inner, 1))
    entries = (
        {"path": name, **(said if isinstance(said, dict) else {"caption": said})} for name, said in value.items()
    )
    return [], ((f"entry {number}", row) for number, row in enumerate(entries, 1))


def rows_in(value: Any) -> Any:
    """The rows in an object, anything else as it is.

    {"videos": [{...}, ...], "info": ...}               the one list of rows; of several, that with paths and captions
    {"path": ["a.mp4", ...], "caption": ["A", ...]}     columns, as lists or, as pandas writes them, as objects
    {"path": "a.mp4", "caption": "A"}                   one row
    """
    if not isinstance(value, dict) or not value:
        return value
    if _is_row(value):
        columns = {key: list(one.values()) if isinstance(one, dict) else one for key, one in value.items()}
        lengths = {len(one) if isinstance(one, list) else -1 for one in columns.values()}
        if len(lengths) == 1 and lengths != {-1}:
            return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
        if -1 not in lengths:
            told = ", ".join(f"{key} {len(one)}" for key, one in columns.items())
            raise ParseError(f"its columns have as many values each; found: {told}")
        path = next(one for key, one in value.items() if plain(key) in PATH_COLUMNS)
        return [value] if isinstance(path, str) and path.lower().endswith(tuple(MEDIA_SUFFIXES)) else value
    if any(type(one) is str for one in value.values()):
        return value
    lists = [
        one for one in value.values() if isinstance(one, list) and one and all(isinstance(row, dict) for row in one)
    ]
    whole = [one for one in lists if _is_row(one[0])]
    return lists[0] if len(lists) == 1 else whole[0] if len(whole) == 1 else value


def _is_row(value: Mapping[str, Any]) -> bool:
    """Whether the keys of an object are a path and a caption."""
    keys = {plain(key) for key in value}
    return not keys.isdisjoint(PATH_COLUMNS) and not keys.isdisjoint((*SHORT_COLUMNS, *LONG_COLUMNS))


READERS: dict[str, Callable[[Path], tuple[list[str], Rows]]] = {
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, usual="\t"),
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
}
