"""Columns of tables that people made: which one names the video and which ones say what it shows.

Headers are compared without capitals, spaces around them, and with - and spaces as _. Of several that could be meant
the first of the lists below is; what else there is is told. The names are those of Hugging Face's videofolder
(file_name), diffusers and finetrainers (video, prompt), Open-Sora (path, text, cap), OpenVid, VidGen and others.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from parallel.errors import InputError
from parallel.shell import quote

PATH_COLUMNS: tuple[str, ...] = (
    "path", "file", "video", "url", "image", "file_name", "filename", "video_path", "file_path", "filepath",
    "media_path", "image_path", "clip_path", "video_file", "video_file_name", "image_file_name", "video_url",
    "image_url", "media", "clip", "vid",
)  # fmt: skip
ID_COLUMNS = ("video_id", "videoid", "clip_id", "youtubeid", "id", "key")
NAME_COLUMNS = ("content_url", "contenturl", *ID_COLUMNS, "name")
PATH_COLUMNS += NAME_COLUMNS  # if there is nothing better: keys are names without a suffix
SHORT_COLUMNS = ("caption", "text", "short", "cap", "prompt", "captions", "short_caption", "description", "encap")
LONG_COLUMNS = ("caption_long", "long", "long_caption", "dense_caption", "detailed_caption")
MOMENT_COLUMNS = frozenset((
    "start", "end", "begin", "start_time", "end_time", "start_sec", "end_sec", "start_second", "end_second",
    "start_frame", "end_frame", "start_timestamp", "end_timestamp", "timestamp", "timestamps",
))  # fmt: skip
DELIMITERS = (",", "\t", ";", "|")


def plain(header: str) -> str:
    """A header as it is compared."""
    return header.strip().strip("\ufeff").strip().lower().replace(" ", "_").replace("-", "_")


def is_known(header: str) -> bool:
    """Whether a column of this header is read."""
    return plain(header) in {*PATH_COLUMNS, *SHORT_COLUMNS, *LONG_COLUMNS}


def column_of(headers: Sequence[str], accepted: Sequence[str], file: Path) -> tuple[str | None, list[str]]:
    """The column that is meant, None if there is none, and others that could have been.

    Raises:
        InputError: two differ in capitals or spaces alone.
    """
    fitting: list[str] = []
    for name in accepted:
        same = [header for header in headers if plain(header) == name]
        if len(same) > 1 and name not in same:
            found = f"{file} has {' and '.join(map(repr, same))}"
            raise InputError("columns of a table have different names", found, f"rename one of them to {name!r}")
        fitting += [name] if name in same else same
    others = [name for name in fitting[1:] if plain(name) not in NAME_COLUMNS]
    return (fitting[0], others) if fitting else (None, [])


def moments(headers: Iterable[str]) -> list[str]:
    """Columns that may say which part of a video is meant."""
    return [header for header in headers if plain(header) in MOMENT_COLUMNS]


def missing(headers: Sequence[str], accepted: Sequence[str], file: Path) -> InputError:
    """The error of a table without such a column; guesses which one was meant."""
    lower = {plain(header): header for header in headers}
    near = next((lower[m] for a in accepted for m in get_close_matches(a, list(lower), n=1, cutoff=0.6)), None)
    remedy = f"rename {near!r} to {accepted[0]!r}" if near else f"add a column {accepted[0]!r}"
    if any("/" in header or Path(header).suffix[1:].isalnum() for header in headers if "." in header):
        remedy = "if its first line is a row already, put a line with the names of the columns above: path,caption"
    known = {*PATH_COLUMNS, *SHORT_COLUMNS, *LONG_COLUMNS}
    if len(headers) == 1 and len(known.intersection(map(plain, re.split(r"[^\w \-]|\s{2,}| ", headers[0])))) > 1:
        remedy = "separate columns by a comma, a tab, ; or |"
    if headers and headers[0].lstrip("\ufeff").startswith("#"):
        remedy = "take out the lines above the names of the columns: a table begins with these"
    if any("\0" in header for header in headers):
        remedy = f"it may be UTF-16 without a mark: iconv -f UTF-16LE -t UTF-8 {quote(str(file))} > NEW{file.suffix}"
        headers = [header.replace("\0", "") for header in headers]
    if {"conversations", "messages"} & lower.keys():
        remedy = f"longreel data chat {quote(str(file))} --clips DATASET --out CHATS, for conversations"
    return InputError(
        f"a table has a column {' or '.join(map(repr, accepted[:2]))}",
        f"{file} has: {', '.join(map(repr, headers)) or 'none'}",
        remedy,
    )


def delimiter_of(head: str, usual: str) -> str:
    """What separates columns: the usual, or another if only with that one a column names videos.

    Args:
        head: first line of the table.
        usual: for a file of its suffix.
    """
    for delimiter in (usual, *DELIMITERS):
        if any(plain(name) in PATH_COLUMNS for name in row_of(head, delimiter)):
            return delimiter
    return usual


def row_of(line: str, delimiter: str) -> list[str]:
    """The cells of one line."""
    return next(csv.reader([line], delimiter=delimiter), [])


def other_columns(kind: str, used: str, others: Iterable[str]) -> str:
    """What to tell of columns that are not used."""
    return f"column {used!r} has the {kind}; not used: {', '.join(map(repr, others))}"
