"""The command line in a process that has everything loaded already: forked where a fresh interpreter needs ten seconds.

The process is `longreel` in all but its birth: the same `main` with the same arguments, a session of its own, real
signals, its exit code. Its ranks are forked from the tests' server, too, so that whoever signals all processes of a job
at once does not reach them: tests of that start a fresh interpreter.
"""

from __future__ import annotations

import multiprocessing.forkserver
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.process_groups import server


class Started:
    """As subprocess.Popen, with stderr in stdout and all of it in a file, whoever else holds that open."""

    process: Any

    def __init__(self) -> None:
        descriptor, name = tempfile.mkstemp(prefix="longreel-", suffix=".log")
        os.close(descriptor)
        self.log = Path(name)

    @property
    def pid(self) -> int:
        """Of the launcher; of its process group, too."""
        return int(self.process.pid)

    def poll(self) -> int | None:
        """See `returncode`."""
        return self.returncode

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative of a signal, None while it runs."""
        raise NotImplementedError

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code once it has ended."""
        raise NotImplementedError

    def said(self) -> str:
        """All that it has said so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """All that it has said, once it has ended."""
        self.wait(timeout)
        said = self.said()
        self.log.unlink(missing_ok=True)
        return said, None

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.terminate()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()


class Fresh(Started):
    """In an interpreter of its own, as everybody starts it; `module` is run."""

    def __init__(self, *arguments: object, module: str = "launcher") -> None:
        super().__init__()
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    @property
    def returncode(self) -> int | None:
        """See `Started`."""
        code: int | None = self.process.poll()
        return code

    def wait(self, timeout: float | None = None) -> int:
        """See `Started`."""
        return int(self.process.wait(timeout))


class Forked(Started):
    """In a process of the tests' server."""

    def __init__(self, *arguments: object) -> None:
        super().__init__()
        context: Any = server()
        multiprocessing.forkserver.ensure_running()
        asked = (self.log, [str(a) for a in arguments], dict(os.environ), _server._forkserver_address, os.getpid())
        self.process = context.Process(target=_main, args=asked)
        self.process.start()

    @property
    def returncode(self) -> int | None:
        """See `Started`."""
        code: int | None = self.process.exitcode
        return code

    def wait(self, timeout: float | None = None) -> int:
        """See `Started`."""
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("longreel", timeout or 0.0, self.log.read_bytes())
        return self.returncode


_server: Any = multiprocessing.forkserver._forkserver


def _main(log: Path, arguments: list[str], environment: Mapping[str, str], address: str, tests: int) -> None:
    os.setsid()
    threading.Thread(target=_end_with, args=(tests,), daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.close(descriptor)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    # the standard library would start another server for processes of this one; ours is there
    _server._forkserver_address = address
    _server.ensure_running = multiprocessing.forkserver.ensure_running = lambda: None
    sys.argv = ["longreel", *arguments]
    from launcher.cli.app import main

    main()


def _end_with(tests: int) -> None:
    """Nobody would end this process if pytest were killed."""
    while Path(f"/proc/{tests}").exists():
        time.sleep(1)
    os._exit(1)
