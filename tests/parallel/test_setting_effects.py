"""Every key of a run says what it does to a begun run to change it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from launcher.config.config_schema import keys, leaves
from launcher.config.reference_page import RESUMES, page
from parallel.setting_effects import Effect, Nothing, State


def test_every_key_declares_its_effect() -> None:
    """A new key: write State[...], Data[...], Numbers[...] ... Nothing[...] around its type (setting_effects.py)."""
    assert [key.name for key in keys() if key.effect is None] == []


def test_keys_of_data_alone_are_of_segments() -> None:
    """What packs are made of is compared segment by segment; elsewhere another word says what changes."""
    assert [key.name for key in keys() if key.effect is Effect.DATA and not key.name.startswith("data.")] == []


def test_the_page_of_settings_is_what_the_keys_declare() -> None:
    """If not: python -m launcher.config.reference_page > docs/settings.md"""
    page_there = Path(__file__).resolve().parent.parent.parent / "docs" / "settings.md"
    assert page_there.read_text() == page()
    assert set(RESUMES) == set(Effect)


def test_a_key_without_an_effect_is_found() -> None:
    class Section(BaseModel):
        said: Nothing[int] = 1
        forgotten: int = 1
        twice: Nothing[State[int]] = 1

    assert [key.name for key in keys(Section) if key.effect is None] == ["forgotten", "twice"]
    with pytest.raises(AssertionError, match="forgotten declares no effect"):
        list(leaves({}, Section))
