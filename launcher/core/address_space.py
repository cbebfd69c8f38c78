"""How much address space a process may have (`ulimit -v`): libraries end without a word where it is too little.

LEAST   below it torch and the libraries that it loads do not start: refused
more    told at the start, and with whatever failure follows
"""

from __future__ import annotations

import resource

from parallel.errors import InputError

GIB = 1 << 30
LEAST = 2 * GIB - (128 << 20)  # a small model on one rank takes some 2 GiB of it, most of which is never touched
UNLIMITED = "ulimit -v unlimited in the shell that starts it"


def limit() -> int | None:
    """Bytes that a process started here may have; None for no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def told(most: int) -> str:
    """A limit in words."""
    return f"a process may have {most / GIB:.3g} GiB of address space here (ulimit -v {most >> 10})"


def refuse_little() -> str:
    """What a person should know of the limit; empty if there is none.

    Raises:
        InputError: it is too little for any rank.
    """
    most = limit()
    if most is None:
        return ""
    if most < LEAST:
        raise InputError(f"a rank takes at least {LEAST / GIB:.3g} GiB of address space", told(most), UNLIMITED)
    return f"{told(most)}: whoever gets no more may end without a word; {UNLIMITED}"


def memory_told(error: MemoryError) -> InputError:
    """For a command that got no more memory, with the limit that it has, if any."""
    most, rule = limit(), "a command gets the memory that it asks for"
    found = " ".join(str(error).split())[:300] or "no more was given"
    if most is None:
        return InputError(rule, found, "end other programs, or ask for less")
    return InputError(rule, f"{found}; {told(most)}", UNLIMITED)
