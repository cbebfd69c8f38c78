"""What tests share: a small dataset and the clips of `../shared`, where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.prepare import PrepareOptions, prepare
from data.synth import synth


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 synthetic clips of 8 frames of 32 x 32, as shards."""
    root = tmp_path_factory.mktemp("synthetic")
    synth(root / "clips", 24, seed=0)
    prepare(root / "clips", root / "dataset", PrepareOptions(workers=0))
    return root / "dataset"


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """Three real clips with captions, beside the project."""
    folder = Path(__file__).resolve().parent.parent.parent / "shared" / "videos"
    if not folder.is_dir():
        pytest.skip("../shared/videos is not there: real clips are not tested")
    return folder
