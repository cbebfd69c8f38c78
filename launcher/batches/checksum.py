"""A sum over the tokens of a step that shows whether each was read once."""

from __future__ import annotations

from parallel.random import key_of

CHECKSUM = (1 << 62) - 1


def checksum(uid: str, tokens: int) -> int:
    """Adds up over the parts of a sample to that of the whole: what was lost or came twice shows in the sum."""
    return key_of(uid) * tokens & CHECKSUM
