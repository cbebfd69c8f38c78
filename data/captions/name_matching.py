"""Which file is meant by a name that somebody wrote: exactly, or by a guess that nothing speaks against.

    as written               files                        means
    clip.mp4                 clip.mp4, sub/clip.mp4       clip.mp4: an exact name belongs to its file alone
    /disk/a/clip.mp4         a/clip.mp4, b/clip.mp4       a/clip.mp4: one path ends with the other
    clip                     clip.mp4                     clip.mp4: only its suffix is left out
    A\\Clip.MP4              a/clip.mp4                   a/clip.mp4: written loosely
    clip.mp4                 a/clip.mp4, b/clip.mp4       nobody knows: a refusal that names both
    x/clip.mp4               y/clip.mp4                   nothing: its folder says otherwise
    x/clip.mp4, b.mp4        clip.mp4, b.mp4              x is a folder that is not there, for b.mp4 is where it says

A guess is taken where one written name fits one file best and no other file as well. Time and memory grow with the
number of names times the depth of their paths.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from urllib.parse import unquote

from data.remote.addresses import split_url

Parts = tuple[str, ...]
Score = tuple[bool, bool, int]  # whole paths are the same, suffixes too, parts that agree
SHOWN = 3  # names that a message lists
HERE, ELSEWHERE = ".", "/"  # where a path begins
COMPARED = 2000  # names among which the nearest is looked for


@dataclass(frozen=True)
class Meant:
    """What is known of one file.

    Attributes:
        name: the written name that means it, None if none does.
        rivals: written names between which nobody can choose.
        others: files that the only written name might mean as well.
    """

    name: str | None = None
    rivals: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


class Files:
    """Files that could be meant, by what people write of them.

    Args:
        names: of all of them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(dict.fromkeys(names))
        self._there = set(self.names)
        self._whole: dict[Parts, list[tuple[str, bool, bool]]] = defaultdict(list)
        self._ends: dict[Parts, list[tuple[str, bool, int]]] = defaultdict(list)
        for name in self.names:
            for parts, full, own in _forms(name):
                self._whole[parts].append((name, full, own))
                for start in range(1, len(parts)):
                    self._ends[parts[start:]].append((name, full, len(parts) - start))

    def __contains__(self, name: str) -> bool:
        return name in self._there

    def fits(self, name: str) -> dict[str, Score]:
        """The files that a name may mean which is no exact one, and how well it fits each."""
        parts = parts_of(name)
        found = self._fits(parts)
        if not found and "%" in name:  # as in URLs
            found = self._fits(parts_of(unquote(name)))
        stem, dot, _ = parts[-1].rpartition(".") if parts else ("", "", "")
        if found or not (dot and stem):
            return found
        found = self._fits((*parts[:-1], stem))  # samples of imported tars have no suffix
        return {file: score for file, score in found.items() if score[1] and "." not in file.rpartition("/")[2]}

    def _fits(self, parts: Parts) -> dict[str, Score]:
        found: dict[str, Score] = {}

        def note(file: str, score: Score) -> None:
            found[file] = max(score, found.get(file, score))

        for file, full, length in self._ends.get(parts, ()):  # the end of the file's path
            note(file, (False, full, length))
        for start in range(len(parts)):  # the file's path is the end of it
            for file, full, own in self._whole.get(parts[start:], ()):
                note(file, (own and start == 0, full, len(parts) - start))
        return found

    def meant(self, name: str) -> list[str]:
        """The file that a name means, those between which nobody can choose, or none."""
        return [name] if name in self._there else sorted(_best(self.fits(name)))


class Matching:
    """Written names beside the files that there are.

    Args:
        written: names as people wrote them, exact ones relative to the same folder as `files`.
        files: names of all files that could be meant.
        taken: written names that are known to mean something else.
        root: absolute path of the folder of `files`, if it is known.
        rooted: whether written names are known to begin there.
    """

    def __init__(
        self,
        written: Iterable[str],
        files: Iterable[str],
        taken: Collection[str] = (),
        root: str = "",
        rooted: bool = False,
    ) -> None:
        there, written = Files(files), list(dict.fromkeys(written))
        self.exact = {name for name in written if name in there}
        self._of_name = {name: there.fits(name) for name in written if name not in there and name not in taken}
        self._refuse_other_roots(parts_of(root), rooted or bool(self.exact))
        self._of_file: dict[str, dict[str, Score]] = defaultdict(dict)
        for name, scores in self._of_name.items():
            for file in _best(scores):
                self._of_file[file][name] = scores[file]

    def of(self, file: str) -> Meant:
        """Which written name means a file."""
        if file in self.exact:
            return Meant(file)
        names = _best(self._of_file.get(file, {}))
        if len(names) > 1:
            return Meant(rivals=tuple(sorted(names)))
        for name in names:
            others = _best(self._of_name[name])
            return Meant(name) if len(others) == 1 else Meant(rivals=(name,), others=tuple(sorted(others)))
        return Meant()

    @property
    def unmatched(self) -> list[str]:
        """Written names that no file could be."""
        return [name for name, scores in self._of_name.items() if not scores.keys() - self.exact]

    def _refuse_other_roots(self, root: Parts, rooted: bool) -> None:
        """Names that begin elsewhere do so in one way: where /old/b.mp4 is b.mp4, /old/x/a.mp4 is in a folder x."""
        begins = {name: _begin(name, scores) for name, scores in self._of_name.items()}
        roots = {begin for begin in begins.values() if begin} | ({(HERE,)} if rooted else set())
        for name, begin in begins.items():
            if not begin or (begin[0] == HERE and begin[1:] == root[len(root) - len(begin) + 1 :]):
                continue
            if any(begin[:length] in roots for length in range(1, len(begin))):
                self._of_name[name] = {}


def _begin(name: str, scores: Mapping[str, Score]) -> Parts:
    """What a name has before the path of the file that it fits; () if it has no more than that."""
    parts, length = parts_of(name), max((score[2] for score in scores.values()), default=0)
    if not length or length == len(parts):
        return ()
    absolute = "://" in name or name.strip().startswith(("/", "\\")) or name[1:2] == ":"
    return (ELSEWHERE if absolute else HERE, *parts[: len(parts) - length])


def parts_of(name: str) -> Parts:
    """The parts of a path or a URL, written alike: without capitals, `.`, `\\` and what is left and right of a path."""
    if "://" in name:
        name = unquote(split_url(name).path)
    name = loose(name).replace("\\", "/")
    return tuple(part for part in name.split("/") if part not in ("", "."))


def loose(text: str) -> str:
    """Text as people confuse it: capitals, spaces around it, two ways to write an accent."""
    return unicodedata.normalize("NFC", text).strip().casefold()


def nearest(name: str, files: Collection[str], count: int = SHOWN) -> list[str]:
    """The files whose names are most like a name that means none of them.

    Among many files only those are compared that begin or end alike.
    """
    stem = _stem(name)
    by_stem: dict[str, list[str]] = defaultdict(list)
    for file in files:
        by_stem[_stem(file)].append(file)
    stems: Iterable[str] = by_stem
    if len(by_stem) > COMPARED:
        stems = [one for one in by_stem if one[:2] == stem[:2] or stem[-3:] in one][:COMPARED]
    near = [stem] if stem in by_stem else get_close_matches(stem, list(stems), n=count, cutoff=0.6)
    return [file for one in near for file in sorted(by_stem[one])][:count]


def listed(names: Collection[str], count: int = SHOWN) -> str:
    """A few of many names, for a sentence."""
    shown = list(names)[:count]
    return ", ".join(shown) + (f" and {len(names) - len(shown):,} more" if len(names) > len(shown) else "")


def _stem(name: str) -> str:
    last = (parts_of(name) or ("",))[-1]
    return last.rpartition(".")[0] or last


def _forms(file: str) -> list[tuple[Parts, bool, bool]]:
    """Its parts, those in its tar alone, and each without its suffix; whether the suffix is there, and all parts."""
    parts = parts_of(file)
    inside = next((parts[n + 1 :] for n, part in enumerate(parts[:-1]) if part.endswith(".tar")), ())
    found = []
    for whole in filter(None, (parts, inside)):
        stem, dot, _ = whole[-1].rpartition(".")
        found.append((whole, True, whole is parts))
        if dot and stem:
            found.append(((*whole[:-1], stem), False, whole is parts))
    return found


def _best(scores: Mapping[str, Score]) -> list[str]:
    most = max(scores.values(), default=None)
    return [name for name, score in scores.items() if score == most]
