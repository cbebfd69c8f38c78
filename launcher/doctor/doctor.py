"""`longreel doctor`: what this machine can run, tried rather than looked up, with a remedy for whatever it cannot.

    finding            Finding, and how checks are kept apart
    doctor_software    Python, packages, torch, DeepSpeed, Ray, gloo, video
    doctor_gpu         driver, GPUs, links between them and to other nodes, NCCL, attention packages
    doctor_attention   forward and backward with each kernel on each device
    doctor_machine     memory, open files, disks

Each check is one small function, and none can take the others with it: an exception becomes its finding. The whole
takes about 4 s on two cores, half of it for importing torch; nothing listens beyond loopback, nothing is left behind.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.doctor import attention_checks as attention
from launcher.doctor import gpu_checks as gpu
from launcher.doctor import machine_checks as machine
from launcher.doctor import software_checks as software
from launcher.doctor.finding import TORCH, Finding, child_importing, safely

if TYPE_CHECKING:
    from rich.table import Table

SIGN = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[bold red]problem[/]"}


def examine(path: Path = Path(".")) -> list[Finding]:
    """Try everything that a run needs.

    Args:
        path: where runs will be written.
    """
    temporary = Path(tempfile.gettempdir())
    with child_importing("ray", "deepspeed") as child:
        checks: list[tuple[str, Callable[[], Iterable[Finding]], str]] = [
            ("python", software.python, "install Python 3.11 or newer"),
            ("packages", software.packages, "pip install -e . in the project's folder"),
            ("torch", software.torch_build, TORCH),
            ("driver", gpu.driver, "nvidia-smi should tell the driver"),
            ("gpu", gpu.gpus, "nvidia-smi should list the GPUs: see the driver"),
            ("links", gpu.links, "nvidia-smi topo -m tells how GPUs are joined"),
            ("network", gpu.network, "see /sys/class/infiniband"),
            ("nccl", gpu.nccl, "install a CUDA build of torch"),
            ("attention", attention.attention, "install torch again, or another build of it"),
            ("flash attention", gpu.flash, "train without it: torch's own kernels are used"),
            ("deepspeed", lambda: software.deepspeed(child), "pip install 'deepspeed>=0.19'"),
            ("ray", lambda: software.ray(child), "pip install 'ray[default,train]>=2.50', or train with --no-ray"),
            ("ray token", software.ray_token, "ls -l ~/.ray/auth_token"),
            ("gloo", software.gloo, "is the loopback interface up? ip link set lo up"),
            ("video", software.video, "pip install 'av>=14,<19'"),
            ("memory", machine.memory, "give /proc to the container"),
            ("open files", machine.open_files, f"ulimit -n {16 * machine.OPEN_FILES}"),
            ("disk", lambda: machine.disk("disk", path, machine.NO_DISK), "give a folder that can be written"),
            ("temporary files", lambda: machine.disk("temporary files", temporary, 0), "export TMPDIR=FOLDER"),
        ]
        return [finding for check in checks for finding in safely(*check)]


def render(findings: Sequence[Finding]) -> Table:
    """For a person."""
    from rich.markup import escape
    from rich.table import Table

    problems, notes = (sum(f.status == status for f in findings) for status in ("problem", "note"))
    said = f"{problems} problem{'s' * (problems != 1)}, {notes} note{'s' * (notes != 1)}"
    table = Table(title="longreel doctor", title_justify="left", caption=said, caption_justify="left")
    table.add_column("what", no_wrap=True)
    table.add_column("")
    table.add_column("found", overflow="fold")
    for finding in findings:
        remedy = f"\n[bold]remedy:[/] {escape(finding.remedy)}" if finding.remedy else ""
        table.add_row(escape(finding.name), SIGN[finding.status], escape(finding.found) + remedy)
    return table


def as_json(findings: Sequence[Finding]) -> str:
    """For a script."""
    problems = sum(f.status == "problem" for f in findings)
    return json.dumps({"problems": problems, "findings": [asdict(f) for f in findings]}, indent=1)
