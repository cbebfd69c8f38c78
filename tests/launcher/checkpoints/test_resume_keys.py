"""Every key of a run, changed alone in a resume: it goes on bit by bit, or tells what changed, or is refused with a
remedy that works. No checkpoint is accused of what a setting did.

The cases come from the schema: a key that is added is tried here, too. That what keys declare is true of real training
is tested by `tests/promises/test_resume_soak.py`.
"""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from launcher.checkpoints.compatibility import refuse_changes, told
from launcher.config.config_schema import keys as schema_keys
from launcher.config.loading import check, parse_override
from launcher.config.lr_schedule import learning_rate
from launcher.config.run_config import RunConfig
from launcher.training.number_digests import Made
from launcher.training.resume_check import ResumeCheck, Verdict
from parallel.errors import InputError
from parallel.setting_effects import Effect
from tests.support import keys
from tests.support.keys import STEP, Case

CASES = list(keys.cases(Path("out"), Path("clips"), Path("chats")))
NOT_IN_SEGMENTS = ("data.packs_per_step", "data.segments.*.until")
Outcome = Literal["invalid", "refused", "told", "silent"]
ALLOWED: dict[Effect, set[Outcome]] = {  # by what a key declares; any may be no valid run by itself
    Effect.STATE: {"refused"},
    Effect.CONTENT: {
        "refused",
        "told",
    },  # here nothing lies there; tests/launcher/checkpoints/test_external_hashes.py has other cases
    Effect.DATA: {"refused", "told", "silent"},  # told of a segment that has not begun
    Effect.NUMBERS: {"told"},
    Effect.UPDATE: {"told"},
    Effect.RATE: {"told", "silent"},
    Effect.ROUNDING: {"told", "silent"},
    Effect.MEMORY: {"told"},
    Effect.NOTHING: {"silent"},
}


def checkpoint_of(settings: RunConfig, step: int = STEP) -> Any:
    manifest = SimpleNamespace(config=settings.model_dump(mode="json"), outside={})
    state = SimpleNamespace(step=step, datasets=[["digest"]])
    return SimpleNamespace(manifest=manifest, state=state, where="checkpoints/step-2")


def outcome_of(case: Case) -> tuple[Outcome, str]:
    """What becomes of the resume, and what is said."""
    before = check(case.before)
    try:
        now = check(case.now)
    except InputError as error:
        return "invalid", str(error)
    try:
        refuse_changes(checkpoint_of(before), now)
    except InputError as error:
        return "refused", error.remedy
    said = told(before.model_dump(mode="json"), now.model_dump(mode="json"), STEP)
    return ("told", "; ".join(said)) if said else ("silent", "")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_key_that_changes_alone(case: Case) -> None:
    outcome, said = outcome_of(case)
    assert case.of.effect is not None
    if outcome == "invalid":
        assert said
        return
    assert outcome in ALLOWED[case.of.effect]
    before, now = check(case.before), check(case.now)
    if outcome == "refused":
        assert "out=FOLDER" in said
        follows(case, said, before)
        return
    if outcome == "told" and case.key.startswith("data.segments.1."):
        assert said == f"data.segments: what comes after step {STEP + 1} was changed"
    elif outcome == "told" and not case.key.startswith("data.segments"):
        assert case.key in said
        assert f"became {case.value}" in said
    accuses_nobody(case, before, now, outcome)


def follows(case: Case, remedy: str, before: RunConfig) -> None:
    """The remedy, as it is written: the old value up to the checkpoint, and the new one from there."""
    refuse_changes(checkpoint_of(before), check(case.before))  # "set it back"
    line = remedy.partition(" for the steps to come")[0] if "data.segments=" in remedy else ""
    of_data = case.of.effect in (Effect.DATA, Effect.CONTENT) and case.of.name.startswith("data.")
    assert bool(line) == (of_data and case.of.name not in NOT_IN_SEGMENTS)
    if not line:
        return
    followed = case.now
    for key, value in map(parse_override, shlex.split(line)):
        followed = keys.placed(followed, key, value)
    settings = check(followed)
    refuse_changes(checkpoint_of(before), settings)
    key = case.of.name.rpartition(".")[2]
    shown = [getattr(settings.data_of(step), key) for step in (STEP, STEP + 1)]
    assert shown[0] == getattr(before.data_of(STEP), key)
    assert shown[1] == getattr(check(case.now).data_of(STEP), key) != shown[0]


def accuses_nobody(case: Case, before: RunConfig, now: RunConfig, outcome: Outcome) -> None:
    """The steps that are done again are compared as exactly as the change allows."""
    old, new = (made(each) for each in (before, now))
    differ = {name for name in old if old[name] != new[name]}
    assert differ <= {
        Effect.NUMBERS: {"numbers"},
        Effect.UPDATE: {"update"},
        Effect.RATE: {"update"},
        Effect.ROUNDING: {"rounding"},
    }.get(case.of.effect, set())  # type: ignore[arg-type]
    if outcome == "told" and case.of.effect not in (Effect.MEMORY, Effect.RATE, Effect.DATA, Effect.CONTENT):
        assert differ
    verdict = compared(old, new, other="numbers" in differ or "rounding" in differ)
    assert verdict.difference is None
    assert verdict.identical == (0 if "numbers" in differ or "rounding" in differ else 1 if "update" in differ else 2)
    assert verdict.reason or not differ


def made(settings: RunConfig) -> dict[str, str]:
    step = STEP + 1
    return Made(settings, {"threads": 2}, {}).of(step, learning_rate(settings.optimizer, step - 1, settings.steps))


def compared(old: dict[str, str], new: dict[str, str], other: bool) -> Verdict:
    """Two steps done again, with other numbers if something decides them otherwise."""
    proof = ResumeCheck("step-00000002", exact=True, dtype="float64")
    line = {"grad_norm": 1.0, "samples": ["a"], "loss": 1.0}
    proof.expect([{**line, "step": STEP + n, "made": old} for n in (1, 2)])
    for n in (1, 2):
        verdict = proof.see({**line, "step": STEP + n, "made": new, "loss": 2.0 if other else 1.0})
        if verdict is not None:
            return verdict
    raise AssertionError("no verdict")


def test_a_jump_of_the_rate_is_told_with_both_values() -> None:
    """What the last line of the quickstart proposes: more steps, of a cosine that had come down."""
    case = next(case for case in CASES if case.key == "steps" and case.before["optimizer"]["schedule"] == "cosine")
    before, now = (check(each) for each in (case.before, case.now))
    rates = [learning_rate(each.optimizer, 5, each.steps) for each in (before, now)]
    assert rates == pytest.approx([1e-4, 1e-3 * (0.1 + 0.9 * 0.5)])
    (said,) = told(before.model_dump(mode="json"), now.model_dump(mode="json"), 5)
    assert said == "steps: 6 became 9, so the learning rate of step 6 is 0.00055 instead of 0.0001"


def test_a_new_segment_is_told_by_what_it_shows() -> None:
    case = next(case for case in CASES if case.key == "data.frames")
    before = check(case.before).model_dump(mode="json")
    now = check(keys.placed(case.before, "data.segments", [{"until": 5}, {"frames": 4}])).model_dump(mode="json")
    assert told(before, now, 5) == ["data.frames: 7 became 4 from step 6 on"]
    assert told(now, now, 5) == told(now, now, 6) == []
    assert told(now, keys.placed(now, "data.workers", 3), 3) == []
    assert told(before, now, 3) == ["data.segments: what comes after step 4 was changed"]


def test_a_segment_that_shows_the_same_deals_samples_anew() -> None:
    plain = next(case for case in CASES if case.key == "data.frames").before
    frames = plain["data"]["frames"]
    again: list[list[dict[str, Any]]] = [
        [{"until": 5}, {"frames": frames}],
        [{"until": 5, "mesh": {"ulysses": 1}}, {"mesh": {"ulysses": 1}}],
    ]
    for segments in again:
        before, now = check(plain), check(keys.placed(plain, "data.segments", segments))
        old, new = (each.model_dump(mode="json") for each in (before, now))
        of = {step: [Made(each, {}, {}).of(step, 0.1)["numbers"] for each in (before, now)] for step in (5, 6)}
        assert of[5][0] == of[5][1]
        assert of[6][0] != of[6][1]
        refuse_changes(checkpoint_of(before, 5), now)
        (said,) = told(old, new, 5)
        assert "samples are dealt anew from step 6 on" in said
        (said,) = told(new, old, 5)
        assert "samples go on from step 6 on, not dealt anew" in said
        assert told(old, new, 3) == ["data.segments: what comes after step 4 was changed"]
    other = keys.placed(plain, "data.segments", [{"until": 5}, {"frames": 4}])
    assert told(check(other).model_dump(mode="json"), check(plain).model_dump(mode="json"), 5) == [
        f"data.frames: 4 became {frames} from step 6 on"
    ]


def test_most_keys_are_tried_with_a_valid_value() -> None:
    """A case that is no valid run shows nothing: few are, and every key is in some case."""
    by_outcome = Counter(outcome_of(case)[0] for case in CASES)
    assert by_outcome["invalid"] < 0.15 * len(CASES)
    assert {case.of.name for case in CASES} == {key.name for key in schema_keys()}
