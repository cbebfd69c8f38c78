"""`longreel data audit`: what a run has seen, from its own record, against what its plan says it should have.

Each line of metrics.jsonl holds the ids that the ranks read in a step (a checksum over all ranks made sure of it before
the step was computed), the cursor after it, and the chain over all ids so far. The plan is walked again from the first
step: every step must have the same chain, and every whole epoch every sample exactly once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.planning.data_plan import Cursor
from data.streams.curriculum import AnyStream, Curriculum, Position
from data.streams.pack_stream import Pack
from launcher.batches.datasets import open_curriculum
from launcher.checkpoints.reading import newest, trusting
from launcher.checkpoints.storage import open_storage
from launcher.config.loading import load_stored
from launcher.config.run_config import RunConfig
from launcher.core.run_folder import RunFolder, events_of, steps_of
from launcher.training.metrics_log import record_of
from parallel.errors import InputError

COMPARED = frozenset(("samples", "chain", "cursor", "tokens"))  # of a line of metrics.jsonl, with the plan


@dataclass(frozen=True)
class Seen:
    """A sample in a step."""

    uid: str
    epoch: int
    file: str
    caption: str
    tokens: int
    unreadable: str = ""


@dataclass
class Epoch:
    """One pass over one dataset, in one segment of the curriculum.

    Attributes:
        segment, dataset, number: which one.
        samples: of the dataset.
        seen: how often each was.
        over: whether all of it should have been seen.
    """

    segment: int
    dataset: str
    number: int
    samples: int
    seen: Counter[str] = field(default_factory=Counter)
    over: bool = False

    @property
    def lost(self) -> int:
        """Samples that did not come in an epoch that is over."""
        return self.samples - len(self.seen) if self.over else 0

    @property
    def again(self) -> int:
        """Times that a sample came once more."""
        return sum(self.seen.values()) - len(self.seen)


@dataclass
class Audit:
    """What was found.

    Attributes:
        steps: recorded and compared.
        missing: steps without a record.
        different: (step, what) of records that are not what the plan says.
        epochs: what became of the samples in each epoch of each dataset.
        unreadable: ids that counted as weight zero, and how often.
        tokens: of all steps.
        chain: after the last step.
    """

    steps: int = 0
    missing: list[int] = field(default_factory=list)
    different: list[tuple[int, str]] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)
    unreadable: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    chain: str = ""

    @property
    def clean(self) -> bool:
        """Nothing is missing, lost, seen twice or different."""
        return not (self.missing or self.different or any(e.lost or e.again for e in self.epochs))


def audit(run: Path, on_progress: Callable[[int, int], None] | None = None) -> Audit:
    """Compare the record of a run with its plan.

    Raises:
        InputError: no run folder, or its datasets are gone or changed.
    """
    config, folder = _opened(run)
    curriculum = _curriculum(config, folder)
    lines = _recorded(folder)
    if not lines:
        raise InputError("an audit needs a run that has done a step", f"{folder.metrics}: none", "train it first")
    found, last = Audit(), max(lines)
    for event in events_of(folder):
        if event["event"] == "unreadable":
            found.unreadable[str(event.get("sample"))] += 1
    epochs = Epochs(curriculum)
    for step, stream, packs, after in _steps(curriculum, last):
        ids = [document.uid for pack in packs for document in pack.documents]
        recorded = lines.get(step)
        if recorded is None:
            found.missing.append(step)
        else:
            found.steps += 1
            found.tokens += recorded["tokens"]
            found.different += [(step, what) for what in _differences(recorded, ids, after)]
        epochs.add(curriculum.segment(step - 1), stream, packs, after)
        found.chain = after.chain
        if on_progress:
            on_progress(step, last)
    found.epochs = epochs.found
    return found


class Epochs:
    """Counts samples by segment, dataset and epoch."""

    def __init__(self, curriculum: Curriculum) -> None:
        self.curriculum = curriculum
        self._epochs: dict[tuple[int, int, int], Epoch] = {}
        self._begun: dict[tuple[int, int, int], tuple[int, int]] = {}  # the window in which each epoch began

    @property
    def found(self) -> list[Epoch]:
        """In order."""
        return [self._epochs[key] for key in sorted(self._epochs)]

    def add(self, segment: int, stream: AnyStream, packs: list[Pack], after: Position) -> None:
        """The packs of one step."""
        here = (after.cursor.epoch, after.cursor.window)
        for pack in packs:
            for row, document, number in zip(pack.rows, pack.documents, pack.epochs, strict=True):
                dataset = stream.dataset_of(row)
                key = (segment, dataset, number)
                if key not in self._epochs:
                    name, size = str(stream.index.folders[dataset]), stream.plan.mix.sizes[dataset]
                    self._epochs[key] = Epoch(segment, name, number, size)
                    self._begun[key] = here
                self._epochs[key].seen[document.uid] += 1
        for (of, dataset, number), begun in self._begun.items():
            before = self._epochs.get((of, dataset, number - 1))
            mixed = (
                len(stream.plan.mix.sizes) > 1
            )  # then a window may hold the end of one and the beginning of the next
            if before is not None and of == segment and (begun < here or not mixed):
                before.over = True


def step_of(run: Path, step: int) -> list[Seen]:
    """The samples of one step.

    Raises:
        InputError: the run has not recorded that step.
    """
    config, folder = _opened(run)
    lines = _recorded(folder)
    if step not in lines:
        have = f"steps {min(lines)} to {max(lines)}" if lines else "no step"
        raise InputError("an audit shows a step that the run has recorded", f"{step}; it has {have}", "--step N")
    before = _position(lines, step - 1)
    stream, packs, _ = _curriculum(config, folder).next_step(before)
    bad = {
        str(event.get("sample")): str(event.get("reason"))
        for event in events_of(folder)
        if event["event"] == "unreadable" and event.get("step") == step
    }
    return [
        Seen(d.uid, epoch, stream.index.file(row), d.text, d.tokens, bad.get(d.uid, ""))
        for pack in packs
        for d, row, epoch in zip(pack.documents, pack.rows, pack.epochs, strict=True)
    ]


def _recorded(folder: RunFolder) -> dict[int, dict[str, Any]]:
    """The lines of metrics.jsonl by step; a line that lacks what is compared counts as missing."""
    return {line["step"]: line for line in steps_of(folder) if line.keys() >= COMPARED}


def _position(lines: dict[int, Any], step: int) -> Position:
    if step == 0:
        return Position()
    if step not in lines:
        raise InputError("the step before is recorded too", f"{step} is not", "ask for another step")
    return Position(step, Cursor(**lines[step]["cursor"]), lines[step]["chain"], "")


def _opened(run: Path) -> tuple[RunConfig, RunFolder]:
    folder = RunFolder(Path(run))
    if not folder.config.is_file():
        raise InputError("an audit is of a run folder", f"{run} has no {folder.config.name}", "give the run's out")
    return load_stored(folder.config), folder


def _curriculum(config: RunConfig, folder: RunFolder) -> Curriculum:
    """With the datasets as the run knows them."""
    found, _ = newest(open_storage(folder.checkpoints, config.checkpoint.location), trusting)
    return open_curriculum(config, found.state.datasets if found else ())


def _steps(curriculum: Curriculum, last: int) -> Iterator[tuple[int, AnyStream, list[Pack], Position]]:
    position = Position()
    for step in range(1, last + 1):
        stream, packs, position = curriculum.next_step(position)
        yield step, stream, packs, position


def _differences(line: dict[str, Any], ids: list[str], after: Position) -> Iterator[str]:
    if line["samples"] != record_of(tuple(ids)):
        yield "other samples than planned"
    elif line["chain"] != after.chain:
        yield "the same samples, but another chain: an earlier step differs"
