"""What tests share: a small dataset and the clips of `../shared`, where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from data.prepare.pipeline import PrepareOptions, prepare
from data.synthetic.shapes import synth

# No test may depend on how fast a machine is or on what else it does; one that fails fails again. Other examples than
# these: pytest --hypothesis-profile=search
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("same", settings.get_profile("search"), derandomize=True)
settings.load_profile("same")


NO_PLACE_FOR_RAY = "/dev/null/a test that starts Ray carries the mark ray"  # nothing can be made below a file


def pytest_configure() -> None:
    """One thread for each process: there are as many as cores, and two threads that wait for each other's turn on a
    busy core make a test of seconds one of minutes. Ranks say themselves how many they take.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of commands
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in a hook of the same name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several processes one runs a file, and makes what it shares once; all tests of Ray are run by one."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if item.get_closest_marker("ray") else item.path.stem))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ray starts in tests that are marked for it, and in no other: two at once would take each other's cores."""
    if item.get_closest_marker("ray"):
        os.environ.pop("RAY_TMPDIR", None)
    else:
        os.environ["RAY_TMPDIR"] = NO_PLACE_FOR_RAY


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
