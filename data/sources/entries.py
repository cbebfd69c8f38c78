"""An entry of a source, looked at when its turn comes: a file with its caption, samples of a tar, or what is wrong."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from data.captions.captions import LARGEST_WORDS, NO_CAPTION, Caption, Tell, no_caption, of_sides
from data.captions.sidecars import KINDS, Folders, Sides
from data.containers.open_media import MEDIA_SUFFIXES
from data.containers.regular_file import read_regular
from data.remote import remote_files
from data.remote.remote_files import RemoteFile
from data.sources.files import (
    NOT_FETCHED,
    NOT_READ,
    TAR_SUFFIX,
    SourceFile,
    Unusable,
    local_place,
    readable,
    remote_place,
)
from data.sources.frame_folders import SUFFIX as FILM
from data.sources.listing import Found, Look, SourceCaptions
from data.sources.tar_members import local_members, remote_members

SUFFIXES = frozenset([*MEDIA_SUFFIXES, TAR_SUFFIX])
SIDECARS = frozenset(f".{suffix}" for suffix in KINDS if suffix != "cls")


def local_names(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """The names of local files as they are reported, those in tars too: read when one must be guessed."""
    for name in names:
        if suffix_of(name) != TAR_SUFFIX:
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


def remote_names(files: Iterable[RemoteFile]) -> Iterator[str]:
    """As `local_names`, of remote files."""
    for file in files:
        place = remote_place(file.url, file.size, file.mark)
        if place.suffix != TAR_SUFFIX:
            yield file.name
            continue
        with suppress(remote_files.FetchError):
            yield from _labels(partial(remote_members, file.name, place))


def look_at_local(words: SourceCaptions, folders: Folders, folder: Path, name: str, ignored: Counter[str]) -> Found:
    """At a local file or tar of a folder."""
    return look_at(words, partial(folders.sides, name), Path(os.path.join(folder, name)), name, ignored)


def look_at_film(words: SourceCaptions, files: Iterable[str], path: Path, name: str) -> Look:
    """At a folder that is a film; `files` are those of the source, `name` is how reports call it."""
    label = f"{name}{FILM}"
    sides = partial(Folders([*files, label], {*MEDIA_SUFFIXES, FILM}).sides, label)
    return partial(look_at, words, sides, path, name)


def look_at(words: SourceCaptions, sides: Callable[[], Sides], path: Path, name: str, ignored: Counter[str]) -> Found:
    """At a local file or tar: `name` is how reports call it, `sides` gives the names of words beside it."""
    label = readable(name)
    try:
        if suffix_of(name) == TAR_SUFFIX:
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


def look_at_remote(
    words: SourceCaptions, folders: Folders, files: Mapping[str, RemoteFile], file: RemoteFile, ignored: Counter[str]
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


def suffix_of(name: str) -> str:
    """With its dot, in small letters."""
    return os.path.splitext(name)[1].lower()
