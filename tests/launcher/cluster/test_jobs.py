"""What Ray's own client meets at a head, and what a person is told: a stand-in answers it over HTTP, word for word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from launcher.cli.app import app
from launcher.cluster import jobs
from launcher.cluster.job_package import ENTRYPOINT
from launcher.cluster.jobs import Jobs
from launcher.config.loading import to_yaml
from parallel.errors import InputError
from tests.support.runs import config

NO_AGENT = (500, "No available agent to submit job, please try again later.")
BUG = (500, 'Traceback (most recent call last):\n  File "job_head.py", line 1\nKeyError: "no such thing"\n')
NODE = {
    "node_id": "n", "node_ip": "127.0.0.1", "is_head_node": True, "state": "ALIVE", "state_message": "",
    "node_name": "n", "resources_total": {"CPU": 2.0}, "labels": {}, "start_time_ms": 0, "end_time_ms": 0,
}  # fmt: skip


class Head(ThreadingHTTPServer):
    """A head that has taken no jobs; `at["POST /api/jobs/"]` holds (status, text) of the next answers there."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.at: dict[str, list[tuple[int, str]]] = defaultdict(list)
        self.asked: list[str] = []

    def answer(self, request: str) -> tuple[int, str]:
        self.asked.append(request)
        if self.at[request]:
            return self.at[request].pop(0)
        if request.startswith("PUT /api/packages/"):
            return 200, ""
        usual = {
            "GET /api/version": {"ray_version": "2.50.0", "version": "4"},
            "GET /api/jobs/": [],
            "POST /api/jobs/": {"job_id": "j", "submission_id": "j"},
            "GET /api/v0/nodes": listed(NODE),
            "GET /api/v0/placement_groups": listed(),
        }
        return (200, json.dumps(usual[request])) if request in usual else (404, f"{request} does not exist")


class _Handler(BaseHTTPRequestHandler):
    server: Head

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, text = self.server.answer(f"{self.command} {self.path.partition('?')[0]}")
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if text[:1] in ("{", "[") else "text/plain")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


def listed(*states: dict[str, Any]) -> dict[str, Any]:
    """As Ray's state API lists things."""
    found = {"total": len(states), "num_after_truncation": len(states), "num_filtered": len(states)}
    return {"result": True, "msg": "", "data": {"result": {**found, "result": list(states)}}}


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    monkeypatch.setattr(jobs, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr("launcher.cluster.ray_token.TOKEN_FILE", "/nowhere/token")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "")  # what the client sets or removes is undone afterwards
        os.environ.pop(name)
    with Head() as server:
        Thread(target=partial(server.serve_forever, 0.01), daemon=True).start()
        yield server
        server.shutdown()


def submitted(head: Head, tmp_path: Path, said: list[str]) -> str:
    return (
        Jobs(head.url, open_cluster=True, say=said.append)
        .submit(config(tmp_path / "out", tmp_path, mesh={"ring": 2}))
        .id
    )


def test_a_job_waits_until_the_head_takes_it(head: Head, tmp_path: Path) -> None:
    """A head answers some time before the agent on its node does, which starts jobs."""
    said: list[str] = []
    head.at["POST /api/jobs/"] = [NO_AGENT, NO_AGENT, (503, "")]
    head.at["GET /api/v0/nodes"] = [(200, json.dumps(listed())), (200, json.dumps(listed({**NODE, "state": "DEAD"})))]
    assert submitted(head, tmp_path, said).startswith("out-")
    assert [head.asked.count(r) for r in ("POST /api/jobs/", "GET /api/v0/nodes")] == [4, 3]
    assert said == [
        f"{head.url} asks nobody for a token: whoever reaches it can run code there",
        f"waiting until {head.url} is ready: no node of it is alive",
        f"waiting until {head.url} is ready: {NO_AGENT[1]}",
    ]


def test_a_head_that_never_takes_it_is_told(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "READY_SECONDS", 0.0)
    head.at["POST /api/jobs/"] = [NO_AGENT]
    with pytest.raises(InputError, match=r"services of a Ray head are ready within 0 s\n.*not for 0 s: No available"):
        submitted(head, tmp_path, [])


def gone(head: Head) -> None:
    head.shutdown()
    head.socket.close()


@pytest.mark.parametrize(
    ("request_", "answer", "words"),
    [
        ("POST /api/jobs/", BUG, 'a Ray head does what it is asked\n.*HTTP 500: KeyError: "no such thing"'),
        ("POST /api/jobs/", (400, "ValueError: job exists"), "HTTP 400: ValueError: job exists"),
        ("GET /api/jobs/", BUG, "HTTP 500: KeyError"),
        ("GET /api/v0/nodes", (500, "trouble"), "a Ray head does what it is asked"),
        ("GET /api/v0/nodes", (200, json.dumps({"result": False, "msg": "no GCS", "data": {}})), "no GCS"),
        ("GET /api/version", (404, ""), "a Ray head answers at --address"),
        ("GET /api/version", (200, '{"ray_version": "1.9.0"}'), "a Ray that ours can talk to\n.*Ray version 1.9.0"),
        ("GET /api/jobs/", (200, "<html>a proxy</html>"), "a Ray head does what it is asked"),
        (
            "GET /api/jobs/",
            (200, '[{"kind": "of another version"}]'),
            "a Ray that ours can talk to\n.*ValidationError",
        ),
        ("GET /api/jobs/", (200, "7"), "a Ray that ours can talk to\n.*TypeError"),
        ("GET /api/version", (200, "[1]"), "a Ray head answers at --address\n.*something else answers"),
        ("GET /api/v0/nodes", (200, '{"result": true}'), "a Ray"),
        ("POST /api/jobs/", (403, "no"), "a cluster with token authentication is given its token"),
        ("GET /api/v0/nodes", (401, "no"), "a cluster with token authentication is given its token"),
    ],
)
def test_what_a_head_refuses_is_told_at_once(
    head: Head, tmp_path: Path, request_: str, answer: tuple[int, str], words: str
) -> None:
    head.at[request_] = [answer] * 9
    with pytest.raises(InputError, match=words):
        submitted(head, tmp_path, [])
    assert head.asked.count("POST /api/jobs/") <= 1


@pytest.mark.parametrize("ask", [Jobs.all, Jobs.nodes, lambda found: found.get("j")])
def test_a_head_that_goes_is_told(head: Head, ask: Callable[[Jobs], Any]) -> None:
    found = Jobs(head.url, open_cluster=True)
    gone(head)
    with pytest.raises(InputError, match="the head of a cluster answers as long as a run goes on"):
        ask(found)


def test_a_command_waits_and_its_output_stays_json(
    head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config(tmp_path / "out", tmp_path)))
    head.at["POST /api/jobs/"] = [NO_AGENT]
    with suppress(SystemExit):
        app(["submit", str(file), "--address", head.url, "--json", "--no-token"], standalone_mode=False)
    out, err = capsys.readouterr()
    assert json.loads(out)["room"]["now"]
    assert f"waiting until {head.url} is ready: No available agent" in err


@pytest.mark.parametrize("command", [["submit", "RUN"], ["status"], ["logs", "j"], ["stop", "j"], ["list"]])
def test_a_cluster_without_a_token_is_refused_through_a_tunnel_too(
    head: Head, tmp_path: Path, command: list[str]
) -> None:
    """The end of a tunnel is a loopback address, whoever else reaches the cluster at its other end."""
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config(tmp_path / "out", tmp_path)))
    typed = [str(file) if word == "RUN" else word for word in command]
    with pytest.raises(InputError, match="answers everybody; that it is reached by a loopback address") as caught:
        app([*typed, "--address", head.url], standalone_mode=False)
    assert "RAY_AUTH_MODE=token ray start --head" in caught.value.remedy
    assert head.asked == ["GET /api/version"]


def details(name: str, **about: Any) -> dict[str, Any]:
    return {"type": "SUBMISSION", "submission_id": name, "entrypoint": "x", "status": "RUNNING", "metadata": about}


def test_jobs_of_others_and_of_other_versions_take_no_list_down(head: Head) -> None:
    told = json.dumps({"out": "/runs/a", "mesh": "m", "ranks": 2, "steps": 9})
    odd = [details("b", longreel="{"), details("c", longreel="[]"), details("d", longreel='{"out": 1}'), details("e")]
    jobs_ = [
        details("a", longreel=told),
        *odd,
        {"type": "DRIVER", "job_id": "1", "status": "RUNNING", "entrypoint": ""},
    ]
    head.at["GET /api/jobs/"] = [(200, json.dumps(jobs_))] * 2
    (found,) = Jobs(head.url, open_cluster=True).all()
    assert (found.id, found.out, found.said) == ("a", "/runs/a", ""), "its log was removed meanwhile"


@pytest.mark.filterwarnings("ignore:ssl=None:DeprecationWarning")  # Ray says so to aiohttp
def test_a_log_that_cannot_be_followed_is_told(head: Head) -> None:
    """The head has the job, but no stream of what it prints: as behind a proxy that passes on no websockets."""
    head.at["GET /api/jobs/j"] = [(200, json.dumps(details("j")))] * 99
    with pytest.raises(InputError, match=r"its log cannot be followed: 404"):
        list(Jobs(head.url, open_cluster=True).follow("j"))
    head.at["GET /api/jobs/j"] = [(200, json.dumps(details("j"))), (404, "Job j does not exist")]
    head.at["GET /api/jobs/"] = [(200, "[]")] * 3
    with pytest.raises(InputError, match="a job is named by its id"):
        list(Jobs(head.url, open_cluster=True).follow("j"))


@pytest.mark.parametrize(("of_raylet", "head"), [(True, "10.0.0.9:6379"), (False, "auto")])
def test_a_job_goes_to_the_cluster_that_it_was_submitted_to(tmp_path: Path, of_raylet: bool, head: str) -> None:
    """Ray tells a job the head that was started last on the machine; the raylet above it knows its own."""
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$5 $6"\n')
    python.chmod(0o755)
    supervisor = f"import subprocess; subprocess.run({ENTRYPOINT!r}, shell=True)"
    arguments = [
        f"--python_worker_command={python} -u worker.py --gcs-address=10.0.0.9:6379",
        "--gcs-address=10.0.0.9:6379",
    ]
    raylet = ["sh", "-c", '"$0" -c "$1"; :', sys.executable, supervisor, *(arguments if of_raylet else [])]
    environment = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}", "RAY_ADDRESS": "10.0.0.1:6379"}
    done = subprocess.run(raylet, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.split() == ["--address", head]
