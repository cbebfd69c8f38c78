"""The files that a table names, by paths relative to its folder or by URLs."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

from data.captions.captions import Captions
from data.captions.name_matching import loose, nearest
from data.captions.sidecars import Folders
from data.captions.tables import Row, is_page, read_table
from data.containers.open_media import MEDIA_SUFFIXES
from data.remote import remote_files
from data.remote.addresses import leads_inside
from data.remote.remote_files import RemoteFile
from data.sources.caption_files import given_captions, video_table
from data.sources.entries import look_at, look_at_remote
from data.sources.files import BAD_ROW, NOT_FETCHED, NOT_READ, TAR_SUFFIX, Unusable, readable
from data.sources.listing import Found, Listing, Look, SourceCaptions
from parallel.errors import InputError


def table_listing(file: Path, origin: str, given: Path | None, need_captions: bool) -> Listing:
    """Of paths relative to the folder of `origin` (a path or a URL), and of URLs."""
    lines = file.suffix.lower() == ".txt"
    table = video_table(file) if lines else read_table(file, captions=need_captions and given is None)
    if not len(table):
        raise InputError("a source has videos", f"{origin}: no rows", "add a row per video")
    captions, notes = given_captions(given, Path(origin).parent) if given is not None else (Captions(origin), [])
    words = SourceCaptions(replace(captions, files=lambda: (row.path for row in table)), need_captions)
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


def _look_at_row(
    words: SourceCaptions,
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


def _look_at_path(
    words: SourceCaptions, here: Callable[[str], Folders], origin: str, row: Row, ignored: Counter[str]
) -> Found:
    """At the file of a row; what the row says goes before what stands beside its file."""
    far = remote_files.is_url(row.path) or remote_files.is_url(origin)
    name = row.path if far else str(PurePosixPath(row.path))

    def said(name: str) -> SourceCaptions:
        own = Captions(words.captions.origin, {name: row.captions})
        return replace(words, captions=own) if any(row.captions.values()) else words

    if far:
        place = RemoteFile(name, remote_files.beside(origin, name), None, "")
        if remote_files.is_url(origin) and leads_inside(origin, place.url):
            return [Unusable(name, NOT_FETCHED, "a list from elsewhere names this machine or its network")]
        return look_at_remote(said(name), Folders((), MEDIA_SUFFIXES), {}, place, ignored)
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
    return look_at(said(name), lambda: here(str(path.parent)).sides(path.name), path, name, ignored)


def _elsewhere(folder: Path, name: str) -> str:
    """What to tell of a row whose path is relative to another folder than its table's."""
    folder = Path(os.path.abspath(folder))
    for other in dict.fromkeys((*folder.parents[:3], Path.cwd())):
        if not os.path.isabs(name) and (other / name).exists():
            return f" in {folder}, but in {other}: paths are relative to the folder of their table"
    return ""
