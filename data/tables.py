"""Tables that name videos, by path or URL, and say what they show: CSV, TSV, Parquet, JSON lines, a list in JSON.

A table stays in Arrow's columns, about as large in memory as its text; rows are made when they are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from data.columns import (
    LONG_COLUMNS,
    PATH_COLUMNS,
    SHORT_COLUMNS,
    column_of,
    delimiter_of,
    is_known,
    missing,
    other_columns,
)
from data.naming import listed
from parallel.errors import InputError
from parallel.parsing import parse_json

HEAD = 1 << 16  # bytes among which a CSV's first line ends
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
ROWS_AT_A_TIME = 4096


class Row(NamedTuple):
    """`path` as the table has it; `captions` by key (short, long), None where a cell is empty."""

    path: str
    captions: dict[str, str | None]


@dataclass(frozen=True, eq=False)
class Table:
    """Columns as text; `short` and `long` are None if the table has no such column; `notes` are for people."""

    paths: pa.ChunkedArray
    short: pa.ChunkedArray | None
    long: pa.ChunkedArray | None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def schemes(self) -> list[str]:
        """Of the URLs among the paths."""
        found = pyarrow.compute.extract_regex(self.paths, r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://")
        schemes = pyarrow.compute.struct_field(found, "scheme")
        return sorted(scheme for scheme in schemes.unique().to_pylist() if scheme)

    def any_ends_with(self, suffix: str) -> bool:
        """Whether a path does, in capitals or not."""
        ends = pyarrow.compute.ends_with(self.paths, suffix, ignore_case=True)
        return bool(pyarrow.compute.any(ends).as_py())

    def __iter__(self) -> Iterator[Row]:
        """The rows, sorted by path."""
        order = pyarrow.compute.sort_indices(self.paths)
        for start in range(0, len(order), ROWS_AT_A_TIME):
            rows = order[start : start + ROWS_AT_A_TIME]
            columns = [self.paths, self.short, self.long]
            path, short, long = ([None] * len(rows) if c is None else c.take(rows).to_pylist() for c in columns)
            for one in zip(path, short, long, strict=True):
                yield Row(one[0], {"short": one[1], "long": one[2]})


def read_table(file: Path, captions: bool) -> Table:
    """The paths and the captions of a table; of rows about one video the first counts.

    Args:
        file: a .csv, .tsv, .parquet, .jsonl or .json file.
        captions: whether it must have a column with captions.

    Raises:
        InputError: no such table, a column is missing (names the columns that it has), or a row names no video.
    """
    if file.suffix.lower() not in READERS:
        rule = "a table is a .csv, .tsv, .parquet, .jsonl or .json file"
        raise InputError(rule, str(file), "save it as .csv, with a line path,caption above")
    try:
        names, table = READERS[file.suffix.lower()](file)
        columns = {name: table[name].cast(pa.string()) for name in table.column_names}
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "a table can be read", f"{file}: {' '.join(str(error).split())}", _remedy(error, file)
        ) from error
    found, notes = {}, []
    for kind, accepted in (("paths", PATH_COLUMNS), ("captions", SHORT_COLUMNS), ("long captions", LONG_COLUMNS)):
        found[kind], others = column_of(names, accepted, file)
        if others:
            notes.append(f"{file.name}: {other_columns(kind, str(found[kind]), others)}")
    if found["paths"] is None:
        raise missing(names, PATH_COLUMNS, file)
    if captions and found["captions"] is None and found["long captions"] is None:
        raise missing(names, SHORT_COLUMNS, file)
    paths = pyarrow.compute.utf8_trim_whitespace(columns[found["paths"]])
    _check_paths(paths, file)
    short, long = (columns.get(found[kind]) for kind in ("captions", "long captions"))
    return _each_once(Table(paths, short, long, tuple(notes)), file)


def _check_paths(paths: pa.ChunkedArray, file: Path) -> None:
    empty = pyarrow.compute.index(pyarrow.compute.fill_null(paths, ""), "").as_py()
    if empty >= 0:
        raise InputError(
            "every row of a table names its video", f"{file}: row {empty + 1} does not", "fill or remove the row"
        )


def _each_once(table: Table, file: Path) -> Table:
    """The first row of each video, and a note about the others."""
    if len(table.paths.unique()) == len(table.paths):
        return table
    rows: dict[str, list[int]] = {}
    for row, path in enumerate(table.paths.to_pylist()):
        rows.setdefault(path, []).append(row)
    several = [f"{path} (rows {', '.join(str(n + 1) for n in at[:3])})" for path, at in rows.items() if len(at) > 1]
    note = f"{file.name}: {len(several):,} videos stand in several rows, of which the first is used: {listed(several)}"
    first = pa.array([at[0] for at in rows.values()])
    short, long = (None if column is None else column.take(first) for column in (table.short, table.long))
    return Table(table.paths.take(first), short, long, (*table.notes, note))


def _remedy(error: Exception, file: Path) -> str:
    if "utf" in str(error).lower():
        made = file.with_name(f"{file.stem}-utf8{file.suffix}")
        return f"save it as UTF-8; if it is Latin-1: iconv -f LATIN1 -t UTF-8 {quote(str(file))} > {quote(str(made))}"
    return "mend that place, or write a .jsonl with an object a line"


# As text throughout: a folder of videos called 001, 002 must not become the numbers 1 and 2.


def _read_csv(file: Path, usual: str = ",") -> tuple[list[str], pa.Table]:
    with file.open("rb") as start:
        head = start.read(HEAD)
    encoding = "utf-16" if head.startswith(UTF_16) else "utf-8"
    first = head.decode(encoding, "replace").lstrip("\ufeff").lstrip("\r\n").partition("\n")[0].rstrip("\r")
    delimiter = delimiter_of(first, usual)
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True, delimiter=delimiter)
    read = pyarrow.csv.ReadOptions(encoding=encoding)
    with pyarrow.csv.open_csv(file, parse_options=parse, read_options=read) as opened:
        names = opened.schema.names
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        strings_can_be_null=False,
        include_columns=[name for name in names if is_known(name)],
    )
    return names, pyarrow.csv.read_csv(file, parse_options=parse, convert_options=convert, read_options=read)


def _read_parquet(file: Path) -> tuple[list[str], pa.Table]:
    names = pyarrow.parquet.read_schema(file).names
    return names, pyarrow.parquet.read_table(file, columns=[name for name in names if is_known(name)])


def _read_jsonl(file: Path) -> tuple[list[str], pa.Table]:
    with file.open(encoding="utf-8") as lines:
        first: Any = json.loads(next(lines, "{}"))
    if not isinstance(first, dict):
        raise ValueError("its first line is no JSON object")
    names = dict.fromkeys((*PATH_COLUMNS, *SHORT_COLUMNS, *LONG_COLUMNS, *filter(is_known, first)))
    # said beforehand, because a column of dates would be read as times, and written otherwise than it was
    schema = pa.schema([(name, pa.string()) for name in names])
    parse = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    table = pyarrow.json.read_json(file, parse_options=parse)
    there = [name for name in names if name in first or table[name].null_count < len(table)]
    return [*first, *(name for name in there if name not in first)], table.select(there)


def _read_json(file: Path) -> tuple[list[str], pa.Table]:
    """A list of objects, or one object {file: caption}."""
    value = rows_in(parse_json(file.read_bytes()))
    if isinstance(value, Mapping):
        value = [
            {"path": name, **(said if isinstance(said, dict) else {"caption": said})} for name, said in value.items()
        ]
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise ValueError('it is neither a list of objects, [{"path": ..., "caption": ...}], nor {file: caption}')
    names = list(dict.fromkeys(name for row in value for name in row))
    return names, pa.table({name: [_cell(row.get(name)) for row in value] for name in names if is_known(name)})


def rows_in(value: Any) -> Any:
    """The rows in {"videos": [{...}, ...], "info": ...}, where one list alone has such; anything else as it is."""
    if not isinstance(value, dict) or any(isinstance(one, str) for one in value.values()):
        return value
    lists = [
        one for one in value.values() if isinstance(one, list) and one and all(isinstance(row, dict) for row in one)
    ]
    return lists[0] if len(lists) == 1 else value


def _cell(value: Any) -> str | None:
    """A cell of JSON as text; of several captions the first."""
    if isinstance(value, list):
        value = next((one for one in value if isinstance(one, str) and one.strip()), None)
    return None if value is None else str(value)


READERS: dict[str, Callable[[Path], tuple[list[str], pa.Table]]] = {
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, usual="\t"),
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
}
TABLE_SUFFIXES = tuple(READERS)
