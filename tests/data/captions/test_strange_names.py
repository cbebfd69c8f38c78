"""Names as people write them: each video has its own words, or a reason that is true; never those of another."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from data.sources.files import SourceFile
from data.sources.find_files import find
from tests.support.strange_names import KINDS

CASES = 60  # of each kind


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_video_has_its_own_words(kind, tmp_path: Path) -> None:
    for seed in range(CASES):
        case = kind(random.Random(f"{kind.__name__} {seed}"), tmp_path / str(seed))
        given = None if case.captions is None else str(case.captions)
        found = {one.name: one for one in find(str(case.source), captions=given)}
        told = f"seed {seed}: " + "; ".join(case.told)
        assert found.keys() == case.clear.keys(), told
        for name, text in case.clear.items():
            one = found[name]
            if isinstance(one, SourceFile):
                assert one.caption == (text, ""), f"{name} has {one.caption}, {told}"
            elif name in case.doubtful:
                assert any(cause in one.reason for cause in case.doubtful[name]), f"{name}: {one.reason}, {told}"
            else:
                assert (one.reason, text) == ("no caption", ""), f"{name}: {one.reason}, {told}"
