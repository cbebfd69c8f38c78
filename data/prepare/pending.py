"""`Pending`: which files of a source are to be done; the others are counted, with what earlier runs said of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from data.captions.captions import NO_CAPTION
from data.dataset.outcome import Outcome, Rejection, Stage
from data.dataset.shards import digest_of
from data.prepare.convert import Todo
from data.prepare.history import Entry, History
from data.prepare.shard_writer import same_bytes
from data.sources.files import BAD_CAPTION, NO_ANSWER, NOT_FETCHED, NOT_READ, SourceFile, Unusable, digest
from data.sources.listing import Listing
from data.workers.prefetch import ahead

OTHER_CAPTION = "it is in the dataset with another caption: prepare into a new folder"
STAGES: dict[str, Stage] = {NO_CAPTION: "caption", BAD_CAPTION: "caption", NOT_FETCHED: "fetch", NO_ANSWER: "fetch"}
Numbered = tuple[int, SourceFile]


class Pending:
    """Iterate once: files nobody tried, in the order of the source, then those that an earlier run could not read.

    So where groups are cut does not depend on what only failed that time.

    Args:
        listing: of the source.
        limit: only its first so many files; None for all.
        history: of the dataset.
        outcome: grows.
        on_file: called with the name of each file that is not to be done.
    """

    def __init__(
        self, listing: Listing, limit: int | None, history: History, outcome: Outcome, on_file: Callable[[str], None]
    ) -> None:
        self.listing, self.limit, self.history, self.outcome, self.on_file = listing, limit, history, outcome, on_file
        self.found = 0
        self._named: dict[str, tuple[str, str]] = {}  # files of this source and their captions, by their bytes
        self._met: set[int] = set()  # entries of the history whose file is in this source

    def total(self) -> int | None:
        """How many files there are; None while that is not known."""
        if self.listing.total is None or self.limit is None:
            return self.listing.total
        return min(self.listing.total, self.limit)

    def __iter__(self) -> Iterator[Todo]:
        """Files to do."""
        again = []
        for (number, file), content in ahead(_identified, self._unknown()):
            todo = self._judged(number, file, content)
            if todo is None:
                self.on_file(file.name)
            elif file.place.version in self.history.versions:
                again.append(todo)
            else:
                yield todo
        yield from again

    def _unknown(self) -> Iterator[Numbered]:
        """Files that cannot be told to be done without reading them."""
        for number, one in enumerate(islice(self.listing, self.limit)):
            self.found += 1
            entry = self.history.versions.get(one.place.version) if isinstance(one, SourceFile) else None
            if isinstance(one, Unusable):
                stage = STAGES.get(one.kind, "list")
                self.outcome.reject(number, Rejection(one.name, stage, one.kind, one.reason, again=True))
            elif entry is not None and not entry.again:
                self._settle(number, one, entry)
            else:
                yield number, one
                continue
            self.on_file(one.name)

    def _judged(self, number: int, file: SourceFile, content: str | OSError) -> Todo | None:
        if isinstance(content, OSError):
            reason = content.strerror or str(content)
            self.outcome.reject(number, Rejection(file.name, "list", NOT_READ, reason, again=True))
            return None
        own = file.name, digest_of(file.caption)
        first = self._named.setdefault(content, own) if content else own
        entry = self.history.contents.get(content)
        if entry is not None and id(entry) in self._met:
            first = entry.file, entry.caption
        if first[0] != file.name:
            self.outcome.reject(number, same_bytes(file, *first))
        elif entry is not None:  # under another name, or touched
            self._settle(number, file, entry)
        else:
            return Todo(number, file, content or file.place.version, content)
        return None

    def _settle(self, number: int, file: SourceFile, entry: Entry) -> None:
        """A file that an earlier run did."""
        self._met.add(id(entry))
        if digest_of(file.caption) != entry.caption:
            self.outcome.reject(number, Rejection(file.name, "caption", "other caption", OTHER_CAPTION))
            return
        self.outcome.skipped += 1
        self.outcome.rejected += [(number, one) for one in entry.rejected]


def _identified(one: Numbered) -> tuple[Numbered, str | OSError]:
    """Runs in a thread: the digest of a local file's bytes; "" for a remote one, which is not fetched twice."""
    try:
        return one, digest(one[1].place) if one[1].place.local else ""
    except OSError as error:
        return one, error
