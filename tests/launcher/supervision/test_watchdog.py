"""The watchdog on histories that are made up, then the real thing: ranks that are stopped, slow or silent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from launcher.config.sections import RestartConfig
from launcher.core import stacks
from launcher.core.heartbeat import BOARD_BYTES, PHASES, Heartbeat, HeartbeatBoard, Phase, last_heartbeat
from launcher.supervision.rank_group import End, Seat, culprit, is_echo, settled
from launcher.supervision.rank_processes import Children
from launcher.supervision.watchdog import LONGEST_LOOK, SLOW_SECONDS, Hang, Watchdog
from tests.support.process_groups import server
from tests.support.runs import config

LOOP: tuple[Phase, ...] = ("data", "agree", "forward", "backward", "update")
Where = tuple[int, Phase] | None  # step and phase; None for silence


class History:
    """Feeds a watchdog: ranks that are somewhere for some seconds, looked at every second."""

    def __init__(self, **settings: float) -> None:
        self.watchdog, self.now = Watchdog(RestartConfig(**settings)), 1000.0
        self.turns: dict[int, int] = {}
        self.at: dict[int, Where] = {}

    def look(self, places: Mapping[int, Where], after: float = 1.0, running: tuple[int, ...] = ()) -> Hang | None:
        """One look, `after` seconds later."""
        self.now += after
        heartbeats: dict[int, Heartbeat | None] = {}
        for rank, place in places.items():
            if place is None:
                heartbeats[rank] = None
                continue
            self.turns[rank] = self.turns.get(rank, 0) + (place != self.at.get(rank))
            self.at[rank] = place
            step, phase = place
            heartbeats[rank] = Heartbeat(step, phase, 0.0, step * len(PHASES) + PHASES.index(phase))
        return self.watchdog.see(self.now, heartbeats, running)

    def hold(self, places: Mapping[int, Where], most: float = 2000.0, running: tuple[int, ...] = ()) -> Hang | None:
        """Everybody stays where they are, until somebody is named."""
        begin = self.now
        while self.now < begin + most:
            if (found := self.look(places, running=running)) is not None:
                return found
        return None

    def train(self, ranks: int, steps: int, seconds: float = 5.0, first: int = 1) -> None:
        """Steps in which nothing is wrong."""
        each = seconds / len(LOOP)
        looks = max(1, round(each))
        for step in range(first, first + steps):
            for phase in LOOP:
                for _ in range(looks):
                    assert self.look(dict.fromkeys(range(ranks), (step, phase)), each / looks) is None


def test_steps_that_go_on_are_no_hang() -> None:
    History().train(ranks=4, steps=200, seconds=7)


def test_a_silent_rank_is_named_after_ten_seconds() -> None:
    history = History()
    history.train(2, 5)
    begin = history.now
    found = history.hold({0: (6, "update"), 1: None})
    assert found is not None
    assert (found.rank, found.kind, found.step, found.phase) == (1, "silent", 5, "update")
    assert 9 <= history.now - begin <= 12
    assert found.silent == (1,)


def test_of_a_silent_machine_the_rank_that_was_last_is_named() -> None:
    history = History()
    history.train(4, 5)
    history.look({0: (6, "forward"), 1: (6, "forward"), 2: (6, "backward"), 3: (6, "forward")})
    found = history.hold({0: (6, "update"), 1: (6, "update"), 2: None, 3: None})
    assert found is not None
    assert (found.rank, found.silent) == (3, (2, 3))


def test_a_rank_that_is_busy_and_silent_has_the_whole_deadline() -> None:
    """Its process runs, but a library lets no other thread of it speak."""
    history = History()
    history.train(2, 5)
    assert history.hold({0: (6, "update"), 1: None}, most=18, running=(1,)) is None
    history.look({0: (6, "update"), 1: (6, "backward")})
    begin, found = history.now, history.hold({0: (6, "update"), 1: None}, running=(1,))
    assert found is not None
    assert (found.rank, found.phase) == (1, "backward")
    assert 48 <= history.now - begin <= 52  # ten times five seconds


def test_a_short_silence_is_none() -> None:
    history = History()
    history.train(2, 5)
    for step in range(6, 30):
        assert history.hold({0: (step, "update"), 1: None}, most=7) is None
        assert history.look({0: (step, "update"), 1: (step, "update")}) is None


def test_when_nobody_answers_it_is_the_line_for_a_while() -> None:
    history = History()
    history.train(3, 5)
    begin = history.now
    found = history.hold(dict.fromkeys(range(3)))
    assert found is not None
    assert (found.kind, found.silent) == ("silent", (0, 1, 2))
    assert 28 <= history.now - begin <= 33


def test_a_rank_alone_is_named_by_its_silence() -> None:
    history = History()
    history.train(1, 5)
    begin = history.now
    found = history.hold({0: None})
    assert found is not None
    assert (found.rank, found.kind) == (0, "silent")
    assert history.now - begin <= 12


def test_the_rank_behind_is_named_and_not_those_that_wait() -> None:
    history = History()
    history.train(3, 5)
    begin = history.now
    found = history.hold({0: (6, "update"), 1: (6, "forward"), 2: (6, "update")})
    assert found is not None
    assert (found.rank, found.kind, found.step, found.phase) == (1, "behind", 6, "forward")
    assert 48 <= history.now - begin <= 52  # ten times five seconds


def test_a_rank_behind_in_data_has_more_time_and_is_named() -> None:
    history = History()
    history.train(2, 5, seconds=1)
    begin = history.now
    found = history.hold({0: (6, "agree"), 1: (6, "data")})
    assert found is not None
    assert (found.rank, found.kind, found.phase) == (1, "behind", "data")
    assert 58 <= history.now - begin <= 62


def test_a_rank_one_step_behind_is_named_whatever_its_phase_is_called() -> None:
    history = History()
    history.train(2, 5, seconds=1)
    found = history.hold({0: (7, "agree"), 1: (6, "update")})
    assert found is not None
    assert (found.rank, found.step, found.phase) == (1, 6, "update")


def test_all_at_one_place() -> None:
    history = History()
    history.train(4, 5, seconds=1)
    begin = history.now
    found = history.hold(dict.fromkeys(range(4), (6, "update")))
    assert found is not None
    assert (found.rank, found.kind) == (0, "all")
    assert 18 <= history.now - begin <= 22


def test_the_deadline_follows_the_slowest_of_the_last_steps() -> None:
    history = History()
    history.train(2, 3, seconds=60)
    history.train(2, 19, seconds=5, first=4)
    assert 550 < history.watchdog.deadline(Heartbeat(23, "update", 0, 0)) < 700
    history.train(2, 5, seconds=5, first=23)
    assert 40 < history.watchdog.deadline(Heartbeat(28, "update", 0, 0)) < 60


def test_slow_start_first_step_save_and_end() -> None:
    for ranks in (1, 3):
        history = History()
        for place in ((0, "start"), (0, "load"), (1, "data"), (1, "forward"), (1, "update")):
            assert history.hold(dict.fromkeys(range(ranks), place), most=SLOW_SECONDS - 10) is None
        history.train(ranks, 5, seconds=1, first=2)
        for phase in ("save", "end"):
            assert history.hold(dict.fromkeys(range(ranks), (7, phase)), most=SLOW_SECONDS - 10) is None


def test_a_hang_in_start_is_found_in_the_end() -> None:
    history = History()
    found = history.hold({0: (0, "load"), 1: (0, "start")})
    assert found is not None
    assert (found.rank, found.kind, found.phase) == (1, "behind", "start")
    assert SLOW_SECONDS - 5 < found.seconds < SLOW_SECONDS + 5


def test_a_rank_that_never_spoke_is_the_one_behind() -> None:
    history = History()
    found = history.hold({0: (0, "load"), 1: None})
    assert found is not None
    assert (found.rank, found.kind, found.phase) == (1, "behind", "start")


def test_others_wait_for_one_that_saves() -> None:
    """The rank that is last tells the deadline, not those that wait for it."""
    history = History()
    history.train(2, 5, seconds=1)
    assert history.hold({0: (5, "save"), 1: (6, "agree")}, most=500) is None


def test_a_save_does_not_stretch_the_deadline() -> None:
    history = History()
    history.train(2, 5, seconds=1)
    history.hold(dict.fromkeys(range(2), (5, "save")), most=100)
    history.train(2, 3, seconds=1, first=6)
    assert history.watchdog.deadline(Heartbeat(9, "forward", 0, 0)) < 25


def test_a_paused_launcher_blames_nobody() -> None:
    """It slept for an hour: the ranks went on, or stood still with it."""
    history = History()
    history.train(2, 5)
    assert history.look({0: (6, "update"), 1: (6, "update")}, after=3600) is None
    assert history.look({0: (6, "update"), 1: None}, after=3600) is None
    assert history.look({0: (6, "update"), 1: (6, "update")}) is None


def test_after_a_pause_a_hang_is_still_found() -> None:
    history = History()
    history.train(2, 5)
    history.look({0: (6, "update"), 1: None}, after=3600)
    begin = history.now
    found = history.hold({0: (6, "update"), 1: None})
    assert found is not None
    assert found.rank == 1
    assert history.now - begin <= 10 - LONGEST_LOOK + 2


def test_a_rank_that_has_ended_is_not_silent() -> None:
    history = History()
    history.train(3, 5)
    for _ in range(300):
        assert history.look({0: (5, "end"), 2: (5, "end")}) is None  # rank 1 is done, and has no heartbeat any more


def test_settings_are_obeyed() -> None:
    history = History(heartbeat_timeout_seconds=3, hang_timeout_seconds=7)
    history.train(2, 5)
    begin = history.now
    assert history.hold({0: (6, "update"), 1: None}) is not None
    assert history.now - begin <= 5
    history = History(hang_timeout_seconds=7)
    history.train(2, 5)
    begin = history.now
    found = history.hold({0: (6, "data"), 1: (6, "agree")})
    assert found is not None
    assert history.now - begin <= 9
    assert Watchdog(RestartConfig(hang_timeout_seconds=900)).deadline(Heartbeat(0, "load", 0, 0)) == 900
    assert Watchdog(RestartConfig(hang_timeout_seconds=7)).deadline(Heartbeat(0, "load", 0, 0)) == SLOW_SECONDS


def test_micro_steps_move() -> None:
    """Forward and backward alternate within a step of minutes; that is no standing still."""
    history = History()
    history.train(2, 3, seconds=2)
    for turns in range(40):
        for _ in range(15):
            history.now += 1
            assert (
                history.watchdog.see(history.now, dict.fromkeys(range(2), Heartbeat(4, "forward", 0, 10**6 + turns)))
                is None
            )


def test_the_board_keeps_the_last_word() -> None:
    shared = bytearray(BOARD_BYTES)
    assert last_heartbeat(shared) == Heartbeat(0, "start", 0.0, 0)
    told: list[tuple[Phase, int]] = []
    heartbeat = HeartbeatBoard(lambda phase, step: told.append((phase, step)), shared)
    for phase in PHASES:
        heartbeat.enter(phase, 7)
        at, seen = last_heartbeat(shared), heartbeat.read()
        assert (at.step, at.phase, at.turns) == (seen.step, seen.phase, seen.turns) == (7, phase, len(told))
    assert [phase for phase, _ in told] == list(PHASES)


def test_own_stacks_name_threads_and_calls() -> None:
    done = threading.Event()

    def somewhere_to_wait() -> None:
        done.wait()

    thread = threading.Thread(target=somewhere_to_wait, name="a thread of the test")
    thread.start()
    text = stacks.own()
    done.set()
    thread.join()
    assert '"a thread of the test"' in text
    assert "somewhere_to_wait" in text
    main = stacks.main_thread(text)
    assert main[0].startswith("own (launcher/core/stacks.py:")
    assert main[1].startswith("test_own_stacks_name_threads_and_calls (")


def test_another_process_is_read_while_it_is_stopped() -> None:
    code = "import time\ndef a_nap():\n    print('up', flush=True)\n    time.sleep(100)\na_nap()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            assert stacks.runs(stacks.state_of(process.pid))
            process.send_signal(signal.SIGSTOP)
            deadline = time.monotonic() + 60
            while stacks.state_of(process.pid) != "T (stopped)":
                assert time.monotonic() < deadline, stacks.state_of(process.pid)
                time.sleep(0.01)
            assert not stacks.runs("T (stopped)")
            text = stacks.of_process(process.pid)
            if "not permitted" in text or "not installed" in text:
                assert "T (stopped)" in text  # /proc speaks instead
            else:
                assert stacks.main_thread(text)[0].startswith("a_nap")
        finally:
            process.kill()
    assert stacks.state_of(process.pid) == "gone"
    assert "is gone" in stacks.of_process(process.pid)


def test_the_kernel_speaks_where_py_spy_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = tmp_path / "py-spy"
    refused.write_text(
        "#!/bin/sh\necho 'Error: Permission Denied: Try running again with elevated permissions' >&2\nexit 1\n"
    )
    refused.chmod(0o755)
    monkeypatch.setattr(stacks, "find_spy", lambda: str(refused))
    text = stacks.of_process(os.getpid())
    assert "not permitted here" in text
    assert "CAP_SYS_PTRACE" in text
    assert "thread" in text
    monkeypatch.setattr(stacks, "find_spy", lambda: None)
    assert stacks.of_process(os.getpid()).startswith("py-spy is not installed\n")


def test_stacks_that_are_alike_are_told_once() -> None:
    wait = (
        'Thread 1: "MainThread"\n    all_reduce (torch/x.py:9)\n'
        "    run (launcher/training/loop.py:5)\n    main (a.py:1)"
    )
    main = (
        'Thread 1: "MainThread"\n    forward (models/diffusion/video_dit.py:3)\n    run (launcher/training/loop.py:5)'
    )
    other = f'Thread 2: "loader"\n    get (queue.py:1)\n{main}'
    found = stacks.alike({0: wait, 1: other, 2: wait}, 8)
    assert list(found.values()) == [[0, 2], [1]]
    assert next(iter(found)) == "all_reduce (torch/x.py:9)\nrun (launcher/training/loop.py:5)"
    assert stacks.odd_one_out({0: wait, 1: other, 2: wait.replace(":9)", ":10)")}) == 1
    assert stacks.odd_one_out({0: wait, 1: other}) is None  # of two nobody knows which is odd
    assert stacks.odd_one_out({0: wait, 1: wait, 2: wait}) is None


GONE = (
    "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"
)


def test_the_culprit_is_who_came_first_and_not_its_echo() -> None:
    echo = End(0, "failed", message=f"Traceback ...\n{GONE}", time=1.0)
    store = End(4, "failed", message="botocore.exceptions.X: Connection reset by peer", time=3.0)
    own = End(2, "failed", message="Traceback ...\nKeyError: 'x'", time=2.0)
    later = End(1, "failed", message="Traceback ...\nKeyError: 'y'", time=2.5)
    died = End(3, "died", message="killed by SIGABRT", time=4.0)
    assert is_echo(echo)
    assert not is_echo(store)  # a store's line may be reset too: it is no peer
    assert culprit([echo, later, died, own]) is own
    assert culprit([echo, died]) is died
    assert culprit([echo, End(5, "refused", time=9.0), own]).rank == 5  # type: ignore[union-attr]
    assert culprit([End(0, "done"), End(1, "stopped")]) is None


def test_how_long_to_wait_for_the_others_words() -> None:
    echo, own = End(0, "failed", message=GONE), End(1, "died")
    assert not settled([], 2, 0.0)
    assert not settled([End(0, "done")], 2, -float("inf"))
    assert settled([End(0, "done"), End(1, "done")], 2, 0.0)
    assert not settled([echo], 2, 4.0)
    assert settled([echo], 2, 5.0)
    assert not settled([own], 2, 0.1)
    assert settled([own], 2, 0.4)
    assert settled([echo, own], 3, 0.4)


def wait_for(children: Children, condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        children.hear(0.05)


def answers(children: Children) -> bool:
    """Whether rank 1 speaks."""
    children.ask()
    return children.take_heartbeats().get(1) is not None


def test_a_stopped_child_keeps_nobody_waiting(tmp_path: Path, dataset: Path) -> None:
    """A rank that waits for a peer that never comes: it answers, is stopped, answers no more, and is killed at once."""
    children = Children(server(), os.getpid())
    pids = children.start(config(tmp_path / "out", dataset), [Seat(1, 2, 0, 1, "127.0.0.1:9")])
    try:
        wait_for(children, lambda: answers(children))
        assert "loop.py" in children.stacks([1], 5)[1] or "rendezvous.py" in children.stacks([1], 5)[1]
        os.kill(pids[1], signal.SIGSTOP)
        wait_for(children, lambda: children.state(1) == "T (stopped)")
        children.hear(0.2)
        children.take_heartbeats()  # what it said before
        begin = time.monotonic()
        for _ in range(1000):
            children.ask()
            children.hear(0.0)
            assert children.take_heartbeats() == {1: None}
        children.stop()
        assert time.monotonic() - begin < 60, "a tenth of a second for each would be more"
        assert children.owe([1])
        begin = time.monotonic()
    finally:
        children.kill()
    assert stacks.state_of(pids[1]) in ("gone", "Z (dead)")


def test_how_a_child_died_is_known(tmp_path: Path, dataset: Path) -> None:
    """By which signal, with the stacks of a crash, and where its loop was."""
    for number, said in (
        (signal.SIGKILL, "killed by SIGKILL"),
        (signal.SIGSEGV, "Fatal Python error: Segmentation fault"),
    ):
        children = Children(server(), os.getpid())
        pids = children.start(config(tmp_path / "out", dataset), [Seat(1, 2, 0, 1, "127.0.0.1:9")])
        try:
            wait_for(children, lambda: answers(children))  # noqa: B023
            os.kill(pids[1], number)
            ends: list[End] = []
            wait_for(children, lambda: bool(ends.extend(children.take_ends()) or ends))  # noqa: B023
        finally:
            children.kill()
        assert (ends[0].how, ends[0].sign, ends[0].phase) == ("died", number.name, "start")
        assert said in ends[0].message
        assert not ends[0].for_memory
    assert "File " in ends[0].message  # the stack of the crash, or what faulthandler could tell of it


def test_a_lease_ends_a_rank_that_is_cut_off(tmp_path: Path, dataset: Path) -> None:
    children = Children(multiprocessing.get_context("forkserver"), os.getpid())
    server()
    begin = time.monotonic()
    children.start(config(tmp_path / "out", dataset), [Seat(1, 2, 0, 1, "127.0.0.1:9")], lease=3.0)
    try:
        ends: list[End] = []
        wait_for(children, lambda: bool(ends.extend(children.take_ends()) or ends))
    finally:
        children.kill()
    assert ends[0].sign == "exit code 1"
    assert time.monotonic() - begin >= 3
