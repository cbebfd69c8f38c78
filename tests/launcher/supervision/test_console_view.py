"""What a person sees of events, each thing once."""

from __future__ import annotations

import io
from pathlib import Path

from launcher.core.run_folder import RunFolder
from launcher.core.terminal import Console
from launcher.supervision.console_view import Screen

LOWER = "optimizer.learning_rate: 0.1 became 0.01"


def seen(folder: RunFolder, told: tuple[str, ...], changed: list[str]) -> list[str]:
    out = io.StringIO()
    screen = Screen(folder, 20, 4, Console(file=out, width=200), told)
    folder.record("resume", step=4, checkpoint="step-00000004", changed=changed)
    screen.close()
    return out.getvalue().splitlines()


def test_what_changed_is_told_once(tmp_path: Path) -> None:
    """Before the ranks are started, or by them: they see more, such as threads, and may fall back further."""
    folder, resumed = RunFolder(tmp_path), "resumed from step 4 (step-00000004)"
    assert seen(folder, (LOWER,), [LOWER]) == [resumed]
    assert seen(folder, (LOWER,), [LOWER, "threads: 2 became 1"]) == [f"{resumed}; changed: threads: 2 became 1"]
    assert seen(folder, (), [LOWER]) == [f"{resumed}; changed: {LOWER}"]
