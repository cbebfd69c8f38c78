"""YAML of people, as far as a run needs it: a tree of keys, words and numbers, read within a second or refused.

    text --events--> depth, size and anchors are counted --> values, and the line of each dotted key

YAML has more in it than a run: anchors that multiply (nine lines make a billion values) or hold themselves, numbers to
base 60 (`1:30` is 90) and 8, `no` for false, dates, tags that make objects. What could mean two things is read as the
word that it is, so that the setting itself says what it expects; what multiplies is counted before it is built. The
price is a second pass over the text, of a few milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from parallel.errors import InputError
from parallel.parsing import shorter, text_of

LARGEST = 128 << 10  # bytes of a run
DEEPEST = 16  # levels; a run has four
MOST = 20_000  # values, those that anchors repeat included
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes of a part of a path, and of a path, on Linux
RULE, EXAMPLES = "a run is a YAML file", "see recipes/ for examples"
_FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_FAST):  # type: ignore[misc]
    """Safe, and only with what YAML 1.1 and 1.2 read alike: true and false, decimal and hexadecimal numbers, null."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Keys are words, and stand once."""
        seen = set[str]()
        for key, _ in node.value:
            line = f"line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise InputError("a key of a run is a word", f"{line}: a {key.id}", "write it without brackets")
            if key.value in seen:
                raise InputError(
                    "a key stands once", f"{shorter(key.value)[1:-1]}, again in {line}", "keep one of them"
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]{0,40}|0x[0-9a-fA-F_]{1,16})", "-+0123456789"),
    ("float", r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?", "-+0123456789."),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def read_run(path: Path) -> str:
    """The text of a run file; `recipes/NAME.yaml` is ours where there is none of that name.

    Raises:
        InputError: there is no such file, it is none of text, or too large.
    """
    try:
        path = installed_recipe(path) or path
        if not path.is_file():
            found = "no such file" if not path.exists() else "it is no file"
            raise InputError(RULE, f"{shorter(str(path), 300)}: {found}", EXAMPLES)
        size = path.stat().st_size
        if size > LARGEST:
            raise InputError(f"a run has at most {LARGEST:,} bytes", f"{path}: {size:,}", EXAMPLES)
        return text_of(path.read_bytes())
    except InputError:
        raise
    except (OSError, ValueError) as error:  # also of a path with a NUL in it
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(RULE, f"{shorter(str(path), 300)}: {reason}", EXAMPLES) from None


def installed_recipe(path: Path) -> Path | None:
    """The recipe that was installed with us, of the path under which the documents name it; None if there is a file.

    Who works in a copy of the sources has the folder `recipes`; a wheel lays it beside the environment's programs.
    """
    if path.parent != Path("recipes") or path.exists():
        return None
    from importlib import metadata  # a tenth of a second that only this way costs

    try:
        files = metadata.files("longreel") or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(f.locate())) for f in files if f.parts[-3:] == ("longreel", *path.parts)), None)


def parse_yaml(text: str, where: str, rule: str = RULE) -> tuple[Any, dict[str, int]]:
    """The values of a YAML text, and the line of each dotted key.

    Args:
        text: of one document.
        where: it is from, for messages.
        rule: that it should keep.

    Raises:
        InputError: it is no YAML, or more than a run needs: too deep, too many values, tags, keys twice.
    """
    try:
        _refuse_excess(text, where)
        node = yaml.compose(text, Loader=_Loader)
        settings = yaml.load(text, Loader=_Loader)
    except InputError as error:
        found = error.value if where in error.value else f"{where}: {error.value}"
        raise InputError(error.rule, found, error.remedy) from None
    except yaml.YAMLError as error:
        raise InputError(rule, f"{where}: {' '.join(str(error).split())[:300]}", "mend the YAML there") from None
    except (ValueError, RecursionError, OverflowError, AttributeError, TypeError) as error:
        raise InputError(rule, f"{where}: {' '.join(str(error).split())[:300]}", "mend the YAML there") from None
    return settings, dict(_lines(node, ""))


def refuse_odd_path(key: str, path: str, where: str) -> None:
    """A path of a run is one that this system can have.

    Args:
        key: of the setting.
        path: its value.
        where: it was written.

    Raises:
        InputError: it holds a NUL, is too long, or is the address of a store.
    """
    found = f"{key}: {shorter(path)} ({where})"
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(?=[^/])", path)
    if scheme is not None:
        remedy = "a folder of this machine; checkpoint.location takes the addresses of stores"
        raise InputError(f"{key} is a path, and no address", found, remedy)
    raw = path.encode("utf-8", "surrogateescape")
    if b"\0" in raw:
        raise InputError("a path has no NUL in it", found, f"{key}=FOLDER")
    longest = max((len(part) for part in raw.split(b"/")), default=0)
    if longest > LONGEST_NAME or len(raw) > LONGEST_PATH:
        rule = f"a path has at most {LONGEST_PATH:,} bytes, and each name in it at most {LONGEST_NAME}"
        raise InputError(rule, f"{found}: {len(raw):,} bytes, a name of {longest:,}", f"a shorter {key}")


def _refuse_excess(text: str, where: str) -> None:
    """Count what the text would become, without building it."""
    if len(text) > LARGEST:
        raise InputError(f"a run has at most {LARGEST:,} bytes", f"{where}: {len(text):,}", EXAMPLES)
    sizes, opened, depth = dict[str, int](), list[tuple[str | None, int]](), 0
    total = 0
    for event in yaml.parse(text, Loader=_Loader):
        at = f"{where}, line {event.start_mark.line + 1}" if event.start_mark is not None else where
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                loop = any(event.anchor == anchor for anchor, _ in opened)
                found = f"{at}: *{shorter(event.anchor)} {'holds itself' if loop else 'is not known'}"
                raise InputError("an alias repeats what stands before it", found, "write the values out")
            total += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent | yaml.ScalarEvent):
            total += 1
            if event.tag not in (None, "!"):
                raise InputError("a run has no tags", f"{at}: {shorter(event.tag)}", "write the value alone")
            if isinstance(event, yaml.ScalarEvent):
                if event.anchor:
                    sizes[event.anchor] = 1
            else:
                opened.append((event.anchor, total - 1))
                depth = max(depth, len(opened))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor:
                sizes[anchor] = total - before
        if total > MOST:
            raise InputError(f"a run has at most {MOST:,} values", f"{at}: more, as anchors repeat them", "write fewer")
        if depth > DEEPEST:
            raise InputError(f"a run is at most {DEEPEST} levels deep", f"{at}: deeper", EXAMPLES)


def _lines(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield f"{prefix}{key.value}", key.start_mark.line + 1
            yield from _lines(value, f"{prefix}{key.value}.")
