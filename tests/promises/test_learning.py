"""`make learn`: from scratch, one small model answers what it sees, another finds what it read long ago: 20 minutes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
MINUTES = 20


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A folder with both runs, and the minutes that they took."""
    place, began = tmp_path_factory.mktemp("learn"), time.monotonic()
    command = [
        "make",
        "learn",
        f"LEARN={place / 'learn'}",
        f"NEEDLE={place / 'needle'}",
        f"BIN={Path(sys.prefix) / 'bin'}",
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=3600)
    return place, (time.monotonic() - began) / 60


def scores(path: Path) -> dict[str, float]:
    return {score["kind"]: score["accuracy"] for score in json.loads(path.read_text())["scores"]}


@pytest.mark.slow
def test_answers_are_right_and_need_the_order_of_frames(learnt: tuple[Path, float]) -> None:
    answers = learnt[0] / "learn" / "eval"
    (plain,) = (path for path in answers.glob("*.json") if "shuffled" not in path.name)
    (shuffled,) = answers.glob("*-shuffled.json")
    assert min(scores(plain).values()) >= 0.9, scores(plain)
    assert 0.3 <= scores(shuffled)["direction"] <= 0.7, "chance is one in two"
    assert scores(shuffled)["colour"] >= 0.9


@pytest.mark.slow
def test_needles_are_found_at_eight_times_the_length(learnt: tuple[Path, float]) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "launcher", "needle", str(learnt[0] / "needle"), "--lengths", "256,2048", "--each", "20",
         "--seed", "7", "--json"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    cells: list[dict[str, Any]] = json.loads(told.stdout)["cells"]
    for length in (256, 2048):
        mine = [cell for cell in cells if cell["length"] == length]
        assert sum(cell["found"] for cell in mine) >= 0.95 * sum(cell["asked"] for cell in mine), mine


@pytest.mark.slow
def test_it_takes_no_longer_than_it_says(learnt: tuple[Path, float]) -> None:
    assert learnt[1] < MINUTES
