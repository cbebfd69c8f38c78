"""Ranks that nobody sees through, as torchrun starts them: what they say when they fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from launcher.analysis.incidents import why
from launcher.core.run_folder import RunFolder, make_run_folder
from launcher.supervision.rank_group import End
from launcher.worker import tell
from tests.support.runs import config, events

TRACE = "Traceback (most recent call last):\n  File x\n"


def test_what_all_ranks_fail_of_is_told_once(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", tmp_path / "a set")
    folder = RunFolder(settings.out)
    make_run_folder(folder)
    hot = End(0, "failed", 4, f"{TRACE}FloatingPointError: step 4 is not finite: loss nan", sign="FloatingPointError")
    for start in (1, 2):
        folder.record("start", steps=5, mesh="m")
        said = [tell(settings, replace(hot, rank=rank)) for rank in range(4)]
        assert said[1:] == ["", "", ""]
        assert said[0].splitlines() == [
            "rank 0 failed: step 4 is not finite: loss nan",
            "  remedy: a lower optimizer.learning_rate, or look at the samples of these steps",
            f"          longreel train {settings.out}/config.yaml optimizer.learning_rate=0.0001",
        ]
        assert len(events(settings.out, "failure")) == start
    assert len(why(settings.out).incidents) == 1


def test_what_one_rank_alone_fails_of_is_told_by_it(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", tmp_path / "a set")
    make_run_folder(RunFolder(settings.out))
    RunFolder(settings.out).record("start", steps=5, mesh="m")
    bug = End(1, "failed", 4, f"{TRACE}KeyError: 'x'", sign="KeyError")
    lost = End(2, "failed", 4, f"{TRACE}RuntimeError: [gloo] Connection closed by peer", sign="RuntimeError")
    remedy = "longreel data check DATASET --repair, or a larger data.max_unreadable_samples"
    refused = End(3, "refused", 4, "...", ("at most 1 sample", "2 cannot", remedy), sign="InputError")
    said = [tell(settings, end) for end in (bug, lost, refused)]
    assert said[0] == bug.message, "nobody foresaw it"
    assert said[1] == ""
    assert said[2].startswith("error: at most 1 sample\n  found:  2 cannot\n")
    assert f"longreel data check '{tmp_path / 'a set'}' --repair, or a larger data.max_unreadable_samples" in said[2]
