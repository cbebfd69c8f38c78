"""The server that ranks are forked from loads what they need while a run is checked, and nothing that they do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.supervision.fork_server import PRELOAD, asked
from parallel.errors import InputError
from tests.support.process_groups import run_alone

REFUSED = """
import multiprocessing.forkserver as module, os, sys
from pathlib import Path
from launcher.supervision.fork_server import loading
from parallel.errors import InputError
server = module._forkserver
try:
    with loading(Path(sys.argv[1]), ["device=cpu"]):
        started = server._forkserver_pid
        os.kill(started, 0)
        raise InputError("rule", "value", "remedy")
except InputError:
    pass
assert server._forkserver_pid is None
print(os.path.exists(f"/proc/{started}"))
"""


@pytest.mark.parametrize(
    ("text", "overrides", "found"),
    [
        ("steps: 3", [], (2, "auto")),
        ("zero: {stage: 0}\ndevice: cpu", [], (0, "cpu")),
        ("zero: {stage: 0}", ["zero.stage=3", "device=cpu"], (3, "cpu")),
        ("zero: {stage: two}\ndevice: [1]", ["steps"], (2, "auto")),
        ("zero: 3", [], (2, "auto")),
        ("- a list", [], (2, "auto")),
    ],
)
def test_what_is_loaded_is_read_from_the_text_of_a_run(
    tmp_path: Path, text: str, overrides: list[str], found: tuple[int, str]
) -> None:
    (tmp_path / "run.yaml").write_text(text)
    assert asked(tmp_path / "run.yaml", overrides) == found


def test_no_run_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        asked(tmp_path / "run.yaml", [])


def test_a_run_that_is_refused_leaves_no_server(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("steps: 3")
    command = [sys.executable, "-c", REFUSED, str(tmp_path / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def missing() -> list[str]:
    return [name for name in PRELOAD if name not in sys.modules]


def compilers() -> list[str]:
    return [name for name in sys.modules if name.startswith("torch._inductor.compile_fx")]


def test_a_rank_finds_all_loaded_and_no_compiler() -> None:
    assert run_alone(missing) == []
    assert run_alone(compilers) == []
