"""Every key of a run, changed alone after a kill, with real training: what keys declare is true.

`tests/launcher/checkpoints/test_resume_keys.py` tries the same cases on the decision alone, in seconds; here each goes
on from step 2 of a run that was killed after step 6, so that what was done before is there to compare with.
"""

from __future__ import annotations

import json
import shlex
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from launcher.checkpoints.storage import LocalStorage
from launcher.config.loading import check, parse_override
from launcher.config.run_config import RunConfig
from launcher.core.run_folder import RunFolder
from launcher.preflight.preflight import check as preflight
from launcher.training.resume_check import NEAR
from parallel.errors import InputError
from parallel.setting_effects import Effect
from tests.support import conversations, keys
from tests.support.keys import STEP, Case
from tests.support.runs import events, lines, train

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")]

LEFT_OUT = {
    "out": "it is the folder that is copied",
    "faults": "faults disturb on purpose",
    "data.segments.0.mesh": "another mesh is for the supervisor to start",
    "data.segments.1.mesh": "another mesh is for the supervisor to start",
}
CODES = "masked_token"  # needs a dataset of codes, which neither of these is
CASES = [
    case
    for case in keys.cases(Path("out"), Path("clips"), Path("chats"))
    if not any(case.key == key or case.key.startswith(f"{key}.") for key in LEFT_OUT)
    and case.before["objective"]["kind"] != CODES
]


class Killed:
    """Runs that were killed after step 6, with the checkpoint of step 2; made once for each base."""

    def __init__(self, root: Path, clips: Path, spoken: Path) -> None:
        self.root, self.places = root, {"clips": str(clips), "chats": str(spoken)}
        self.made = cache(self._made)

    def settings(self, raw: dict[str, Any], out: Path) -> RunConfig:
        """Of a case, in a folder."""
        data = {**raw["data"], "dataset": self.places.get(raw["data"]["dataset"], raw["data"]["dataset"])}
        saving = {**raw["checkpoint"], "every": 2} if raw["checkpoint"]["every"] == 100 else raw["checkpoint"]
        return check({**raw, "data": data, "out": str(out), "dtype": raw["dtype"], "checkpoint": saving})

    def copy(self, before: dict[str, Any], out: Path) -> None:
        """A copy of the run of these settings, moved in every word."""
        origin = self.made(json.dumps(before))
        shutil.copytree(origin, out)
        record = RunFolder(out).events
        record.write_text(record.read_text().replace(str(origin), str(out)))

    def _made(self, before: str) -> Path:
        out = self.root / f"run-{len(list(self.root.iterdir()))}"
        train(self.settings(json.loads(before), out))
        for step in (4, 6):
            LocalStorage(RunFolder(out).checkpoints).remove(f"step-{step:08d}")
        return out


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Killed:
    root = tmp_path_factory.mktemp("killed")
    return Killed(root / "runs", dataset, conversations.make(root / "chats", dataset))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_run_goes_on_with_another_value(case: Case, killed: Killed, tmp_path: Path) -> None:
    killed.root.mkdir(exist_ok=True)
    out = tmp_path / "run"
    before = {**case.before, "dtype": "float32"} if case.of.name != "dtype" else case.before
    killed.copy(before, out)
    was = {line["step"]: line for line in lines(out)}
    settings, notes = followed(case, killed, before, out)
    train(settings)
    assert not events(out, "differs")
    assert not events(out, "fallback")
    now = {line["step"]: line for line in lines(out)}
    assert len(now) == settings.steps
    (resumed,) = events(out, "resume")
    assert resumed["step"] == STEP
    as_declared(case, was, now, settings, out)
    told = "; ".join((*notes, *resumed["changed"]))
    if case.of.effect in (Effect.NUMBERS, Effect.UPDATE, Effect.MEMORY) and settings.restart.verify:
        assert case.key in told


def followed(case: Case, killed: Killed, before: dict[str, Any], out: Path) -> tuple[RunConfig, tuple[str, ...]]:
    """The run with the other value; where that is refused, as the remedy says it."""
    changed = keys.placed(before, case.key, case.value)
    try:
        settings = killed.settings(changed, out)
        return settings, preflight(settings).notes
    except InputError as error:
        remedy = error.remedy
    if "data.segments=" not in remedy:
        return killed.settings(before, out), ()  # set it back
    for key, value in map(parse_override, shlex.split(remedy.partition(" for the steps to come")[0])):
        changed = keys.placed(changed, key, value)
    settings = killed.settings(changed, out)
    try:
        return settings, preflight(settings).notes
    except InputError:  # no run has this value beside the others
        return killed.settings(before, out), ()


def as_declared(
    case: Case, was: dict[int, dict[str, Any]], now: dict[int, dict[str, Any]], settings: RunConfig, out: Path
) -> None:
    """The numbers of the steps that were done again are as near as the key says."""
    steps = [step for step in was if STEP < step <= settings.steps]

    def far(step: int) -> float:
        pairs = [(was[step][key], now[step][key]) for key in ("loss", "grad_norm")]
        return max(abs(one - other) / max(abs(one), abs(other)) if one != other else 0.0 for one, other in pairs)

    if case.of.effect in (Effect.NOTHING, Effect.MEMORY, Effect.STATE):
        assert [far(step) for step in steps] == [0.0] * len(steps)
    if case.of.effect in (Effect.UPDATE, Effect.RATE):
        assert far(STEP + 1) == 0.0
    if case.of.effect is Effect.ROUNDING:
        assert max(map(far, steps)) < NEAR["float32"]
    proved = [*events(out, "verified"), *events(out, "unverified")]
    assert len(proved) == settings.restart.verify
    if case.of.effect in (Effect.NOTHING, Effect.MEMORY) and proved:
        assert (proved[0]["identical"], proved[0]["reason"]) == (3, "")
