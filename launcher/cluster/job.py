"""A job of a cluster in our words, from what Ray tells of it and from its log."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from parallel.parsing import ParseError, parse_json

if TYPE_CHECKING:
    from launcher.config.run_config import RunConfig


OURS = "longreel"  # in the metadata of a job: that it is ours
NOISE = re.compile(r"^(?:[\d\s,:-]+INFO job_manager\.py|Running entrypoint for job )")
NO_RUN: dict[str, Any] = {"out": "-", "mesh": "", "ranks": 0, "steps": 0}  # of a job that somebody else submitted
STEP = re.compile(r"(?:step +|resumed from step |stopped at step )(\d+)")


@dataclass(frozen=True)
class Job:
    """A run on a cluster.

    Attributes:
        id: by which it is asked for.
        state: "starting", "waiting" for room, "running", "done", "stopped" with a checkpoint, "refused", "failed".
        out: its run folder.
        mesh: that it asked for.
        ranks: of that mesh.
        step: the last that it printed; 0 for none.
        steps: of the whole run.
        started: seconds since 1970.
        ended: the same, none while it goes on.
        said: its last line.
    """

    id: str
    state: str
    out: str
    mesh: str
    ranks: int
    step: int
    steps: int
    started: float
    ended: float | None
    said: str


def metadata_of(config: RunConfig) -> dict[str, str]:
    """What a job is told to remember of its run, by which it is known for ours."""
    mesh = config.mesh.mesh()
    about = {"out": str(config.out), "mesh": str(mesh), "ranks": mesh.ranks, "steps": config.steps}
    return {OURS: json.dumps(about)}


def is_ours(info: Any) -> bool:
    """Whether a job is a run of ours, and tells of it in the words that we know."""
    try:
        about = parse_json(str((info.metadata or {}).get(OURS, "")))
    except ParseError:
        return False
    kinds = {"out": str, "mesh": str, "ranks": int, "steps": int}
    known = isinstance(about, dict) and all(type(about.get(name)) is kind for name, kind in kinds.items())
    return known and bool(info.submission_id)


def job_of(info: Any, log: str) -> Job:
    """What Ray tells of a job, and its log, in our words."""
    about = json.loads(info.metadata[OURS]) if is_ours(info) else NO_RUN
    lines = list(quiet(log.splitlines()))
    steps = [int(found[1]) for line in lines if (found := STEP.match(line))]
    state = {"PENDING": "starting", "RUNNING": "running", "SUCCEEDED": "done", "STOPPED": "stopped"}.get(
        str(info.status.value), {75: "stopped", 2: "refused"}.get(info.driver_exit_code, "failed")
    )
    if state == "running" and lines and lines[-1].startswith("waiting for room"):
        state = "waiting"
    said = lines[-1].strip() if lines else (info.message or "").strip().partition("\n")[0]
    return Job(
        info.submission_id, state, about["out"], about["mesh"], about["ranks"],
        about["steps"] if state == "done" else steps[-1] if steps else 0, about["steps"],
        (info.start_time or 0) / 1000, info.end_time and info.end_time / 1000, said,
    )  # fmt: skip


def quiet(lines: Iterator[str] | list[str]) -> Iterator[str]:
    """Without the lines that Ray writes into a job's log."""
    return (line for line in lines if not NOISE.match(line))
