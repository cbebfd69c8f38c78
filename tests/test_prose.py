"""The words of the project: the field's terms, full noun phrases, rules that say must. Static, from files alone.

A word that is banned here has its replacement in docs/glossary.md.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
PACKAGES = ("parallel", "models", "data", "launcher")
OLD_KEYS = (  # dotted keys of settings that have the field's terms now
    "data.tolerate", "data.turning", "data.rope", "data.positions", "data.times", "restart.timeout_seconds",
    "restart.silence_seconds", "restart.hang_seconds", "restart.patience_seconds", "restart.limit", "guard.limit",
    "guard.spike", "checkpoint.to", "checkpoint.wait", "model.pool", "model.merge", "model.slow", "model.absolute",
    "objective.answered", "objective.asked", "objective.coded", "objective.silent", "objective.per", "objective.token",
    "objective.share", "objective.width", "objective.caption_drop",
)  # fmt: skip
OLD_NAMES = {  # identifiers that nobody who knows the field would search for
    "Talks", "TalkMaker", "ClipMaker", "TalkStream", "Laid", "Heard", "Looker", "Sight", "Beat", "Journal", "hoard",
    "Pulse", "ghost",
}  # fmt: skip
OLD_COMMANDS = ("data talks",)
KNOWS_OLD_KEYS = {"launcher/config/foreign_keys.py", "tests/test_prose.py", "tests/launcher/config/test_defaults.py"}
BARE = re.compile(r"^(of|that|which|where|what|how|as)\b", re.I)


@cache
def sources() -> dict[str, str]:
    """Files of git that hold code, docs and recipes."""
    names = subprocess.run(["git", "ls-files"], cwd=HOME, capture_output=True, text=True, check=True).stdout.split()
    kinds = (".py", ".md", ".yaml")
    found = {name: HOME / name for name in names if name.endswith(kinds) or name == "Makefile"}
    return {name: path.read_text() for name, path in found.items() if path.is_file() and name != "CHANGELOG.md"}


@cache
def trees() -> dict[str, ast.Module]:
    """Syntax of every module of the packages."""
    return {name: ast.parse(text) for name, text in sources().items() if _is_ours(name)}


def _is_ours(name: str) -> bool:
    return name.endswith(".py") and name.startswith(tuple(f"{one}/" for one in PACKAGES))


def words_of_options() -> Iterator[tuple[str, str]]:
    """(where, text) of the help of every option and argument of the command line."""
    for name, tree in trees().items():
        if not name.startswith("launcher/cli/"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "help" and isinstance(node.value, ast.Constant):
                yield f"{name}:{node.value.lineno}", str(node.value.value)


def test_old_keys_and_commands_are_gone() -> None:
    pattern = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, OLD_KEYS))})(?![\w.])")
    told = [
        f"{name}: {found}"
        for name, text in sources().items()
        if name not in KNOWS_OLD_KEYS
        for found in (*pattern.findall(text), *(one for one in OLD_COMMANDS if one in text))
    ]
    assert told == []


def test_old_names_come_into_no_identifier() -> None:
    told = Counter(
        f"{name}: {found}"
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if (found := getattr(node, "name", None)) in OLD_NAMES and isinstance(node, ast.ClassDef | ast.FunctionDef)
    )
    assert told == Counter()


def test_help_is_full_noun_phrases() -> None:
    """Each option says what it is in three words or more, and does not begin with of, that or which."""
    options = list(words_of_options())
    assert len(options) > 100
    assert [f"{where}: {text}" for where, text in options if BARE.match(text) and not text.startswith("How ")] == []
    assert [f"{where}: {text}" for where, text in options if not text.endswith((".", ")")) and " " in text] == []


def test_commands_begin_with_a_verb_and_end_with_an_example() -> None:
    told = []
    for name, tree in trees().items():
        if not name.startswith("launcher/cli/") or name.endswith(("options.py", "__init__.py")):
            continue
        for node in tree.body:
            text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
            if text is None or "Example: longreel" not in text:
                continue
            first = text.split()[0]
            if not first[0].isupper() or first in ("Of", "The", "A", "Every", "What", "Who", "How", "Weights"):
                told.append(f"{name}: {text.splitlines()[0]}")
    assert told == []


def test_keys_have_meanings_of_full_noun_phrases() -> None:
    """The reference of settings is written from docstrings: every key has a meaning that names a thing."""
    rows = re.findall(r"^\| `([^`]+)` \| .* \| ([^|]+) \| [a-z ]+ \|$", sources()["docs/settings.md"], re.M)
    assert len(rows) > 100
    bare = [f"{key}: {text}" for key, text in rows if re.match(r"(Of|That|Which|Where|How|As)\b", text)]
    assert bare == []


def test_docs_name_files_that_are_there() -> None:
    """Tour and glossary point into the tree; a file that moves takes its line along."""
    told = []
    pages = [name for name in sources() if name.startswith("docs/extending/")]
    for page in ("docs/tour.md", "docs/glossary.md", *pages):
        for name in re.findall(r"\b((?:parallel|models|data|launcher|tests)/[\w/]+(?:\.py|/))", sources()[page]):
            if not (HOME / name).exists():
                told.append(f"{page}: {name}")
        listed = set(re.findall(r"(?<![\w/])((?!my_)\w+\.py)\b", sources()[page]))
        known = {Path(name).name for name in sources()}
        told += [f"{page}: {name}" for name in sorted(listed - known)]
    assert told == []


def test_tables_and_headings_of_docs() -> None:
    """One style: headings of # with a blank line before, tables with a line of dashes under their head."""
    told = []
    for name, text in sources().items():
        if not name.endswith(".md"):
            continue
        lines = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S).splitlines()
        for number, (before, line) in enumerate(zip(["", *lines], lines, strict=False)):
            if line.startswith("#") and before.strip():
                told.append(f"{name}: no blank line before {line}")
            begins = line.startswith("|") and not before.startswith("|")
            after = lines[number + 1] if number + 1 < len(lines) else ""
            if begins and not re.fullmatch(r"\|[\s:|-]+\|", after):
                told.append(f"{name}: a table without a head: {line[:60]}")
    assert told == []


def test_the_first_screen_of_the_readme() -> None:
    """What it is in at most 60 words, then a command that runs."""
    text = sources()["README.md"]
    first = text.split("```", 1)[0].split("\n", 1)[1]
    assert len(re.sub(r"!\[.*?\]\(.*?\)", "", first).split()) <= 60
    assert text.split("```")[1].splitlines()[1].startswith("make quickstart")


def test_units_in_help_are_no_markup() -> None:
    """What stands in square brackets and begins in lower case is a style to rich, and is not shown."""
    found = []
    for name, tree in trees().items():
        for node in ast.walk(tree) if name.startswith("launcher/cli/") else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("typer.", "_")):
                given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "help")]
                texts = [value.value for value in given if isinstance(value, ast.Constant)]
                found += [f"{name}: {text}" for text in texts if re.search(r" \[[a-z]+\]\.", str(text))]
    assert found == []
