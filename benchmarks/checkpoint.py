"""What saving, loading and coming back cost, beside the disk's own limit, DeepSpeed and torch's DCP.

    python -m benchmarks.checkpoint [--rounds 5] [--layers 48] [--quick] [--parts stall,rates,kill]

- stall:  seconds that training waits for a save behind its back, as a share of a save that it waits for
- rates:  GB/s saved (to the commit, flushed, hashed) and loaded (files not in memory), against bare write and read of
          as many bytes in the same round; DeepSpeed's and DCP's own save and load of the same state
- kill:   seconds from SIGKILL of a rank to the next new step, of a small run, as processes and as Ray actors

Two ranks at ZeRO 2, float32; medians over rounds, ways in turns.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import checkpoint_ways as ways
from benchmarks.machine import machine, write_result

HOME = Path(__file__).resolve().parent.parent
RECIPE = HOME / "recipes" / "quickstart.yaml"
RANKS = 2
STALL_GOAL, RATE_GOAL, KILL_GOAL = 0.05, 0.8, 15.0


def main() -> None:
    """Measure, print a table, write the result."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--layers", type=int, default=48, help="of a million parameters each, 12 bytes a parameter")
    options.add_argument("--rows", type=int, default=512, help="of a step while it saves")
    options.add_argument("--parts", default="stall,rates,kill")
    options.add_argument("--folder", type=Path, help="on the disk to measure; a temporary one if not given")
    options.add_argument("--quick", action="store_true", help="one small round, nothing written: does it run?")
    given = options.parse_args()
    if given.quick:
        given.rounds, given.layers, given.rows = 1, 4, 64
    result: dict[str, Any] = {"machine": machine(), "rounds": given.rounds, "bytes": 12 * given.layers * ways.DIM**2}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        place = Path(folder)
        if "stall" in given.parts:
            result["stall"] = told_stall(in_world(ways.stalls, place / "s", given.layers, given.rows, given.rounds))
        if "rates" in given.parts:
            result["rates"] = told_rates(in_world(ways.rates, place / "r", given.layers, given.rounds))
        if "kill" in given.parts:
            result["kill"] = told_kill(place, given.rounds)
    if not given.quick:
        print(write_result("checkpoint", result))


def in_world(work: Callable[..., Any], *arguments: Any) -> dict[str, list[float]]:
    """What `work` found on rank 0 of a gloo world."""
    from tests.support.process_groups import run_world

    found: dict[str, list[float]] = run_world(RANKS, work, *arguments, seconds=1200)[0]
    return found


def told_stall(found: dict[str, list[float]]) -> dict[str, Any]:
    """Print and keep what training waits."""
    share = statistics.median(a / b for a, b in zip(found["stall"], found["blocking"], strict=True))
    quiet, busy = statistics.median(found["quiet"]), statistics.median(found["busy"])
    print(f"a save that training waits for     {statistics.median(found['blocking']):8.3f} s")
    print(f"training waits for one behind it   {statistics.median(found['stall']):8.3f} s")
    print(f"share                              {100 * share:8.2f} %   goal 5 %   {verdict(share <= STALL_GOAL)}")
    print(
        f"steps while it writes, to others   {busy / quiet:8.2f} x  (two ranks have two cores, which the save shares)"
    )
    return {**found, "share": share, "busy_to_quiet": busy / quiet}


def told_rates(found: dict[str, list[float]]) -> dict[str, Any]:
    """Print and keep GB/s and their ratios to the disk."""
    size = RANKS * found.pop("bytes")[0]
    ratios = {}
    print(f"\n{size / 1e9:.2f} GB{'':17}{'GB/s':>8}{'to disk':>9}")
    for name, seconds in found.items():
        disk = found[f"{name.partition(' ')[0]} disk"]
        ratios[name] = statistics.median(a / b for a, b in zip(disk, seconds, strict=True))
        goal = (
            f"   goal {RATE_GOAL}   {verdict(ratios[name] >= RATE_GOAL)}"
            if name in ("save ours", "load ours, read")
            else ""
        )
        print(f"{name:24}{size / statistics.median(seconds) / 1e9:8.2f}{ratios[name]:9.2f}{goal}")
    return {"seconds": found, "to_disk": ratios}


def told_kill(place: Path, rounds: int) -> dict[str, Any]:
    """Print and keep seconds from a kill to the next new step."""
    longreel("data", "synth", "--out", place / "clips", "--clips", 64)
    longreel("prepare", place / "clips", "--out", place / "data")
    found = {}
    print()
    for name, how in (("processes", "--no-ray"), ("ray actors", "--ray")):
        seconds = [killed(place, f"{name}-{number}".replace(" ", "-"), how) for number in range(rounds)]
        found[name] = seconds
        middle = statistics.median(seconds)
        print(
            f"kill -9 of a rank to the next step, {name:11}{middle:6.1f} s   goal 15 s   {verdict(middle <= KILL_GOAL)}"
        )
    return found


def killed(place: Path, name: str, how: str) -> float:
    """Seconds of one kill in the middle of a run."""
    from launcher.core.run_folder import RunFolder, read_lines

    out = RunFolder(place / name)
    overrides = [f"out={out.root}", f"data.dataset={place / 'data'}", "steps=100000", "checkpoint.every=10"]
    command = [sys.executable, "-m", "launcher", "train", str(RECIPE), *overrides, how]
    process = subprocess.Popen(command, cwd=HOME, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        waited(lambda: len(list(read_lines(out.metrics))) > 25)
        places = [event for event in read_lines(out.events) if event["event"] == "ranks"][-1]["places"]
        os.kill(places[-1]["pid"], signal.SIGKILL)
        began = time.time()
        last = max(line["step"] for line in read_lines(out.metrics))
        waited(lambda: any(line["step"] > last and line["time"] > began + 0.5 for line in read_lines(out.metrics)))
        return min(line["time"] for line in read_lines(out.metrics) if line["step"] > last) - began
    finally:
        process.terminate()
        process.wait(120)


def waited(condition: Callable[[], Any], seconds: float = 300) -> None:
    """Until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.02)


def longreel(*arguments: object) -> None:
    """Run a command."""
    command = [sys.executable, "-m", "launcher", *map(str, arguments)]
    subprocess.run(command, check=True, cwd=HOME, stdout=subprocess.DEVNULL)


def verdict(reached: bool) -> str:
    """In words."""
    return "reached" if reached else "NOT reached"


if __name__ == "__main__":
    main()
