"""What rank 0 writes about each step: metrics.jsonl and TensorBoard. Other ranks have a log that writes nothing."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from launcher.batches.loader import Batch, Problem
from launcher.core.append_log import AGAIN_SECONDS, AppendLog
from launcher.core.run_folder import RECENT, RunFolder, keep_steps
from launcher.training.anomaly_guard import AnomalyGuard, unchanged
from launcher.training.resume_check import AGAIN, COMPARED, DiffersError, ResumeCheck

TOLD = ("step", "loss", "grad_norm", "samples", "chain", "made")
MAX_IDS = 64  # a step of more samples is recorded by a digest of their ids
CURVES = (
    "loss", "grad_norm", "learning_rate", "tokens_per_second", "seconds", "data_seconds", "memory_bytes",
    "memory_allocated", "memory_reserved", "mfu",
)  # fmt: skip


class MetricsLog:
    """The record of one run, continued after `step`."""

    def __init__(self, folder: RunFolder, step: int, rank: int, layout: str, check: ResumeCheck | None) -> None:
        self.folder, self.step, self.writes = folder, step, rank == 0
        self.layout, self.check = layout, check
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self._tensorboard: Any = None
        self._draws_from = 0.0
        self.kept: list[dict[str, Any]] = []  # lines of the last steps before them
        self.after: list[dict[str, Any]] = []  # lines of the steps that will be done again
        if self.writes:
            self.log = AppendLog(folder)
            missing, self.kept, self.after = keep_steps(folder.metrics, step)
            if missing:
                self.event("gap", missing=missing, step=step)

    def expect(self, guard: AnomalyGuard) -> None:
        """Compare the steps that are done again with what they were."""
        if self.check is not None:
            self.check.expect(unchanged(self.after, guard), self.kept)

    @property
    def recent(self) -> tuple[dict[str, Any], ...]:
        """What a checkpoint tells of the last steps."""
        return tuple(self._recent)

    def write(
        self, step: int, batch: Batch, of_device: Mapping[str, Any], made: Mapping[str, str], **figures: float
    ) -> None:
        """One step. `figures` hold loss, grad_norm, updated, learning_rate, seconds, data_seconds, flops; `of_device`
        what `Gauge.end` gives, `made` what `Made.of` does.
        """
        if not self.writes:
            return
        line = {
            "step": step,
            **figures,
            "tokens": batch.tokens,
            "tokens_per_second": batch.tokens / figures["seconds"],
            "samples": record_of(batch.samples),
            "cursor": asdict(batch.position.cursor),
            "chain": batch.position.chain,
            **of_device,
            "layout": self.layout,
            "made": dict(made),
            "time": time.time(),
        }
        self._prove(line)
        self.log.append(self.folder.metrics, line)
        self._recent.append({name: line[name] for name in TOLD})
        self._draw(line)

    def problems(self, step: int, problems: Sequence[Problem]) -> None:
        """Samples that a rank could not read: quarantined for this step on all ranks."""
        for uid, problem in {problem.uid: problem for problem in problems}.items():
            self.event("unreadable", step=step, sample=uid, file=problem.file, reason=problem.reason)

    def event(self, name: str, **fields: Any) -> None:
        """Something that happened, to events.jsonl."""
        if self.writes:
            self.log.append(self.folder.events, {"time": time.time(), "event": name, **fields})

    def close(self) -> None:
        """Flush TensorBoard."""
        if not self.writes:
            return
        self.log.close()
        if self._tensorboard is not None:
            with suppress(OSError):  # its disk is full, and metrics.jsonl has all points
                self._tensorboard.close()

    def _draw(self, line: dict[str, Any]) -> None:
        """Points of the curves; a full disk leaves some out, which metrics.jsonl has."""
        if time.monotonic() < self._draws_from:
            return
        try:
            for name in (curve for curve in CURVES if curve in line):
                self._curves(line["step"]).add_scalar(name, line[name], line["step"])
        except OSError:
            self._tensorboard, self._draws_from = None, time.monotonic() + AGAIN_SECONDS

    def _prove(self, line: dict[str, Any]) -> None:
        """Compare a step with what it was. If it differs, the record keeps both: the next start, from an earlier
        checkpoint, gives one of them, and is not to be compared with what a distrusted one gave alone.
        """
        verdict = self.check.see(line) if self.check is not None else None
        if verdict is None:
            return
        assert self.check is not None
        told = {"checkpoint": self.check.checkpoint, **asdict(verdict)}
        if verdict.difference is None:
            self.event("verified" if verdict.steps else "unverified", **told)
            return
        for before in self.after:
            if before["step"] == line["step"]:
                before = before | {AGAIN: {key: line[key] for key in (*COMPARED, "samples", "made")}}
            if before["step"] >= line["step"]:
                self.log.append(self.folder.metrics, before)
        self.event("differs", **told)
        raise DiffersError(f"resumed from {self.check.checkpoint}, {verdict.difference}")

    def _curves(self, step: int) -> Any:
        if self._tensorboard is None:  # after the first step: the import takes a second
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(self.folder.tensorboard), purge_step=step)
        return self._tensorboard


def record_of(samples: tuple[str, ...]) -> list[str] | str:
    """The ids, or for many of them one digest."""
    if len(samples) <= MAX_IDS:
        return list(samples)
    return "blake2b:" + hashlib.blake2b("\n".join(samples).encode(), digest_size=16).hexdigest()
