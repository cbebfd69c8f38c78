"""`find`: a folder, a file, a table or a tar, here or behind a URL, becomes a list of files to prepare.

    source --names--> entries --look at each, in threads--> SourceFile or Unusable, one at a time

Names are all that is kept of the whole; the size, the time, the words beside a file and the headers of a tar are read
when their turn comes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from data import remote
from data.ahead import ahead
from data.bundles import local_members, remote_members
from data.captions import (
    FILE_NAME,
    NO_CAPTION,
    Caption,
    Captions,
    find_captions,
    of_parts,
    parse_captions,
    sidecars_of,
)
from data.remote import RemoteFile
from data.scratch import scratch
from data.sources import (
    BAD_CAPTION,
    IMAGE_SUFFIXES,
    MEDIA_SUFFIXES,
    NOT_FETCHED,
    NOT_READ,
    TAR_SUFFIX,
    VIDEO_SUFFIXES,
    SourceFile,
    Unusable,
    files_in,
    local_place,
    readable,
    remote_place,
)
from data.tables import TABLE_SUFFIXES, Row, read_table
from parallel.errors import InputError

Found = Iterable[SourceFile | Unusable]
Look = Callable[[Counter[str]], Found]  # at an entry: what files it is; counts what is none
SUFFIXES = frozenset([*MEDIA_SUFFIXES, TAR_SUFFIX])
SIDECARS = (".txt", ".json")


@dataclass
class Listing:
    """The files of a source, in a fixed order; iterate once.

    Attributes:
        looks: at the entries of the source.
        total: how many files there will be; None while tars are still to be opened.
        ignored: what is no file to prepare, by suffix: other kinds of files and members of tars, and images beside
            videos of their name.
    """

    looks: Iterable[Look]
    total: int | None
    ignored: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[SourceFile | Unusable]:
        """Files, and what is wrong with others."""

        def taken(look: Look) -> tuple[list[SourceFile | Unusable], Counter[str]]:
            ignored: Counter[str] = Counter()
            return list(look(ignored)), ignored

        count = 0
        for found, ignored in ahead(taken, self.looks):
            self.ignored += ignored
            for one in found:
                count += 1
                yield one
        self.total = count


@dataclass(frozen=True)
class Words:
    """Which caption a file has, and whether it may have none."""

    captions: Captions
    needed: bool

    def of(self, name: str, beside: Callable[[], Caption] | None = None) -> Caption | Unusable:
        """The caption, or why the file cannot be used without."""
        try:
            return self.captions.of(name, beside)
        except (InputError, remote.FetchError) as error:
            reason = error.value if isinstance(error, InputError) else f"its words: {error}"
        if reason == NO_CAPTION and not self.needed:
            return Caption("")
        return Unusable(name, NO_CAPTION if reason == NO_CAPTION else BAD_CAPTION, reason)


def find(
    source: str, captions: str | None = None, leave_out: Path | None = None, need_captions: bool = True
) -> Listing:
    """The files of a source and their captions, sorted by name. Hidden files and those in `leave_out` do not count.

    Args:
        source: a path or a URL of a folder, a video, an image, a tar, or a table of paths or URLs.
        captions: path or URL of their file, if they are not beside the videos.
        leave_out: a folder that is no source.
        need_captions: whether a file without a caption is unusable, and a table without captions refused.

    Raises:
        InputError: the source is absent or unreadable, or there is nothing to prepare in it.
    """
    if remote.is_url(source):
        store, path = remote.filesystem(source)
        if "file" not in (store.protocol if isinstance(store.protocol, tuple) else (store.protocol,)):
            with _local_copy(captions) as given:
                return _remote(source, given, need_captions)
        source = path
    with _local_copy(captions) as given:
        return _local(Path(source), given, leave_out, need_captions)


def _local(source: Path, given: Path | None, leave_out: Path | None, need_captions: bool) -> Listing:
    if not source.exists():
        remedy = "check the path; a URL begins with http://, https://, s3://, gs:// or the like"
        raise InputError("a source is a folder, a file, a table or a URL", f"{source}: no such file", remedy)
    if source.is_dir():
        return _folder(source, Words(find_captions(source, given), need_captions), leave_out)
    if source.suffix.lower() in TABLE_SUFFIXES:
        return _table(source, str(source), given, need_captions)
    words = Words(find_captions(source.parent, given), need_captions)
    look = partial(_look_here, words, source.parent, source.name)
    return Listing([look], None if source.suffix.lower() == TAR_SUFFIX else 1)


def _folder(folder: Path, words: Words, leave_out: Path | None) -> Listing:
    try:
        entries = list(files_in(folder, leave_out))
    except OSError as error:
        raise InputError("a folder can be read", f"{folder}: {error.strerror}", "give one that you may read") from error
    problems = [entry for entry in entries if isinstance(entry, Unusable)]
    files = [entry for entry in entries if isinstance(entry, str)]
    names, ignored = _without_pictures(sorted(name for name in files if _suffix(name) in SUFFIXES))
    if not names and not problems:
        raise _nothing_in(str(folder), files)
    known = {*SUFFIXES, *SIDECARS, *TABLE_SUFFIXES}
    ignored += Counter(_suffix(name).removeprefix(".") or "(no suffix)" for name in files if _suffix(name) not in known)
    return _listing(problems, names, lambda name: partial(_look_here, words, folder, name), ignored)


def _table(file: Path, origin: str, given: Path | None, need_captions: bool) -> Listing:
    """Of paths relative to the folder of `origin` (a path or a URL), and of URLs."""
    table = read_table(file, captions=need_captions and given is None)
    if not len(table):
        raise InputError("a source has videos", f"{origin}: no rows", "add a row per video")
    for scheme in table.schemes():
        remote.filesystem(f"{scheme}://")
    captions = find_captions(Path(origin).parent, given) if given is not None else Captions(origin)
    words = Words(captions, need_captions)
    looks: Iterable[Look] = (partial(_look_at_row, words, origin, row) for row in table)
    return Listing(looks, None if table.any_ends_with(TAR_SUFFIX) else len(table))


def _remote(source: str, given: Path | None, need_captions: bool) -> Listing:
    suffix, name = remote.suffix_of(source), remote.name_of(source)
    if suffix in TABLE_SUFFIXES:
        with _local_copy(source) as file:
            assert file is not None
            return _table(file, source, given, need_captions)
    words = Words(find_captions(Path(), given) if given is not None else Captions(source), need_captions)
    if suffix in MEDIA_SUFFIXES or suffix == TAR_SUFFIX:
        look = partial(_look_there, words, RemoteFile(name, source, None, ""), {})
        return Listing([look], None if suffix == TAR_SUFFIX else 1)
    problems: list[Unusable] = []
    found = remote.find(
        source,
        lambda name: _suffix(name) in {*SUFFIXES, *SIDECARS},
        lambda name, reason: problems.append(Unusable(name, NOT_READ, reason)),
    )
    files = {file.name: file for file in found}
    if given is None and FILE_NAME in files:
        words = Words(parse_captions(_read(files[FILE_NAME]), files[FILE_NAME].url), need_captions)
    names, ignored = _without_pictures([name for name in files if _suffix(name) in SUFFIXES])
    if not names and not problems:
        raise _nothing_in(source, files)
    beside = {name: file for name, file in files.items() if _suffix(name) in SIDECARS}
    return _listing(problems, names, lambda name: partial(_look_there, words, files[name], beside), ignored)


def _read(file: RemoteFile) -> bytes:
    try:
        return remote.read(file.url)
    except remote.FetchError as error:
        raise InputError("a file of captions can be fetched", f"{file.url}: {error}", "check it") from error


def _look_here(words: Words, folder: Path, name: str, ignored: Counter[str]) -> Found:
    """At a local file or tar."""
    path, label = Path(os.path.join(folder, name)), readable(name)
    try:
        if _suffix(name) == TAR_SUFFIX:
            return list(local_members(label, path, words.of, ignored))
        place = local_place(path)
    except OSError as error:
        return [Unusable(label, NOT_READ, error.strerror or str(error))]
    caption = words.of(label, lambda: of_parts(sidecars_of(path)))
    return [caption if isinstance(caption, Unusable) else SourceFile(label, place, caption)]


def _look_there(words: Words, file: RemoteFile, beside: Mapping[str, RemoteFile], ignored: Counter[str]) -> Found:
    """At a remote file or tar."""
    place = remote_place(file.url, file.size, file.mark)
    if place.suffix == TAR_SUFFIX:
        try:
            return list(remote_members(file.name, place, words.of, ignored))
        except remote.FetchError as error:
            return [Unusable(file.name, NOT_FETCHED, str(error))]
    stem = os.path.splitext(file.name)[0]
    sides = {suffix[1:]: beside[stem + suffix] for suffix in SIDECARS if stem + suffix in beside}
    caption = words.of(file.name, lambda: of_parts({suffix: remote.read(side.url) for suffix, side in sides.items()}))
    return [caption if isinstance(caption, Unusable) else SourceFile(file.name, place, caption)]


def _look_at_row(words: Words, origin: str, row: Row, ignored: Counter[str]) -> Found:
    """At a row of a table; what it says goes before what stands beside its file."""
    far = remote.is_url(row.path) or remote.is_url(origin)
    name = row.path if far else str(PurePosixPath(row.path))
    if any(row.captions.values()):
        words = Words(Captions(words.captions.origin, {name: row.captions}), words.needed)
    if far:
        return _look_there(words, RemoteFile(name, remote.beside(origin, name), None, ""), {}, ignored)
    return _look_here(words, Path(origin).parent, name, ignored)


def _without_pictures(names: list[str]) -> tuple[list[str], Counter[str]]:
    """Names without images that have the name of a video beside them, and how many those were, by suffix."""
    videos = {name[: -len(_suffix(name))] for name in names if _suffix(name) in VIDEO_SUFFIXES}
    pictures = {n for n in names if _suffix(n) in IMAGE_SUFFIXES and n[: -len(_suffix(n))] in videos}
    return [name for name in names if name not in pictures], Counter(_suffix(name)[1:] for name in pictures)


def _listing(problems: list[Unusable], names: list[str], look: Callable[[str], Look], ignored: Counter[str]) -> Listing:
    def looks() -> Iterator[Look]:
        yield lambda _: problems
        yield from map(look, names)

    tars = any(_suffix(name) == TAR_SUFFIX for name in names)
    return Listing(looks(), None if tars else len(problems) + len(names), ignored)


@contextmanager
def _local_copy(file: str | None) -> Iterator[Path | None]:
    """A small file that may be behind a URL, as a local one."""
    if file is None or not remote.is_url(file):
        yield Path(file) if file is not None else None
        return
    with scratch() as folder:
        path = folder / remote.name_of(file)
        try:
            remote.fetch(file, path)
        except remote.FetchError as error:
            raise InputError("a table or a file of captions can be fetched", f"{file}: {error}", "check it") from error
        yield path


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _nothing_in(source: str, names: Iterable[str]) -> InputError:
    here = ", ".join(sorted({name.partition("/")[0] for name in names})[:5]) or "nothing"
    remedy = f"give a folder with files that end in {', '.join(sorted(VIDEO_SUFFIXES)[:8])} ..., or a table"
    return InputError("a source has videos", f"{readable(source)} has: {readable(here)}", remedy)
