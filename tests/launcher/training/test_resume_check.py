"""A resume proves itself: steps done again give the same numbers, or the checkpoint is no longer trusted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from blake3 import blake3

from launcher.checkpoints.checkpoint_manifest import open_manifest
from launcher.checkpoints.storage import LocalStorage
from launcher.core.run_folder import RunFolder, append_line, read_lines
from launcher.training.resume import resume_check_of
from launcher.training.resume_check import ResumeCheck, distrusted
from parallel.errors import InputError
from tests.support.runs import config, events, run, train

MADE = {"numbers": "a", "rounding": "b", "update": "c", "law": "2"}


def line(step: int, loss: float, **changes: Any) -> dict[str, Any]:
    return {"step": step, "loss": loss, "grad_norm": 2 * loss, "samples": [str(step)], "made": MADE, **changes}


def check_of(before: list[dict[str, Any]], exact: bool = True, changed: tuple[str, ...] = ()) -> ResumeCheck:
    made = ResumeCheck("step-00000004", exact, "float64", changed=changed)
    made.expect(before)
    return made


def test_steps_that_are_identical() -> None:
    made = check_of([line(step, step / 3) for step in range(5, 11)])
    assert made.see(line(5, 5 / 3)) is None
    assert made.see(line(6, 6 / 3)) is None
    verdict = made.see(line(7, 7 / 3))
    assert verdict is not None
    assert (verdict.steps, verdict.identical, verdict.near, verdict.difference) == ((5, 6, 7), 3, 3, None)
    assert verdict.reason == ""
    assert made.see(line(8, 0.0)) is None  # enough was seen


def test_one_bit_is_a_difference_where_all_is_the_same() -> None:
    near = 5 / 3 * (1 + 1e-15)
    verdict = check_of([line(5, 5 / 3)]).see(line(5, near))
    assert verdict is not None
    assert verdict.difference == f"step 5: loss {5 / 3!r}, now {near!r}, grad_norm {10 / 3!r}, now {2 * near!r}"
    verdict = check_of([line(5, 1.0)]).see(line(5, 1.0, samples=["other"]))
    assert verdict is not None
    assert verdict.difference == "step 5 had other samples"


def test_a_machine_that_does_not_repeat_itself_is_compared_nearly() -> None:
    verdict = check_of([line(5, 5 / 3)], exact=False).see(line(5, 5 / 3 * (1 + 1e-15)))
    assert verdict is not None
    assert (verdict.identical, verdict.near, verdict.difference) == (0, 1, None)
    verdict = check_of([line(5, 5 / 3)], exact=False).see(line(5, 1.7))
    assert verdict is not None
    assert verdict.difference


@pytest.mark.parametrize(
    ("changes", "now", "steps", "identical", "reason"),
    [
        ({"rounding": "x"}, 1.0, (5, 6), 2, "threads: 2 became 1"),  # compared to the tolerance: these are the same
        ({"rounding": "x"}, 1 + 1e-15, (5, 6), 0, "threads: 2 became 1"),
        ({"rounding": "x"}, 1.1, (), 0, "step 5 was made with other rounding, and differs: step 5: loss 1.0, now 1.1"),
        ({"numbers": "x"}, 1.1, (), 0, "step 5 was made with other settings than now (threads: 2 became 1)"),
        ({"update": "x"}, 1.0, (5,), 1, "the update of step 5 was another (threads: 2 became 1)"),
    ],
)
def test_what_was_made_otherwise_accuses_nobody(
    changes: dict[str, str], now: float, steps: tuple[int, ...], identical: int, reason: str
) -> None:
    made = check_of([line(step, 1.0, made=MADE | changes) for step in (5, 6)], changed=("threads: 2 became 1",))
    verdict = made.see(line(5, now)) or made.see(line(6, now))
    assert verdict is not None
    assert (verdict.steps, verdict.identical, verdict.difference) == (steps, identical, None)
    assert reason in verdict.reason


def test_numbers_of_an_update_that_was_another_are_not_compared() -> None:
    made = check_of([line(5, 1.0, made=MADE | {"update": "x"}), line(6, 1.0)])
    assert made.see(line(5, 1.0)) is not None
    assert made.see(line(6, 99.0)) is None


@pytest.mark.parametrize("first", [line(5, 1.0, made=MADE | {"rounding": "x"}), None], ids=["other mesh", "no line"])
@pytest.mark.parametrize(("now", "near"), [(1 + 1e-15, 1), (1.1, 0)])
def test_a_step_after_one_of_other_rounding_accuses_nobody(first: Any, now: float, near: int) -> None:
    """Of a run that went on with another mesh, and then falls back to a checkpoint of before."""
    made = check_of([each for each in (first, line(6, 1.0)) if each])
    assert made.see(line(5, 1.0)) is None
    verdict = made.see(line(6, now))
    assert verdict is not None
    assert (verdict.difference, verdict.near) == (None, near + (first is not None))
    if not near:
        assert "step 6 came after steps that were made with other rounding, and differs" in verdict.reason


def test_rounding_excuses_no_other_samples() -> None:
    before = [line(5, 1.0, made=MADE | {"rounding": "x"}), line(6, 1.0)]
    verdict = check_of(before).see(line(5, 1.0, samples=["other"]))
    assert verdict is not None
    assert verdict.difference == "step 5 had other samples"
    made = check_of(before)
    made.see(line(5, 1.0))
    verdict = made.see(line(6, 1.0, samples=["other"]))
    assert verdict is not None
    assert verdict.difference == "step 6 had other samples"


def test_what_followed_an_odd_record_is_not_held_against_another_checkpoint() -> None:
    again = {"loss": 1.0, "grad_norm": 2.0, "samples": ["5"], "made": MADE}
    verdict = check_of([line(5, 1.5, again=again), line(6, 1.5)]).see(line(5, 1.0))
    assert verdict is not None
    assert (verdict.steps, verdict.identical, verdict.difference) == ((5,), 1, None)
    assert "step 5 gave two numbers before" in verdict.reason


def test_lines_of_an_older_version_accuse_nobody() -> None:
    for now, steps in ((1.0, (5,)), (2.0, ())):
        verdict = check_of([line(5, 1.0, made=None), line(6, 1.0, made=None)]).see(line(5, now))
        assert verdict is not None
        assert (verdict.steps, verdict.difference) == (steps, None)
        assert "older version" in verdict.reason


@pytest.mark.parametrize("of_old", [{}, {"law": "1"}], ids=["unnumbered", "1"])
@pytest.mark.parametrize(("now", "steps", "said"), [
    (1.0, (5,), "another version wrote down what its numbers were made with, and in another way"),
    (2.0, (), "step 5 was made by another version, and differs: step 5: loss 1.0, now 2.0, grad_norm 2.0, now 4.0"),
])  # fmt: skip
def test_digests_of_another_law_say_nothing(of_old: dict[str, str], now: float, steps: Any, said: str) -> None:
    """The same settings may have another digest there: what can be compared is compared, and accuses nobody."""
    made = {"numbers": "A", "rounding": "b", "update": "c", **of_old}
    verdict = check_of([line(5, 1.0, made=made), line(6, 1.0, made=made)]).see(line(5, now))
    assert verdict is not None
    assert (verdict.steps, verdict.difference, verdict.reason) == (steps, None, said)
    same = check_of([line(5, 1.0, made={**MADE, **of_old}), line(6, 1.0)])
    assert same.see(line(5, 1.0)) is None  # the same digest under any law is the same


@pytest.mark.parametrize(("kept", "told", "forked"), [
    (line(4, 1.0), line(4, 1.0), False),
    (line(4, 1.0), line(3, 2.0), False),
    (line(4, 1.0), line(4, 1.0, made=None), False),
    (line(4, 1.0 + 1e-15), line(4, 1.0), True),
    (line(4, 1.0, made=MADE | {"update": "x"}), line(4, 1.0), True),
    (line(4, 1.0, samples=["other"]), line(4, 1.0), True),
    (line(4, 1.0, made=MADE | {"rounding": "x"}), line(4, 1.0), False),
])  # fmt: skip
def test_lines_of_another_course_accuse_nobody(kept: Any, told: Any, forked: bool) -> None:
    """A checkpoint that could not be read for a while: the run fell back, went on with other threads, was killed."""
    made = ResumeCheck("step-00000004", True, "float64", recent=[told])
    made.expect([line(5, 1.0), line(6, 1.0)], [kept])
    verdict = made.see(line(5, 2.0))
    assert verdict is not None
    assert bool(verdict.difference) == (not forked)
    assert ("another course of the run than this checkpoint: in it step 4" in verdict.reason) == forked


def test_nothing_to_compare() -> None:
    assert check_of([]).see(line(5, 1.0)) is None


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


def damage(storage: LocalStorage, name: str) -> None:
    """Other numbers in a checkpoint whose hashes are right: what no reader of files can see."""
    manifest = open_manifest(storage, name)
    (part,) = manifest.parts
    file = storage.root / name / part.file
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + (256 << 10)] = bytes(256 << 10)
    file.write_bytes(data)
    changed = replace(manifest, parts=(replace(part, blake3=blake3(data).hexdigest()),))
    (storage.root / name / "manifest.json").write_bytes(changed.to_json())


def test_what_a_distrusted_checkpoint_gave_is_not_what_others_are_compared_with(
    tmp_path: Path, dataset: Path, half_done: Path
) -> None:
    """The record keeps what the run gave before, so the checkpoint before it proves itself by the same numbers."""
    shutil.copytree(half_done, tmp_path, dirs_exist_ok=True)
    before = list(read_lines(RunFolder(tmp_path).metrics))
    settings = config(tmp_path, dataset, steps=6, checkpoint__every=2)
    damage(LocalStorage(RunFolder(tmp_path).checkpoints), "step-00000004")
    (end,) = run(settings)
    assert end.how == "failed"
    first, second = list(read_lines(RunFolder(tmp_path).metrics))[4:]
    assert first.pop("again")["loss"] != before[4]["loss"]
    assert [first, second] == before[4:]
    train(settings)
    (told,) = events(tmp_path, "verified")
    assert (told["checkpoint"], told["identical"]) == ("step-00000002", 3)


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
    append_line(folder.events, {"event": "checkpoint", "step": 6})  # somebody went on all the same
    assert distrusted(folder) == {}
    append_line(folder.events, {"event": "differs", "checkpoint": "step-00000006", "difference": "step 7: loss"})
    append_line(folder.events, {"event": "verified", "steps": [3]})
    assert distrusted(folder) == {}


@pytest.mark.parametrize(
    ("dtype", "before", "now", "near"),
    [("float64", 0, 0, 1e-9), ("float64", 0, 1, 1e-5), ("float64", 3, 0, 1e-5), ("bf16", 1, 1, 5e-2)],
)
def test_steps_are_as_near_as_the_masters_are(dtype: str, before: int, now: int, near: float, tmp_path: Path) -> None:
    """DeepSpeed's are float32 in a run of float64, so that another stage shows in the ninth digit."""
    manifest = SimpleNamespace(config={"zero": {"stage": before}}, recent=())
    found: Any = SimpleNamespace(name="step-00000004", manifest=manifest)
    made = resume_check_of(config(tmp_path, tmp_path, dtype=dtype, zero__stage=now), found, torch.device("cpu"), ())
    assert made is not None
    assert made.near == near
