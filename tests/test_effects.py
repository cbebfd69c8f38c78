"""Every key of a run says what it does to a begun run to change it."""

from __future__ import annotations

from launcher.schema import keys


def test_every_key_declares_its_effect() -> None:
    """A new key: write State[...], Data[...], Numbers[...] ... Nothing[...] around its type (parallel/effects.py)."""
    assert [key.name for key in keys() if key.effect is None] == []
