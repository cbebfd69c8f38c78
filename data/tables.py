"""Tables that name videos, by path or URL, and say what they show: CSV, Parquet, JSON lines.

A table stays in Arrow's columns, about as large in memory as its text; rows are made when they are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from parallel.errors import InputError

PATH_COLUMNS = ("path", "file", "video", "url", "image")
SHORT_COLUMNS = ("caption", "text", "short")
LONG_COLUMNS = ("caption_long", "long", "long_caption")
COLUMNS = (*PATH_COLUMNS, *SHORT_COLUMNS, *LONG_COLUMNS)
ROWS_AT_A_TIME = 4096


class Row(NamedTuple):
    """`path` as the table has it; `captions` by key (short, long), None where a cell is empty."""

    path: str
    captions: dict[str, str | None]


@dataclass(frozen=True, eq=False)
class Table:
    """Columns as text; `short` and `long` are None if the table has no such column."""

    paths: pa.ChunkedArray
    short: pa.ChunkedArray | None
    long: pa.ChunkedArray | None

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
    """The paths and the captions of a table.

    Args:
        file: a .csv, .parquet or .jsonl file.
        captions: whether it must have a column with captions.

    Raises:
        InputError: no such table, a column is missing (names the columns that it has), or a video stands there twice.
    """
    if file.suffix.lower() not in READERS:
        raise InputError("a table is a .csv, a .parquet or a .jsonl file", str(file), "convert it to one of them")
    try:
        names, table = READERS[file.suffix.lower()](file)
        columns = {name: table[name].cast(pa.string()) for name in table.column_names}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError("a table can be read", f"{file}: {error}", "check the file with pandas or DuckDB") from error
    paths = pyarrow.compute.utf8_trim_whitespace(columns[_column(names, PATH_COLUMNS, file)])
    short, long = (next((c for c in accepted if c in columns), None) for accepted in (SHORT_COLUMNS, LONG_COLUMNS))
    if captions and short is None and long is None:
        _column(names, SHORT_COLUMNS, file)
    _check_paths(paths, file)
    return Table(paths, columns.get(short), columns.get(long))


def _check_paths(paths: pa.ChunkedArray, file: Path) -> None:
    empty = pyarrow.compute.index(pyarrow.compute.fill_null(paths, ""), "").as_py()
    if empty >= 0:
        raise InputError(
            "every row of a table names its video", f"{file}: row {empty + 1} does not", "fill or remove the row"
        )
    if len(paths.unique()) < len(paths):
        again = next(entry["values"] for entry in paths.value_counts().to_pylist() if entry["counts"] > 1)
        raise InputError(
            "a table names each video once", f"{file}: {again} stands there twice", "keep one caption of it"
        )


# As text throughout: a folder of videos called 001, 002 must not become the numbers 1 and 2.


def _read_csv(file: Path) -> tuple[list[str], pa.Table]:
    with pyarrow.csv.open_csv(file) as head:
        names = head.schema.names
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        strings_can_be_null=False,
        include_columns=[name for name in names if name in COLUMNS],
    )
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    return names, pyarrow.csv.read_csv(file, parse_options=parse, convert_options=convert)


def _read_parquet(file: Path) -> tuple[list[str], pa.Table]:
    names = pyarrow.parquet.read_schema(file).names
    return names, pyarrow.parquet.read_table(file, columns=[name for name in names if name in COLUMNS])


def _read_jsonl(file: Path) -> tuple[list[str], pa.Table]:
    with file.open(encoding="utf-8") as lines:
        first: Any = json.loads(next(lines, "{}"))
    if not isinstance(first, dict):
        raise ValueError("its first line is no JSON object")
    # said beforehand, because a column of dates would be read as times, and written otherwise than it was
    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    parse = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    table = pyarrow.json.read_json(file, parse_options=parse)
    return list(first), table.select([name for name in COLUMNS if name in first or table[name].null_count < len(table)])


READERS: dict[str, Callable[[Path], tuple[list[str], pa.Table]]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
}
TABLE_SUFFIXES = tuple(READERS)


def _column(names: list[str], accepted: tuple[str, ...], file: Path) -> str:
    for name in accepted:
        if name in names:
            return name
    lower = {name.lower().strip(): name for name in names}
    near = next((lower[m] for a in accepted for m in get_close_matches(a, list(lower), n=1, cutoff=0.6)), None)
    remedy = f"rename {near!r} to {accepted[0]!r}" if near else f"add a column {accepted[0]!r}"
    raise InputError(
        f"a table has a column {' or '.join(map(repr, accepted[:2]))}",
        f"{file} has: {', '.join(map(repr, names)) or 'none'}",
        remedy,
    )
