"""find: a folder, a file, a table or a tar, here or behind a URL, becomes a list of files to prepare."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from data.captions.captions import Captions
from data.captions.name_matching import listed, parts_of
from data.captions.sidecars import Folders
from data.captions.tables import TABLE_SUFFIXES
from data.containers.open_media import IMAGE_SUFFIXES, MEDIA_SUFFIXES, VIDEO_SUFFIXES
from data.remote import remote_files
from data.remote.remote_files import RemoteFile
from data.remote.scratch import scratch
from data.sources.caption_files import NAMED, SPREADSHEETS, Opened, find_captions, given_captions, save_as_csv
from data.sources.entries import (
    SIDECARS,
    SUFFIXES,
    local_names,
    look_at_film,
    look_at_local,
    look_at_remote,
    remote_names,
    suffix_of,
)
from data.sources.files import NOT_READ, TAR_SUFFIX, Unusable, files_in, readable
from data.sources.frame_folders import OPTION, frame_folders, hint, is_frame_folder, left_out, mixed
from data.sources.frame_folders import SUFFIX as FILM
from data.sources.listing import Listing, Look, SourceCaptions
from data.sources.table_listing import table_listing
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
        return table_listing(source, str(source), given, need_captions)
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
    universe = partial(local_names, folder, [name for name in files if suffix_of(name) in SUFFIXES])
    words = SourceCaptions(replace(captions, files=universe, taken=taken), need_captions, whole=False)
    if source.is_dir():
        look = look_at_film(words, files, source, source.name)
    else:
        look = partial(look_at_local, words, Folders([*files, source.name], MEDIA_SUFFIXES), folder, source.name)
    return Listing([look], None if source.suffix.lower() == TAR_SUFFIX else 1, notes=notes, words=words)


def _folder(folder: Path, given: Path | None, need_captions: bool, leave_out: Path | None, films: bool) -> Listing:
    try:
        entries = list(files_in(folder, leave_out))
    except OSError as error:
        raise InputError("a folder can be read", f"{folder}: {error.strerror}", "give one that you may read") from error
    problems = [entry for entry in entries if isinstance(entry, Unusable)]
    files = [entry for entry in entries if isinstance(entry, str)]
    names, ignored = _without_pictures(sorted(name for name in files if suffix_of(name) in SUFFIXES))
    if not names and not problems:
        raise _nothing_in(str(folder), files)
    captions, notes = _captions_of(str(folder), files, folder, given)
    known = {*SUFFIXES, *SIDECARS, *TABLE_SUFFIXES}
    ignored += Counter(
        suffix_of(name).removeprefix(".") or "(no suffix)" for name in files if suffix_of(name) not in known
    )
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
        name for name in files if suffix_of(name) in TABLE_SUFFIXES and posixpath.basename(name).lower() not in NAMED
    ]
    tables = tuple(os.path.join(folder, name) for name in sorted(named) if suffix_of(name) != ".json" and given is None)
    captions = replace(captions, files=partial(local_names, folder, names))
    words = SourceCaptions(captions, need_captions, folders, tables=tables, films=seen)
    if packed := sorted(name for name in files if suffix_of(name) in PACKED):
        notes = [*notes, f"{listed(packed)} not read: {unpacked(folder / packed[0])}"]

    def look(name: str) -> Look:
        if films and name in unpacked_films:
            return look_at_film(words, files, folder / name, name)
        return partial(look_at_local, words, folders, folder, name)

    return _listing(problems, names, look, ignored, words, notes)


def _captions_of(
    origin: str, files: Sequence[str], folder: Path | None, given: Path | None, opened: Opened | None = None
) -> tuple[Captions, list[str]]:
    """Those in the file that was given, or in what lies in the folder."""
    if given is not None:
        return given_captions(given, folder or Path())
    return find_captions(origin, files, opened, folder)


def _remote(source: str, given: Path | None, need_captions: bool) -> Listing:
    suffix, name = remote_files.suffix_of(source), remote_files.name_of(source)
    if suffix in TABLE_SUFFIXES:
        with _local_copy(source) as file:
            assert file is not None
            return table_listing(file, source, given, need_captions)
    if suffix in MEDIA_SUFFIXES or suffix == TAR_SUFFIX:
        captions, notes = given_captions(given, Path()) if given is not None else (Captions(source), [])
        one = RemoteFile(name, source, None, "")
        words = SourceCaptions(replace(captions, files=partial(remote_names, [one])), need_captions, whole=False)
        look = partial(look_at_remote, words, Folders((), MEDIA_SUFFIXES), {}, one)
        return Listing([look], None if suffix == TAR_SUFFIX else 1, notes=notes, words=words)
    problems: list[Unusable] = []
    found = remote_files.find(
        source,
        lambda name: suffix_of(name) in {*SUFFIXES, *SIDECARS, *TABLE_SUFFIXES},
        lambda name, reason: problems.append(Unusable(name, NOT_READ, reason)),
    )
    files = {file.name: file for file in found}
    names, ignored = _without_pictures([name for name in files if suffix_of(name) in SUFFIXES])
    if not names and not problems:
        raise _nothing_in(source, files)
    captions, notes = _captions_of(source, list(files), None, given, lambda name: _copy_of(files[name].url))
    folders = Folders(files, MEDIA_SUFFIXES)
    words = SourceCaptions(
        replace(captions, files=partial(remote_names, [files[name] for name in names])), need_captions, folders
    )
    look = partial(look_at_remote, words, folders, files)
    return _listing(problems, names, lambda name: partial(look, files[name]), ignored, words, notes)


def _without_pictures(names: list[str]) -> tuple[list[str], Counter[str]]:
    """Names without images that have the name of a video beside them, and how many those were, by suffix."""
    videos = {name[: -len(suffix_of(name))] for name in names if suffix_of(name) in VIDEO_SUFFIXES}
    pictures = {n for n in names if suffix_of(n) in IMAGE_SUFFIXES and n[: -len(suffix_of(n))] in videos}
    return [name for name in names if name not in pictures], Counter(suffix_of(name)[1:] for name in pictures)


def _listing(
    problems: list[Unusable],
    names: list[str],
    look: Callable[[str], Look],
    ignored: Counter[str],
    words: SourceCaptions,
    notes: list[str],
) -> Listing:
    def looks() -> Iterator[Look]:
        yield lambda _: problems
        yield from map(look, names)

    tars = any(suffix_of(name) == TAR_SUFFIX for name in names)
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
    packed = sorted(name for name in names if suffix_of(name) in PACKED)
    tables = sorted(
        name for name in names if suffix_of(name) in TABLE_SUFFIXES and posixpath.basename(name) not in NAMED
    )
    if packed and not remote_files.is_url(source):
        remedy = unpacked(Path(source) / packed[0])
    elif tables:
        remedy = f"give the table itself: {quote(f'{source}/{tables[0]}')}"
    return InputError("a source has videos", f"{readable(source)} has: {readable(here)}", remedy)
