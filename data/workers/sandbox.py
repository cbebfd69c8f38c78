"""`Fence`: a child process in which code of others runs, such as a chat template.

    us ----- arguments, as JSON ----->  child: a fork of us, with so many seconds of computing a call, so much memory
       <---- what it gives, or why not

A sandbox of Jinja bounds what a template may touch, not how long it runs: two nested loops of 100,000 rounds are hours,
and `9 ** (9 ** (9 ** 9))` never comes back to Python at all. The kernel's timer of the child counts its own computing,
so a busy machine refuses nothing. Cost: 20 ms for the first call, 0.1 ms for each more.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from parallel.errors import InputError

WAIT_SECONDS = 120.0  # for a child that does not compute either: it was born with a lock that nobody gives back
PATIENCE = 3  # calls that take too long, after which no more are tried
MEMORY = 1 << 30  # bytes, beside what we have
LONGEST = 256 << 20  # bytes of an answer


class FenceError(Exception):
    """A call had to be ended, or failed; its text is the reason, for people."""


class Fence:
    """Calls one function in a child.

    Args:
        work: gets the arguments of a call, and gives what JSON knows; an `InputError` of it is raised here.
        seconds: of computing that a call may take.
        memory: bytes that it may take.
    """

    def __init__(self, work: Callable[..., Any], seconds: float, memory: int = MEMORY) -> None:
        self.work, self.seconds, self.memory = work, seconds, memory
        self._ended = 0  # calls that took too long
        self._child = 0
        self._line: Connection | None = None

    def __call__(self, *arguments: Any, scale: float = 1.0) -> Any:
        """What the function gives.

        Args:
            arguments: that JSON knows.
            scale: of the seconds that this call may take.

        Raises:
            FenceError: it took too long or too much, or failed; or calls before took too long.
            InputError: of the function itself.
        """
        if self._ended >= PATIENCE:
            raise FenceError(f"it computed for more than {self.seconds:g} s, {self._ended} times")
        asked = json.dumps([self.seconds * scale, arguments]).encode()
        for last in (False, True):
            line = self._line or self._start()
            try:
                line.send_bytes(asked)
                if line.poll(WAIT_SECONDS):
                    answer = json.loads(line.recv_bytes(LONGEST))
                    break
                self.close()
            except (EOFError, OSError):  # it is gone, or about to
                ended = self.close(kill=False)
                if ended == signal.SIGPROF:
                    self._ended += 1
                    raise FenceError(f"it computes for more than {self.seconds * scale:g} s") from None
                if last or ended:
                    raise FenceError(f"its process ended (signal {ended})") from None
            if last:
                self._ended += 1
                raise FenceError(f"it gives no answer within {WAIT_SECONDS:g} s")
        if "input" in answer:
            raise InputError(*answer["input"])
        if "error" in answer:
            raise FenceError(answer["error"])
        return answer["found"]

    def close(self, kill: bool = True) -> int:
        """End the child, if there is one, or wait for its end; gives the signal that ended it, 0 if none did."""
        if self._line is None:
            return 0
        self._line.close()
        self._line = None
        if kill:
            with suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
        _, status = os.waitpid(self._child, 0)
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()

    def _start(self) -> Connection:
        ours, its = Pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: the child takes none of them
            child = os.fork()
        if not child:
            ours.close()
            self._serve(its)
        its.close()
        self._child, self._line = child, ours
        return ours

    def _serve(self, line: Connection) -> NoReturn:
        """In the child, until nobody asks any more."""
        try:
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, which is for our parent
            pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115 - it ends with us
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            most = pages * resource.getpagesize() + self.memory
            resource.setrlimit(resource.RLIMIT_AS, (most if hard < 0 else min(most, hard), hard))
            while True:
                seconds, arguments = json.loads(line.recv_bytes())
                signal.setitimer(signal.ITIMER_PROF, seconds)
                answer = _answer(self.work, arguments)
                signal.setitimer(signal.ITIMER_PROF, 0)
                line.send_bytes(answer)
        finally:
            os._exit(0)


def _answer(work: Callable[..., Any], arguments: list[Any]) -> bytes:
    try:
        answer = json.dumps({"found": work(*arguments)}).encode()
        if len(answer) <= LONGEST:
            return answer
        told: dict[str, Any] = {"error": f"it gives {len(answer):,} bytes, more than {LONGEST:,}"}
    except InputError as error:
        told = {"input": [error.rule, error.value, error.remedy]}
    except MemoryError:
        told = {"error": "it takes more memory than it may"}
    except RecursionError:
        told = {"error": "it calls itself without end"}
    except Exception as error:  # a template may raise anything
        told = {"error": f"{type(error).__name__}: {error}"[:1000]}
    return json.dumps(told).encode()
