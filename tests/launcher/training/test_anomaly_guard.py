"""Steps that would harm the model make no update: by rule, in whole runs, and the same after a resume."""

from __future__ import annotations

import io
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from launcher.analysis.data_audit import audit
from launcher.analysis.incidents import why
from launcher.checkpoints.checkpoint_manifest import Updates
from launcher.config.sections import GuardConfig
from launcher.core.run_folder import RunFolder
from launcher.supervision.local_ranks import ProcessRanks
from launcher.supervision.run import train as launch
from launcher.supervision.supervisor import DONE
from launcher.training.anomaly_guard import (
    FINITE,
    LEAST_NORMS,
    NORMS,
    AnomalyGuard,
    add_window,
    skipped,
    unchanged,
    windows_of,
)
from tests.support.process_groups import server
from tests.support.runs import config, events, lines, run, train

KNOWN = Updates(20, (1.0, 2.0, 3.0) * 6)


@pytest.mark.parametrize(
    ("step", "loss", "norm", "updates", "said"),
    [
        (4, 1.0, 5.9, KNOWN, ""),
        (4, 1.0, 6.1, KNOWN, "spikes: gradient norm 6.1, median of the last updates 2"),
        (4, 1.0, 6.1, Updates(3, (1.0,) * (LEAST_NORMS - 1)), ""),
        (4, math.nan, 1.0, KNOWN, "is not finite: loss nan, gradient norm 1"),
        (4, math.inf, math.inf, Updates(), "is not finite: loss inf, gradient norm inf"),
        (4, 1.0, math.nan, Updates(), "is not finite: loss 1, gradient norm nan"),
        (8, math.nan, math.nan, KNOWN, ""),  # known before
    ],
)
def test_what_is_wrong_with_a_step(step: int, loss: float, norm: float, updates: Updates, said: str) -> None:
    guard = AnomalyGuard(GuardConfig(spike_factor=3), ((7, 9),))
    assert guard.trouble(step, loss, norm, updates) == said
    assert (norm <= guard.max_norm(step, loss, updates)) == (not said and step != 8)


def test_without_a_spike_every_finite_norm_updates() -> None:
    assert AnomalyGuard(GuardConfig()).max_norm(4, 1.0, KNOWN) == FINITE


def test_what_is_known_after_a_step() -> None:
    guard, updates = AnomalyGuard(GuardConfig()), Updates()
    for step in range(2 * NORMS):
        updates = guard.after(updates, float(step), True, False)
    assert updates == Updates(2 * NORMS, tuple(map(float, range(NORMS, 2 * NORMS))))
    twice = guard.after(guard.after(updates, 9.0, False, True), 9.0, False, True)
    assert twice == Updates(updates.done, updates.norms, 2)
    assert guard.after(twice, 9.0, False, False).skipped == 2, "steps of a window do not count"
    assert guard.after(twice, 9.0, True, False).skipped == 0


def test_windows_are_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert windows_of(folder) == ()
    add_window(folder, (4, 8))
    add_window(folder, (10, 11))
    assert windows_of(folder) == ((4, 8), (10, 11))


def test_lines_that_a_rewind_changes_are_not_compared() -> None:
    guard = AnomalyGuard(GuardConfig(), ((4, 5),))
    numbers = {"loss": 1.0, "grad_norm": 1.0}
    before = [{"step": step, "updated": True, **numbers} for step in (3, 4, 5, 6)]
    assert unchanged(before, guard) == before[:2]
    again = [{"step": step, "updated": step not in (4, 5), **numbers} for step in (3, 4, 5, 6)]
    assert unchanged(again, guard) == again
    again[2]["loss"] = math.nan
    assert unchanged(again, guard) == [again[0], again[1], again[3]], "what is not finite need not come again"
    assert skipped(again) == ((4, 4), (5, 5))


def of_ranks(out: Path, dataset: Path, steps: int = 6, **changes: Any) -> Any:
    usual = {"dtype": "float32", "zero__stage": 2, "mesh": {"ulysses": 2}, "checkpoint__every": 3}
    return config(out, dataset, **{**usual, "optimizer__ema": 0.9, "steps": steps, **changes})


def nan(*steps: int, rank: int = 1) -> list[dict[str, Any]]:
    return [{"kind": "nan", "rank": rank, "step": step} for step in steps]


def test_a_step_that_is_not_finite_is_skipped(tmp_path: Path, dataset: Path) -> None:
    """The others go on the same on every layout; its samples are recorded."""
    found = train(of_ranks(tmp_path / "two", dataset, faults=nan(4)))
    assert [line["updated"] for line in found] == [True, True, True, False, True, True]
    assert math.isnan(found[3]["loss"])
    (told,) = events(tmp_path / "two", "anomaly")
    assert (told["step"], told["policy"], told["samples"]) == (4, "skip", found[3]["samples"])
    one = train(of_ranks(tmp_path / "one", dataset, mesh={}, zero__stage=0, dtype="float64", faults=nan(4, rank=0)))
    clean = train(of_ranks(tmp_path / "clean", dataset, mesh={}, zero__stage=0, dtype="float64"))
    for line, other in zip(found[4:], one[4:], strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert one[:3] != clean[:3]  # times
    assert [line["loss"] for line in one[:3]] == [line["loss"] for line in clean[:3]]
    assert one[4]["loss"] != clean[4]["loss"]
    assert [i.cause for i in why(tmp_path / "two").incidents] == ["anomaly"]


def test_a_kill_does_not_bring_an_update_back(tmp_path: Path, dataset: Path) -> None:
    """A glitch is not there when its step is done again after a kill; the step makes no update all the same."""
    whole = train(of_ranks(tmp_path / "whole", dataset, steps=8, faults=nan(5)))
    out = tmp_path / "killed"
    train(of_ranks(out, dataset, steps=6, faults=nan(5)))
    shutil.rmtree(RunFolder(out).checkpoints / "step-00000006")  # as if it had been killed before it saved
    found = train(of_ranks(out, dataset, steps=8, faults=nan(5)))
    assert [line["updated"] for line in found] == [line["updated"] for line in whole]
    assert math.isfinite(found[4]["loss"])
    assert [line["loss"] for line in found[5:]] == [line["loss"] for line in whole[5:]]
    (verified,) = events(out, "verified")
    assert verified["steps"] == [4, 6]


def test_many_in_a_row_end_the_run(tmp_path: Path, dataset: Path) -> None:
    (end, *_) = run(of_ranks(tmp_path / "run", dataset, mesh={}, guard__max_consecutive=2, faults=nan(2, 3, rank=0)))
    assert (end.how, end.sign) == ("failed", "FloatingPointError")
    assert "step 3 is not finite" in end.message
    assert "2 steps in a row made no update" in end.message
    assert [event["policy"] for event in events(tmp_path / "run", "anomaly")] == ["skip", "end"]
    assert not list(RunFolder(tmp_path / "run").checkpoints.glob("step-*"))


def test_end(tmp_path: Path, dataset: Path) -> None:
    (end, *_) = run(of_ranks(tmp_path / "run", dataset, mesh={}, guard__policy="end", faults=nan(2, rank=0)))
    assert (end.how, end.sign) == ("failed", "FloatingPointError")


def test_a_resume_judges_as_the_run_did(tmp_path: Path, dataset: Path) -> None:
    """With so narrow a limit many steps spike; stopped between them and resumed, the same ones make no update."""
    settings = {
        "mesh": {},
        "zero__stage": 0,
        "guard": {"spike_factor": 1.12, "max_consecutive": 100},
        "optimizer__learning_rate": 1e-4,
    }
    whole = train(of_ranks(tmp_path / "whole", dataset, steps=26, **settings))
    for steps in (18, 23, 26):
        train(of_ranks(tmp_path / "parts", dataset, steps=steps, **settings))
    for line, other in zip(whole, lines(tmp_path / "parts"), strict=True):
        assert all(line[k] == other[k] for k in ("step", "loss", "grad_norm", "updated", "samples"))
    updated = [line["updated"] for line in whole]
    assert all(updated[:LEAST_NORMS])
    assert not all(updated), "nothing spiked"
    assert any(updated[LEAST_NORMS:])


def test_rewind(tmp_path: Path, dataset: Path) -> None:
    """Back to the checkpoint of step 6; steps 7 and 8 make no update, then the run goes on."""
    out = tmp_path / "run"
    settings = of_ranks(out, dataset, steps=10, guard__policy="rewind", faults=nan(8))
    assert launch(settings, lambda: ProcessRanks(server()), Console(file=io.StringIO())) == DONE
    assert windows_of(RunFolder(out)) == ((7, 8),)
    found = lines(out)
    assert [line["step"] for line in found if not line["updated"]] == [7, 8]
    assert all(math.isfinite(line["loss"]) for line in found)
    assert len(events(out, "restart")) == 1
    (verified,) = events(out, "verified")
    assert verified["steps"] == [7]
    assert audit(out).clean
    train(of_ranks(tmp_path / "again", dataset, steps=6))
    add_window(RunFolder(tmp_path / "again"), (7, 8))
    again = train(of_ranks(tmp_path / "again", dataset, steps=10))
    assert [line["loss"] for line in again] == [line["loss"] for line in found]
