"""From the evidence of a failure to its cause, in words, and what to do: a cause instead of "actor died".

a rank's End    an exception, a signal, an exit code          --+
a Hang          who stands still, and what its machine says     +--cause_of--> kind, words, remedy
counters        kills of the kernel's memory killer           --+
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from launcher.config import proposed_commands
from launcher.core import address_space
from launcher.core.hardware import is_gpu_shortage
from launcher.preflight.memory_savers import Of, relief
from launcher.supervision.rank_group import HOST, LINK, NODE, UNKNOWN, End, is_echo
from launcher.supervision.watchdog import Hang
from parallel import shell

if TYPE_CHECKING:
    from launcher.config.run_config import RunConfig

Kind = Literal[
    "killed", "memory", "hang", "exception", "anomaly", "full", "store", "data", "node", "link", "stopped", "input"
]
CAUSES: tuple[Kind, ...] = (
    "killed", "memory", "hang", "exception", "anomaly", "full", "store", "data", "node", "link", "stopped", "input",
)  # fmt: skip
CRASHES = ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGSYS", "SIGTRAP")
OUTSIDE = ("Cuda failure", "_STATUS_ALLOC_FAILED", "driver error")  # of the allocator: it may hold what others lack
HOST_MEMORY_WORDS = ("can't allocate memory", "Cannot allocate memory", "Unable to allocate", "std::bad_alloc")
NO_SPACE_WORDS = (  # of threads and libraries; where address space is not limited they mean something else
    "can't start new thread",
    "pthread_create failed",
    "Thread creation failed",
    "failed to map segment",
)
STORE_ERRORS = (
    "UnsavedError",
    "ConnectionError",
    "ConnectTimeout",
    "EndpointConnectionError",
    "ClientError",
    "HttpError",
)
FULL = ("ENOSPC", "EDQUOT")
FULL_WORDS = ("No space left on device", "Disk quota exceeded")
STORAGE_NUMBERS = ("EIO", "ESTALE", "EROFS", "ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH", "ECONNREFUSED", "ENODEV")
FEWER_BYTES = "fewer data.pack_tokens, a longer mesh.ring, a higher zero.stage, or zero.offload"
MOST_SETTINGS = 3  # that a remedy names


@dataclass(frozen=True)
class Cause:
    """Why it happened.

    Attributes:
        kind: one of CAUSES.
        words: a sentence without a subject, such as "was killed by SIGKILL from outside".
        remedy: what to do or type.
        lasting: it would happen again after a restart.
        commands: that do what the remedy says, with nothing left to fill in.

    Whatever is no "exception" was foreseen: its words say all that its traceback would.
    """

    kind: Kind
    words: str
    remedy: str
    lasting: bool = False
    commands: tuple[str, ...] = ()


def cause_of(end: End | None, hang: Hang | None = None, state: str = "", config: RunConfig | None = None) -> Cause:
    """Why an attempt failed.

    Args:
        end: of the rank that the others fell over, if it ended.
        hang: if nobody ended, who stands still.
        state: what its machine says of a rank that stands still (`Ranks.state`).
        config: of the attempt: a remedy for want of memory then names settings that it has not set yet.
    """
    if hang is not None:
        return _of_hang(hang, state)
    assert end is not None, "a failure has a rank that ended, or one that hangs"
    if end.how == "refused":
        return _of_refusal(end, config)
    return _of_death(end, config) if end.how == "died" else _of_exception(end, config)


def _of_hang(hang: Hang, state: str) -> Cause:
    where = f"in {hang.phase} of step {hang.step}"
    if hang.kind == "silent" and state.startswith("T"):
        words = f"was stopped (SIGSTOP, or a debugger) {where} and gave no sign for {hang.seconds:.0f} s"
        return Cause("hang", words, "find out who stops processes on that machine; the run went on without it")
    if hang.kind == "silent" and "answer" in state:
        words = f"gave no sign for {hang.seconds:.0f} s {where}: {state}"
        return Cause("link", words, "look at the network and the power of that machine")
    if hang.kind == "silent":
        words = f"gave no sign for {hang.seconds:.0f} s {where}, its process is {state}"
        return Cause("hang", words, "its stack says what keeps it")
    if hang.kind == "behind":
        words = f"stood still {where} for {hang.seconds:.0f} s while the others waited for it"
        if hang.phase == "data":
            return Cause(
                "hang", words, "it waits for its data: look at the storage of data.dataset as that machine sees it"
            )
        return Cause("hang", words, "its stack says what keeps it")
    words = f"and all others stood still at one place, {hang.phase} of step {hang.step}, for {hang.seconds:.0f} s"
    return Cause("hang", words, "compare the stacks: a rank that is not in a collective keeps the others waiting")


def _of_refusal(end: End, config: RunConfig | None) -> Cause:
    assert end.refusal is not None
    rule, value, remedy = end.refusal
    remedy = proposed_commands.filled(remedy, config) if config is not None else remedy
    about_data = "longreel data" in remedy or "data." in remedy or "sample" in rule
    typed = (
        (proposed_commands.check_data(config),)
        if config is not None and proposed_commands.CHECK in end.refusal[2]
        else ()
    )
    return Cause("data" if about_data else "input", f"refused: {rule}; found: {value}", remedy, True, typed)


def _of_death(end: End, config: RunConfig | None) -> Cause:
    if end.for_memory:
        words = f"was killed for memory: {_first_line(end.message)}"
        return Cause("memory", words, _less_memory(config, "host"), commands=_with_less(config, "host"))
    if end.sign == NODE and end.rank < 0:
        return Cause("node", f"lost machines before its ranks had started: {end.message}", "look at those machines")
    if end.sign == NODE:
        return Cause("node", "died with its machine", "look at that machine; the run goes on without it")
    if end.sign == LINK:
        return Cause("link", "cannot be reached: the link to its machine is cut", "look at the network of that machine")
    if end.sign == HOST:
        words = f"lost what held it: {end.message}"
        return Cause(
            "killed", words, "look who ends processes on that machine: a batch system, a person, a memory limit"
        )
    limit = address_space.limit()
    if limit is not None and (_is_host_shortage(end.message) or end.sign in (*CRASHES, "exit code 1", "exit code 127")):
        words = f"ended ({end.sign}) while it got no more memory, or for another reason: {address_space.told(limit)}"
        remedy = f"{address_space.UNLIMITED}; or {_less_memory(config, 'host')}"
        return Cause("memory", words, remedy, True, _with_less(config, "host"))
    if _is_host_shortage(end.message):
        words = f"ended ({end.sign}): it got no more memory"
        return Cause("memory", words, _less_memory(config, "host"), commands=_with_less(config, "host"))
    if end.sign in CRASHES:
        return Cause("exception", f"crashed with {end.sign} in native code", "the stack below says where")
    if end.sign == UNKNOWN:
        return Cause("killed", f"was {end.message}", "look who ends processes on that machine, and at its memory")
    if end.sign.startswith("SIG"):
        remedy = "look who ends processes on that machine: a batch system, a person, a limit"
        return Cause("killed", f"was killed by {end.sign} from outside", remedy)
    return Cause("exception", f"ended without a word ({end.sign or end.message})", "its output may say why")


def _of_exception(end: End, config: RunConfig | None) -> Cause:
    words = f"failed: {last_line(end)}"
    name = end.sign.split(" ")[0]
    if is_gpu_shortage(name, end.message):
        return _of_gpu_shortage(end, config)
    if is_echo(end):
        remedy = "look at the network between the machines; no process of the run died"
        return Cause("link", f"lost its peers, none of which died: {last_line(end)}", remedy)
    if name == "RewindError":
        return Cause("anomaly", words, "look at the samples of that step; a lower optimizer.learning_rate may help")
    if name == "FloatingPointError":
        words = f"failed: {last_line(end).partition('FloatingPointError: ')[2] or last_line(end)}"
        typed = (proposed_commands.slower(config.out, config.optimizer.learning_rate),) if config is not None else ()
        return Cause("anomaly", words, proposed_commands.LOWER_RATE, True, typed)
    if name == "UnsavedError":  # which says all in words
        words = "failed: " + re.sub(r"^\S*UnsavedError: (\[Errno \d+\] )?", "", last_line(end))
    if end.sign.endswith(FULL) or any(said in end.message for said in FULL_WORDS):
        return Cause("full", words, "make room; the same command goes on from the last checkpoint", lasting=True)
    if name == "MemoryError" or end.sign.endswith("ENOMEM") or _is_host_shortage(end.message):
        return _of_host_shortage(end, config)
    if name in STORE_ERRORS or end.sign.endswith(STORAGE_NUMBERS):
        return Cause("store", words, "look at the storage; the same command goes on from the last checkpoint")
    return Cause("exception", words, "the traceback says where")


def _of_gpu_shortage(end: End, config: RunConfig | None) -> Cause:
    told = next((line for line in reversed(end.message.splitlines()) if "GpuMemoryError:" in line), "")
    told = told.partition("GpuMemoryError: ")[2] or last_line(end)
    words, remedy = f"ran out of GPU memory: {told}", _less_memory(config, "gpu")
    if any(sign in end.message for sign in OUTSIDE):
        words += " (NCCL, cuBLAS and the driver take what torch's allocator leaves)"
    return Cause("memory", words, remedy, commands=_with_less(config, "gpu"))


def _is_host_shortage(message: str) -> bool:
    said = (*HOST_MEMORY_WORDS, *(NO_SPACE_WORDS if address_space.limit() is not None else ()))
    return any(words in message for words in said)


def _of_host_shortage(end: End, config: RunConfig | None) -> Cause:
    limit = address_space.limit()
    words, remedy = f"ran out of memory: {last_line(end)}", _less_memory(config, "host")
    typed = _with_less(config, "host")
    if limit is None:
        return Cause("memory", words, remedy, commands=typed)
    words, remedy = f"{words}; {address_space.told(limit)}", f"{address_space.UNLIMITED}; or {remedy}"
    return Cause("memory", words, remedy, True, typed)


def _less_memory(config: RunConfig | None, of: Of) -> str:
    """The first settings that would help and are not set yet."""
    return f"less memory: {', or '.join(relief(config, of)[:MOST_SETTINGS]) if config is not None else FEWER_BYTES}"


def _with_less(config: RunConfig | None, of: Of) -> tuple[str, ...]:
    """The command with the first of these settings that is one as it stands; on GPUs what it saves, before."""
    if config is None:
        return ()
    first = next((one.split() for one in relief(config, of) if "=" in one and "(" not in one), [])
    tried = shell.join(["longreel", "dryrun", str(config.out / "config.yaml"), *first])
    return (*([tried] if of == "gpu" else []), proposed_commands.train(config.out, *first))


def last_line(end: End) -> str:
    """The last words of a rank."""
    if end.refusal is not None:
        return f"{end.refusal[0]}; found: {end.refusal[1]}"[:300]
    lines = [line for line in end.message.splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "no word"


def _first_line(text: str) -> str:
    return (text.splitlines() or [""])[0]
