"""Captions: which words belong to which video, from the places where people keep them; a short and a long text of each.

In this order: a table that names each video and its captions; `captions.json` beside the videos, {file: text} or
{file: {"short": ..., "long": ...}}; a sidecar `<stem>.txt` or `<stem>.json` per video. The first two are read once; a
sidecar is read when its video is listed. Both texts are kept: which of them to train on is chosen in training. Where
there is but one, it is the caption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data.tables import TABLE_SUFFIXES, read_table
from parallel.errors import InputError
from parallel.parsing import ParseError, parse_json

SHORT_KEYS = ("short", "caption", "text")  # of an object with captions, the first that is there
LONG_KEYS = ("long", "caption_long", "long_caption")
FILE_NAME = "captions.json"
NO_CAPTION = "no caption"  # the value of the error of a video without one
LARGEST_WORDS = 16 << 20  # bytes of one sidecar


class Caption(NamedTuple):
    """`short` is the short text or the only one, `long` is "" if there is no other."""

    short: str
    long: str = ""


@dataclass(frozen=True)
class Captions:
    """Raw captions by file name, and whether sidecar files may add to them.

    Attributes:
        origin: where they come from, for messages.
        raw: {name relative to the source, with /: text or an object with texts}.
        sidecars: look beside a video that `raw` lacks.
    """

    origin: str
    raw: Mapping[str, Any] = field(default_factory=dict)
    sidecars: bool = True

    def of(self, name: str, beside: Callable[[], Caption] | None = None) -> Caption:
        """The caption of one video.

        Args:
            name: as in `raw`, or its last part.
            beside: gives what stands beside it, or raises; called if `raw` lacks the video.

        Raises:
            InputError: it has none, or an unreadable one.
        """
        entry = self.raw.get(name, self.raw.get(name.rpartition("/")[2]))
        if entry is None and self.sidecars and beside is not None:
            return beside()
        return caption_of(entry, name)


def caption_of(entry: Any, name: str) -> Caption:
    """A text, or an object with texts, as a caption; `name` is for messages.

    Raises:
        InputError: it has none, or something else.
    """
    texts = entry if isinstance(entry, Mapping) else {SHORT_KEYS[0]: entry}
    short, long = _first(texts, SHORT_KEYS, name), _first(texts, LONG_KEYS, name)
    if not short and not long:
        raise no_caption(NO_CAPTION)
    return Caption(short, long) if short else Caption(long)


def of_parts(parts: Mapping[str, bytes]) -> Caption:
    """The caption in the parts of a sample that have words, by suffix: json (an object or a text), txt, cls.

    Raises:
        InputError: there is none, or a part is not what its suffix says.
    """
    said = {suffix: _text(suffix, data) for suffix, data in parts.items()}
    texts: dict[str, Any] = {}
    if "json" in said:
        try:
            value = parse_json(said["json"])
        except ParseError as error:
            raise no_caption(f"its json cannot be read: {error}") from error
        if isinstance(value, dict):
            texts = value
        elif isinstance(value, str) or not said.get("txt"):
            texts = {"caption": value}
    words = {key: texts[key] for key in (*SHORT_KEYS, *LONG_KEYS) if key in texts}
    plain = said.get("txt") or ("" if any(words.get(key) for key in SHORT_KEYS) else said.get("cls", ""))
    if plain and not words.get("short"):
        words["short"] = plain
    return caption_of(words, "the sample")


def find_captions(folder: Path, given: Path | None = None) -> Captions:
    """The captions of a folder of videos: `given` (a table or a JSON file), else `captions.json` in it, else sidecars.

    Raises:
        InputError: the file is absent, is not such a file, or lacks a column.
    """
    if given is not None and given.suffix.lower() in TABLE_SUFFIXES:
        rows = read_table(given, captions=True)
        return Captions(str(given), {_relative(row.path, folder): row.captions for row in rows})
    file = given if given is not None else folder / FILE_NAME
    if given is None and not file.exists():
        return Captions(f"sidecar files in {folder}")
    try:
        return parse_captions(file.read_bytes(), str(file), folder)
    except FileNotFoundError as error:
        remedy = "name a .json, .jsonl, .csv or .parquet file"
        raise InputError("the file of captions exists", str(file), remedy) from error
    except OSError as error:
        raise _not_json(f"{file}: {error.strerror}") from error


def parse_captions(data: bytes, origin: str, folder: Path | None = None) -> Captions:
    """What a `captions.json` says; absolute names in `folder` become relative to it.

    Raises:
        InputError: it is no JSON object.
    """
    try:
        raw = parse_json(data)
    except ParseError as error:
        raise _not_json(f"{origin}: {error}") from error
    if not isinstance(raw, dict):
        raise InputError(
            "a JSON file of captions is one object",
            f"{origin}: {type(raw).__name__}",
            'write {"clip.mp4": "what it shows", ...}',
        )
    return Captions(origin, {_relative(str(key), folder): value for key, value in raw.items()})


def sidecars_of(path: Path) -> dict[str, bytes]:
    """The files of words beside a video, by suffix.

    Raises:
        InputError: one cannot be read.
    """
    found = {}
    for suffix in ("txt", "json"):
        file = path.with_suffix(f".{suffix}")
        try:
            if file.stat().st_size > LARGEST_WORDS:
                raise no_caption(f"the caption file {file.name} has {file.stat().st_size} bytes")
            found[suffix] = file.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise no_caption(f"the caption file {file.name} cannot be read: {error.strerror}") from error
    return found


def no_caption(reason: str) -> InputError:
    """The error of a video without a caption that can be used."""
    return InputError(
        "every video has a caption", reason, "write captions.json or <video>.txt beside it, or allow missing captions"
    )


def _first(texts: Mapping[str, Any], keys: tuple[str, ...], name: str) -> str:
    for key in keys:
        entry = texts.get(key)
        if entry is not None and not isinstance(entry, str):
            raise no_caption(f"the caption of {name} is {type(entry).__name__}, not text")
        if entry and entry.strip():
            return clean(entry.strip())
    return ""


def clean(text: str) -> str:
    """Text that can be written as UTF-8: half characters, which JSON may hold, become question marks."""
    return text.encode("utf-8", "replace").decode()


def _text(suffix: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise no_caption(f"its {suffix} is not UTF-8") from error


def _relative(path: str, folder: Path | None) -> str:
    given = Path(path)
    if folder is not None and given.is_absolute() and given.is_relative_to(folder.absolute()):
        return given.relative_to(folder.absolute()).as_posix()
    return path if "://" in path else given.as_posix()


def _not_json(what: str) -> InputError:
    return InputError("captions are JSON, JSON lines, CSV or Parquet", what, 'write {"clip.mp4": "what it shows", ...}')
