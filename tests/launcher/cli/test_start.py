"""The command starts at once: what is heavy is loaded by the commands that compute with it, and by them alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "ray", "deepspeed", "transformers", "diffusers", "tensorboard")
TELL = f"""
import sys
from launcher.cli.app import main
for line in sys.stdin.read().splitlines():
    sys.argv = ["longreel", *line.split()]
    try:
        main()
    except SystemExit as end:
        code = end.code
    print("loaded after", line, code, [name for name in {HEAVY} if name in sys.modules])
"""
COMMANDS = {
    "--help": 0,
    "train --help": 0,
    "data --help": 0,
    "why RUN": 0,
    "report RUN": 0,
    "train NONE": 2,
    "data stats NONE": 2,
    "status --address http://127.0.0.1:1": 2,
    "list --address http://127.0.0.1:1": 2,
    "logs job --address http://127.0.0.1:1": 2,
    "stop job --address http://127.0.0.1:1": 2,
}


def test_light_commands_load_nothing_heavy(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(f"out: {run}\nsteps: 2\n")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "time": 1.0, "seconds": 1.0}\n')
    (run / "events.jsonl").write_text('{"time": 1.0, "event": "done", "step": 1}\n')
    asked = {
        line.replace("RUN", str(run)).replace("NONE", str(tmp_path / "no")): code for line, code in COMMANDS.items()
    }
    done = subprocess.run([sys.executable, "-c", TELL], input="\n".join(asked), capture_output=True, text=True)
    told = [line for line in done.stdout.splitlines() if line.startswith("loaded after")]
    assert told == [f"loaded after {line} {code} []" for line, code in asked.items()], done.stdout + done.stderr
