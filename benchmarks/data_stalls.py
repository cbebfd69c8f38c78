"""Stalls: the share of a run's step time that its first rank waited for data, from the run's own metrics."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from benchmarks.data_measure import Row
from benchmarks.train import RECIPE, longreel, overrides

CLIPS, STEPS = 256, 100
GOAL = 0.01


def trained(place: Path, steps: int) -> Path:
    """The folder of a run of the quickstart's recipe on a fresh dataset, without Ray."""
    longreel("data", "synth", "--out", place / "clips", "--clips", CLIPS)
    longreel("prepare", place / "clips", "--out", place / "data")
    longreel("train", RECIPE, *overrides(place, place / "run"), f"steps={steps}", "--no-ray")
    return place / "run"


def measure(run: Path, what: str) -> list[Row]:
    """Of all steps but the first, which waits for the first data there is."""
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]
    waited, seconds = ([float(step[name]) for step in steps] for name in ("data_seconds", "seconds"))
    part = f"stalls, {what}, {len(steps)} steps"
    share, typical = sum(waited) / sum(seconds), statistics.median(waited) / statistics.median(seconds)
    return [
        Row(part, "waiting for data", "of step time", share, None, share, GOAL, "below"),
        Row(part, "of the median step", "of step time", typical, None, typical),
    ]
