"""`find`: a folder, a file, a table or a tar, here or behind a URL, becomes a list of files to prepare.

    source --names--> entries --look at each, in threads--> SourceFile or Unusable, one at a time

Names are all that is kept of the whole; the size, the time, the words beside a file and the headers of a tar are read
when their turn comes.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

from data.captions.captions import (
    LARGEST_WORDS,
    NO_CAPTION,
    Caption,
    Captions,
    NoCaptionError,
    Tell,
    no_caption,
    of_sides,
)
from data.captions.name_matching import SHOWN, listed, loose, nearest, parts_of
from data.captions.sidecars import KINDS, Folders, Sides
from data.captions.tables import TABLE_SUFFIXES, Row, is_page, read_table
from data.containers.open_media import IMAGE_SUFFIXES, MEDIA_SUFFIXES, VIDEO_SUFFIXES
from data.containers.regular_file import read_regular
from data.remote import remote_files
from data.remote.addresses import leads_inside
from data.remote.remote_files import RemoteFile
from data.remote.scratch import scratch
from data.sources.caption_files import (
    LISTS,
    NAMED,
    SPREADSHEETS,
    Opened,
    find_captions,
    given_captions,
    save_as_csv,
    video_table,
)
from data.sources.files import (
    BAD_CAPTION,
    BAD_ROW,
    NOT_FETCHED,
    NOT_READ,
    TAR_SUFFIX,
    SourceFile,
    Unusable,
    files_in,
    local_place,
    readable,
    remote_place,
)
from data.sources.frame_folders import OPTION, frame_folders, hint, is_frame_folder, left_out, mixed
from data.sources.frame_folders import SUFFIX as FILM
from data.sources.tar_members import local_members, remote_members
from data.workers.prefetch import ahead
from parallel.errors import InputError
from parallel.shell import quote

PACKED = {
    ".gz": "gunzip -k",
    ".tgz": "gunzip -k",
    ".bz2": "bunzip2 -k",
    ".xz": "unxz -k",
    ".zst": "unzstd",
    ".zip": "unzip",
}

Found = Iterable[SourceFile | Unusable]
Look = Callable[[Counter[str]], Found]  # at an entry: what files it is; counts what is none
SUFFIXES = frozenset([*MEDIA_SUFFIXES, TAR_SUFFIX])
SIDECARS = frozenset(f".{suffix}" for suffix in KINDS if suffix != "cls")


@dataclass
class Listing:
    """The files of a source, in a fixed order; iterate once.

    Attributes:
        looks: at the entries of the source.
        total: how many files there will be; None while tars are still to be opened.
        ignored: what is no file to prepare, by suffix: other kinds of files and members of tars, and images beside
            videos of their name.
        notes: what a person should know of the captions; the last ones come with the last file.
        words: who has which caption.
    """

    looks: Iterable[Look]
    total: int | None
    ignored: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    words: Words | None = None

    def __iter__(self) -> Iterator[SourceFile | Unusable]:
        """Files, and what is wrong with others."""

        def taken(look: Look) -> tuple[list[SourceFile | Unusable], Counter[str]]:
            ignored: Counter[str] = Counter()
            return list(look(ignored)), ignored

        names = []
        for found, ignored in ahead(taken, self.looks):
            self.ignored += ignored
            for one in found:
                names.append(one.name)
                yield one
        self.total = len(names)
        if self.words is not None:
            self.notes += self.words.notes(names)


@dataclass(frozen=True)
class Words:
    """Which caption a file has, and whether it may have none.

    Attributes:
        captions: by name.
        needed: a file without one cannot be used.
        folders: what lies beside the files.
        whole: the files are all that the captions could be about.
        tables: beside them, which are not read.
        several: files with more captions than are used.
        passed: (file, where other words of it stand, which are not used).
        without: files without any.
        films: folders that are films.
    """

    captions: Captions
    needed: bool
    folders: Folders | None = None
    whole: bool = True
    tables: tuple[str, ...] = ()
    several: list[str] = field(default_factory=list)
    passed: list[tuple[str, str]] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    films: frozenset[str] = frozenset()

    def of(self, name: str, beside: Callable[[Tell, Tell], Caption] | None = None) -> Caption | Unusable:
        """The caption, or why the file cannot be used without."""

        def tell(_: str) -> None:
            self.several.append(name)

        def other(where: str) -> None:
            self.passed.append((name, where))

        try:
            return self.captions.of(name, None if beside is None else partial(beside, tell, other), tell, other)
        except NoCaptionError as error:
            self.without.append(name)
            reason = f"{NO_CAPTION}; {error.hint}" if error.hint else NO_CAPTION
            return Unusable(name, NO_CAPTION, reason) if self.needed else Caption("")
        except InputError as error:
            return Unusable(name, BAD_CAPTION, error.value)
        except remote_files.FetchError as error:
            return Unusable(name, BAD_CAPTION, f"its words: {error}")

    def notes(self, files: Sequence[str]) -> list[str]:
        """What a person should know once all files are listed."""
        notes = self.captions.unmatched(files) if self.whole else []
        if self.several:
            files = sorted(set(self.several))
            many = f"{len(files):,} files have" if len(files) > 1 else "1 file has"
            notes.append(f"{many} several captions, of which the first is used: {listed(files)}")
        if self.passed:
            where: dict[str, list[str]] = {}
            for name, other in sorted(set(self.passed)):
                where.setdefault(name, []).append(other)
            many = f"{len(where):,} files have" if len(where) > 1 else "1 file has"
            said = listed([f"{name} ({listed(others)})" for name, others in where.items()])
            notes.append(f"{many} other words, which are not used: {said}")
        if self.without and self.tables:
            notes.append(f"not read: {listed(self.tables)}; if it has captions: --captions {quote(self.tables[0])}")
        media = [f"{name}{FILM}" if name in self.films else name for name in files]
        left = self.folders.unowned(media) if self.folders is not None and self.without else []
        left = [name for name in left if loose(posixpath.basename(name)) not in LISTS]
        if left:
            near = [(name, nearest(name, self.without, 1)) for name in left[:SHOWN]]
            said = listed([f"{name} (nearest: {found[0]})" if found else name for name, found in near])
            more = f" and {len(left) - len(near):,} more" if len(left) > len(near) else ""
            notes.append(f"text files that belong to no video, while {len(self.without):,} have none: {said}{more}")
        return notes


def find(
    source: str,
    captions: str | None = None,
    leave_out: Path | None = None,
    need_captions: bool = True,
    films: bool = False,
) -> Listing:
    """The files of a source and their captions, sorted by name. Hidden files and those in `leave_out` do not count.

    Args:
        source: a path or a URL of a folder, a video, an image, a tar, or a table of paths or URLs.
        captions: path or URL of their file, if they are not beside the videos.
        leave_out: a folder that is no source.
        need_captions: whether a file without a caption is unusable, and a table without captions refused.
        films: whether folders of numbered pictures are films (`data.sources.frame_folders`).

    Raises:
        InputError: the source is absent or unreadable, or there is nothing to prepare in it.
    """
    if remote_files.is_url(source):
        store, path = remote_files.filesystem(source)
        if "file" not in (store.protocol if isinstance(store.protocol, tuple) else (store.protocol,)):
            if films:
                remedy = f"fetch them, or leave {OPTION} away"
                raise InputError("folders of numbered frames are read from a disk", source, remedy)
            with _local_copy(captions) as given:
                return _remote(source, given, need_captions)
        source = path
    with _local_copy(captions) as given:
        return _local(Path(source), given, leave_out, need_captions, films)


def _local(source: Path, given: Path | None, leave_out: Path | None, need_captions: bool, films: bool) -> Listing:
    if not source.exists():
        remedy = "check the path; a URL begins with http://, https://, s3://, gs:// or the like"
        raise InputError("a source is a folder, a file, a table or a URL", f"{source}: no such file", remedy)
    if source.is_dir() and not (films and is_frame_folder(source)):
        return _folder(source, given, need_captions, leave_out, films)
    if source.suffix.lower() in (*TABLE_SUFFIXES, ".txt") and not source.is_dir():
        return _table(source, str(source), given, need_captions)
    if source.suffix.lower() in SPREADSHEETS and not source.is_dir():
        raise save_as_csv(source)
    if source.suffix.lower() in PACKED and not source.is_dir():
        rule = "a source is a folder, a video, an image, a plain tar or a table"
        raise InputError(rule, str(source), unpacked(source))
    return _file(source, given, need_captions)


def _file(source: Path, given: Path | None, need_captions: bool) -> Listing:
    """A video, an image, a tar or a folder that is a film."""
    source = Path(os.path.abspath(source))
    folder = source.parent
    try:
        here = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError("a folder can be read", f"{folder}: {error.strerror}", "give one that you may read") from error
    files = [name for name in here if not name.startswith(".")]
    captions, notes = _captions_of(str(folder), [*files, source.name], folder, given)
    label = readable(source.name)
    likely = [name for name in captions.raw if parts_of(name)[-1:] == parts_of(label)[-1:]]
    taken = frozenset(name for name in likely if name != label and os.path.exists(os.path.join(folder, name)))
    universe = partial(_members, folder, [name for name in files if _suffix(name) in SUFFIXES])
    words = Words(replace(captions, files=universe, taken=taken), need_captions, whole=False)
    if source.is_dir():
        look = _look_at_film(words, files, source, source.name)
    else:
        look = partial(_look_here, words, Folders([*files, source.name], MEDIA_SUFFIXES), folder, source.name)
    return Listing([look], None if source.suffix.lower() == TAR_SUFFIX else 1, notes=notes, words=words)


def _folder(folder: Path, given: Path | None, need_captions: bool, leave_out: Path | None, films: bool) -> Listing:
    try:
        entries = list(files_in(folder, leave_out))
    except OSError as error:
        raise InputError("a folder can be read", f"{folder}: {error.strerror}", "give one that you may read") from error
    problems = [entry for entry in entries if isinstance(entry, Unusable)]
    files = [entry for entry in entries if isinstance(entry, str)]
    names, ignored = _without_pictures(sorted(name for name in files if _suffix(name) in SUFFIXES))
    if not names and not problems:
        raise _nothing_in(str(folder), files)
    captions, notes = _captions_of(str(folder), files, folder, given)
    known = {*SUFFIXES, *SIDECARS, *TABLE_SUFFIXES}
    ignored += Counter(_suffix(name).removeprefix(".") or "(no suffix)" for name in files if _suffix(name) not in known)
    unpacked_films = frame_folders(names, files, captions.raw)
    if films:
        worded = frame_folders(names, files, captions.raw, worded=True)
        notes = [*notes, *left_out(unpacked_films, worded, mixed(names))]
        names = sorted({name if (above := os.path.dirname(name)) not in unpacked_films else above for name in names})
    elif (said := hint(unpacked_films, folder)) is not None:
        notes = [*notes, said]
    seen = frozenset(unpacked_films) if films else frozenset()
    folders = Folders([*files, *(f"{name}{FILM}" for name in sorted(seen))], {*MEDIA_SUFFIXES, FILM})
    named = [
        name for name in files if _suffix(name) in TABLE_SUFFIXES and posixpath.basename(name).lower() not in NAMED
    ]
    tables = tuple(os.path.join(folder, name) for name in sorted(named) if _suffix(name) != ".json" and given is None)
    captions = replace(captions, files=partial(_members, folder, names))
    words = Words(captions, need_captions, folders, tables=tables, films=seen)
    if packed := sorted(name for name in files if _suffix(name) in PACKED):
        notes = [*notes, f"{listed(packed)} not read: {unpacked(folder / packed[0])}"]

    def look(name: str) -> Look:
        if films and name in unpacked_films:
            return _look_at_film(words, files, folder / name, name)
        return partial(_look_here, words, folders, folder, name)

    return _listing(problems, names, look, ignored, words, notes)


def _captions_of(
    origin: str, files: Sequence[str], folder: Path | None, given: Path | None, opened: Opened | None = None
) -> tuple[Captions, list[str]]:
    """Those in the file that was given, or in what lies in the folder."""
    if given is not None:
        return given_captions(given, folder or Path())
    return find_captions(origin, files, opened, folder)


def _members(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """The names of local files as they are reported, those in tars too: read when one must be guessed."""
    for name in names:
        if _suffix(name) != TAR_SUFFIX:
            yield readable(name)
            continue
        with suppress(OSError):
            yield from _labels(partial(local_members, readable(name), Path(os.path.join(folder, name))))


def _labels(members: Callable[[Any, Counter[str]], Iterable[SourceFile | Unusable]]) -> list[str]:
    """The names of what can be prepared in a tar."""
    found: list[str] = []

    def note(name: str, _: object) -> Unusable:
        found.append(name)
        return Unusable(name, NO_CAPTION, NO_CAPTION)

    for _ in members(note, Counter()):
        pass
    return found


def _table(file: Path, origin: str, given: Path | None, need_captions: bool) -> Listing:
    """Of paths relative to the folder of `origin` (a path or a URL), and of URLs."""
    lines = file.suffix.lower() == ".txt"
    table = video_table(file) if lines else read_table(file, captions=need_captions and given is None)
    if not len(table):
        raise InputError("a source has videos", f"{origin}: no rows", "add a row per video")
    captions, notes = given_captions(given, Path(origin).parent) if given is not None else (Captions(origin), [])
    words = Words(replace(captions, files=lambda: (row.path for row in table)), need_captions)
    here, unread = lru_cache(maxsize=64)(_folder_of), lru_cache(maxsize=64)(remote_files.unread)
    name = posixpath.basename(origin)
    problems = [
        Unusable(odd.path or f"{name}, {odd.where}", BAD_ROW, f"{odd.reason} ({name}, {odd.where})")
        for odd in table.odd
    ]

    def looks() -> Iterator[Look]:
        yield lambda _: problems
        yield from (partial(_look_at_row, words, here, unread, origin, row) for row in table)

    total = None if table.any_ends_with(TAR_SUFFIX) else len(problems) + len(table)
    return Listing(looks(), total, notes=[*table.notes, *notes], words=words)


def _folder_of(folder: str) -> Folders:
    """What lies beside files that a table names."""
    try:
        return Folders(os.listdir(folder), MEDIA_SUFFIXES)
    except OSError:
        return Folders((), MEDIA_SUFFIXES)


def _remote(source: str, given: Path | None, need_captions: bool) -> Listing:
    suffix, name = remote_files.suffix_of(source), remote_files.name_of(source)
    if suffix in TABLE_SUFFIXES:
        with _local_copy(source) as file:
            assert file is not None
            return _table(file, source, given, need_captions)
    if suffix in MEDIA_SUFFIXES or suffix == TAR_SUFFIX:
        captions, notes = given_captions(given, Path()) if given is not None else (Captions(source), [])
        one = RemoteFile(name, source, None, "")
        words = Words(replace(captions, files=partial(_far_members, [one])), need_captions, whole=False)
        look = partial(_look_there, words, Folders((), MEDIA_SUFFIXES), {}, one)
        return Listing([look], None if suffix == TAR_SUFFIX else 1, notes=notes, words=words)
    problems: list[Unusable] = []
    found = remote_files.find(
        source,
        lambda name: _suffix(name) in {*SUFFIXES, *SIDECARS, *TABLE_SUFFIXES},
        lambda name, reason: problems.append(Unusable(name, NOT_READ, reason)),
    )
    files = {file.name: file for file in found}
    names, ignored = _without_pictures([name for name in files if _suffix(name) in SUFFIXES])
    if not names and not problems:
        raise _nothing_in(source, files)
    captions, notes = _captions_of(source, list(files), None, given, lambda name: _copy_of(files[name].url))
    folders = Folders(files, MEDIA_SUFFIXES)
    words = Words(
        replace(captions, files=partial(_far_members, [files[name] for name in names])), need_captions, folders
    )
    look = partial(_look_there, words, folders, files)
    return _listing(problems, names, lambda name: partial(look, files[name]), ignored, words, notes)


def _far_members(files: Iterable[RemoteFile]) -> Iterator[str]:
    """As `_members`, of remote files."""
    for file in files:
        place = remote_place(file.url, file.size, file.mark)
        if place.suffix != TAR_SUFFIX:
            yield file.name
            continue
        with suppress(remote_files.FetchError):
            yield from _labels(partial(remote_members, file.name, place))


def _look_here(words: Words, folders: Folders, folder: Path, name: str, ignored: Counter[str]) -> Found:
    """At a local file or tar of a folder."""
    return _look_at(words, partial(folders.sides, name), Path(os.path.join(folder, name)), name, ignored)


def _look_at_film(words: Words, files: Iterable[str], path: Path, name: str) -> Look:
    """At a folder that is a film; `files` are those of the source, `name` is how reports call it."""
    label = f"{name}{FILM}"
    sides = partial(Folders([*files, label], {*MEDIA_SUFFIXES, FILM}).sides, label)
    return partial(_look_at, words, sides, path, name)


def _look_at(words: Words, sides: Callable[[], Sides], path: Path, name: str, ignored: Counter[str]) -> Found:
    """At a local file or tar: `name` is how reports call it, `sides` gives the names of words beside it."""
    label = readable(name)
    try:
        if _suffix(name) == TAR_SUFFIX:
            return list(local_members(label, path, words.of, ignored))
        place = local_place(path)
    except OSError as error:
        return [Unusable(label, NOT_READ, error.strerror or str(error))]

    def beside(tell: Tell, other: Tell) -> Caption:
        return of_sides(sides(), lambda side: _sidecar(path.parent / side), tell, other)

    caption = words.of(label, beside)
    return [caption if isinstance(caption, Unusable) else SourceFile(label, place, caption)]


def _sidecar(file: Path) -> bytes:
    """The bytes of a file of words beside a video.

    Raises:
        InputError: it cannot be read, or is too large.
    """
    try:
        if file.stat().st_size > LARGEST_WORDS:
            raise no_caption(f"the caption file {file.name} has {file.stat().st_size} bytes")
        return read_regular(file)
    except OSError as error:
        raise no_caption(f"the caption file {file.name} cannot be read: {error.strerror}") from error


def _look_there(
    words: Words, folders: Folders, files: Mapping[str, RemoteFile], file: RemoteFile, ignored: Counter[str]
) -> Found:
    """At a remote file or tar; `files` are those of its source, by name."""
    place = remote_place(file.url, file.size, file.mark)
    if place.suffix == TAR_SUFFIX:
        try:
            return list(remote_members(file.name, place, words.of, ignored))
        except remote_files.FetchError as error:
            return [Unusable(file.name, NOT_FETCHED, str(error))]
    above = file.name.rpartition("/")[0]

    def beside(tell: Tell, other: Tell) -> Caption:
        def read(side: str) -> bytes:
            return remote_files.read(files[posixpath.normpath(posixpath.join(above, side))].url)

        return of_sides(folders.sides(file.name), read, tell, other)

    caption = words.of(file.name, beside)
    return [caption if isinstance(caption, Unusable) else SourceFile(file.name, place, caption)]


def _look_at_row(
    words: Words,
    here: Callable[[str], Folders],
    unread: Callable[[str], str | None],
    origin: str,
    row: Row,
    ignored: Counter[str],
) -> Found:
    """At a row of a table; what is wrong with its file is told with where the row stands."""
    try:
        scheme = row.path.partition("://")[0].lower() if remote_files.is_url(row.path) else ""
        why = unread(scheme) if scheme else None
        if scheme and is_page(row.path):
            why = "a page of a site, not a file: download its video, and name that, or its id in a column video_id"
        found = [Unusable(row.path, BAD_ROW, why)] if why else list(_look_at_path(words, here, origin, row, ignored))
    except OSError as error:  # such as of a name that is too long
        found = [Unusable(readable(row.path), NOT_READ, error.strerror or str(error))]
    if not row.where:
        return found
    told = f"({posixpath.basename(origin)}, {row.where})"
    return [replace(one, reason=f"{one.reason} {told}") if isinstance(one, Unusable) else one for one in found]


def _look_at_path(words: Words, here: Callable[[str], Folders], origin: str, row: Row, ignored: Counter[str]) -> Found:
    """At the file of a row; what the row says goes before what stands beside its file."""
    far = remote_files.is_url(row.path) or remote_files.is_url(origin)
    name = row.path if far else str(PurePosixPath(row.path))

    def said(name: str) -> Words:
        own = Captions(words.captions.origin, {name: row.captions})
        return replace(words, captions=own) if any(row.captions.values()) else words

    if far:
        place = RemoteFile(name, remote_files.beside(origin, name), None, "")
        if remote_files.is_url(origin) and leads_inside(origin, place.url):
            return [Unusable(name, NOT_FETCHED, "a list from elsewhere names this machine or its network")]
        return _look_there(said(name), Folders((), MEDIA_SUFFIXES), {}, place, ignored)
    path = Path(origin).parent / name
    if not path.exists():
        there = here(str(path.parent)).media("")
        same = sorted(file for file in there if loose(path.name) in (loose(file), loose(os.path.splitext(file)[0])))
        if not same and row.path != row.path.strip():
            return _look_at_path(words, here, origin, row._replace(path=row.path.strip()), ignored)
        if len(same) != 1:
            near = " or ".join(same or nearest(path.name, there, 1))
            hint = f" (meant may be {near})" if near else _elsewhere(Path(origin).parent, name)
            reason = f"No such file or directory{hint}"
            return [Unusable(readable(name), NOT_READ, reason)]
        path, name = path.with_name(same[0]), str(PurePosixPath(name).with_name(same[0]))
    return _look_at(said(name), lambda: here(str(path.parent)).sides(path.name), path, name, ignored)


def _elsewhere(folder: Path, name: str) -> str:
    """What to tell of a row whose path is relative to another folder than its table's."""
    folder = Path(os.path.abspath(folder))
    for other in dict.fromkeys((*folder.parents[:3], Path.cwd())):
        if not os.path.isabs(name) and (other / name).exists():
            return f" in {folder}, but in {other}: paths are relative to the folder of their table"
    return ""


def _without_pictures(names: list[str]) -> tuple[list[str], Counter[str]]:
    """Names without images that have the name of a video beside them, and how many those were, by suffix."""
    videos = {name[: -len(_suffix(name))] for name in names if _suffix(name) in VIDEO_SUFFIXES}
    pictures = {n for n in names if _suffix(n) in IMAGE_SUFFIXES and n[: -len(_suffix(n))] in videos}
    return [name for name in names if name not in pictures], Counter(_suffix(name)[1:] for name in pictures)


def _listing(
    problems: list[Unusable],
    names: list[str],
    look: Callable[[str], Look],
    ignored: Counter[str],
    words: Words,
    notes: list[str],
) -> Listing:
    def looks() -> Iterator[Look]:
        yield lambda _: problems
        yield from map(look, names)

    tars = any(_suffix(name) == TAR_SUFFIX for name in names)
    return Listing(looks(), None if tars else len(problems) + len(names), ignored, notes, words)


@contextmanager
def _local_copy(file: str | None) -> Iterator[Path | None]:
    """A small file that may be behind a URL, as a local one."""
    if file is None or not remote_files.is_url(file):
        yield Path(file) if file is not None else None
        return
    with _copy_of(file) as path:
        yield path


@contextmanager
def _copy_of(url: str) -> Iterator[Path]:
    with scratch() as folder:
        path = folder / remote_files.name_of(url)
        try:
            remote_files.fetch(url, path)
        except remote_files.FetchError as error:
            raise InputError("a table or a file of captions can be fetched", f"{url}: {error}", "check it") from error
        yield path


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def unpacked(file: Path) -> str:
    """What to type for a file that is compressed."""
    how, suffix = PACKED[file.suffix.lower()], file.suffix.lower()
    made = file.with_suffix(".tar") if suffix == ".tgz" else file.with_suffix("")
    if made.suffix.lower() in TABLE_SUFFIXES:
        return f"{how} {quote(str(file))}, and give --captions {quote(str(made))}"
    if suffix == ".zip":
        return f"{how} {quote(str(file))} -d {quote(str(made))}, and give {quote(str(made))}"
    return f"{how} {quote(str(file))}, and give {quote(str(made))}: samples are read by their offsets"


def _nothing_in(source: str, names: Iterable[str]) -> InputError:
    names = list(names)
    here = ", ".join(sorted({name.partition("/")[0] for name in names})[:5]) or "nothing"
    remedy = f"give a folder with files that end in {', '.join(sorted(VIDEO_SUFFIXES)[:8])} ..., or a table"
    packed = sorted(name for name in names if _suffix(name) in PACKED)
    tables = sorted(name for name in names if _suffix(name) in TABLE_SUFFIXES and posixpath.basename(name) not in NAMED)
    if packed and not remote_files.is_url(source):
        remedy = unpacked(Path(source) / packed[0])
    elif tables:
        remedy = f"give the table itself: {quote(f'{source}/{tables[0]}')}"
    return InputError("a source has videos", f"{readable(source)} has: {readable(here)}", remedy)
