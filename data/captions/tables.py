"""Tables that name videos, by path or URL, and say what they show: CSV, TSV, Parquet, JSON lines, a list in JSON.

    rows of a file --its columns--> path, captions      or what is wrong with this row alone (`Odd`)

A table stays in Arrow's columns, about as large in memory as its text; rows are made when they are asked for. Reading
costs about 6 us a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from data.captions.caption_columns import (
    ID_COLUMNS,
    LONG_COLUMNS,
    PATH_COLUMNS,
    SHORT_COLUMNS,
    column_of,
    is_known,
    missing,
    moments,
    other_columns,
    plain,
)
from data.captions.captions import Twice, listed_text
from data.captions.name_matching import listed
from data.captions.table_formats import NOT_UTF_8, READERS, ROWS_AT_A_TIME, Cells, Rows, Written
from data.captions.table_rows import half_character
from data.remote.addresses import split_url
from parallel.errors import InputError
from parallel.parsing import ParseError, shorter
from parallel.shell import quote

KINDS = {"paths": PATH_COLUMNS, "captions": SHORT_COLUMNS, "long captions": LONG_COLUMNS}
TABLE_SUFFIXES = tuple(READERS)
PAGES = ("youtube.com", "youtu.be", "vimeo.com", "bilibili.com", "dailymotion.com")


class Odd(NamedTuple):
    """A row that cannot be used: where it stands, the path in it ("" if it has none), and why."""

    where: str
    path: str
    reason: str


class Row(NamedTuple):
    """`path` as the table has it; `captions` by key (short, long), None where a cell is empty; `where` it stands.

    `key`: another name of the same file, where the path is a URL and the row has an id, "" if there is none.
    """

    path: str
    captions: dict[str, str | None]
    where: str = ""
    key: str = ""


@dataclass(frozen=True, eq=False)
class Table:
    """Columns as text.

    Attributes:
        paths: of all rows that can be used.
        short, long: None if the table has no such column.
        notes: for people.
        where: each row stands; None if that is not known.
        odd: the other rows.
        keys: other names of the files, "" where there is none; None if no row has one.
    """

    paths: pa.ChunkedArray
    short: pa.ChunkedArray | None
    long: pa.ChunkedArray | None
    notes: tuple[str, ...] = ()
    where: pa.ChunkedArray | None = None
    odd: tuple[Odd, ...] = ()
    keys: pa.ChunkedArray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def any_ends_with(self, suffix: str) -> bool:
        """Whether a path does, in capitals or not."""
        ends = pyarrow.compute.ends_with(self.paths, suffix, ignore_case=True)
        return bool(pyarrow.compute.any(ends).as_py())

    def __iter__(self) -> Iterator[Row]:
        """The rows, sorted by path."""
        order = pyarrow.compute.sort_indices(self.paths)
        for start in range(0, len(order), ROWS_AT_A_TIME):
            rows = order[start : start + ROWS_AT_A_TIME]
            columns = [self.paths, self.short, self.long, self.where, self.keys]
            values = ([None] * len(rows) if c is None else c.take(rows).to_pylist() for c in columns)
            for path, short, long, where, key in zip(*values, strict=True):
                yield Row(path, {"short": short, "long": long}, where or "", key or "")


def read_table(file: Path, captions: bool) -> Table:
    """The paths and the captions of a table; of rows about one video the first counts, a row that is odd costs itself.

    Args:
        file: a .csv, .tsv, .parquet, .jsonl or .json file.
        captions: whether it must have a column with captions.

    Raises:
        InputError: no such table, a column is missing (names the columns that it has), or no row can be used.
    """
    if file.suffix.lower() not in READERS:
        rule = "a table is a .csv, .tsv, .parquet, .jsonl or .json file"
        raise InputError(rule, str(file), "save it as .csv, with a line path,caption above")
    try:
        table = _Columns(file).read(READERS[file.suffix.lower()](file), captions)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        found = " ".join(str(error).split())
        raise InputError("a table can be read", f"{file}: {found}", _remedy(found, file)) from error
    if table.odd and not len(table):
        first = table.odd[0]
        many = "its only row" if len(table.odd) == 1 else f"none of {len(table.odd):,} rows can be; the first,"
        remedy = _remedy(first.reason, file)
        raise InputError("a row of a table can be used", f"{file}: {many} {first.where}: {first.reason}", remedy)
    return _each_once(table, file)


@dataclass
class _Columns:
    """Columns of a table, row by row; headers may differ from row to row, as JSON allows."""

    file: Path
    names: dict[str, None] = field(default_factory=dict)
    used: dict[str, None] = field(default_factory=dict)  # kinds of columns that some row has
    notes: dict[str, None] = field(default_factory=dict)
    odd: list[Odd] = field(default_factory=list)
    several: int = 0
    keyed: bool = False  # whether a row has an id beside its URL
    _of: dict[tuple[str, ...], list[list[str]] | str] = field(default_factory=dict)

    def read(self, source: tuple[list[str], Rows], captions: bool) -> Table:
        """All of the rows."""
        names, rows = source
        self.names.update(dict.fromkeys(names))
        if names:  # of all rows, as a CSV has them
            self._of[tuple(name for name in names if is_known(name))] = self._kinds(names)
        chunks: list[list[pa.Array]] = [[], [], [], [], []]
        good = self._good(rows)
        while taken := list(islice(good, ROWS_AT_A_TIME)):
            for column, values in zip(chunks, zip(*taken, strict=True), strict=True):
                column.append(pa.array(values, pa.string()))
        if "paths" not in self.used and not (self.odd and not self.names):
            raise missing(list(self.names), PATH_COLUMNS, self.file)
        if captions and not {"captions", "long captions"} & self.used.keys() and "paths" in self.used:
            raise missing(list(self.names), SHORT_COLUMNS, self.file)
        told = moments(self.names)
        if told:
            said = f"{', '.join(map(repr, told))} not used: each file is prepared whole"
            self.notes[f"{self.file.name}: {said}"] = None
        if self.several:
            note = f"{self.file.name}: {self.several:,} rows have several captions, of which the first is used"
            self.notes[note] = None
        where, paths, short, long, keys = (pa.chunked_array(column, pa.string()) for column in chunks)
        return Table(
            paths,
            short if "captions" in self.used else None,
            long if "long captions" in self.used else None,
            tuple(self.notes),
            where,
            tuple(self.odd),
            keys if self.keyed else None,
        )

    def _good(self, rows: Rows) -> Iterator[tuple[str, str, str | None, str | None, str]]:
        """(where, path, short, long, key) of rows that can be used."""
        for where, cells in rows:
            path = ""
            try:
                if isinstance(cells, ParseError):
                    raise cells
                path, words, key = self._row(cells)
                _refuse_path(path)
                short, long = (
                    _whole(_text(words[0], "caption"), "caption"),
                    _whole(_text(words[1], "caption"), "caption"),
                )
            except ParseError as error:
                self.odd.append(Odd(where, _shown(getattr(error, "path", path)), str(error)))
                continue
            if short is not words[0] or long is not words[1]:
                self.several += any(isinstance(cell, list) and len(cell) > 1 for cell in words)
            self.keyed = self.keyed or bool(key)
            yield where, path, short, long, key

    def _row(self, cells: Cells) -> tuple[str, list[Any], str]:
        """The path of a row, its short and long caption as they stand there, and its key."""
        if not isinstance(cells, Mapping):
            raise ParseError(f"it is no object with a path and a caption, but {shorter(cells)}")
        keys = tuple(cells)
        if keys not in self._of:
            self.names.update(dict.fromkeys(map(str, keys)))
            if len(self._of) > ROWS_AT_A_TIME:  # each row has keys of its own
                self._of.clear()
            try:
                self._of[keys] = self._kinds([key for key in keys if is_known(key)])
            except InputError as error:
                self._of[keys] = f"{error.rule}: {error.value}"
        kinds = self._of[keys]
        if isinstance(kinds, str):
            raise ParseError(kinds)
        paths, short, long, ids = kinds
        if not paths:
            raise ParseError(f"it names no video; its columns: {', '.join(map(shorter, cells)) or 'none'}")
        path = next((cells[name] for name in paths if cells[name] not in (None, "")), None)
        if isinstance(path, Mapping) and not path.get("bytes"):  # as Hugging Face has it
            path = path.get("path")
        named, key = _text(path, "path") or "", ""
        if "://" in named:
            named = named.strip()
            key = next((str(cells[name]).strip() for name in ids if isinstance(cells[name], str)), "")
            if key and is_page(named):
                named, key = key, ""
        return (
            named if named.strip() else "",
            [listed_text(cells[names[0]]) if names else None for names in (short, long)],
            key,
        )

    def _kinds(self, names: list[str]) -> list[list[str]]:
        """The columns of each kind: the one that is meant, and what stands for it where its cell is empty; and ids."""
        found = []
        headers = {plain(name): name for name in names}
        webvid = {"videoid", "page_dir"} <= {plain(name) for name in self.names}  # whose names are its captions
        for kind, accepted in KINDS.items():
            if webvid and "name" in headers:
                accepted = (*(one for one in accepted if one != "name"), *["name"] * (kind == "captions"))
            column, others = column_of(names, accepted, self.file)
            if others:
                note = f"{self.file.name}: {other_columns(kind, str(column), dict.fromkeys(others))}"
                self.notes[note] = None
            if column is not None:
                self.used[kind] = None
            found.append([] if column is None else [column, *others])
        return [*found, [headers[name] for name in ID_COLUMNS if name in headers]]


def is_page(url: str) -> bool:
    """Whether a URL is a page of a site of videos, such as https://www.youtube.com/watch?v=abc, and no file."""
    host = split_url(url).netloc.lower().removeprefix("www.").removeprefix("m.")
    return host in PAGES


def _refuse_path(path: str) -> None:
    if not path:
        raise ParseError("it names no video: fill its path, or take the row out")
    if "\0" in path:
        raise ParseError("its path holds a NUL")
    _whole(path, "path")


def _whole(text: str | None, what: str) -> str | None:
    half = None if text is None else half_character(text)
    if half is not None:
        raise ParseError(f"its {what} holds {half}: {NOT_UTF_8 if 'UTF-8' in half else 'write whole characters'}")
    return text


def _text(cell: Any, what: str) -> str | None:
    """A cell as text: numbers came as they are written; of several captions the first."""
    if type(cell) is str or cell is None:
        return cell
    if isinstance(cell, list) and what == "caption":
        whole = next((one for one in cell if isinstance(one, Mapping) and str(one.get("idx")) == "-1"), None)
        if whole is not None and isinstance(whole.get("content"), str):  # ShareGPT4Video: of the whole video
            return str(whole["content"])
        texts = (one for one in cell if isinstance(one, str) and not isinstance(one, Written) and one.strip())
        cell = next(texts, cell or None)
    if isinstance(cell, str):
        return str(cell)  # a number as it was written
    if isinstance(cell, float) and cell != cell:
        return None  # how pandas writes an empty cell
    if isinstance(cell, Twice):
        raise ParseError(f"{cell.where[0]}, with different words")
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "surrogateescape")
    if isinstance(cell, Mapping) and cell.get("bytes"):
        raise ParseError(f"its {what} is the bytes of a file: write them to a file, and name that")
    kind = "true or false" if isinstance(cell, bool) else "a list" if isinstance(cell, list) else "an object"
    raise ParseError(f"its {what} is {kind if isinstance(cell, (bool, list, Mapping)) else 'no text'}: {shorter(cell)}")


def _remedy(reason: str, file: Path) -> str:
    if "UTF-8" in reason:
        made = file.with_name(f"{file.stem}-utf8{file.suffix}")
        return f"save it as UTF-8; if it is Latin-1: iconv -f LATIN1 -t UTF-8 {quote(str(file))} > {quote(str(made))}"
    return "mend that place, or write a .jsonl with an object a line"


def _shown(path: str) -> str:
    """A path that can be written."""
    return path.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _each_once(table: Table, file: Path) -> Table:
    """The first row of each video, and a note about the others."""
    bare = pyarrow.compute.utf8_trim_whitespace(table.paths)
    if not bare.equals(table.paths) and len(bare.unique()) == len(table.paths.unique()):
        table = replace(table, paths=bare)  # spaces around names that nothing else has
    if len(table.paths.unique()) == len(table.paths):
        return table
    rows: dict[str, list[int]] = {}
    for row, path in enumerate(table.paths.to_pylist()):
        rows.setdefault(path, []).append(row)
    assert table.where is not None, "it was read from a file"
    where = table.where
    several = [f"{path} ({', '.join(where[n].as_py() for n in at[:3])})" for path, at in rows.items() if len(at) > 1]
    note = f"{file.name}: {len(several):,} videos stand in several rows, of which the first is used: {listed(several)}"
    first = pa.array([at[0] for at in rows.values()])
    columns = (table.paths, table.short, table.long, where, table.keys)
    paths, short, long, where, keys = (None if column is None else column.take(first) for column in columns)
    return Table(paths, short, long, (*table.notes, note), where, table.odd, keys)
