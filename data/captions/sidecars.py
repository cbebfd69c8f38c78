"""Words beside a video: which files of a folder, or parts of a tar's sample, speak of it, and in which order.

    clip.mp4.txt                      its whole name                             first
    clip.txt  clip.json  clip.TXT     its name
    clip.caption.txt  clip.caption    its name, and that these are its caption
    clip.long.txt                     its long caption
    ../labels/clip.txt captions/clip.txt   in a folder of words below or beside     if there is nothing above
    clip.en.txt                       its name and something else                only if nothing else says anything

What belongs to a video with a longer name belongs to that one alone: `movie.part1.txt` is of movie.part1.mp4, never of
movie.mp4 or movie.part2.mp4.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from data.captions.name_matching import loose

CAPTION_NAMES = ("caption", "captions", "cap", "text", "txt", "prompt", "description", "short", "short_caption")
LONG_NAMES = ("long", "caption_long", "long_caption", "caption-long", "long-caption")
KINDS = {"txt": "txt", "json": "json", "cls": "cls", **dict.fromkeys(("caption", "captions", "prompt", "text"), "txt")}
LANGUAGE = re.compile(r"[a-z]{2}([-_][a-z]{2,4})?")
COMMON_LATER = 100  # more than there are ranks
WORD_FOLDERS = ("captions", "caption", "labels", "label", "texts", "text", "txt", "prompts", "prompt")
HEARD = frozenset(["asr", "ocr", "transcript", "subtitle", "subtitles", "meta", "metadata", "info"])  # no captions
COMMON = frozenset([*CAPTION_NAMES, *LONG_NAMES, *HEARD])


@dataclass(frozen=True)
class Sides:
    """The names of what speaks of one video.

    Attributes:
        kinds: the one of each kind (txt, json, cls, long) that is of its name or of its caption.
        twice: for a kind, names that have the same claim to it.
        others: what else there is, if nothing above says anything; what was heard or read only if there is no more.
        passed: words of it that are further away than those, and so are not used.
    """

    kinds: Mapping[str, str] = field(default_factory=dict)
    twice: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """All of them."""
        claim = [*self.kinds.values(), *(name for names in self.twice.values() for name in names)]
        return [*claim, *self.others, *self.passed]

    def within(self, folder: str) -> Sides:
        """Those that have a claim, as names from above `folder`."""
        return Sides({kind: f"{folder}/{name}" for kind, name in self.kinds.items()})


@dataclass(frozen=True)
class Part:
    """A name of words that belongs to a video.

    Attributes:
        name: of the file or of the part of a sample.
        rest: what follows the video's stem, in lower case, split at its dots; its kind comes last.
        common: it speaks of all videos of a sample, and so after those of this one.
    """

    name: str
    rest: tuple[str, ...]
    common: bool = False


def kind_of(name: str) -> str | None:
    """What words a name with this suffix has: txt, json, cls, or None."""
    return KINDS.get(name.rpartition(".")[2].lower())


def chosen(parts: Iterable[Part], suffix: str) -> Sides:
    """Which of the words that belong to a video are its caption.

    Args:
        parts: of it.
        suffix: of the video, in lower case without a dot.
    """
    ranked: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    others: dict[bool, list[str]] = {True: [], False: []}
    for part in parts:
        kind, rank = _rank(part.rest, suffix)
        if rank is None:
            others[HEARD.isdisjoint(part.rest)].append(part.name)
        else:
            ranked[kind][rank + COMMON_LATER * part.common].append(part.name)
    first = {kind: sorted(names[min(names)]) for kind, names in ranked.items()}
    twice = {kind: tuple(names) for kind, names in first.items() if len(names) > 1}
    single = {kind: names[0] for kind, names in first.items() if len(names) == 1}
    later = [
        name
        for names in ranked.values()
        for rank, of_rank in names.items()
        if min(names) < rank < COMMON_LATER
        for name in of_rank
    ]
    if ranked:  # nothing else is looked at, unless these say nothing
        later += others[True]
    return Sides(single, twice, tuple(sorted(others[True] or others[False])), tuple(sorted(later)))


def _rank(rest: Sequence[str], suffix: str) -> tuple[str, int | None]:
    """What kind of words, and how near to the video's own name; None for what is only beside it."""
    kind, between = KINDS[rest[-1]], list(rest[:-1])
    if rest[-1] not in ("txt", "json", "cls"):
        between.append(rest[-1])  # clip.caption: a text that says what it is
    if between[:1] == [suffix]:
        return (kind, 0) if len(between) == 1 else _named(kind, between[1:])
    return (kind, 1) if not between else _named(kind, between)


def _named(kind: str, between: Sequence[str]) -> tuple[str, int | None]:
    if len(between) != 1:
        return kind, None
    if between[0] in LONG_NAMES and kind == "txt":
        return "long", 0
    return kind, 2 + CAPTION_NAMES.index(between[0]) if between[0] in CAPTION_NAMES else None


@dataclass(frozen=True)
class Folder:
    """Names in one folder: its media, and what may be words of them.

    Attributes:
        media: names of videos and images.
        words: names of text and JSON files.
    """

    media: Collection[str]
    words: Collection[str]

    def sides(self, name: str) -> Sides:
        """The words of one of the media."""
        stem, _, suffix = name.rpartition(".")
        if not stem:
            return Sides()
        found = [part for words, parts in self._index.get(loose(stem), ()) if (part := self._own(name, words, parts))]
        exact = [part for part in found if part.name.startswith(f"{stem}.")]
        if not exact and len(self._stems[loose(stem)]) > 1:
            found = []  # CLIP.mp4 and clip.mp4: whose is Clip.txt?
        sides = chosen(exact or found, suffix.lower())
        languages = tuple(one for one in sides.others if LANGUAGE.fullmatch(one.rpartition(".")[0].rpartition(".")[2]))
        passed = [name for name in sides.passed if name not in sides.others or name in languages]
        return Sides(sides.kinds, sides.twice, languages, tuple(passed))

    def _own(self, name: str, words: str, length: int) -> Part | None:
        """A name of words, if no other of the media has more of it in its name."""
        pieces = words.split(".")
        for more in range(length + 1, len(pieces)):
            longer = ".".join(pieces[:more])
            if loose(longer) in self._stems or (longer in self._media and longer != name):
                return None
        return Part(words, tuple(piece.lower() for piece in pieces[length:]))

    @cached_property
    def _media(self) -> frozenset[str]:
        return frozenset(self.media)

    @cached_property
    def _stems(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = defaultdict(set)
        for name in self.media:
            stem = name.rpartition(".")[0]
            found[loose(stem)].add(stem)
        return found

    @cached_property
    def _index(self) -> dict[str, list[tuple[str, int]]]:
        """Names of words by each beginning of theirs that is a stem, and how many pieces it has."""
        found: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for words in sorted(self.words):
            pieces = words.split(".")
            for length in range(1, len(pieces)):
                stem = loose(".".join(pieces[:length]))
                if stem in self._stems:
                    found[stem].append((words, length))
        return found


class Folders:
    """All names of a source, folder by folder: `sides` of any of its media."""

    def __init__(self, names: Iterable[str], media: Collection[str]) -> None:
        """Group names by their folders; `media`: suffixes of videos and images, with their dots."""
        self._folders: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for name in names:
            above, _, last = name.rpartition("/")
            if kind_of(last):
                self._folders[above][1].append(last)
            elif f".{last.rpartition('.')[2].lower()}" in media:
                self._folders[above][0].append(last)
        self._made: dict[str, Folder] = {}
        self._stems: dict[str, Counter[str]] = {}  # of media in a folder and those right below it
        self._parallel: dict[tuple[str, str], Folder] = {}

    def media(self, above: str) -> list[str]:
        """The names of the media in one folder."""
        return self._folders[above][0]

    def sides(self, name: str) -> Sides:
        """The words of one of the media, named relative to its folder."""
        above, _, last = name.rpartition("/")
        if above not in self._made:
            self._made[above] = Folder(*self._folders.get(above, ([], [])))
        sides = self._made[above].sides(last)
        apart = self._apart(above, last)
        return replace(sides, passed=(*sides.passed, *apart.names)) if sides.names else apart

    def unowned(self, media: Iterable[str]) -> list[str]:
        """Names of texts that belong to none of these media."""
        owned: set[str] = set()
        for name in media:
            above = posixpath.dirname(name)
            owned.update(posixpath.normpath(posixpath.join(above, side)) for side in self.sides(name).names)
        texts = (posixpath.join(above, name) for above, (_, words) in self._folders.items() for name in words)
        return sorted(name for name in texts if kind_of(name) == "txt" and name not in owned)

    def _claims(self, parent: str, last: str) -> int:
        """How many media of this name there are for a folder of words in `parent`: there, and in folders beside it."""
        if parent not in self._stems:
            counts: Counter[str] = Counter()
            for above in (parent, *self._children[parent]):
                counts.update({loose(name.rpartition(".")[0]) for name in self._folders.get(above, ([], []))[0]})
            self._stems[parent] = counts
        return self._stems[parent][loose(last.rpartition(".")[0])]

    @cached_property
    def _children(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for above in self._folders:
            if above:
                found[posixpath.dirname(above)].append(above)
        return found

    def _apart(self, above: str, last: str) -> Sides:
        """Words of the same name in a folder that is called for them: videos/clip.mp4 and labels/clip.txt."""
        found: list[Sides] = []
        for here in dict.fromkeys((above, posixpath.dirname(above)) if above else ("",)):
            for called in WORD_FOLDERS:
                folder = posixpath.join(here, called)
                if folder == above or folder not in self._folders or self._claims(here, last) > 1:
                    continue
                if (above, folder) not in self._parallel:
                    self._parallel[above, folder] = Folder(self._folders[above][0], self._folders[folder][1])
                start = called if here == above else f"../{called}"
                found.append(self._parallel[above, folder].sides(last).within(start))
        kinds: dict[str, list[str]] = defaultdict(list)  # by kind, in all of these folders
        for sides in found:
            for kind, side in sides.kinds.items():
                kinds[kind].append(side)
        single = {kind: names[0] for kind, names in kinds.items() if len(names) == 1}
        return Sides(single, {kind: tuple(names) for kind, names in kinds.items() if len(names) > 1})


def parts_of_sample(suffixes: Iterable[str], stem: str, stems: Collection[str]) -> list[Part]:
    """The parts of a tar's sample that speak of one of its media.

    Args:
        suffixes: of the parts that have words, in lower case: txt, 0.caption.txt.
        stem: what the suffix of the media has before its last dot: 0 of 0.mp4, "" of mp4.
        stems: those of all media of the sample.
    """
    found = []
    for suffix in suffixes:
        owner = _owner(suffix, stems)
        if owner == stem or (owner is None and (suffix.partition(".")[0] in COMMON or _is_common(suffix))):
            rest = tuple(suffix.removeprefix(f"{stem}." if owner else "").split("."))
            found.append(Part(suffix, rest, common=owner is None))
    return found


def _owner(suffix: str, stems: Collection[str]) -> str | None:
    """The media of the longest name that a part begins with; None where it may speak of all of them."""
    pieces = suffix.split(".")
    for length in range(len(pieces) - 1, -1, -1):
        stem = ".".join(pieces[:length])
        if stem in stems:
            return stem
    return None


def _is_common(suffix: str) -> bool:
    """Whether a part of no media's name speaks of all media of its sample: txt, en.txt."""
    return "." not in suffix or LANGUAGE.fullmatch(suffix.partition(".")[0]) is not None
