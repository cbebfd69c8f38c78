"""Small runs for tests, through the launcher's own way of starting ranks."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from launcher.config.loading import check, to_yaml
from launcher.config.run_config import RunConfig
from launcher.core.run_folder import RunFolder, make_run_folder, read_lines, write_whole
from launcher.supervision.local_ranks import ProcessRanks
from launcher.supervision.rank_group import End
from tests.support.process_groups import server

MODEL = {
    "kind": "video_dit",
    "dim": 48,
    "depth": 2,
    "heads": 4,
    "patch": [1, 8, 8],
    "text": {"dim": 32, "depth": 1, "heads": 2},
}


def with_changes(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Settings with these keys changed in place, dots written as double underscores."""
    for key, value in changes.items():
        *path, last = key.split("__")
        here = settings
        for name in path:
            here = here.setdefault(name, {})
        here[last] = value
    return settings


def config(out: Path, dataset: Path, **changes: Any) -> RunConfig:
    """A run of seconds; `changes` are top-level keys, with dots as double underscores."""
    settings: dict[str, Any] = {
        "out": str(out),
        "steps": 5,
        "dtype": "float64",
        "zero": {"stage": 0},
        # 5 clips of 7 x 4 x 4 or 8 x 4 x 4 tokens are no multiple of anything; two packs a step
        "data": {"dataset": str(dataset), "pack_tokens": 700, "packs_per_step": 2, "frames": 7, "size": [32, 32]},
        "model": deepcopy(MODEL),
        "objective": {"kind": "rectified_flow", "conditioning": {"first_frame": 0.3}},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2, "weight_decay": 0.01},
        "checkpoint": {"every": 100},
    }
    return check(with_changes(settings, changes))


def run(settings: RunConfig) -> list[End]:
    """Start the ranks, wait for them, and give their ends."""
    folder = RunFolder(settings.out)
    make_run_folder(folder)
    write_whole(folder.config, to_yaml(settings).encode())
    ranks = ProcessRanks(server())
    ranks.start(settings)
    try:
        while (ends := ranks.poll(1.0)) is None:
            pass
    finally:
        ranks.close()
    return ends


def train(settings: RunConfig) -> list[dict[str, Any]]:
    """Train to the end; gives the lines of metrics.jsonl."""
    ends = run(settings)
    bad = [e.message for e in ends if e.how != "done"]
    assert not bad, "\n".join(bad)
    return list(read_lines(RunFolder(settings.out).metrics))


def lines(out: Path) -> list[dict[str, Any]]:
    """What a run has recorded of its steps."""
    return list(read_lines(RunFolder(out).metrics))


def events(out: Path, name: str) -> list[dict[str, Any]]:
    """What has happened to a run, of one kind."""
    return [event for event in read_lines(RunFolder(out).events) if event["event"] == name]
