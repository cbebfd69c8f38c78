"""A web server for tests, on a thread: files of a folder with a listing page, parts of files, and faults on demand."""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from data.remote import remote_files


def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits, and a temporary folder of the test's own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(remote_files, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)  # what it remembers


class Server(ThreadingHTTPServer):
    """`asked`: how many GETs of each path; `faults`: what to do at the next ones: a status, "cut" or "hang"."""

    daemon_threads = True

    def __init__(self, folder: Path, parts: bool) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.parts = parts
        self.asked: Counter[str] = Counter()
        self.faults: dict[str, list[Any]] = {}
        self.gone = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = unquote(self.path)
        self.server.asked[path] += 1
        faults = self.server.faults.get(path)
        fault = faults.pop(0) if faults else None
        if isinstance(fault, int):
            self.send_error(fault)
        elif fault == "hang":
            self.server.gone.wait(60)
        elif fault == "cut":
            data = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif self.server.parts and "Range" in self.headers:
            self._part()
        else:
            super().do_GET()

    def _part(self) -> None:
        data = Path(self.translate_path(self.path)).read_bytes()
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def served(folder: Path, parts: bool = True) -> Iterator[Server]:
    """A folder behind http, until the end of the block."""
    with Server(folder, parts) as server:
        thread = threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.gone.set()
            server.shutdown()
            thread.join()
