"""A resume proves itself: steps done again give the same numbers, or the checkpoint is no longer trusted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from launcher.checkpoints.storage import LocalStorage
from launcher.folder import RunFolder, append_line, read_lines
from launcher.proof import Proof, distrusted
from parallel.errors import InputError
from tests.runs import config, events, run, train

LAYOUT = "1 x 1 x 1, ZeRO 0, float64"


def line(step: int, loss: float, **changes: Any) -> dict[str, Any]:
    return {"step": step, "loss": loss, "grad_norm": 2 * loss, "samples": [str(step)], "layout": LAYOUT, **changes}


def proof(before: list[dict[str, Any]], layout: str = LAYOUT, exact: bool = True) -> Proof:
    made = Proof("step-00000004", layout, exact, "float64")
    made.expect(before)
    return made


def test_steps_that_are_identical() -> None:
    made = proof([line(step, step / 3) for step in range(5, 11)])
    assert made.see(line(5, 5 / 3)) is None
    assert made.see(line(6, 6 / 3)) is None
    verdict = made.see(line(7, 7 / 3))
    assert verdict is not None
    assert (verdict.steps, verdict.identical, verdict.near, verdict.difference) == ((5, 6, 7), 3, 3, None)
    assert made.see(line(8, 0.0)) is None  # enough was seen


def test_one_bit_is_a_difference_on_the_same_layout_alone() -> None:
    near = 5 / 3 * (1 + 1e-15)
    verdict = proof([line(5, 5 / 3)]).see(line(5, near))
    assert verdict is not None
    assert verdict.difference == f"step 5: loss {5 / 3!r}, now {near!r}, grad_norm {10 / 3!r}, now {2 * near!r}"
    for made in (proof([line(5, 5 / 3)], layout="2 x 1 x 1"), proof([line(5, 5 / 3)], exact=False)):
        verdict = made.see(line(5, near))
        assert verdict is not None
        assert (verdict.identical, verdict.near, verdict.difference) == (0, 1, None)
    verdict = proof([line(5, 5 / 3)], layout="2 x 1 x 1").see(line(5, 1.7))
    assert verdict is not None
    assert verdict.difference
    verdict = proof([line(5, 1.0)], layout="2 x 1 x 1").see(line(5, 1.0, samples=["other"]))
    assert verdict is not None
    assert verdict.difference == "step 5 had other samples"


def test_nothing_to_compare() -> None:
    assert proof([]).see(line(5, 1.0)) is None


@pytest.fixture(scope="module")
def half_done(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """As a kill leaves it: checkpoints of steps 2 and 4, lines of metrics up to step 6. To be copied."""
    out = tmp_path_factory.mktemp("half") / "run"
    train(config(out, dataset, steps=6, checkpoint__every=2))
    LocalStorage(RunFolder(out).checkpoints).remove("step-00000006")
    return out


def test_a_resume_is_verified(tmp_path: Path, dataset: Path, half_done: Path) -> None:
    shutil.copytree(half_done, tmp_path, dirs_exist_ok=True)
    train(config(tmp_path, dataset, steps=7, checkpoint__every=2))
    (told,) = events(tmp_path, "verified")
    assert (told["checkpoint"], told["steps"], told["identical"]) == ("step-00000004", [5, 6], 2)


def test_a_checkpoint_that_gives_other_numbers_is_left_for_the_one_before(
    tmp_path: Path, dataset: Path, half_done: Path
) -> None:
    """Its hashes are right, so only the replay can tell: here the numbers of before were changed."""
    shutil.copytree(half_done, tmp_path, dirs_exist_ok=True)
    metrics = RunFolder(tmp_path).metrics
    lines = list(read_lines(metrics))
    lines[4]["loss"] *= 1 + 1e-15
    metrics.write_text("".join(json.dumps(fields) + "\n" for fields in lines))
    settings = config(tmp_path, dataset, steps=7, checkpoint__every=2)
    (end,) = run(settings)
    assert end.how == "failed"
    assert "resumed from step-00000004, step 5: loss" in end.message
    assert len(train(settings)) == 7  # what the launcher does next
    assert [event["checkpoint"] for event in events(tmp_path, "resume")] == ["step-00000004", "step-00000002"]
    (passed_over,) = events(tmp_path, "fallback")
    assert "distrusted: step 5" in passed_over["reason"]
    assert distrusted(RunFolder(tmp_path)) == {}


def test_two_in_a_row_are_not_the_fault_of_checkpoints(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    append_line(folder.events, {"event": "differs", "checkpoint": "step-00000004", "difference": "step 5: loss"})
    assert distrusted(folder) == {"step-00000004": "distrusted: step 5: loss"}
    append_line(folder.events, {"event": "checkpoint", "step": 4})
    assert distrusted(folder) == {}
    for step in (2, 4):
        append_line(folder.events, {"event": "differs", "checkpoint": f"step-{step:08d}", "difference": "step 5: loss"})
    with pytest.raises(InputError, match=r"restart\.verify=false"):
        distrusted(folder)
    append_line(folder.events, {"event": "verified", "steps": [3]})
    assert distrusted(folder) == {}
