"""Needles: words with a secret somewhere in them, and a question at the end, to learn from and to test reach with.

    the river house green ... The secret of Q is 47. ... tree sings with       The secret of Q is -> 47
    |------------------ length ---------------------------------------|
    |-------- depth ---------|

Retrieval over words as in Liu et al. (LWM, arXiv:2402.08268, sec. 4.1), after G. Kamradt's test; with several secrets
in one haystack (their "multi-needle") a model must look whose it is. Filler has no digits.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from data.chat.records import as_lines
from data.dataset.shards import make_folder, write_bytes
from parallel.errors import InputError
from parallel.random import key_of, uniform

KEYS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FILLER = """the river house green stone walks under light bread over small and window old tree sings with water slow
bird on road far"""


def needles(
    out: Path, records: int, seed: int, length: int, secrets: int = 1, on_progress: Callable[[int], None] | None = None
) -> None:
    """Writes a file with a conversation a line, depths drawn evenly; the same arguments write the same bytes.

    Args:
        out: the file.
        records: how many.
        seed: of everything random.
        length: bytes of a haystack, at most; less than a word below it.
        secrets: in each haystack.
        on_progress: told how many are done, now and then.

    Raises:
        InputError: an argument that cannot work.
    """
    if records < 1:
        raise InputError("there is at least one needle", str(records), "give 1 or more")
    found = []
    for number in range(records):
        key = key_of(seed, number)
        found.append(needle(key, length, uniform(key_of(key, "depth")), secrets, f"needle-{number:06d}"))
        if on_progress is not None and number % 100 == 99:
            on_progress(number + 1)
    make_folder(out.parent)
    write_bytes(out, as_lines(found))


def needle(key: int, length: int, depth: float, secrets: int = 1, uid: str = "") -> dict[str, Any]:
    """One haystack and its question.

    Args:
        key: 64 bits of all that is random.
        length: of it, in bytes.
        depth: of the secret that is asked for: 0 for the beginning, 1 for the end; others lie anywhere.
        secrets: in it.
        uid: of the record.

    Raises:
        InputError: there are more secrets than names, or they do not fit.
    """
    if not 1 <= secrets <= len(KEYS):
        raise InputError(f"a haystack has from 1 to {len(KEYS)} secrets", str(secrets), "give as many")
    names = sorted(KEYS, key=lambda name: key_of(key, "name", name))[:secrets]
    values = {name: 10 + key_of(key, "value", name) % 90 for name in names}
    sentences = {name: f"The secret of {name} is {value}." for name, value in values.items()}
    spent = sum(len(sentence) + 1 for sentence in sentences.values()) - 1
    if spent > length:
        raise InputError(
            "a haystack has room for its secrets", f"{secrets} in {length} bytes", f"{spent} bytes or more"
        )
    words: list[str] = []
    filler = FILLER.split()
    for n in count():
        word = filler[key_of(key, "word", n) % len(filler)]
        spent += len(word) + 1
        if spent > length:
            break
        words.append(word)
    spots = {name: key_of(key, "spot", name) % (len(words) + 1) for name in names}
    spots[names[0]] = round(depth * len(words))
    hay = list(words)
    for name in sorted(names, key=lambda name: (-spots[name], name)):  # from the end, so that spots stay right
        hay.insert(spots[name], sentences[name])
    asked = f"{' '.join(hay)}\nThe secret of {names[0]} is"
    said = [{"from": "human", "value": asked}, {"from": "gpt", "value": str(values[names[0]])}]
    return {"id": uid or f"needle-{key:016x}", "conversations": said, "depth": depth}
