"""Runs as jobs of a Ray cluster: submit, list, look, follow, stop. From any machine that reaches the head's port 8265.

    submit --our code and the checked run--> head: `longreel train run.yaml --address auto`, as a driver of the cluster
    logs   <--what that prints: rank 0's lines, everybody's errors--
    stop   --SIGTERM--> it saves a last checkpoint; the same submit goes on from there

The code is shipped from a folder of its own, which holds our packages and the run: Ray would leave out what .gitignore
names, and pack all that lies beside it. The driver runs with the Python of the `ray` command that started its node, as
the ranks do: it is asked of the node, because PATH need not have it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import re
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from launcher.cluster.capacity import Capacity, Node, capacity_for, refuse_too_large
from launcher.cluster.connection import HEAD_SECONDS, head_gone, no_token, use_token
from launcher.cluster.head_probe import KNOCK_SECONDS, answers, is_loopback, knock, url_of
from launcher.cluster.job import Job, is_ours, job_of, metadata_of, quiet
from launcher.cluster.job_package import ENTRYPOINT, stage
from launcher.cluster.ray_token import ASK_FOR_IT, OPEN_CLUSTER, close_token
from launcher.cluster.templates import STOP_SECONDS
from launcher.core.terminal import visible
from parallel import shell
from parallel.errors import InputError

if TYPE_CHECKING:
    from launcher.config.run_config import RunConfig  # it loads torch, for which nobody who asks for a list should wait

AnswerT = TypeVar("AnswerT")
ANSWER_SECONDS = 20.0
READY_SECONDS = 60.0  # for the services of a head that was just started: they come up one after the other
RETRY_SECONDS = 1.0
MOST_TAILS = 5  # tries in a row to follow a log, of which none brings a line
ENDED = ("done", "stopped", "refused", "failed")
NOT_YET = re.compile("No available agent|Cannot connect to host|TimeoutError")  # nothing was done then
REFUSED = re.compile(r"Request failed with status code (\d+): (.*)\.", re.DOTALL)
OTHER_VERSION = re.compile("Version check returned|Ray version .* is running on the cluster")
LOOPBACK = "; that it is reached by a loopback address, as through ssh, says nothing of who else reaches it"
QUIET_LOGGERS = (  # they tell of uploads and sockets
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)


@dataclass(frozen=True)
class Submitted:
    """A run that was handed over."""

    id: str
    capacity: Capacity


class Jobs:
    """The jobs of one cluster.

    Args:
        address: http://HOST:8265 of its head.
        open_cluster: whether a cluster that asks nobody for a token will do.
        say: is given a line for a person when there is something to wait for.

    Raises:
        InputError: nobody answers, it is no Ray head, our token is refused, or it asks for none.
    """

    def __init__(self, address: str, open_cluster: bool = False, say: Callable[[str], None] | None = None) -> None:
        self.url, self.say = url_of(address), say or _to_stderr
        if not knock(self.url):
            if not open_cluster:
                raise InputError(
                    "a cluster asks for a token: else whoever reaches a port of it runs code there",
                    f"{self.url} answers everybody{LOOPBACK if is_loopback(self.url) else ''}",
                    f"{ASK_FOR_IT}\n    or, on a network that nobody else is on: the same command with --no-token",
                )
            self.say(f"{self.url} asks nobody for a token: {OPEN_CLUSTER}")
        if told := close_token(os.environ):
            self.say(told)
        os.environ.update(use_token(os.environ))  # before Ray is imported, which reads it once
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            os.environ.pop(name, None)  # they would win against the address that was given
        with self._told():
            from ray.job_submission import JobSubmissionClient

            for name in QUIET_LOGGERS:
                logging.getLogger(name).setLevel(logging.WARNING)
            self.client: Any = JobSubmissionClient(self.url)
            self._send, self.client._do_request = self.client._do_request, self._request
            self.client.list_jobs()

    def submit(self, config: RunConfig) -> Submitted:
        """Hand a run over.

        Args:
            config: with absolute paths, on storage that all nodes see.

        Raises:
            InputError: a job of that run folder goes on, the mesh fits on no such cluster, or the head takes no jobs
                within READY_SECONDS.
        """
        mesh = config.mesh.mesh()
        others = [job for job in self.all() if job.state not in ENDED]
        for job in others:
            if job.out == str(config.out):
                remedy = f"longreel stop {shell.quote(job.id)} --address {shell.quote(self.url)}, or give out=FOLDER"
                raise InputError("one job at a time writes to a run folder", f"{job.out}: job {job.id}", remedy)
        nodes = self._once_ready(self.nodes, lambda found: "" if found else "no node of it is alive")
        capacity = capacity_for(mesh, nodes, sum(job.ranks for job in others))
        refuse_too_large(mesh, capacity)
        name = f"{re.sub('[^A-Za-z0-9_-]', '-', config.out.name)}-{secrets.token_hex(3)}"
        with tempfile.TemporaryDirectory(prefix="longreel-") as folder, self._told():
            stage(config, Path(folder))
            environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
            self.client.submit_job(
                entrypoint=ENTRYPOINT,
                submission_id=name,
                runtime_env={"working_dir": folder, "env_vars": environment},
                metadata=metadata_of(config),
            )
        return Submitted(name, capacity)

    def all(self, whole: bool = False) -> list[Job]:
        """Our jobs, the newest first, with the steps of those that run; `whole`: of all, for which each log is read."""
        with self._told():
            found = [i for i in self.client.list_jobs() if is_ours(i)]
            found.sort(key=lambda i: i.start_time or 0, reverse=True)
            logs = [self._log(i.submission_id) if whole or not i.end_time else "" for i in found]
            return [job_of(info, log) for info, log in zip(found, logs, strict=True)]

    def get(self, name: str) -> Job:
        """One job, with its last line.

        Raises:
            InputError: there is none of that name.
        """
        with self._told():
            info = self._info(name)
            return job_of(info, self.client.get_job_logs(name))

    def logs(self, name: str) -> str:
        """All that it has printed so far."""
        with self._told():
            self._info(name)
            return "".join(quiet(self.client.get_job_logs(name).splitlines(keepends=True)))

    def follow(self, name: str) -> Iterator[str]:
        """What it has printed and prints, line by line, until it ends.

        Raises:
            InputError: no such job, or the head has been gone for HEAD_SECONDS.
        """
        with self._told():
            self._info(name)
        rest = ""
        for chunk in self._chunks(name):
            *lines, rest = (rest + chunk).split("\n")
            yield from quiet(lines)
        if rest:
            yield rest

    def stop(self, name: str) -> Job:
        """Ask for a last checkpoint and an end; does not wait for it.

        Raises:
            InputError: no such job.
        """
        with self._told():
            info = self._info(name)
            if not info.status.is_terminal():
                self.client.stop_job(name)
        return self.get(name)

    def wait(self, name: str, seconds: float) -> Job:
        """The job once it has ended, or after so many seconds."""
        deadline = time.monotonic() + seconds
        while (job := self.get(name)).state not in ENDED and time.monotonic() < deadline:
            time.sleep(0.5)
        return job

    def nodes(self) -> list[Node]:
        """Nodes that are alive, with what is placed on them."""
        from ray.util.state import list_nodes, list_placement_groups

        asking = {"address": self.url, "detail": True, "timeout": int(ANSWER_SECONDS), "limit": 10_000}
        with self._told():
            alive = {n.node_id: n for n in list_nodes(**asking) if n.state == "ALIVE"}
            placed: dict[str, dict[str, float]] = {node: {} for node in alive}
            for group in list_placement_groups(**asking):
                for bundle in group.bundles or [] if group.state == "CREATED" else []:
                    held = placed.get(bundle["node_id"], {})
                    for kind, amount in bundle["unit_resources"].items():
                        held[kind] = held.get(kind, 0) + amount
        return [Node(n.resources_total, placed[i]) for i, n in alive.items()]

    def _request(self, method: str, endpoint: str, **more: Any) -> Any:
        """A request of Ray's client, which itself waits for an answer for ever, and not at all for a service."""

        def ask() -> Any:
            return self._send(method, endpoint, timeout=(KNOCK_SECONDS, ANSWER_SECONDS), **more)

        return self._once_ready(ask, _not_yet)

    def _once_ready(self, ask: Callable[[], AnswerT], lacks: Callable[[AnswerT], str]) -> AnswerT:
        """What a head answers as soon as `lacks` names nothing that is not there yet."""
        began, told = time.monotonic(), False
        while missing := lacks(answer := ask()):
            if (waited := time.monotonic() - began) >= READY_SECONDS:
                raise InputError(
                    f"the services of a Ray head are ready within {READY_SECONDS:g} s",
                    f"{self.url}: not for {waited:.0f} s: {missing}",
                    "on the head: ray status, and /tmp/ray/session_latest/logs/dashboard* (does another Ray there hold "
                    "port 52365? ray start --dashboard-agent-listen-port=52366); then the same again",
                )
            if not told:
                self.say(f"waiting until {self.url} is ready: {missing}")
            told = True
            time.sleep(RETRY_SECONDS)
        return answer

    def _info(self, name: str) -> Any:
        try:
            return self.client.get_job_info(name)
        except RuntimeError as error:
            if "does not exist" not in str(error):
                raise
            known = [i.submission_id for i in self.client.list_jobs() if i.submission_id]
            near = get_close_matches(name, known, n=1, cutoff=0.0)
            remedy = f"longreel list --address {shell.quote(self.url)}" + (
                f"; the nearest is {near[0]}" if near else ""
            )
            raise InputError("a job is named by its id", f"{name}: {self.url} knows none", remedy) from None

    def _log(self, name: str) -> str:
        """What a job printed; nothing if it was removed meanwhile."""
        try:
            return str(self.client.get_job_logs(name))
        except RuntimeError as error:
            found = REFUSED.fullmatch(str(error))
            if found is None or found[1] != "404":
                raise
            return ""

    def _chunks(self, name: str) -> Iterator[str]:
        """Pieces of the log as they come, knocking at the head while none come."""
        pieces, passed_on, skip, heard, broken = self._tail(name), 0, 0, time.monotonic(), False
        tries = 0
        while True:
            try:
                piece = pieces.get(timeout=KNOCK_SECONDS)
            except queue.Empty:
                piece = ""
            if piece is None:
                return
            if isinstance(piece, str) and piece:
                fresh, skip = piece[skip:], max(0, skip - len(piece))
                passed_on, heard, tries = passed_on + len(fresh), time.monotonic(), 0
                yield fresh
                continue
            broken = broken or isinstance(piece, Exception)
            if answers(self.url):
                heard = time.monotonic()
                if broken:  # only the connection was: from the beginning again, without what was passed on
                    with self._told():
                        self._info(name)  # or the job is gone
                    if (tries := tries + 1) > MOST_TAILS:
                        raise self._refused(f"its log cannot be followed: {_last_line(str(piece))}")
                    time.sleep(RETRY_SECONDS)
                    pieces, skip, broken = self._tail(name), passed_on, False
            elif time.monotonic() - heard > HEAD_SECONDS - KNOCK_SECONDS:
                raise head_gone(self.url, time.monotonic() - heard)

    def _tail(self, name: str) -> queue.Queue[str | Exception | None]:
        """Pieces of the log as a thread hears them; None after the last, an exception if it can hear no more."""
        pieces: queue.Queue[str | Exception | None] = queue.Queue()

        async def listen() -> None:
            async for piece in self.client.tail_job_logs(name):
                pieces.put(piece)

        def run() -> None:
            try:
                asyncio.run(listen())
                pieces.put(None)
            except Exception as error:  # whatever it is, the thread that prints must hear of it
                pieces.put(error)

        threading.Thread(target=run, name="job-log", daemon=True).start()
        return pieces

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turns what Ray's client raises into words for a person."""
        from ray.exceptions import AuthenticationError
        from ray.util.state.exception import RayStateApiException, ServerUnavailable
        from requests import ConnectionError as NoConnection
        from requests import RequestException, Timeout

        try:
            yield
        except InputError:
            raise
        except AuthenticationError:
            raise no_token(self.url) from None
        except (NoConnection, Timeout, ConnectionError, ServerUnavailable):
            raise head_gone(self.url, ANSWER_SECONDS) from None
        except (RequestException, RayStateApiException) as error:
            raise self._refused(_last_line(str(error))) from None
        except RuntimeError as error:
            if found := REFUSED.fullmatch(str(error)):
                raise self._refused(f"HTTP {found[1]}: {_last_line(found[2])}") from None
            if not OTHER_VERSION.search(str(error)):
                raise self._refused(_last_line(str(error)) or type(error).__name__) from None
            raise self._other_version(_last_line(str(error))) from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # an answer in other words than ours
            raise self._other_version(f"{type(error).__name__}: {_last_line(str(error))}") from None

    def _other_version(self, said: str) -> InputError:
        remedy = f"install the Ray of the cluster here: longreel doctor shows ours, {self.url}/api/version its own"
        return InputError("a cluster runs a Ray that ours can talk to", f"{self.url}: {said}", remedy)

    def _refused(self, said: str) -> InputError:
        rule, remedy = (
            "a Ray head does what it is asked",
            "on the head: /tmp/ray/session_latest/logs/dashboard* say why",
        )
        return InputError(rule, f"{self.url}: {said}", remedy)


def _not_yet(answer: Any) -> str:
    """What a head says that cannot do yet what it was asked; empty if it could, or never will."""
    if answer.status_code == 503 or (answer.status_code == 500 and NOT_YET.search(answer.text)):
        return _last_line(answer.text) or f"HTTP {answer.status_code}"
    return ""


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1].strip()[:300]


def _to_stderr(line: str) -> None:
    print(visible(line), file=sys.stderr, flush=True)
