"""Files of captions: the one that was given, or those that lie in a folder of videos and below it.

    captions.json, .jsonl, .csv, .tsv, .parquet      {file: text}, or a table
    metadata.jsonl, .csv, .parquet                   a table with a column file_name, as Hugging Face's videofolder has
    videos.txt and prompt.txt                        a path and a text a line, as diffusers and finetrainers have

Names in one are relative to the folder that it lies in. All that is found is one mapping; where two files say different
things of one name, its video is left out with both of them named.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from data.captions.captions import Captions, Twice, caption_of, is_empty, object_of
from data.captions.name_matching import listed, nearest
from data.captions.table_formats import rows_in
from data.captions.tables import TABLE_SUFFIXES, Table, read_table
from data.containers.open_media import MEDIA_SUFFIXES
from data.containers.regular_file import read_regular
from parallel.errors import InputError
from parallel.parsing import ParseError, parse_json, text_of
from parallel.shell import quote

FILE_NAME = "captions.json"
VIDEO_LISTS, PROMPT_LISTS = ("videos.txt", "video.txt"), ("prompt.txt", "prompts.txt", "caption.txt", "captions.txt")
LISTS = frozenset([*VIDEO_LISTS, *PROMPT_LISTS])
UNPACK = {".gz": "gunzip -k", ".bz2": "bunzip2 -k", ".xz": "unxz -k", ".zst": "unzstd"}
SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
REMEDY = 'write {"clip.mp4": "what it shows", ...}'

Opened = Callable[[str], AbstractContextManager[Path]]  # a name in the source as a local file


@dataclass
class Merged:
    """What several files of captions say.

    Attributes:
        raw: as of `Captions`.
        origins: the files.
        broken: {folder: why its file cannot be read}.
        notes: what a person should know.
        keys: other names of files whose names are URLs.
    """

    raw: dict[str, Any] = field(default_factory=dict)
    origins: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    _where: dict[str, str] = field(default_factory=dict)

    def add(self, origin: str, said: Iterable[tuple[str, Any]]) -> None:
        """What one file says of names relative to the source."""
        self.origins.append(origin)
        for name, entry in said:
            before = self.raw.get(name)
            if not is_empty(before) and is_empty(entry):
                continue
            if not is_empty(before) and _words(before) != _words(entry):
                places = dict.fromkeys((self._where[name], origin))
                entry = Twice(tuple(places) if len(places) > 1 else (f"twice in {origin}",))
            self.raw[name] = entry
            self._where.setdefault(name, origin)


def given_captions(given: Path, folder: Path) -> tuple[Captions, list[str]]:
    """The captions in the file that was given, and what a person should know of them.

    Args:
        given: a table, a JSON file, or a text file with a caption a line beside a videos.txt.
        folder: of the videos; names are relative to it.

    Raises:
        InputError: the file is absent, is not such a file, or lacks a column.
    """
    merged = Merged()
    said = _said(given, merged.notes, merged.keys)
    merged.add(str(given), ((_relative(name, folder, given.parent), entry) for name, entry in said))
    return Captions(str(given), merged.raw, root=os.path.abspath(folder), keys=merged.keys), merged.notes


def find_captions(
    folder: str, files: Sequence[str], opened: Opened | None = None, absolute: Path | None = None
) -> tuple[Captions, list[str]]:
    """The captions that lie in a folder of videos, and what a person should know of them.

    Args:
        folder: for messages.
        files: names of all files in it, to any depth.
        opened: gives those of captions; None: they lie on this machine.
        absolute: its path, to which absolute names become relative; None: they stay.

    A file that cannot be read costs the videos of its folder that have no other words.
    """
    opened = opened or (lambda name: nullcontext(Path(os.path.join(folder, name))))
    there, merged = set(files), Merged()
    for name in sorted(files):
        above, _, last = name.rpartition("/")
        last = last.lower()
        if last not in NAMED and not (last in VIDEO_LISTS and _prompts(name, there)):
            if last in PROMPT_LISTS and not _videos(name, there):
                needs = f"captions a line need a {VIDEO_LISTS[0]} beside them, with the path of a video a line"
                merged.notes.append(f"{name} is not read: {needs}")
            continue
        above = f"{above}/" if above else ""
        try:
            with opened(name) as file:
                if last in VIDEO_LISTS:
                    said = list(_lines(file, opened, name, there))
                else:
                    said = list(_said(file, merged.notes, merged.keys, name))
        except InputError as error:
            if last.startswith("metadata"):
                merged.notes.append(f"{name} is not read as captions: {error.rule}; {error.value}")
                continue
            merged.broken[above] = f"{name}: {error.rule}; found: {error.value}"
            merged.notes.append(f"{name} is not read: {error.rule}; found: {error.value}; {error.remedy}")
            continue
        merged.add(name, ((_below(above, str(key), there, absolute), entry) for key, entry in said))
    origin = listed(merged.origins) if merged.origins else f"sidecar files in {folder}"
    root = folder if absolute is None else os.path.abspath(absolute)
    found = Captions(origin, merged.raw, broken=merged.broken, root=root, rooted=True, keys=merged.keys)
    return found, merged.notes


def video_table(file: Path) -> Table:
    """A text file with the path of a video a line, beside one with a caption a line, as a table.

    Raises:
        InputError: its lines are no videos, or there are more or fewer captions.
    """
    import pyarrow as pa

    videos = [line.strip() for line in _lines_of(file, str(file))]
    if not any(Path(video).suffix.lower() in MEDIA_SUFFIXES for video in videos):
        first = f"{file} begins with {videos[0][:80]!r}" if videos else f"{file}: no lines"
        remedy = "give a folder or a table"
        for between in ("\t", "|", ";", ","):
            if videos and Path(videos[0].partition(between)[0].strip()).suffix.lower() in MEDIA_SUFFIXES:
                kind = ".tsv" if between == "\t" else ".csv"
                remedy = f"put a line path{between}caption above it, and name it {file.stem}{kind}"
        raise InputError("a text file that is a source has the path of a video a line", first, remedy)
    beside = [file.with_name(name) for name in PROMPT_LISTS if file.with_name(name).is_file() and name != file.name]
    words: list[str] = _lines_of(beside[0], str(beside[0])) if beside else [""] * len(videos)
    pairs: dict[str, str] = {}
    twice = 0
    for video, text in paired(videos, words, str(file), str(beside[0]) if beside else ""):
        twice += pairs.setdefault(video, text) != text
    many = f"{file.name}: {twice:,} lines name a video again, with other words; the first are used"
    return Table(
        pa.chunked_array([list(pairs)], pa.string()),
        pa.chunked_array([list(pairs.values())], pa.string()),
        None,
        (many,) if twice else (),
    )


def _said(file: Path, notes: list[str], keys: dict[str, str], origin: str | None = None) -> Iterator[tuple[str, Any]]:
    """(name as written, captions) in a file; `notes` grow by what a person should know, `keys` by other names."""
    suffix = file.suffix.lower()
    if suffix in SPREADSHEETS:
        raise save_as_csv(file)
    if not file.exists():
        near = nearest(file.name, [path.name for path in file.parent.glob("*")], 1)
        found = f"{file}: no such file{f' (nearest: {near[0]})' if near else ''}"
        raise InputError("the file of captions exists", found, "name a .json, .jsonl, .csv, .tsv or .parquet file")
    if file.is_dir():
        yield from _texts_in(file)
        return
    if suffix == ".txt":
        yield from _given_lines(file)
        return
    if suffix in UNPACK:
        raise _not_json(str(file), f"{UNPACK[suffix]} {quote(str(file))}, and give {quote(str(file.with_suffix('')))}")
    if suffix == ".json" or suffix not in TABLE_SUFFIXES:
        try:
            data = read_regular(file)
        except OSError as error:
            raise _not_json(f"{file}: {error.strerror}") from error
        try:
            raw = captions_in(data, origin or str(file), file)
        except InputError as error:
            if suffix != ".json" or "Extra data" not in error.value:
                raise
            raw = []  # JSON lines, whatever its name
        if isinstance(raw, dict):
            yield from raw.items()
            return
    table = read_table(file, captions=True)
    notes += table.notes
    for row in table:
        if row.key:
            keys[row.key] = row.path
        yield row.path, row.captions
    for odd in table.odd:
        if odd.path:
            yield odd.path, ParseError(f"{origin or file}, {odd.where}: {odd.reason}")
    nameless = [odd for odd in table.odd if not odd.path]
    if nameless:
        said = listed([f"{odd.where}: {odd.reason}" for odd in nameless])
        notes.append(f"{origin or file}: {len(nameless):,} rows cannot be used: {said}")


def save_as_csv(file: Path) -> InputError:
    """The error of a spreadsheet."""
    remedy = f"save it from the spreadsheet as {file.stem}.csv, in UTF-8, with the columns path,caption"
    return InputError("a table is a .csv, .tsv, .parquet, .jsonl or .json file", str(file), remedy)


def _texts_in(folder: Path) -> Iterator[tuple[str, Any]]:
    """A folder with a text file, or one of JSON, for each video."""
    texts = sorted(path for path in folder.rglob("[!.]*") if path.suffix.lower() in (".txt", ".json"))
    if not texts:
        raise InputError("a folder of captions has a .txt for each video", f"{folder}: none", "name a file of captions")
    for path in texts:
        try:
            data = read_regular(path)
            words = text_of(data) if path.suffix.lower() == ".txt" else parse_json(data, pairs=object_of)
        except (OSError, ParseError) as error:
            raise InputError("a file of words can be read", f"{path}: {error}", "save it as UTF-8") from error
        yield path.relative_to(folder).with_suffix("").as_posix(), words


def captions_in(data: bytes, origin: str, file: Path) -> Mapping[str, Any] | Sequence[Any]:
    """What a `captions.json` says: {name: captions}, or a list of rows.

    Raises:
        InputError: it is neither.
    """
    try:
        raw = parse_json(data, pairs=object_of)
    except ParseError as error:
        convert = f"iconv -f LATIN1 -t UTF-8 {quote(str(file))} > NEW"
        remedy = f"save it as UTF-8; if it is Latin-1: {convert}" if "UTF-8" in str(error) else REMEDY
        raise _not_json(f"{origin}: {error}", remedy) from error
    try:
        raw = rows_in(raw)
    except ParseError as error:
        raise _not_json(f"{origin}: {error}") from error
    if isinstance(raw, list) and raw and all(isinstance(row, dict) for row in raw):
        return raw
    if not isinstance(raw, dict):
        raise InputError("a JSON file of captions is one object", f"{origin}: {type(raw).__name__}", REMEDY)
    return raw


def _given_lines(file: Path) -> Iterator[tuple[str, Any]]:
    beside = [file.with_name(name) for name in VIDEO_LISTS if file.with_name(name).is_file()]
    if not beside:
        remedy = f"put a {VIDEO_LISTS[0]} with a path a line beside it, or write a .csv with the columns path,caption"
        raise InputError("captions a line have their videos a line", f"{file}: no {VIDEO_LISTS[0]} beside it", remedy)
    yield from paired(_lines_of(beside[0], str(beside[0])), _lines_of(file, str(file)), str(beside[0]), str(file))


def _lines(file: Path, opened: Opened, name: str, there: set[str]) -> Iterator[tuple[str, Any]]:
    prompts = _prompts(name, there)
    with opened(prompts) as words:
        yield from paired(_lines_of(file, name), _lines_of(words, prompts), name, prompts)


def paired(videos: Sequence[str], prompts: Sequence[str], names: str, words: str) -> Iterator[tuple[str, str]]:
    """The lines of two files side by side.

    Raises:
        InputError: one has more lines.
    """
    both = [list(videos), list(prompts)]
    for longer, other in (both, both[::-1]):
        while len(longer) > len(other) and not longer[-1].strip():
            longer.pop()
    videos, prompts = both
    if len(videos) != len(prompts):
        raise InputError(
            "videos and captions have as many lines",
            f"{names}: {len(videos)}, {words}: {len(prompts)}",
            "write a caption a line, an empty line for none",
        )
    yield from ((video.strip(), text) for video, text in zip(videos, prompts, strict=True) if video.strip())


def _lines_of(file: Path, origin: str) -> list[str]:
    try:
        lines = text_of(read_regular(file)).split("\n")
    except (OSError, ParseError) as error:
        raise InputError("a list of captions can be read", f"{origin}: {error}", "save it as UTF-8") from error
    if not lines[-1].strip():  # the last line ends, too
        lines.pop()
    return lines


def _videos(name: str, there: set[str]) -> bool:
    """Whether a text file has a list of videos beside it, or is of one video."""
    above, _, last = name.rpartition("/")
    stems = {posixpath.join(above, last.rpartition(".")[0]) + suffix for suffix in MEDIA_SUFFIXES}
    return any(posixpath.join(above, one) in there for one in VIDEO_LISTS) or bool(stems & there)


def _prompts(name: str, there: set[str]) -> str:
    """The file whose lines belong to those of a list of videos; "" if there is none."""
    above = name.rpartition("/")[0]
    return next((one for last in PROMPT_LISTS if (one := posixpath.join(above, last)) in there), "")


def _below(above: str, key: str, there: set[str], absolute: Path | None) -> str:
    """A name in a file of captions in folder `above`, relative to the source.

    One that does not exist there but does from a folder above it was written so.
    """
    name = key if "://" in key else _relative(key, absolute)
    if not above or "://" in name or name.startswith("/") or (absolute is not None and Path(key).is_absolute()):
        return name
    places = [above, *(f"{parent}/" for parent in map(str, PurePosixPath(above).parents) if parent != "."), ""]
    joined = [posixpath.normpath(place + name) for place in places]
    return next((one for one in joined if one in there), joined[0])


def _relative(name: str, folder: Path | None, beside: Path | None = None) -> str:
    """A path that somebody wrote, relative to the folder of the videos if it lies in it."""
    if "://" in name:
        return name
    given = Path(name)
    if folder is not None and (given.is_absolute() or ".." in given.parts):
        start = Path(os.path.abspath(folder))
        for base in (beside, folder):
            whole = Path(os.path.abspath(os.path.join(base or folder, given)))
            if whole.is_relative_to(start):
                return whole.relative_to(start).as_posix()
    return posixpath.normpath(given.as_posix()) if given.parts else name


def _words(entry: Any) -> Any:
    """Captions, so that those that say the same in two forms are equal."""
    try:
        return caption_of(entry, "")
    except InputError:
        return entry


def _not_json(what: str, remedy: str = REMEDY) -> InputError:
    return InputError("captions are JSON, JSON lines, CSV, TSV or Parquet", what, remedy)


NAMED = frozenset(
    [FILE_NAME, *(f"captions{s}" for s in TABLE_SUFFIXES)]
    + [f"metadata{s}" for s in TABLE_SUFFIXES if s not in (".json", ".tsv")]
)
