"""Samples of tars that others made: which members belong together, which is the media, what the words are.

Members that stand side by side and share a key are a sample, as WebDataset has it: the key ends at the first dot behind
the last slash. A sample with several media (0001.left.mp4, 0001.right.mp4) is as many samples of ours; a video goes
before an image of the same name, which is then its picture. Nothing is unpacked, so a member's path does no harm.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data.captions.sidecars import Sides, chosen, kind_of, parts_of_sample
from data.containers.open_media import VIDEO_SUFFIXES
from data.containers.regular_file import open_regular
from data.dataset import tar_format
from data.dataset.tar_format import Damage, Member
from data.media import image

VIDEOS = frozenset(suffix.removeprefix(".") for suffix in VIDEO_SUFFIXES)
IMAGES = image.SUFFIXES
WORDS = ("json", "txt", "cls")  # in the order in which one of them becomes the json part of a row
KEY = re.compile(r"((?:.*/|)[^.]+)[.][^/]*")  # WebDataset's own
META = re.compile(r"__[^/]*__($|/)")


@dataclass(frozen=True)
class Contents:
    """What a tar holds for us.

    Attributes:
        candidates: samples to be read, in their order.
        rejected: (key, reason) of those that need not be.
        ignored: how many members have no use, by suffix.
        notes: what a person should know of the tar.
        damage: of the tar itself.
    """

    candidates: tuple[Candidate, ...]
    rejected: tuple[tuple[str, str], ...]
    ignored: Mapping[str, int]
    notes: tuple[str, ...]
    damage: tuple[Damage, ...]


@dataclass
class Group:
    """Members of one key, by suffix in lower case.

    Attributes:
        wrong: why none of it can be used; "" if it can.
    """

    key: str
    parts: dict[str, Member] = field(default_factory=dict)
    wrong: str = ""


@dataclass(frozen=True)
class Candidate:
    """A sample to be read: its media part, the part that stands for its JSON, and all parts with words.

    Attributes:
        suffix: of the media, "" for text alone.
        sides: which parts are its caption, by suffix.
        parts: those parts.
    """

    key: str
    suffix: str
    media: Member | None
    sides: Sides
    parts: Mapping[str, Member]

    @property
    def words(self) -> Mapping[str, Member]:
        """A part of each kind (json, txt, cls), the nearest to the media's name."""
        found = {kind: self.parts[name] for kind, name in self.sides.kinds.items() if kind in WORDS}
        for name in self.parts:
            found.setdefault(kind_of(name) or "txt", self.parts[name])
        return found

    @property
    def offset(self) -> int:
        """Where in the tar it is: of its media part, for text alone of the part that stands for its JSON."""
        return self.media.offset if self.media else next(self.words[k].offset for k in WORDS if k in self.words)


def contents(tar: Path) -> Contents:
    """Reads the headers of a tar.

    Raises:
        OSError: it cannot be read.
    """
    damage: list[Damage] = []
    ignored: dict[str, int] = {}

    def entries(file: int) -> Iterator[Member | Damage]:
        for entry in tar_format.walk(file):
            if isinstance(entry, Damage):
                damage.append(entry)
            yield entry

    with open_regular(tar) as file:
        found, notes = joined(groups(entries(file.fileno()), ignored))
    notes = [f"{d.reason}: bytes {d.start} to {d.stop} are not read" for d in damage] + notes
    chosen, rejected = [], []
    for group in found:
        several = candidates(group, ignored)
        if isinstance(several, str):
            rejected.append((group.key, several))
        else:
            chosen += several
    return Contents(tuple(chosen), tuple(rejected), ignored, tuple(notes), tuple(damage))


def groups(entries: Iterable[Member | Damage], ignored: dict[str, int]) -> Iterator[Group]:
    """The samples of a tar as WebDataset sees them; `ignored` counts, by name, members that belong to none.

    What stands beside damage may have lost a part to it: it is wrong unless it has all parts that the sample before
    had.
    """
    group: Group | None = None
    usual: set[str] | None = None  # suffixes of the last sample that is surely whole
    damaged: Damage | None = None  # before `group`

    def ended(after: Damage | None) -> Iterator[Group]:
        nonlocal usual, damaged
        if group is not None:
            beside = after or damaged
            if beside is after and beside is not None and beside.name and _key(beside.name) != group.key:
                beside = damaged  # the next sample is cut off, not this one
            if beside is not None and not (usual and usual <= set(group.parts)):
                group.wrong = f"it may have lost a part: {beside.reason} at byte {beside.start}"
            elif beside is None:
                usual = set(group.parts)
            yield group
        if group is not None or after is not None:
            damaged = after

    for entry in entries:
        if isinstance(entry, Damage):
            if entry.kind != "end":
                yield from ended(entry)
                group = None
            continue
        if entry.kind == "folder":
            continue
        key = _key(entry.name)
        if key is None:
            ignored["(no key)"] = ignored.get("(no key)", 0) + 1
            continue
        if group is None or group.key != key:
            yield from ended(None)
            group = Group(key)
        suffix = entry.name[len(key) + 1 :].lower()
        if suffix in group.parts:
            group.wrong = f"two parts are named {suffix}"
        group.parts[suffix] = entry
    yield from ended(None)


def _key(name: str) -> str | None:
    found = None if META.match(name) else KEY.fullmatch(name)
    return found[1] if found else None


def joined(found: Iterable[Group]) -> tuple[list[Group], list[str]]:
    """Groups whose parts lie apart in the tar put together, and notes about keys that come more than once."""
    kept: dict[str, list[Group]] = {}
    order: list[Group] = []
    apart = again = 0
    for group in found:
        same = kept.setdefault(group.key, [])
        other = same[-1] if same else None
        if other and not (other.wrong or group.wrong or other.parts.keys() & group.parts.keys()):
            other.parts.update(group.parts)
            apart += 1
        else:
            again += bool(same)
            same.append(group)
            order.append(group)
    notes = [f"{apart} samples have parts that lie apart: other readers see halves of them"] if apart else []
    notes += [f"{again} keys come again for other samples"] if again else []
    return order, notes


def candidates(group: Group, ignored: dict[str, int]) -> list[Candidate] | str:
    """The samples of ours in a group, or why there is none; `ignored` counts parts without a use, by suffix."""
    if group.wrong:
        return group.wrong
    media: dict[str, str] = {}  # suffix by what stands before its last dot; of two, a video
    for kind in (IMAGES, VIDEOS):
        for suffix in reversed(group.parts):
            stem, _, last = suffix.rpartition(".")
            if last in kind:
                media[stem] = suffix
    words = [suffix for suffix, member in group.parts.items() if member.kind == "file" and kind_of(suffix)]
    found, used = [], set(media.values())
    for stem, suffix in sorted(media.items(), key=lambda item: group.parts[item[1]].offset) or [("", "")]:
        member = group.parts.get(suffix)
        if member is not None and member.kind != "file":
            return f"{member.name} has no bytes of its own: {member.kind}"
        last = suffix.rpartition(".")[2]
        sides = chosen(parts_of_sample(words, stem, media or [""]), last)
        key = f"{group.key}.{stem}" if stem else group.key
        parts = {name: group.parts[name] for name in sides.names}
        found.append(Candidate(key, "jpg" if last == "jpeg" else last, member, sides, parts))
        used |= parts.keys()
    others = sorted(group.parts.keys() - used)
    if not media and (others or not {"json", "txt"} & found[0].words.keys()):
        return f"no video and no image, only {', '.join(sorted(group.parts))}"
    for name in others:
        ignored[name] = ignored.get(name, 0) + 1
    return found
