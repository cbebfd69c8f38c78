"""Words as a person types them into a shell: what a message proposes can be copied as it stands.

    a folder           'a folder'              as shlex does it
    bytes \\x1b \\xff    $'bytes \\x1b \\xff'      what a terminal obeys or cannot show: escapes of bash, zsh and ksh

`shlex.quote` leaves such bytes as they are. A terminal must not get them (`launcher.core.terminal`), so a message would
show another name than the one that is meant, and following it would find nothing.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable

# all of C0 and C1 but tab and line feed; marks of direction, line separators, tags; halves of surrogate pairs
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
HIDDEN = re.compile(f"[\t\n]|{OBEYED.pattern}")  # and what a line of text cannot show


def quote(word: str) -> str:
    """One word, such as a path, in one line of signs that every terminal shows."""
    if not HIDDEN.search(word):
        return shlex.quote(word)
    inside = re.sub(r"[\\']", r"\\\g<0>", word)
    return f"$'{HIDDEN.sub(_escaped, inside)}'"


def join(words: Iterable[str]) -> str:
    """A whole command."""
    return " ".join(map(quote, words))


def _escaped(found: re.Match[str]) -> str:
    """The bytes of a character, as a file system has them."""
    character = found[0]
    try:
        data = os.fsencode(character)
    except UnicodeEncodeError:  # half of a surrogate pair that stands for no byte: no name has it
        data = character.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in data)
