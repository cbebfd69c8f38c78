"""What the launcher costs: a training step and the way to the first one.

    python -m benchmarks.train [--rounds 3] [--steps 140]

1. Step time of recipes/quickstart.yaml on one rank: `longreel train --no-ray` at ZeRO 0 and 2 against a bare PyTorch
   loop (forward, backward, clip, AdamW) of the same model on the same batches with the same threads, taking turns.
2. Seconds from the command to the first finished step, with embedded Ray and without, on the recipe's own two ranks.

Medians over all steps but the first 40 of each round (one epoch: small clips then stay decoded in memory); ratios,
because the machine is what it is. A launcher's step is all that happens between two lines of metrics.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, write_result

HOME = Path(__file__).resolve().parent.parent
RECIPE = HOME / "recipes" / "quickstart.yaml"
CLIPS = 256
WARM_UP = 40  # steps: the first epoch and what torch sets up in it
ONE_RANK = ["mesh.replica=1", "mesh.ring=1", "mesh.ulysses=1"]


def main() -> None:
    """Measure, print a table, write the result."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=140)
    given = options.parse_args()
    result: dict[str, Any] = {"machine": machine(), "rounds": given.rounds, "steps": given.steps}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        longreel("data", "synth", "--out", place / "clips", "--clips", CLIPS)
        longreel("prepare", place / "clips", "--out", place / "data")
        seconds: dict[str, list[float]] = {"bare": [], "zero 0": [], "zero 2": []}
        for number in range(given.rounds):
            for name, found in seconds.items():
                found += step_seconds(place, name, given.steps, number)
        first: dict[str, list[float]] = {"embedded ray": [], "no ray": []}
        for number in range(given.rounds):
            first["embedded ray"].append(first_step(place, number, []))
            first["no ray"].append(first_step(place, number, ["--no-ray"]))
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    result["step_seconds_median"] = medians
    result["ratio_to_bare"] = {name: medians[name] / medians["bare"] for name in medians}
    result["first_step_seconds"] = first
    result["first_step_seconds_median"] = {name: statistics.median(found) for name, found in first.items()}
    print(f"{'':14} {'ms a step':>10} {'x bare':>8}   goal 1.05")
    for name, median in medians.items():
        print(f"{name:14} {1000 * median:10.1f} {median / medians['bare']:8.3f}")
    for name, median in result["first_step_seconds_median"].items():
        goal = 12 if name == "embedded ray" else 5
        print(f"{'first step, ' + name:28} {median:6.1f} s   goal {goal}")
    print(write_result("train", result))


def step_seconds(place: Path, name: str, steps: int, number: int) -> list[float]:
    """Seconds of each step of one round."""
    if name == "bare":
        command = [
            sys.executable,
            "-m",
            "benchmarks.train_bare",
            str(RECIPE),
            str(steps),
            f"data.dataset={place / 'data'}",
        ]
        done = subprocess.run([*command, *ONE_RANK], capture_output=True, text=True, check=True, cwd=HOME)
        found: list[float] = json.loads(done.stdout.splitlines()[-1])
    else:
        out = place / f"{name.replace(' ', '-')}-{number}"
        stage = f"zero.stage={name[-1]}"
        longreel("train", RECIPE, *ONE_RANK, *overrides(place, out), stage, f"steps={steps}", "--no-ray")
        times = [json.loads(line)["time"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        found = [after - before for before, after in pairwise(times)]  # all that happens between two steps
    return found[WARM_UP:]


def first_step(place: Path, number: int, flags: list[str]) -> float:
    """Seconds from the command to the first line of metrics.jsonl."""
    out = place / f"first-{number}{''.join(flags)}"
    command = [sys.executable, "-m", "launcher", "train", str(RECIPE), *overrides(place, out), "steps=3", *flags]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=HOME)
    metrics = out / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        if process.poll() not in (None, 0):
            raise SystemExit(f"{' '.join(command)} failed")
        time.sleep(0.01)
    seconds = time.perf_counter() - begin
    process.wait()
    return seconds


def overrides(place: Path, out: Path) -> list[str]:
    """Where this round reads and writes."""
    return [f"data.dataset={place / 'data'}", f"out={out}", "checkpoint.every=100000"]


def longreel(*arguments: object) -> None:
    """Run the command, quietly."""
    subprocess.run(
        [sys.executable, "-m", "launcher", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL, cwd=HOME
    )


if __name__ == "__main__":
    main()
