"""What is proposed to type is typed as it stands: a shell reads the words that were meant."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from launcher.config.loading import parse_override
from launcher.config.proposed_commands import setting
from launcher.core.terminal import in_a_line
from parallel.shell import join, quote

WORDS = [
    "plain/name-1.mp4", "", "a folder", "it's", 'say "yes"', "$HOME `id` $(id) !x", "back\\slash", "*.mp4", "~",
    "-x", "#1",
    "\x1b[31mred\x1b[0m", "bell\x07", "title \x1b]0;x\x07 it's", "line\nfeed", "tab\there", "return\rx", "c1 \x9b31m",
    "\u202egpj.exe", "bytes \udcff\udcfe", "日本語", "\x1bf0", "a\\\x07'b'",
]  # fmt: skip


@pytest.fixture(scope="module")
def read() -> dict[str, str]:
    """What bash reads for each word."""
    script = "\n".join(f"printf '%s\\0' {quote(word)}" for word in WORDS)
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, timeout=600)
    return dict(zip(WORDS, map(os.fsdecode, done.stdout.split(b"\0")), strict=False))


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_read_as_it_was_meant_and_can_be_shown(word: str, read: dict[str, str]) -> None:
    assert read[word] == word
    assert in_a_line(quote(word)) == quote(word)


def test_words_that_a_terminal_shows_are_quoted_as_ever() -> None:
    shown = [word for word in WORDS if in_a_line(word) == word]
    assert join(shown) == shlex.join(shown)
    assert len(shown) == 12
    assert quote("a\x1b'\\\n") == r"$'a\x1b\'\\\x0a'"


@pytest.mark.parametrize(
    "path", ["runs/mine", "a: b", "x #1", "null", "~", "1e3", "[a, b]", "it's", "{a}", "- a", "a\x1bb"]
)
def test_a_setting_is_read_as_it_was_meant(path: str) -> None:
    typed = setting("out", path)
    done = subprocess.run(["bash", "-c", f"printf %s {typed}"], capture_output=True, check=True, timeout=600)
    assert parse_override(os.fsdecode(done.stdout)) == ("out", path)
    assert in_a_line(typed) == typed


@pytest.mark.parametrize("value", [None, 3, 0.5, True, [32, 32], [{"until": 3}, {"dataset": {"a b": 1.0}}]])
def test_a_setting_has_any_value(value: Any) -> None:
    assert parse_override(shlex.split(setting("data.segments", value))[0]) == ("data.segments", value)


def test_nobody_quotes_by_another_way() -> None:
    home = Path(__file__).parent.parent.parent
    files = [file for package in ("data", "models", "launcher") for file in (home / package).rglob("*.py")]
    assert [file for file in files if "shlex" in file.read_text()] == []
