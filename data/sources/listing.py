"""`Listing`: the files of a source with their captions, looked at one after the other.

    source --`find_files`--> entries --look at each (`entries.py`), in threads--> SourceFile or Unusable, one at a time

Names are all that is kept of the whole; the size, the time, the words beside a file and the headers of a tar are read
when their turn comes.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from data.captions.captions import (
    NO_CAPTION,
    Caption,
    Captions,
    NoCaptionError,
    Tell,
)
from data.captions.name_matching import SHOWN, listed, loose, nearest
from data.captions.sidecars import Folders
from data.remote import remote_files
from data.sources.caption_files import (
    LISTS,
)
from data.sources.files import (
    BAD_CAPTION,
    SourceFile,
    Unusable,
)
from data.sources.frame_folders import SUFFIX as FILM
from data.workers.prefetch import ahead
from parallel.errors import InputError
from parallel.shell import quote

Found = Iterable[SourceFile | Unusable]
Look = Callable[[Counter[str]], Found]  # at an entry: what files it is; counts what is none


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
    words: SourceCaptions | None = None

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
class SourceCaptions:
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
