"""`longreel drill`: a short copy of a run, once undisturbed, and once for each kind of fault, through the real command.

    RUN-drill/undisturbed/           12 steps, a checkpoint every third
    RUN-drill/kill/  pause/ ...      the same, and a fault at a known (rank, step, phase); then compared
    RUN-drill/kill.yaml  kill.log    what was run, and what it said

Faults of a rank are done by itself (`inject.py`). For those of the command (driver, terminate) and of what it saved
(flip) a rank waits for a moment at the fault's place, and they are done from here.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.analysis.data_audit import audit
from launcher.analysis.subprocess_run import Command, Record
from launcher.checkpoints.storage import LocalStorage, Storage, open_storage
from launcher.config.loading import to_yaml
from launcher.config.run_config import RunConfig
from launcher.config.sections import FaultConfig
from launcher.core.run_folder import RunFolder
from launcher.supervision.run import DONE, STOPPED
from parallel.errors import InputError

UNDISTURBED = "undisturbed"
FROM_OUTSIDE = ("driver", "terminate", "flip")
USUAL = ("kill", "pause", "cut", "tear", "full", "driver", "terminate", "flip")
KINDS = (*USUAL, "raise", "slow")
WORDS = {
    "kill": "kill -9 of a rank",
    "pause": "a rank is stopped (SIGSTOP)",
    "cut": "a rank's connections are cut",
    "tear": "kill -9 within a checkpoint write",
    "full": "full disk",
    "driver": "kill -9 of the command, started again",
    "terminate": "SIGTERM, started again",
    "flip": "a flipped bit in the newest checkpoint",
    "raise": "a rank fails with an exception",
    "slow": "a rank sleeps",
}
LEAST_STEPS = 4
FULL_SECONDS, HOLD_SECONDS, SLOW_SECONDS = 3.0, 2.0, 5.0
POLL_SECONDS = 0.05
PATIENCE_SECONDS, PATIENCE_RATIO = 300.0, 10.0  # a run may take so much longer than the undisturbed one


@dataclass(frozen=True)
class Result:
    """How a fault went.

    Attributes:
        fault: its kind.
        rank: that it struck; None for the command itself.
        step: in which.
        phase: of the step.
        survived: all steps were done, with the planned samples, each once.
        seconds: from the strike to the end of the next step that had not been done before.
        steps_again: steps that were done again.
        identical: losses and gradient norms are bit for bit those of the undisturbed run.
        difference: the largest relative difference of a loss.
        note: what else there is to say.
    """

    fault: str
    rank: int | None
    step: int
    phase: str
    survived: bool
    seconds: float | None = None
    steps_again: int | None = None
    identical: bool = False
    difference: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Drill:
    """What is run.

    Attributes:
        config: of the user's run, shortened; each exercise has a folder of its own below `out`.
        faults: what strikes, by kind, in order.
        flags: of the launcher, such as --no-ray.
    """

    config: RunConfig
    faults: Mapping[str, FaultConfig]
    flags: tuple[str, ...]


Progress = Callable[[str, int], None]  # (exercise, step)


def plan(config: RunConfig, out: Path, kinds: Sequence[str], steps: int, flags: Sequence[str] = ()) -> Drill:
    """The drill of a run: `steps` steps with four checkpoints, and a fault between or in them for each kind.

    Raises:
        InputError: a kind that is not known, too few steps.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise InputError("a drill knows its faults", f"--faults {','.join(kinds)}", f"some of {','.join(KINDS)}")
    if steps < LEAST_STEPS:
        raise InputError(f"a drill has at least {LEAST_STEPS} steps", f"--steps {steps}", "--steps 12")
    every = steps // 4
    checkpoint = config.checkpoint.model_copy(update={"every": every, "keep": max(2, config.checkpoint.keep)})
    short = config.model_copy(update={"out": out, "steps": steps, "checkpoint": checkpoint, "faults": ()})
    last = config.mesh.mesh().ranks - 1
    saved, between = 2 * every, 2 * every + max(1, every // 2)  # a checkpoint, and a step with lost ones behind it

    def fault(kind: str) -> FaultConfig:
        if kind in ("tear", "full"):
            asked = {"kind": kind, "step": saved, "phase": "save", "seconds": FULL_SECONDS}
        elif kind in FROM_OUTSIDE:
            asked = {"kind": "slow", "step": between, "phase": "forward", "seconds": HOLD_SECONDS}
        else:
            asked = {"kind": kind, "step": between, "phase": "backward", "seconds": SLOW_SECONDS}
        return FaultConfig.model_validate({**asked, "rank": 0 if kind == "full" else last})

    return Drill(short, {kind: fault(kind) for kind in kinds if kind != "cut" or last}, tuple(flags))


def drill(drill: Drill, on_progress: Progress, on_result: Callable[[Result], None]) -> tuple[float, list[Result]]:
    """Run it; gives the seconds of the undisturbed run, and the results.

    Raises:
        InputError: the run does not work without any fault.
    """
    _make_folder(drill.config.out)
    began = time.monotonic()
    undisturbed, problem = _run(drill, UNDISTURBED, (), 24 * 3600, on_progress)
    seconds = time.monotonic() - began
    if problem:
        raise InputError("a run works before faults strike it", problem, "mend it; longreel train shows it whole")
    _forget_checkpoints(_storage(_config(drill, UNDISTURBED, ())))
    results = []
    for kind, fault in drill.faults.items():
        results.append(
            _exercise(drill, kind, fault, undisturbed, PATIENCE_SECONDS + PATIENCE_RATIO * seconds, on_progress)
        )
        on_result(results[-1])
    return seconds, results


def figures(kind: str, fault: FaultConfig, undisturbed: Record, record: Record, problem: str = "") -> Result:
    """What the record of a run that a fault struck tells, beside that of the undisturbed run."""
    rank = None if kind in FROM_OUTSIDE else fault.rank
    missed = Result(kind, rank, fault.step, fault.phase, False, note=problem)
    struck = [e for e in record.events("fault") if e["kind"] == kind]
    if not struck:
        return Result(**{**vars(missed), "note": problem or "the fault did not strike"})
    at = float(struck[0]["time"])
    resumed = [e for e in record.events("resume") if e["time"] > at]
    back = float(resumed[-1]["time"]) if resumed else at
    done = max((step for step, when in record.first.items() if when <= back), default=0)
    new = min((when for when in record.first.values() if when > back), default=None)
    differences = _differences(undisturbed.lines, record.lines)
    others = [s for s, line in undisturbed.lines.items() if record.lines.get(s, {}).get("samples") != line["samples"]]
    if not problem and others:
        problem = f"step {others[0]} is missing, or has other samples"
    return Result(
        kind, rank, struck[0]["step"], struck[0]["phase"],
        survived=not problem,
        seconds=None if new is None else new - at,
        steps_again=done - int(resumed[-1]["step"]) if resumed else 0,
        identical=not others and not any(differences),
        difference=max(differences, default=0.0) if not others else None,
        note=problem or _note(record, at),
    )  # fmt: skip


def flip_bit(storage: Storage) -> str:
    """Flip one bit in the middle of the largest file of the newest checkpoint; gives its name."""
    name = storage.names()[-1]
    sizes = storage.files(name)
    file = max(sizes, key=lambda f: (sizes[f], f))
    data = storage.read(name, file)
    data[len(data) // 2] ^= 1
    if isinstance(storage, LocalStorage):  # what is committed is not written to by any other way
        (storage.root / name / file).write_bytes(data)
    else:
        storage.write(name, file, [data])
    return f"{name}/{file}"


def _exercise(
    drill: Drill, kind: str, fault: FaultConfig, undisturbed: Record, limit: float, on_progress: Progress
) -> Result:
    record, problem = _run(drill, kind, (fault,), limit, on_progress)
    config = _config(drill, kind, (fault,))
    if not problem:
        found = audit(config.out)
        problem = "" if found.clean else "longreel data audit finds samples lost or repeated"
    result = figures(kind, fault, undisturbed, record, problem)
    if result.survived:
        _forget_checkpoints(_storage(config))
    return result


def _run(
    drill: Drill, kind: str, faults: tuple[FaultConfig, ...], limit: float, on_progress: Progress
) -> tuple[Record, str]:
    """One run to its end, started again where the fault asks for that; its record, and what went wrong."""
    config = _config(drill, kind, faults)
    file, log = drill.config.out / f"{kind}.yaml", drill.config.out / f"{kind}.log"
    file.write_text(to_yaml(config))
    _forget_checkpoints(_storage(config))  # of an earlier drill, where they do not lie in the run folder
    record, deadline = Record(RunFolder(config.out)), time.monotonic() + limit

    def start(strike: Callable[[Command], None] | None) -> tuple[int | None, str]:
        with Command(file, drill.flags, log) as command:
            while (code := command.poll()) is None and time.monotonic() < deadline:
                record.update()
                on_progress(kind, record.step)
                if strike is not None and record.events("fault"):
                    strike(command)
                    strike = None
                time.sleep(POLL_SECONDS)
            record.update()
            return code, command.last_words()

    code, words = start((lambda command: _strike(kind, config, faults[0], command)) if kind in FROM_OUTSIDE else None)
    if kind in FROM_OUTSIDE and code == (-signal.SIGKILL if kind == "driver" else STOPPED):
        if kind == "flip":
            flip_bit(_storage(config))
            _tell(config, kind, faults[0])
        code, words = start(None)
    if code == DONE:
        return record, ""
    problem = f"not done after {limit:.0f} s" if code is None else f"exit code {code}"
    return record, f"{problem}: {words}" if kind == UNDISTURBED else f"{problem}: {log}"


def _strike(kind: str, config: RunConfig, fault: FaultConfig, command: Command) -> None:
    if kind != "flip":
        _tell(config, kind, fault)
    command.tell(signal.SIGKILL if kind == "driver" else signal.SIGTERM)


def _tell(config: RunConfig, kind: str, fault: FaultConfig) -> None:
    RunFolder(config.out).record("fault", kind=kind, rank=-1, step=fault.step, phase=fault.phase)


def _config(drill: Drill, kind: str, faults: tuple[FaultConfig, ...]) -> RunConfig:
    """Of one exercise; checkpoints that do not lie in the run folder get a folder of their own too."""
    to = drill.config.checkpoint.location
    checkpoint = drill.config.checkpoint.model_copy(
        update={"to": None if to is None else f"{to.rstrip('/')}-drill/{kind}"}
    )
    changes = {"out": drill.config.out / kind, "faults": faults, "checkpoint": checkpoint}
    return drill.config.model_copy(update=changes)


def _storage(config: RunConfig) -> Storage:
    return open_storage(RunFolder(config.out).checkpoints, config.checkpoint.location)


def _forget_checkpoints(storage: Storage) -> None:
    """They would take the room of as many runs as there are faults."""
    for name in storage.names():
        storage.remove(name)


def _make_folder(out: Path) -> None:
    there = out.exists()
    if there and any(out.iterdir()) and not (out / f"{UNDISTURBED}.yaml").exists():
        raise InputError("a drill has a folder of its own", f"{out} has other files", "--out FOLDER")
    if there:
        shutil.rmtree(out)
    out.mkdir(parents=True)


def _differences(one: Mapping[int, dict[str, Any]], other: Mapping[int, dict[str, Any]]) -> list[float]:
    """Relative, of loss and gradient norm, for each step that both have."""
    pairs = [(line[key], other[s][key]) for s, line in one.items() if s in other for key in ("loss", "grad_norm")]
    return [abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0 for a, b in pairs]


def _note(record: Record, at: float) -> str:
    passed_over = [e["checkpoint"] for e in record.events("fallback") if e["time"] > at]
    if passed_over:
        return f"{passed_over[0]} passed over"
    unsaved = [e for e in record.events("unsaved") if e["time"] > at]
    saved = [e for e in record.events("checkpoint") if unsaved and e["time"] > unsaved[0]["time"]]
    if saved:
        return f"trained on, saved {saved[0]['time'] - at:.1f} s later"
    verified = [e for e in record.events("verified") if e["time"] > at]
    return "resume verified" if verified else ""
