"""What each thread of a process is doing: Python stacks, innermost call first, as py-spy prints them.

    Thread 4711 (idle): "MainThread"
        all_reduce (torch/distributed/distributed_c10d.py:2838)
        gradients (launcher/training/loop.py:231)
        run (launcher/training/loop.py:118)

A rank tells its own stacks as long as a thread of it runs. Of one that is stopped or stuck py-spy reads them from
outside, without a signal or a pause; where that is not permitted, /proc still tells whether it sleeps, waits for a disk
or is stopped, and in which call of the kernel.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

TELL_SECONDS = 2.0  # for a rank to tell its own, before py-spy looks
SPY_SECONDS = 10.0
STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for a disk or a network file system",
    "T": "stopped",
    "t": "stopped by a debugger",
    "Z": "dead",
    "X": "dead",
}
RUNS = ("R", "S", "D")  # states of a process that nobody stopped
INDENT = "    "
SHOWN_PARTS = 3  # of the path of a file that is on no search path
OUTERMOST = "run (launcher/training/loop.py"  # what called it is the same for every rank


def own() -> str:
    """The stacks of all threads of this process."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    numbers = {thread.ident: thread.native_id for thread in threading.enumerate()}
    main = threading.main_thread().ident
    frames = sorted(sys._current_frames().items(), key=lambda item: item[0] != main)
    return "\n".join(
        f'Thread {numbers.get(ident, ident)}: "{names.get(ident, "")}"\n' + "\n".join(_calls(frame))
        for ident, frame in frames
    )


def of_process(pid: int) -> str:
    """The stacks of a process of this machine, by py-spy, or what /proc tells of its threads.

    It blocks for at most 10 s.
    """
    spy = find_spy()
    if spy is None:
        return f"py-spy is not installed\n{of_kernel(pid)}"
    command = [spy, "dump", "--nonblocking", "--pid", str(pid)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SPY_SECONDS)
    except subprocess.TimeoutExpired:
        return f"py-spy gave no answer in {SPY_SECONDS:g} s\n{of_kernel(pid)}"
    except OSError as error:
        return f"py-spy cannot be started: {error.strerror}\n{of_kernel(pid)}"
    if answer.returncode == 0 and "Thread" in answer.stdout:
        return _threads_of(answer.stdout)
    lines = [line for line in answer.stderr.splitlines() if line.strip()]
    reason = lines[0].removeprefix("Error: ") if lines else f"exit code {answer.returncode}"
    if any(word in answer.stderr.lower() for word in ("permission denied", "not permitted")):
        reason = "not permitted here: run as the user of the rank with CAP_SYS_PTRACE, or kernel.yama.ptrace_scope=0"
    return f"py-spy: {reason}\n{of_kernel(pid)}"


def of_kernel(pid: int) -> str:
    """What /proc says of each thread: its state, and the call of the kernel that it waits in."""
    try:
        threads = sorted(int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return f"process {pid} is gone"
    told = Counter(f"{state_of(thread, pid)}{_waits(pid, thread)}" for thread in threads)
    return "\n".join(f"{INDENT}{count} thread{'s' if count > 1 else ''}: {what}" for what, count in told.items())


def state_of(thread: int, pid: int | None = None) -> str:
    """The state of a process, or of a thread of `pid`, such as "T (stopped)"; "gone" if there is none."""
    try:
        text = Path(f"/proc/{pid or thread}/task/{thread}/stat").read_text()
    except OSError:
        return "gone"
    letter = text.rpartition(")")[2].split()[0]
    return f"{letter} ({STATES.get(letter, 'unknown')})"


def runs(state: str) -> bool:
    """Whether `state_of` told of a process that lives and that nobody stopped."""
    return state[:2].strip() in RUNS


def find_spy() -> str | None:
    """The path of py-spy: beside this Python, or anywhere."""
    return shutil.which("py-spy", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))


def main_thread(text: str) -> list[str]:
    """The calls of the main thread, innermost first; of the first thread if none is named so."""
    threads = [block.splitlines() for block in _blocks(text)]
    main = next((lines for lines in threads if '"MainThread"' in lines[0]), threads[0] if threads else [])
    return [line.strip() for line in main[1:]]


def odd_one_out(texts: Mapping[int, str]) -> int | None:
    """The one rank whose main thread is elsewhere than that of all others, which are at one place; None if there is
    no such rank.
    """
    places = {rank: tuple(_function(line) for line in main_thread(text)) for rank, text in texts.items()}
    counts = Counter(places.values())
    alone = [rank for rank, place in places.items() if counts[place] == 1]
    return alone[0] if len(alone) == 1 and len(counts) == 2 and len(places) > 2 else None


def alike(texts: Mapping[int, str], calls: int) -> dict[str, list[int]]:
    """The innermost calls of main threads, and the ranks that share them."""
    found: dict[str, list[int]] = {}
    for rank, text in sorted(texts.items()):
        lines = main_thread(text) or [line.strip() for line in text.splitlines()]
        end = next((n for n, line in enumerate(lines, 1) if line.startswith(OUTERMOST)), len(lines))
        lines = lines[:end]
        more = [f"... {len(lines) - calls} more"] if len(lines) > calls else []
        found.setdefault("\n".join(lines[:calls] + more), []).append(rank)
    return found


def _calls(frame: FrameType | None) -> Iterator[str]:
    while frame is not None:
        code = frame.f_code
        yield f"{INDENT}{code.co_qualname} ({_short(code.co_filename)}:{frame.f_lineno})"
        frame = frame.f_back


def _short(path: str) -> str:
    """From the folder on that Python looks for modules in, as py-spy does."""
    roots = [root for root in sys.path if root and path.startswith(f"{root}/")]
    return path[len(max(roots, key=len)) + 1 :] if roots else "/".join(path.split("/")[-SHOWN_PARTS:])


def _threads_of(dump: str) -> str:
    """py-spy's threads, without what it says of the process."""
    return dump[dump.index("Thread") :].strip()


def _blocks(text: str) -> Iterator[str]:
    block: list[str] = []
    for line in text.splitlines():
        if line.startswith("Thread "):
            if block:
                yield "\n".join(block)
            block = [line]
        elif block and line.startswith(INDENT):
            block.append(line)
    if block:
        yield "\n".join(block)


def _function(line: str) -> str:
    """`forward (models/diffusion/video_dit.py:31)` without its line, which differs while a loop turns."""
    return line.rpartition(":")[0]


def _waits(pid: int, thread: int) -> str:
    try:
        where = Path(f"/proc/{pid}/task/{thread}/wchan").read_text().strip("0 \n")
    except OSError:
        return ""
    return f", in {where} of the kernel" if where else ""
