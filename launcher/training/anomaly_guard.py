"""Steps that would harm the model: their loss or gradient is not finite, or the norm of the gradient spikes.

    norm of the last 32 updates --median--> most --engine.step--> update, or none --> Updates of the checkpoint
                                                                        |
    skip     no update from this step; the run goes on, to at most guard.max_consecutive such steps in a row
    rewind   back to the newest checkpoint; from there to this step nothing updates (Chowdhery et al.,
             arXiv:2204.02311, sec. 5.1): the window lies in windows.json of the run folder
    end      the run ends before anything is saved

Loss and norm are the same on every rank, so all ranks decide alike, and a resume decides as the run did before: by
what is in the checkpoint, and for steps after it by what their lines in metrics.jsonl say.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launcher.checkpoints.checkpoint_manifest import Updates
from launcher.config.sections import GuardConfig
from launcher.core.run_folder import RunFolder, write_whole
from parallel.parsing import parse_json

NORMS = 32  # of which the median is taken
LEAST_NORMS = 16  # before which nothing spikes
NEVER = -1.0  # no norm is so small
FINITE = sys.float_info.max
WINDOWS = "windows.json"
Window = tuple[int, int]  # first and last step


class RewindError(RuntimeError):
    """The run goes back to its newest checkpoint."""


@dataclass(frozen=True)
class AnomalyGuard:
    """Judges the steps of a run.

    Attributes:
        config: the policy.
        windows: of steps that make no update.
    """

    config: GuardConfig
    windows: tuple[Window, ...] = ()

    def max_norm(self, step: int, loss: float, updates: Updates) -> float:
        """The gradient norm up to which a step makes an update."""
        if self.is_in_window(step) or not math.isfinite(loss):
            return NEVER
        if self.config.spike_factor is None or len(updates.norms) < LEAST_NORMS:
            return FINITE
        return min(FINITE, self.config.spike_factor * statistics.median(updates.norms))

    def is_in_window(self, step: int) -> bool:
        """Whether a step makes no update because the run was rewound."""
        return any(first <= step <= last for first, last in self.windows)

    def trouble(self, step: int, loss: float, norm: float, updates: Updates) -> str:
        """What is wrong with a step that made no update, in words; empty if that was decided before it.

        Args:
            step: which.
            loss: of it.
            norm: of its gradient.
            updates: before it.
        """
        if self.is_in_window(step) or norm <= self.max_norm(step, loss, updates):
            return ""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"is not finite: loss {loss:.4g}, gradient norm {norm:.4g}"
        return f"spikes: gradient norm {norm:.4g}, median of the last updates {statistics.median(updates.norms):.4g}"

    def after(self, updates: Updates, norm: float, updated: bool, in_trouble: bool) -> Updates:
        """What is known after a step."""
        if updated:
            return Updates(updates.done + 1, (*updates.norms, norm)[-NORMS:])
        return Updates(updates.done, updates.norms, updates.skipped + in_trouble)


def windows_of(folder: RunFolder) -> tuple[Window, ...]:
    """Steps of a run that make no update."""
    path = folder.root / WINDOWS
    return tuple((int(first), int(last)) for first, last in parse_json(path.read_bytes())) if path.exists() else ()


def add_window(folder: RunFolder, window: Window) -> None:
    """For all resumes to come."""
    write_whole(folder.root / WINDOWS, json.dumps([*windows_of(folder), window]).encode())


def skipped(lines: Sequence[dict[str, Any]]) -> tuple[Window, ...]:
    """Steps that made no update before the kill, and are to make none when they are done again, come what may."""
    return tuple((line["step"], line["step"]) for line in lines if not line.get("updated", True))


def unchanged(lines: Sequence[dict[str, Any]], guard: AnomalyGuard) -> list[dict[str, Any]]:
    """Of steps that are done again, those that give finite numbers again: up to the first whose update is left out."""
    kept = []
    for line in lines:
        if math.isfinite(line.get("loss", math.nan)) and math.isfinite(line.get("grad_norm", math.nan)):
            kept.append(line)
        if line.get("updated", True) and guard.is_in_window(line["step"]):
            break
    return kept
