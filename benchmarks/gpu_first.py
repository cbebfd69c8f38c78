"""The first fifteen minutes on a GPU: is everything right, and how fast. One GPU, plain python, no Ray.

    python -m benchmarks.gpu_first [--device cuda|cpu] [--small] [--minutes 15] [--parts kernels,zero0,...] [--out FILE]

    kernels    every kernel, mask, head size and few key heads, against dense float64
    overflow   rows x heads x head_dim beyond 2^31
    zero0..3   a few steps of each ZeRO stage beside torch's AdamW, and as after a resume
    runs       both families at ZeRO 0 to 3 through `python -m launcher train --no-ray`, killed once, resumed
    curve      losses in bf16 on the device beside float32 on the CPU
    dryrun     bytes of the dry run beside those of the allocator, for eight configs
    speed      TFLOP/s of each kernel, 8K to 1M keys
    steps      seconds and MFU of a 1.3B DiT and an 8B language model, 32K to 1M tokens
    compile    the DiT's blocks compiled

In order of what kills: what comes later is of no use where an earlier part is wrong. Each part is a process with a time
limit of its own, so an illegal access or a hang costs one answer; what a part has said by then is kept. The result is
written after each to results/gpu_first.json (of a CPU: gpu_first_cpu.json). A part whose modules are missing is left
out, and says so. `--device cpu --small` does all of it in miniature.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.gpu_first_rows import MARK, Case, Part, Row

HOME = Path(__file__).resolve().parent.parent
ENGINE = ("deepspeed", "pydantic")
LAUNCHER = (
    "pydantic",
    "yaml",
    "deepspeed",
    "webdataset",
    "av",
    "blake3",
    "safetensors",
    "transformers",
    "typer",
    "rich",
)
GRACE = 3.0  # seconds between the end of a part by itself and its end by us
LEAST = 5.0  # seconds with which a part is begun
WORDS = 4  # last lines of a part that failed
WIDTHS = (10, 8, 9, 44)  # of part, seconds, status and what


def of(module: str, name: str) -> Callable[[Case], Iterator[Row]]:
    """A part's work, whose module is imported in its own process alone."""
    return partial(_of, module, name)


def _of(module: str, name: str, case: Case) -> Iterator[Row]:
    found: Iterator[Row] = getattr(import_module(f"benchmarks.{module}"), name)(case)
    return found


def _engine(stage: int, case: Case) -> Iterator[Row]:
    found: Iterator[Row] = import_module("benchmarks.gpu_first_zero").engine(stage, case)
    return found


PARTS = (
    Part("kernels", "is every kernel right", 90, (), of("gpu_first_attention", "kernels")),
    Part("overflow", "beyond 2^31 numbers too", 60, (), of("gpu_first_attention", "overflow")),
    Part("zero0", "does the plain engine step", 40, (), partial(_engine, 0)),
    *(Part(f"zero{n}", f"does ZeRO {n} step", 60, ENGINE, partial(_engine, n)) for n in (1, 2, 3)),
    Part("runs", "kill and resume", 240, LAUNCHER, of("gpu_first_runs", "resumes")),
    Part("curve", "bf16 beside float32", 120, LAUNCHER, of("gpu_first_runs", "curve")),
    Part("dryrun", "bytes counted and seen", 180, LAUNCHER, of("gpu_first_runs", "dry_run_bytes")),
    Part("speed", "how fast is each kernel", 90, (), of("gpu_first_attention", "speed")),
    Part("steps", "how fast is a step", 240, ("pydantic", "transformers"), of("gpu_first_steps", "steps")),
    Part("compile", "what does compiling give", 90, ("pydantic",), of("gpu_first_steps", "compiled")),
)


def main() -> None:
    """Ask, print the table, write the result; exit code 1 if anything is wrong."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--small", action="store_true", help="everything in miniature")
    options.add_argument("--minutes", type=float, default=15.0, help="for all parts together")
    options.add_argument("--parts", default=",".join(part.name for part in PARTS))
    options.add_argument("--out", type=Path, help="the result, a JSON file")
    options.add_argument("--part", help=argparse.SUPPRESS)
    options.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    given = options.parse_args()
    names = given.parts.split(",")
    unknown = sorted(set(names) - {part.name for part in PARTS})
    if unknown:
        options.error(f"no part is called {', '.join(unknown)}")
    if not 0 < given.minutes < math.inf:
        options.error(f"--minutes is a number above 0, not {given.minutes:g}")
    if given.part:
        answer(given.part, Case(given.device, given.small, time.monotonic() + given.seconds))
        return
    if given.device == "cpu" and not given.small:
        options.error("on a CPU only --small ends within minutes")
    name = "gpu_first" if given.device == "cuda" else "gpu_first_cpu"
    out = given.out or HOME / "benchmarks" / "results" / f"{name}.json"
    chosen = [part for part in PARTS if part.name in names]
    wrong = ask(chosen, given.device, given.small, 60 * given.minutes, out)
    if wrong:
        raise SystemExit(f"wrong: {', '.join(wrong)}")


def answer(name: str, case: Case) -> None:
    """In a part's own process: its rows, as they are found."""
    part = next(part for part in PARTS if part.name == name)
    for row in part.work(case):
        row.tell()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # DeepSpeed and gloo sometimes abort at interpreter exit, after the work is done


def ask(parts: list[Part], kind: str, small: bool, seconds: float, out: Path) -> list[str]:
    """All parts, one after the other; gives those with an answer that is wrong or missing."""
    result: dict[str, Any] = {"about": about(kind), "small": small, "parts": {}}
    print("  ".join(f"{k} {v}" for k, v in result["about"].items() if not isinstance(v, dict)))
    print(line("part", "seconds", "", "what", "found"))
    ends, wrong = time.monotonic() + seconds, []
    for part in parts:
        left, missing = ends - time.monotonic(), part.missing()
        begin = time.monotonic()
        if missing:
            rows = [show(part, 0.0, Row(part.asks, f"needs {', '.join(missing)}", "left out"))]
        elif left < LEAST:
            rows = [show(part, 0.0, Row(part.asks, "no time is left", "left out"))]
        else:
            own = part.seconds if kind == "cuda" else math.inf
            rows = run(part, kind, small, min(own, left - GRACE), "wrong" if own < left - GRACE else "cut short")
        found = {"seconds": time.monotonic() - begin, "rows": [row.__dict__ for row in rows]}
        result["parts"][part.name] = found
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
        if any(row.status == "wrong" for row in rows):
            wrong.append(part.name)
    print(out)
    return wrong


def run(part: Part, kind: str, small: bool, seconds: float, too_late: str = "wrong") -> list[Row]:
    """One part in a process of its own, killed with all that it started when its time is up, which is `too_late`."""
    command = command_of(part, kind, small, seconds)
    path = os.pathsep.join(filter(None, (str(HOME), os.environ.get("PYTHONPATH"))))
    begin, rows, words = time.monotonic(), list[Row](), list[str]()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    late = False
    try:
        for said in lines_until(process, begin + seconds):
            if said.startswith(MARK):
                rows.append(show(part, time.monotonic() - begin, Row(**json.loads(said.removeprefix(MARK)))))
            elif said.strip():
                words = [*words, said.rstrip()][-WORDS:]
        late = process.poll() is None and time.monotonic() >= begin + seconds
    finally:
        end(process)
    if late:
        rows.append(show(part, time.monotonic() - begin, Row(part.asks, f"took more than {seconds:.0f} s", too_late)))
    elif process.returncode or not rows:
        told = f"exit code {process.returncode}: {' | '.join(words) or 'no word'}"
        rows.append(show(part, time.monotonic() - begin, Row(part.asks, told, "wrong")))
    return rows


def command_of(part: Part, kind: str, small: bool, seconds: float) -> list[str]:
    """How a part is started; it ends by itself a little before it is killed."""
    command = [sys.executable, "-m", "benchmarks.gpu_first", "--part", part.name, "--device", kind]
    return [*command, "--seconds", str(max(1.0, seconds - GRACE)), *["--small"] * small]


def lines_until(process: subprocess.Popen[str], ends: float) -> Iterator[str]:
    """What a process says, until it ends or time is up."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        held = b""
        while (left := ends - time.monotonic()) > 0:
            if not selector.select(left):
                continue
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                process.wait(max(0.1, ends - time.monotonic()))
                break
            *whole, held = (held + data).split(b"\n")
            yield from (text.decode(errors="replace") for text in whole)


def end(process: subprocess.Popen[str]) -> None:
    """Kill what is left of a part: its own group, and no other."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def show(part: Part, seconds: float, row: Row) -> Row:
    """Print a row of the table."""
    print(line(part.name, f"{seconds:.1f}", row.status, row.what, row.found), flush=True)
    return row


def line(part: str, seconds: str, status: str, what: str, found: str) -> str:
    """Columns that align, the last one as long as it is."""
    cells = part.ljust(WIDTHS[0]), seconds.rjust(WIDTHS[1]), status.ljust(WIDTHS[2]), what.ljust(WIDTHS[3]), found
    return "  ".join(cells).rstrip()


def about(kind: str) -> dict[str, Any]:
    """What it ran on, asked in a process of its own: this one never touches the GPU."""
    code = (
        "import json, torch; c = torch.cuda; p = c.get_device_properties(0); print(json.dumps({'device': p.name,"
        " 'memory_gib': round(p.total_memory / 2**30, 1), 'cuda': torch.version.cuda}))"
    )
    found: dict[str, Any] = {"device": platform.processor() or platform.machine()}
    if kind == "cuda":
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"torch sees no GPU: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
        found = json.loads(done.stdout)
    versions = {}
    for package in ("torch", "deepspeed", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    cores = len(os.sched_getaffinity(0))
    return {**found, "cores": cores, "python": platform.python_version(), "date": time.strftime("%Y-%m-%d"),
            "versions": versions}  # fmt: skip


if __name__ == "__main__":
    main()
