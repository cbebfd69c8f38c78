"""The doctor on this machine, and on machines that lack something."""

import io
import json
import os
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from rich.console import Console

from launcher.doctor import finding
from launcher.doctor import machine_checks as machine
from launcher.doctor import software_checks as software
from launcher.doctor.doctor import as_json, examine, render
from launcher.doctor.finding import Finding, child_importing, imported
from launcher.doctor.software_checks import gloo_sums

NAMES = {
    "python", "packages", "torch", "attention on cpu", "flash attention", "deepspeed", "ray", "gloo", "video",
    "memory", "open files", "disk", "temporary files",
}  # fmt: skip


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    named = {f.name: f for f in findings}
    assert len(named) == len(findings), "a name twice"
    return named


def only(check: Any) -> Finding:
    (found,) = check
    assert isinstance(found, Finding)
    return found


def without(monkeypatch: pytest.MonkeyPatch, module: str, package: str) -> None:
    """This process no longer has a package."""
    version = metadata.version

    def missing(name: str) -> str:
        if name == package:
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setitem(sys.modules, module, None)


def test_this_machine_can_run_everything(tmp_path: Path) -> None:
    findings = examine(tmp_path)
    named = by_name(findings)
    assert named.keys() >= NAMES
    assert [f for f in findings if f.status == "problem"] == []
    assert all(f.remedy for f in findings if f.status == "note")
    assert not [f for f in findings if "Error" in f.found], "a check fell over"
    assert torch.__version__ in named["torch"].found
    assert metadata.version("deepspeed") in named["deepspeed"].found
    for package in ("webdataset", "transformers", "diffusers", "accelerate"):
        assert f"{package} {metadata.version(package)}" in named["packages"].found


def test_a_missing_package_is_a_problem_and_the_rest_is_still_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "av", "av")
    named = by_name(examine(tmp_path))
    assert named.keys() >= NAMES
    assert named["package av"] == Finding(
        "package av", "problem", "not installed, needed is av<19,>=14", "pip install 'av<19,>=14'"
    )
    assert named["video"] == Finding("video", "problem", "needs av, which is not installed", "pip install 'av<19,>=14'")
    assert {f.name for f in named.values() if f.status == "problem"} == {"package av", "video"}


def test_a_version_out_of_range_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "requirements", lambda: [Requirement("rich>=99"), Requirement("numpy>=2")])
    bad, good = software.packages()
    assert bad == Finding(
        "package rich", "problem", f"{metadata.version('rich')}, needed is >=99", "pip install 'rich>=99'"
    )
    assert good.status == "ok"
    assert good.found == f"numpy {metadata.version('numpy')}"


def test_requirements_are_those_of_the_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours = {r.name for r in finding.requirements()}
    assert {"torch", "deepspeed", "ray", "av", "webdataset"} <= ours
    monkeypatch.setattr(finding, "HOME", tmp_path)
    monkeypatch.setattr(metadata, "requires", lambda _: ["torch>=2.11", "pytest>=9; extra == 'dev'"])
    assert {r.name for r in finding.requirements()} == {"torch"}, "installed without the sources"


def test_a_check_that_falls_over_is_a_finding() -> None:
    def falls() -> list[Finding]:
        raise OSError("the disk\nis on fire")

    (found,) = finding.safely("disk", falls, "water")
    assert found == Finding("disk", "problem", "OSError: the disk is on fire", "water")


def test_a_module_that_kills_python_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kills_it.py").write_text(
        "import os, sys\nsys.stderr.write('bad CPU\\n'); sys.stderr.flush()\nos._exit(9)"
    )
    (tmp_path / "raises_it.py").write_text("print('imported noise')\nraise RuntimeError('no compiler')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with child_importing("json", "raises_it", "kills_it") as child:
        assert imported(child, "json") == ""
        assert imported(child, "raises_it") == "RuntimeError: no compiler"
        assert imported(child, "kills_it") == "import kills_it ended the process (exit code 9): bad CPU"


def test_a_module_that_hangs_is_given_up_and_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hangs_it.py").write_text("import time\ntime.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(finding, "SECONDS", 0.5)
    with child_importing("hangs_it") as child:
        assert "takes more than 0.5 s" in imported(child, "hangs_it")
    assert child.returncode == -9


def test_two_ranks_add_up() -> None:
    assert gloo_sums() == [3.0, 3.0]


def test_ranks_that_do_not_answer_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "gloo_sums", lambda: [3.0, "RuntimeError: Connect timeout"])
    found = only(software.gloo())
    assert found.status == "problem"
    assert "Connect timeout" in found.found


def test_few_open_files_are_a_note_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for limits, status, remedy in (
        ((1024, 1 << 20), "note", "ulimit -n 65536"),
        ((1024, 8192), "note", "ulimit -n 8192"),
        ((1024, 2048), "note", "raise nofile in /etc/security/limits.conf"),
        ((4096, 4096), "ok", ""),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), "ok", ""),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        found = only(machine.open_files())
        assert (found.status, found.remedy) == (status, remedy)


def test_disk_is_that_of_the_nearest_folder_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(tmp_path) in only(machine.disk("disk", tmp_path / "runs" / "new", 1)).found
    for free, status in ((5 << 20, "problem"), (5 << 30, "note"), (50 << 30, "ok")):
        monkeypatch.setattr(machine, "free_bytes", lambda _, free=free: free)
        found = only(machine.disk("disk", tmp_path, machine.NO_DISK))
        assert (found.status, bool(found.remedy)) == (status, status != "ok")


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    assert only(machine.disk("disk", tmp_path, 1)).status == "problem"


def test_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, status in ((100 << 20, "problem"), (machine.MEMORY_OF_A_RANK, "note"), (1 << 50, "ok")):
        monkeypatch.setattr(machine, "memory_here", lambda free=free: (1 << 50, free))
        monkeypatch.setattr(machine, "cores", lambda: 2)
        assert only(machine.memory()).status == status


def test_memory_is_there() -> None:
    total, free = machine.memory_here()
    assert 0 < free <= total


def test_little_shared_memory_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "free_bytes", lambda path: 64 << 20)
    with child_importing("json") as child:
        monkeypatch.setattr(finding, "imported", lambda child, module: "")
        found = only(software.ray(child))
    assert found.status == "note"
    assert "--shm-size" in found.remedy


def test_json_and_table_tell_the_same() -> None:
    findings = [
        Finding("gpu", "problem", "[bold]2 GPUs[/] torch cannot use", "install another build"),
        Finding("disk", "note", "5 GiB free", "make room"),
        Finding("python", "ok", "3.11.7"),
    ]
    told = json.loads(as_json(findings))
    assert told["problems"] == 1
    assert [Finding(**f) for f in told["findings"]] == findings
    out = io.StringIO()
    Console(file=out, width=100).print(render(findings))
    text = out.getvalue()
    for known in ("[bold]2 GPUs[/] torch cannot use", "remedy: install another build", "1 problem, 1 note"):
        assert known in text


def test_nothing_but_json_is_printed() -> None:
    code = "from launcher.doctor.doctor import as_json, examine; print(as_json(examine()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=finding.HOME, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["findings"]
