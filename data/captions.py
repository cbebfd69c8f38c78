"""Captions: which words belong to which video, from the places where people keep them.

In this order: a table (CSV or Parquet) that names each video and its caption; `captions.json` beside the videos,
{file: text} or {file: {"short": ..., "long": ...}}; a sidecar `<stem>.txt` or `<stem>.json` per video. The first two
are read once; a sidecar is read when its video is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from parallel.errors import InputError

Choice = Literal["short", "long"]

PATH_COLUMNS = ("path", "file", "video")
CAPTION_COLUMNS = ("caption", "text")
TABLE_SUFFIXES = (".csv", ".parquet")
FILE_NAME = "captions.json"
NO_CAPTION = "no caption"  # the value of the error of a video without one


@dataclass(frozen=True)
class Captions:
    """Raw captions by file name, and whether sidecar files may add to them.

    Attributes:
        origin: where they come from, for messages.
        raw: {name relative to the source, with /: text or {"short": text, "long": text}}.
        sidecars: look for `<stem>.txt` and `<stem>.json` beside a video that `raw` lacks.
    """

    origin: str
    raw: Mapping[str, Any] = field(default_factory=dict)
    sidecars: bool = True

    def text(self, name: str, path: Path, choice: Choice = "short") -> str:
        """The caption of one video: `name` as in `raw` (or its last part), `path` where it lies.

        Raises:
            InputError: it has none, or none of this choice, or an unreadable one.
        """
        entry = self.raw.get(name, self.raw.get(Path(name).name))
        if entry is None and self.sidecars:
            entry = _sidecar(path)
        if isinstance(entry, Mapping):
            found = [key for key in ("short", "long", *CAPTION_COLUMNS) if entry.get(key)]
            if choice not in found and ("short" in found or "long" in found):
                raise _no_caption(f"no {choice} caption of {name} in {self.origin}, only: {', '.join(found)}")
            entry = next((entry[key] for key in (choice, *CAPTION_COLUMNS) if key in found), None)
        if entry is not None and not isinstance(entry, str):
            raise _no_caption(f"the caption of {name} is {type(entry).__name__}, not text")
        if not entry or not entry.strip():
            raise _no_caption(NO_CAPTION)
        return entry.strip()


def find_captions(folder: Path, given: Path | None = None) -> Captions:
    """The captions of a folder of videos: `given` (a table or a JSON file), else `captions.json` in it, else sidecars.

    Raises:
        InputError: the file is absent, is not such a file, or lacks a column.
    """
    if given is not None and given.suffix.lower() in TABLE_SUFFIXES:
        paths, texts = read_table(given, captions=True)
        return Captions(str(given), {_relative(path, folder): text for path, text in zip(paths, texts, strict=True)})
    file = given if given is not None else folder / FILE_NAME
    if given is None and not file.exists():
        return Captions(f"sidecar files in {folder}")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError("the file of captions exists", str(file), "name a .json, .csv or .parquet file") from error
    except (ValueError, OSError) as error:
        raise InputError(
            "captions are JSON, CSV or Parquet", f"{file}: {error}", 'write {"clip.mp4": "what it shows", ...}'
        ) from error
    if not isinstance(raw, dict):
        raise InputError(
            "a JSON file of captions is one object",
            f"{file}: {type(raw).__name__}",
            'write {"clip.mp4": "what it shows", ...}',
        )
    return Captions(str(file), {_relative(str(key), folder): value for key, value in raw.items()})


def read_table(file: Path, captions: bool) -> tuple[list[str], list[str | None]]:
    """The path column and the caption column (None where empty) of a CSV or Parquet file.

    Args:
        file: the table.
        captions: whether it must have a caption column; without one every caption is None.

    Raises:
        InputError: no such table, or a column is missing; names the columns that it has.
    """
    # As text throughout: a folder of videos called 001, 002 must not become the numbers 1 and 2.
    readers: dict[str, Callable[[], pa.Table]] = {
        ".csv": lambda: _read_csv(file),
        ".parquet": lambda: pyarrow.parquet.read_table(file),
    }
    if file.suffix.lower() not in readers:
        raise InputError("a table is a .csv or a .parquet file", str(file), "convert it to one of them")
    try:
        table = readers[file.suffix.lower()]()
    except (pa.ArrowException, OSError) as error:
        raise InputError("a table can be read", f"{file}: {error}", "check the file with pandas or DuckDB") from error
    names = list(table.column_names)
    paths = [None if p is None else str(p).strip() for p in table[_column(names, PATH_COLUMNS, file)].to_pylist()]
    if not captions and not set(names) & set(CAPTION_COLUMNS):
        texts: list[str | None] = [None] * len(paths)
    else:
        texts = [None if t is None else str(t) for t in table[_column(names, CAPTION_COLUMNS, file)].to_pylist()]
    again = next((path for path, times in Counter(paths).items() if path and times > 1), None)
    if again is not None:
        raise InputError(
            "a table names each video once", f"{file}: {again} stands there twice", "keep one caption of it"
        )
    empty = next((row for row, path in enumerate(paths) if not path), None)
    if empty is not None:
        raise InputError(
            "every row of a table names its video", f"{file}: row {empty + 1} does not", "fill or remove the row"
        )
    return [path for path in paths if path], texts


def _read_csv(file: Path) -> pa.Table:
    with pyarrow.csv.open_csv(file) as head:
        names = head.schema.names
    return pyarrow.csv.read_csv(
        file,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )


def _column(names: list[str], accepted: tuple[str, ...], file: Path) -> str:
    for name in accepted:
        if name in names:
            return name
    lower = {name.lower().strip(): name for name in names}
    near = next((lower[m] for a in accepted for m in get_close_matches(a, list(lower), n=1, cutoff=0.6)), None)
    remedy = f"rename {near!r} to {accepted[0]!r}" if near else f"add a column {accepted[0]!r}"
    raise InputError(
        f"a table has a column {' or '.join(map(repr, accepted))}",
        f"{file} has: {', '.join(map(repr, names)) or 'none'}",
        remedy,
    )


def _sidecar(path: Path) -> Any:
    for suffix in (".txt", ".json"):
        file = path.with_suffix(suffix)
        try:
            text = file.read_text(encoding="utf-8")
            return json.loads(text) if suffix == ".json" else text
        except FileNotFoundError:
            continue
        except (ValueError, OSError) as error:
            raise _no_caption(f"the caption file {file.name} cannot be read: {error}") from error
    return None


def _relative(path: str, folder: Path) -> str:
    given = Path(path)
    if given.is_absolute() and given.is_relative_to(folder.absolute()):
        return given.relative_to(folder.absolute()).as_posix()
    return given.as_posix()


def _no_caption(reason: str) -> InputError:
    return InputError(
        "every video has a caption", reason, "write captions.json or <video>.txt beside it, or allow missing captions"
    )
