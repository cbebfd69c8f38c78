"""Captions: which words belong to which video, from the places where people keep them; a short and a long text of each.

    1  the exact name of the video in a table, in captions.json or in another file of captions (caption_files.py)
    2  words beside it: <stem>.txt, <stem>.json and what else carries its name (sidecars.py)
    3  a name in a file of captions that can mean nothing but this video (name_matching.py)

Both texts are kept: which of them to train on is chosen in training. Where there is but one, it is the caption. Where
two texts have the same claim to a video and differ, it is left out with both of their names.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from data.captions.name_matching import Matching, Meant, listed, nearest
from data.captions.sidecars import Sides, kind_of
from data.captions.table_rows import half_character
from parallel import parsing
from parallel.errors import InputError
from parallel.parsing import ParseError, parse_json

SHORT_KEYS = (
    "short",
    "caption",
    "text",
    "cap",
    "prompt",
    "captions",
    "short_caption",
    "description",
)  # the first that is there
LONG_KEYS = ("long", "caption_long", "long_caption", "dense_caption", "detailed_caption")
NO_CAPTION = "no caption"  # the value of the error of a video without one
NOBODY = Meant()
HALVES = frozenset([*map(chr, range(0xD800, 0xE000)), "\ufffd"])  # what is no character was one
LARGEST_WORDS = 16 << 20  # bytes of one sidecar
LONG_CAPTION = 1024  # bytes, beyond which the built-in text encoder reads no more unless it is told to
CONVERT = "not UTF-8; if it is Latin-1: iconv -f LATIN1 -t UTF-8 FILE > NEW"

LIST = re.compile(r"""\s*\[\s*(['"]).*\1\s*,?\s*\]\s*""", re.DOTALL)  # of texts, as Python or JSON writes it

Tell = Callable[[str], None]  # told the name of a video with more captions than are used, or where other words stand


def silent(_: str) -> None:
    """Tell nobody."""


class Caption(NamedTuple):
    """`short` is the short text or the only one, `long` is "" if there is no other."""

    short: str
    long: str = ""


class NoCaptionError(InputError):
    """A video without a caption, which may be allowed; any other error about captions is of one that cannot be used.

    Attributes:
        hint: what is there and says nothing, "" if there is nothing.
    """

    hint = ""


class Twice(NamedTuple):
    """Different words for one name: `where` says in which files or rows."""

    where: tuple[str, ...]


@dataclass(frozen=True)
class Captions:
    """Raw captions by file name, and whether files beside a video may add to them.

    Attributes:
        origin: where they come from, for messages.
        raw: {name relative to the source, with /: text, list of texts, object with texts, `Twice`, or
            a `ParseError`: why it has none}.
        sidecars: look beside a video whose exact name `raw` lacks.
        files: the names of all files of the source, by which the others in `raw` are guessed; None guesses nothing.
        taken: names in `raw` that mean files which are no part of the source.
        root: absolute path of the source, if it is known.
        rooted: whether the names are known to begin there.
        broken: {folder of the source, with / at its end, "" the source itself: why its file of captions cannot
            be read}.
        keys: {another name of a file: its name in `raw`}, where that is a URL.
    """

    origin: str
    raw: Mapping[str, Any] = field(default_factory=dict)
    sidecars: bool = True
    files: Callable[[], Iterable[str]] | None = None
    taken: frozenset[str] = frozenset()
    broken: Mapping[str, str] = field(default_factory=dict)
    root: str = ""
    rooted: bool = False
    keys: Mapping[str, str] = field(default_factory=dict)

    def of(
        self, name: str, beside: Callable[[], Caption] | None = None, tell: Tell = silent, other: Tell = silent
    ) -> Caption:
        """The caption of one video.

        Args:
            name: of the video.
            beside: gives what stands beside it, or raises.
            tell: told of further captions that are not used.
            other: told where words stand that are not used, because others go before them.

        Raises:
            NoCaptionError: it has none.
            InputError: it has an unreadable one, or several that differ.
        """
        entry = self.raw.get(name)
        sidecar = beside if self.sidecars else None
        if not is_empty(entry):
            found = caption_of(entry, name, tell, other)
            if sidecar is not None and _differs(sidecar, found):
                other("words beside it")
            return found
        hint = _unread(entry, self.origin)
        if sidecar is not None:
            try:
                found = sidecar()
            except NoCaptionError as error:
                hint = hint or error.hint
            else:
                if self.raw and self.files is not None and _differs(lambda: self._guess(name), found):
                    other(self.origin)
                return found
        if self.raw and self.files is not None:
            entry = self._guessed(name)
            if not is_empty(entry):
                return caption_of(entry, name, tell, other)
            hint = hint or _unread(entry, self.origin)
        for folder in sorted(self.broken, key=len, reverse=True):  # the nearest first
            if name.startswith(folder):
                raise no_caption(self.broken[folder])
        raise no_caption(NO_CAPTION, hint)

    @cached_property
    def matching(self) -> Matching:
        """The names in `raw` beside those of the files; made when the first guess is asked for."""
        files = self.files() if self.files is not None else ()
        return Matching(self.raw, files, self.taken, self.root, self.rooted)

    @cached_property
    def _by_key(self) -> Matching:
        files = self.files() if self.files is not None else ()
        return Matching(self.keys, files, self.taken, self.root, self.rooted)

    def unmatched(self, files: Iterable[str]) -> list[str]:
        """A sentence about names that mean none of these files, with the nearest that there are; [] if all do."""
        files = list(files)
        matching = Matching(self.raw, files, self.taken, self.root, self.rooted)
        left = [name for name in matching.unmatched if not is_empty(self.raw[name]) or _unread(self.raw[name], "")]
        if self.keys:
            keyed = Matching(self.keys, files, self.taken, self.root, self.rooted)
            known = {url for key, url in self.keys.items() if key not in set(keyed.unmatched)}
            left = [name for name in left if name not in known]
        if not left or not files:
            return []
        near = [(name, nearest(name, files, 1)) for name in left[:3]]
        said = listed([f"{name} (nearest: {found[0]})" if found else name for name, found in near])
        more = f" and {len(left) - len(near):,} more" if len(left) > len(near) else ""
        many = f"{len(left):,} of {len(self.raw):,} names match no file" if len(left) > 1 else "a name matches no file"
        return [f"{self.origin}: {many}: {said}{more}"]

    def _guess(self, name: str) -> Caption:
        return caption_of(self._guessed(name), name)

    def _guessed(self, name: str) -> Any:
        meant = self.matching.of(name)
        if meant == NOBODY and self.keys:
            meant = self._by_key.of(name)
            if meant.name is not None:
                return self.raw[self.keys[meant.name]]
        if meant.name is not None:
            return self.raw[meant.name]
        if meant.others:
            others = " or ".join(meant.others[:3])
            raise no_caption(f"{meant.rivals[0]} in {self.origin} may mean {others}: write the whole path there")
        entries = [self.raw[self.keys.get(rival, rival)] for rival in meant.rivals]
        if any(entry != entries[0] for entry in entries):
            rivals = " or ".join(meant.rivals[:3])
            raise no_caption(f"its caption may be that of {rivals} in {self.origin}: write the whole path there")
        return entries[0] if entries else None


def caption_of(entry: Any, name: str, tell: Tell = silent, other: Tell = silent) -> Caption:
    """A text, a list of texts (the first is taken), or an object with texts, as a caption; `name` is for messages.

    A list may be the text of one, such as Panda-70M's "['a dog runs']".

    Raises:
        NoCaptionError: there is none.
        InputError: it is something else.
    """
    if isinstance(entry, ParseError):
        raise no_caption(str(entry))
    if isinstance(entry, Twice):
        raise no_caption(f"{name} has different captions: {' and '.join(entry.where[:3])}")
    texts = entry if isinstance(entry, Mapping) else {SHORT_KEYS[0]: entry}
    texts = {_key(key): value for key, value in texts.items()}
    short, long = _first(texts, SHORT_KEYS, name, tell), _first(texts, LONG_KEYS, name, tell)
    if not short and not long:
        raise no_caption(NO_CAPTION)
    found = Caption(short, long) if short else Caption(long)
    for key in (*SHORT_KEYS, *LONG_KEYS):
        said = texts.get(key)
        if not isinstance(said, str) or isinstance(listed_text(said), list):  # whose others are told as several
            continue
        if says_something(said) and said.strip() not in found:
            other(f"key {key}")
    return found


def of_parts(parts: Mapping[str, bytes], tell: Tell = silent, other: Tell = silent) -> Caption:
    """The caption in what stands beside a video, by kind: json (an object or texts), txt, long, cls.

    Raises:
        NoCaptionError: there is none.
        InputError: a part is not what it is called.
    """
    said = {kind: text_of(data, f"its {kind}") for kind, data in parts.items()}
    texts: dict[str, Any] = {}
    if "json" in said:
        try:
            value = parse_json(said["json"], pairs=object_of)
        except ParseError as error:
            raise no_caption(f"its json cannot be read: {error}") from error
        if isinstance(value, dict):
            texts = {_key(key): one for key, one in value.items()}
        elif isinstance(value, str) or not said.get("txt"):
            texts = {"caption": value}
    words = {key: texts[key] for key in (*SHORT_KEYS, *LONG_KEYS) if key in texts}
    plain = said.get("txt") or ("" if any(words.get(key) for key in SHORT_KEYS) else said.get("cls", ""))
    if plain and not words.get("short"):
        words["short"] = plain
    elif plain and isinstance(words["short"], str) and plain != words["short"].strip():
        other("txt")
    if said.get("long"):
        words["long"] = said["long"]
    try:
        return caption_of(words, "the sample", tell, other)
    except NoCaptionError as error:
        error.hint = _unread(texts, "its json")
        raise


def of_sides(sides: Sides, read: Callable[[str], bytes], tell: Tell = silent, other: Tell = silent) -> Caption:
    """The caption in the names that speak of a video, each read when it is needed.

    Raises:
        NoCaptionError: there is none.
        InputError: one cannot be used, or several say different things.
    """
    parts = {kind: read(name) for kind, name in sides.kinds.items()}
    for kind, names in sides.twice.items():
        texts = {read(name).strip(): name for name in names}
        if len(texts) > 1:
            raise no_caption(f"{' and '.join(names)} say different things: keep one of them")
        parts[kind] = next(iter(texts))
    try:
        chosen = of_parts(parts, tell, other)
        for name in sides.passed:
            if _differs(lambda: of_parts({kind_of(name) or "txt": read(name)}), chosen):  # noqa: B023 called at once
                other(name)
        return chosen
    except NoCaptionError:
        found: dict[Caption, str] = {}
        for name in sides.others:
            try:
                found.setdefault(of_parts({kind_of(name) or "txt": read(name)}, tell), name)
            except NoCaptionError:
                continue
        if len(found) > 1:
            several = " or ".join(list(found.values())[:3])
            raise no_caption(f"its caption may be {several}: name it <video>.caption.txt, or keep one") from None
        if not found:
            raise
        return next(iter(found))


def no_caption(reason: str, hint: str = "") -> InputError:
    """The error of a video without a caption that can be used; `hint`: what is there and says nothing."""
    kind = NoCaptionError if reason == NO_CAPTION else InputError
    error = kind(
        "every video has a caption", reason, "write captions.json or <video>.txt beside it, or allow missing captions"
    )
    if isinstance(error, NoCaptionError):
        error.hint = hint
    return error


def says_something(text: str) -> bool:
    """Whether a text has a character that is seen: spaces, marks of direction and of no width say nothing."""
    return any((one.isprintable() and not one.isspace()) or one in HALVES for one in text)


def listed_text(text: Any) -> Any:
    """A list of captions that was written as text, as Panda-70M's "['a dog runs']" in a CSV is; else what it is."""
    if type(text) is not str or not LIST.fullmatch(text):
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of a backslash before a letter
            found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return found if isinstance(found, list) and all(isinstance(one, str) for one in found) else text


def text_of(data: bytes, what: str) -> str:
    """Text of a file of words, in UTF-8 or with a mark of UTF-16 at its beginning.

    Raises:
        InputError: it is something else.
    """
    try:
        return parsing.text_of(data).strip()
    except ParseError:
        raise no_caption(f"{what} is {CONVERT}") from None


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; a key that stands there again with another value has `Twice` as its value."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        found[key] = Twice((f"{key} stands there twice",)) if key in found and found[key] != value else value
    return found


def _first(texts: Mapping[str, Any], keys: tuple[str, ...], name: str, tell: Tell) -> str:
    for key in keys:
        entry = listed_text(texts.get(key))
        if entry != entry:  # NaN, as pandas writes an empty cell
            continue
        if isinstance(entry, Twice):
            raise no_caption(f"{name}: {entry.where[0]}, with different words")
        if isinstance(entry, list) and entry and all(isinstance(one, str) for one in entry):
            said = [one for one in entry if says_something(one)]
            if len(said) > 1:
                tell(name)
            entry = said[0] if said else None
        if entry is not None and not isinstance(entry, str):
            raise no_caption(f"the caption of {name} is {type(entry).__name__}, not text")
        if entry and says_something(entry):
            half = half_character(entry)  # JSON may hold one, which cannot be written as UTF-8
            if half is not None:
                raise no_caption(f"the caption of {name} holds {half}: write whole characters")
            return entry.strip()
    return ""


def _key(key: Any) -> str:
    return str(key).strip().lower().replace(" ", "_").replace("-", "_")


def is_empty(entry: Any) -> bool:
    """Whether an entry of captions says nothing; what is no text says something, and is refused."""
    if isinstance(entry, Twice):
        return False
    if isinstance(entry, Mapping):
        return all(is_empty(value) for key, value in entry.items() if _key(key) in (*SHORT_KEYS, *LONG_KEYS))
    return entry is None or entry != entry or (isinstance(entry, str) and not says_something(entry))


def _unread(entry: Any, origin: str) -> str:
    """What to tell of an entry none of whose keys is a caption."""
    if not isinstance(entry, Mapping) or not entry or {_key(key) for key in entry} & {*SHORT_KEYS, *LONG_KEYS}:
        return ""
    keys = {_key(key) for key in entry}
    how = "; moments with words: longreel data chat" if {"timestamps", "sentences"} <= keys else ""
    return f"{origin} has no caption of it, but {listed([str(key) for key in entry])}{how}"


def _differs(others: Callable[[], Caption], chosen: Caption) -> bool:
    """Whether there are other words; those that cannot be read are other ones."""
    try:
        found = others()
    except NoCaptionError:
        return False
    except Exception:  # of a file, of a store: it is not used, so it costs nothing
        return True
    return any(text and text not in chosen for text in found)
