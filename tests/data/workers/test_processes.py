"""A job that kills its process, hangs or eats memory costs that job; every other result comes, in order."""

import os
import signal
import threading
import time
from functools import partial

import pytest

from data.workers.processes import AHEAD_JOBS, Died, Limits, TimedOut, TooLarge, Workers, fair_memory
from tests.support.jobs import EAT, HANG, fail, process_id, wait_for_many, work


def test_in_this_process_and_in_others():
    for processes in (0, 2):
        with Workers(processes) as workers:
            assert list(workers.map(work, range(7))) == [j * j for j in range(7)]
            assert list(workers.map(work, [])) == []


def test_a_job_that_kills_its_process_is_reported_and_the_others_are_done():
    with Workers(2) as workers:
        assert list(workers.map(work, [1, -1, 2, 3, -2, 4])) == [1, Died(-1), 4, 9, Died(-2), 16]


def test_jobs_over_a_limit_are_killed_and_the_others_are_done():
    with Workers(1, Limits(seconds=4)) as workers:
        one, lost, two = workers.map(work, [1, HANG, 2])
    assert (one, lost, two) == (1, TimedOut(HANG, 4), 4)
    assert lost.reason == "not done within 4 s: raise the timeout"
    with Workers(1, Limits(seconds=300, memory=700 << 20)) as workers:
        one, lost, two = workers.map(work, [1, EAT, 2])
    assert (one, lost, two) == (1, TooLarge(EAT, 700 << 20), 4)
    assert lost.reason == "took more than 0.684 GiB of memory: raise the limit"


def test_a_slow_job_does_not_keep_the_other_workers_waiting(tmp_path):
    """They go on ahead of the reader, a bounded number of jobs."""
    jobs = [(tmp_path / str(n), n) for n in range(200)]
    with Workers(2) as workers:
        results = workers.map(partial(wait_for_many, most=2 * AHEAD_JOBS), jobs)
        assert next(results) >= 20
        assert list(results) == list(range(1, 200))
    assert not (tmp_path / "too many").exists()


def test_an_exception_comes_to_the_reader():
    with Workers(1) as workers, pytest.raises(ValueError, match="job 3"):
        list(workers.map(fail, [3]))


def test_the_reader_may_leave_while_jobs_run():
    before = time.monotonic()
    with Workers(2) as workers:
        results = workers.map(time.sleep, [0, 600, 600, 600, 600])
        assert next(results) is None
    assert time.monotonic() - before < 600
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("workers")]


def test_a_worker_that_dies_between_two_jobs_is_replaced():
    with Workers(1) as workers:
        (pid,) = workers.map(process_id, [0])
        os.kill(pid, signal.SIGKILL)
        (other,) = workers.map(process_id, [0])
        assert other != pid


def test_memory_is_shared_out():
    assert fair_memory(1) >= fair_memory(2) >= fair_memory(10_000) == 1 << 30
