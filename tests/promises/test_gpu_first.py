"""The first fifteen minutes on a GPU, in miniature: cheap parts really run, the others are judged on made-up runs."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_first, gpu_first_attention
from benchmarks.gpu_first import PARTS, ask, line
from benchmarks.gpu_first_rows import MARK, Case, Part, Row
from benchmarks.gpu_first_runs import CONFIGS, LAST, STEPS, Trained, Workshop, follows, resumed
from benchmarks.gpu_first_steps import CHANNELS, DIT, LM, WORDS, Model, dit_config, fitting, language_config, work_of
from launcher.config.loading import check
from models.objectives.next_token import NextTokenConfig
from models.objectives.rectified_flow import RectifiedFlowConfig
from models.registry import build
from parallel.kernels.flash_cpu import FlashCPU
from parallel.zero.meta_init import on_meta

SMALL = Case("cpu", True, math.inf)
GIB = 1 << 30


def test_cheap_parts_run_and_write_what_they_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    wrong = ask([part for part in PARTS if part.name in ("overflow", "zero0")], "cpu", True, 300, out)
    table = capsys.readouterr().out
    assert wrong == []
    result = json.loads(out.read_text())
    assert result["about"]["versions"]["torch"] == torch.__version__
    rows = [row for part in result["parts"].values() for row in part["rows"]]
    assert [row["status"] for row in rows] == ["ok"] * 3
    assert "stage 0, as after a resume" in table
    assert table.splitlines()[1].split() == ["part", "seconds", "what", "found"]


class Scripted:
    """Parts that are scripts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
        self.parts = [Part(name, f"asks {name}", 60.0, (), lambda case: iter(())) for name in scripts]
        monkeypatch.setattr(gpu_first, "command_of", lambda part, *_: [sys.executable, "-u", "-c", scripts[part.name]])

    def ask(self, out: Path, seconds: float) -> tuple[list[str], dict[str, Any]]:
        wrong = ask(self.parts, "cpu", True, seconds, out)
        return wrong, json.loads(out.read_text())["parts"]


GOOD = f"print({MARK + json.dumps({'what': 'a', 'found': 'b', 'status': 'ok', 'figures': {}})!r})\n"


def test_a_part_that_dies_costs_its_own_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dies = (
        GOOD + "import sys; print('CUDA error: an illegal memory access'); sys.stdout.flush(); import os; os._exit(7)"
    )
    wrong, parts = Scripted(monkeypatch, dies=dies, good=GOOD, silent="").ask(tmp_path / "out.json", 300)
    assert wrong == ["dies", "silent"]
    first, second = parts["dies"]["rows"]
    assert (first["status"], second["status"]) == ("ok", "wrong"), "what it said before is kept"
    assert second["found"] == "exit code 7: CUDA error: an illegal memory access"
    assert [row["status"] for row in parts["good"]["rows"]] == ["ok"]


def test_a_part_that_hangs_is_killed_and_later_ones_have_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_first, "LEAST", 0.5)
    monkeypatch.setattr(gpu_first, "GRACE", 0.0)
    hangs = GOOD + "import time; time.sleep(600)"
    wrong, parts = Scripted(monkeypatch, hangs=hangs, later=GOOD).ask(tmp_path / "out.json", 4.0)
    assert wrong == [], "the time of all parts is up: nobody knows whether it was right"
    assert "took more than 4 s" in parts["hangs"]["rows"][-1]["found"]
    assert parts["hangs"]["rows"][-1]["status"] == "cut short"
    assert parts["later"]["rows"] == [
        {"what": "asks later", "found": "no time is left", "status": "left out", "figures": {}}
    ]


def test_a_part_whose_modules_are_missing_says_so(tmp_path: Path) -> None:
    part = Part("x", "asks x", 1.0, ("no_such_module", "json"), lambda case: iter(()))
    assert ask([part], "cpu", True, 60, tmp_path / "out.json") == []
    (row,) = json.loads((tmp_path / "out.json").read_text())["parts"]["x"]["rows"]
    assert (row["status"], row["found"]) == ("left out", "needs no_such_module")


def test_the_table_aligns() -> None:
    lines = [
        line(part.name, f"{seconds:.1f}", status, "what " * 8, "found")
        for part, seconds, status in zip(PARTS, (0.1, 12.3, 123.4), ("ok", "left out", "measured"), strict=False)
    ]
    assert len({text.index("found") for text in lines}) == 1
    assert max(len(part.name) for part in PARTS) <= gpu_first.WIDTHS[0]
    assert sum(part.seconds for part in PARTS) <= 1.5 * 15 * 60, "limits are about the quarter of an hour that is given"


def test_a_wrong_kernel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(FlashCPU):
        def backward(self, *arguments: Any) -> Any:
            for rows, dq, columns, dk, dv in super().backward(*arguments):
                yield rows, dq, columns, dk * 1.1, dv

    monkeypatch.setattr(gpu_first_attention, "kernels_here", lambda device, dtype: {"wrong": Wrong()})
    monkeypatch.setattr(gpu_first_attention, "DIMS", (64,))
    monkeypatch.setattr(gpu_first_attention, "mask_kinds", dict)
    (row,) = gpu_first_attention.kernels(SMALL)
    assert row.status == "wrong"
    assert row.found.startswith("at most 1.0e-01 off")


def test_every_mask_that_a_run_can_have_is_asked_for() -> None:

    from models.diffusion.attention_schedule import ATTENTION

    kinds = list(ATTENTION)
    assert {kind.replace("_", " ") for kind in kinds} <= gpu_first_attention.mask_kinds().keys()


def trained(losses: list[float], code: int = 0, **events: Any) -> Trained:
    steps = [{"step": n + 1, "loss": loss} for n, loss in enumerate(losses)]
    return Trained(
        code, "the last words", steps, [{"event": name, **(fields or {})} for name, fields in events.items()]
    )


def test_a_run_that_was_killed_and_went_on() -> None:
    losses = [1.0 - n / 10 for n in range(STEPS)]
    proof = {"steps": [4], "identical": 1}
    events: dict[str, Any] = {"fault": None, "failure": None, "restart": None, "resume": None}
    good = resumed("dit", trained(losses, **events, verified=proof))
    assert good.status == "ok"
    assert good.found.endswith("1 of 1 steps done again identical")
    assert resumed("dit", trained(losses, **events, differs=proof)).status == "wrong"
    assert resumed("dit", trained(losses)).found == "was not killed"
    assert resumed("dit", trained([*losses[:-1], math.nan], **events, verified=proof)).status == "wrong"
    short = resumed("dit", trained(losses[:2], code=1, failure={"words": "ran out of GPU memory"}))
    assert (short.status, short.found) == ("wrong", "exit code 1 after step 2: ran out of GPU memory")


def test_curves_follow_each_other_in_their_last_steps() -> None:
    whole = [2.0] * 5 + [1.0] * LAST
    assert follows("dit", trained([x * 1.02 for x in whole]), trained(whole), len(whole)).status == "ok"
    assert follows("dit", trained([x * 1.2 for x in whole]), trained(whole), len(whole)).status == "wrong"
    assert "bf16: exit code 1" in follows("dit", trained([], code=1), trained(whole), len(whole)).found


def test_settings_of_all_runs_are_those_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workshop, "do", lambda self, *arguments: None)
    for case in (SMALL, Case("cuda", False, math.inf)):
        shop = Workshop(case, tmp_path)
        for family, changes in CONFIGS.values():
            check({"out": str(tmp_path / "out"), **shop.settings(family, **changes)})


def test_as_many_layers_as_memory_and_time_allow() -> None:
    free, long = 139.0 * GIB, 1e9
    assert fitting(DIT, 1 << 15, free, long, 4e14) == (30, "")
    few, _ = fitting(DIT, 1 << 20, free, long, 4e14)
    assert 1 <= few < 12
    assert fitting(LM, 1 << 15, free, long, 4e14)[0] < 32, "8B parameters with all their states are more than a GPU has"
    assert fitting(DIT, 1 << 20, 20.0 * GIB, long, 4e14)[1].endswith("GiB, 20 are free")
    none, why = fitting(DIT, 1 << 20, free, 10.0, 4e14)
    assert (none, "10 are left" in why) == (0, True)


@pytest.mark.parametrize("model", [DIT, LM], ids=lambda model: model.family)
def test_layers_are_planned_with_the_figures_of_the_real_modules(model: Model) -> None:
    one, two = (parameters_of(model, layers) for layers in (1, 2))
    assert two - one == pytest.approx(model.matrices, rel=0.02)
    assert one - model.matrices == pytest.approx(model.around, rel=0.1)
    pairs = 1e6 if model.family == "dit" else 0.5e6
    assert work_of(model, 1000, 2) - work_of(model, 1000, 1) == 6e3 * model.matrices + 12 * pairs * model.dim


def parameters_of(model: Model, layers: int) -> int:
    """Of the module, without its numbers."""
    if model.family == "dit":
        config, objective = dit_config(model, layers, "none"), RectifiedFlowConfig()
    else:
        config, objective = language_config(model, layers, WORDS, "none"), NextTokenConfig()
    with on_meta():
        module = build(config, CHANNELS, 0, torch.bfloat16, objective)
    return sum(p.numel() for p in module.parameters())


def test_rows_travel_as_lines(capsys: pytest.CaptureFixture[str]) -> None:
    row = Row("what", "found", "ok", {"x": [1.5]})
    row.tell()
    said = capsys.readouterr().out
    assert Row(**json.loads(said.removeprefix(MARK))) == row
