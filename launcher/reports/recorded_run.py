"""What a run folder says: its settings, steps, events and checkpoints, read without judging what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launcher.config import proposed_commands
from launcher.config.run_yaml import parse_yaml
from launcher.core.run_folder import RunFolder
from launcher.core.run_records import Steps, read_events, read_steps
from launcher.core.text import number
from launcher.reports.charts import Numbers
from parallel.errors import InputError
from parallel.parsing import ParseError, parse_json

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """What a run folder says.

    Attributes:
        root: the folder.
        config: the resolved run as plain values; empty if config.yaml is broken.
        config_text: config.yaml as it is.
        steps: of metrics.jsonl, as columns.
        events: lines of events.jsonl in the order of their writing.
        broken: file -> lines that are no record.
    """

    root: Path
    config: Row
    config_text: str
    steps: Steps
    events: Sequence[Row]
    broken: Mapping[str, int]

    def of(self, *names: str) -> list[Row]:
        """The events of these names."""
        return [e for e in self.events if e.get("event") in names]

    def setting(self, key: str) -> Any:
        """A value of the config by its dotted key; None if it is not there."""
        here: Any = self.config
        for name in key.split("."):
            here = here.get(name) if isinstance(here, Mapping) else None
        return here


def read_run(root: Path) -> Run:
    """Read what a run wrote. The run may still be going on."""
    folder = RunFolder(root)
    for path, remedy in (
        (folder.config, "give the `out` folder of a run"),
        (folder.metrics, proposed_commands.train(root)),
    ):
        if not path.is_file():
            raise InputError(f"a run folder holds {path.name}", f"{root} does not", remedy)
    text = folder.config.read_text(errors="replace")
    try:
        config, _ = parse_yaml(text, folder.config.name)
    except InputError:
        config = None
    steps = read_steps(folder.metrics)
    events, broken_events = read_events(folder.events)
    broken = {folder.metrics.name: steps.broken, folder.events.name: broken_events}
    return Run(root, config if isinstance(config, dict) else {}, text, steps, events, broken)


def state_of(run: Run) -> str:
    """How the run stands, from its last event."""
    last = next((e["event"] for e in reversed(run.of("start", "resume", "restart", "failure", "stop", "done"))), "")
    total, done = run.setting("steps"), run.steps.done
    if last == "done" or (isinstance(total, int) and 0 < total <= done):
        return "finished"
    return {"stop": "stopped on request", "failure": "failed"}.get(last, "still running, or killed without a word")


def wall_seconds(run: Run) -> float | None:
    """From the beginning of the first step to the end of the last."""
    times = run.steps.known("time")
    if not len(times):
        return None
    return float(times.max() - times.min()) + (number(run.steps.first.get("seconds")) or 0.0)


def samples_seen(run: Run) -> str:
    """How many samples were trained on, as far as the record names them."""
    named = run.steps.known("samples")
    count, rest = int(named.sum()), len(run.steps) - len(named)
    if not rest:
        return f"{count:,}"
    if not len(named):
        return "unknown"
    return f"{count:,} in {len(named):,} steps; {rest:,} larger steps are recorded by a digest"


def median(values: Numbers) -> float:
    """Of figures without gaps."""
    return float(np.median(values))


def flop_speeds(run: Run) -> Numbers:
    """Floating-point operations a second of each step, over all ranks; NaN where they are not known."""
    flops, seconds = run.steps.column("flops"), run.steps.column("seconds")
    return np.divide(flops, seconds, out=np.full_like(flops, np.nan), where=seconds > 0)


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk; `broken` says what is wrong with its manifest, `step` is then None."""

    name: str
    step: int | None
    size: int
    parts: int
    time: float | None
    broken: str = ""


def checkpoints_of(run: Run) -> list[Saved]:
    """What lies in `checkpoints/`, newest first. Hashes are not compared: that is the resume's business."""
    found = []
    for path in sorted(RunFolder(run.root).checkpoints.glob("step-*"), reverse=True):
        manifest = json_of(path / "manifest.json")
        step, parts = manifest.get("step"), manifest.get("parts")
        whole = isinstance(step, int)
        try:
            size = sum(file.stat().st_size for file in path.iterdir())
            time = (path / "manifest.json").stat().st_mtime
        except OSError:
            size, time, whole = 0, None, False
        broken = "" if whole else "manifest.json is missing or broken"
        count = len(parts) if isinstance(parts, list) else 0
        found.append(Saved(path.name, step if whole else None, size, count, time, broken))
    return found


def json_of(path: Path) -> Row:
    """The object in a JSON file; empty if there is none."""
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ParseError):
        return {}
    return found if isinstance(found, dict) else {}
