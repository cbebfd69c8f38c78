"""Tars as sources: each sample in one is a file to prepare, with the words beside it as its caption.

A local tar is read header by header; of a remote one, too, only headers and words are fetched, which needs a store that
gives parts of a file. The media are read later, by the worker that converts them.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from data.captions.captions import LARGEST_WORDS, Caption, Tell, of_sides
from data.containers.regular_file import open_regular
from data.dataset import tar_format
from data.dataset.shards import digest_of
from data.dataset.tar_format import Damage, Member
from data.remote import remote_files
from data.sources import webdataset
from data.sources.caption_files import NAMED
from data.sources.files import Place, SourceFile, Unusable, local_place, readable
from data.sources.tar_paths import why_not
from data.sources.webdataset import Candidate
from parallel.errors import InputError
from parallel.shell import quote

BLOCK_OF_HEADERS = 64 << 10  # bytes fetched at a time: headers, and words that lie beside them
DAMAGED, UNUSABLE = "damaged tar", "unusable tar member"

Read = Callable[[Member], bytes]
Captioned = Callable[[str, Callable[[Tell, Tell], Caption]], Caption | Unusable]


def local_members(
    name: str, path: Path, captioned: Captioned, ignored: dict[str, int]
) -> Iterator[SourceFile | Unusable]:
    """The samples of a local tar.

    Args:
        name: of the tar, for reports.
        path: of the tar.
        captioned: decides about a sample whose words give a caption or raise.
        ignored: counts members without a use, by suffix.

    Raises:
        OSError: it cannot be read.
    """
    reason = why_not(path)
    if reason is not None:
        yield Unusable(name, DAMAGED, reason)
        return
    with open_regular(path) as file:
        damage: list[Damage] = []

        def read(member: Member) -> bytes:
            file.seek(member.offset)
            return file.read(member.size)

        def place(member: Member, suffix: str) -> Place:
            return local_place(path, (member.offset, member.offset + member.size), suffix)

        yield from _samples(name, _told(tar_format.walk(file.fileno()), damage), read, place, captioned, ignored)
        for one in damage:
            yield Unusable(name, DAMAGED, f"{one.reason}, at byte {one.start}")


def remote_members(
    name: str, whole: Place, captioned: Captioned, ignored: dict[str, int]
) -> Iterator[SourceFile | Unusable]:
    """As `local_members`, of a tar behind a URL.

    Raises:
        FetchError: it cannot be read, or only as a whole.
    """
    store, path = remote_files.filesystem(whole.where)
    try:
        with store.open(path, "rb", block_size=BLOCK_OF_HEADERS, cache_type="readahead") as file:
            if not file.seekable():
                raise remote_files.FetchError("its store gives no parts of files: download the tar first")

            def read(member: Member) -> bytes:
                file.seek(member.offset)
                return bytes(file.read(member.size))

            def place(member: Member, suffix: str) -> Place:
                span = (member.offset, member.offset + member.size)
                return Place(whole.where, suffix, member.size, span, digest_of(whole.version, span))

            def part(size: int, at: int) -> bytes:
                file.seek(at)
                return bytes(file.read(size))

            damage: list[Damage] = []
            size = file.size if whole.size is None else whole.size
            # headers alone: to look for one behind damage would fetch the whole tar
            yield from _samples(
                name, _told(tar_format.entries(part, size, False), damage), read, place, captioned, ignored
            )
            for one in damage:
                yield Unusable(name, DAMAGED, f"{one.reason}, at byte {one.start}")
    except (remote_files.FetchError, InputError):
        raise
    except Exception as error:  # each store has errors of its own
        raise remote_files.FetchError(remote_files.why(error)) from error


def _told(entries: Iterator[Member | Damage], damage: list[Damage]) -> Iterator[Member | Damage]:
    """The same, with the damage noted."""
    for entry in entries:
        if isinstance(entry, Damage):
            damage.append(entry)
        yield entry


def _samples(
    name: str,
    entries: Iterator[Member | Damage],
    read: Read,
    place: Callable[[Member, str], Place],
    captioned: Captioned,
    ignored: dict[str, int],
) -> Iterator[SourceFile | Unusable]:
    found, _ = webdataset.joined(webdataset.groups(entries, ignored))
    for group in found:
        label = readable(f"{name}/{group.key}")
        if (words := _file_of_captions(group)) is not None:
            told = (
                f"captions of files are not read in a tar: tar -xf TAR {quote(words)}, then --captions {quote(words)}"
            )
            yield Unusable(readable(f"{name}/{words}"), UNUSABLE, told)
            continue
        several = webdataset.candidates(group, ignored)
        if isinstance(several, str):
            yield Unusable(label, UNUSABLE, several)
            continue
        for one in several:
            if one.media is None:
                yield Unusable(label, "text alone", "text alone: longreel data import takes such samples")
                continue
            label = readable(f"{name}/{one.key}.{one.suffix}")
            caption = captioned(label, partial(_caption, one, read))
            if isinstance(caption, Unusable):
                yield caption
            else:
                yield SourceFile(label, place(one.media, f".{one.suffix}"), caption)


def _file_of_captions(group: webdataset.Group) -> str | None:
    """The name of captions.json and the like, if that is all there is of its key."""
    names = [member.name for member in group.parts.values()]
    return names[0] if len(names) == 1 and posixpath.basename(names[0]).lower() in NAMED else None


def _caption(one: Candidate, read: Read, tell: Tell, other: Tell) -> Caption:
    too_long = next((m for m in one.parts.values() if m.size > LARGEST_WORDS), None)
    if too_long is not None:
        raise InputError("words are short", f"{too_long.name} has {too_long.size} bytes", "leave it out")
    return of_sides(one.sides, lambda name: read(one.parts[name]), tell, other)
