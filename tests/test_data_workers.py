"""A job that kills its process costs that job; every other result comes, in order."""

import os
import signal
import time

import pytest

from data.workers import Died, Workers


def work(job: int) -> int:
    if job < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01 * (job % 3))
    return job * job


def fail(job: int) -> int:
    raise ValueError(f"job {job}")


def test_in_this_process_and_in_others():
    for processes in (0, 2):
        with Workers(processes) as workers:
            assert list(workers.map(work, range(7))) == [j * j for j in range(7)]
            assert list(workers.map(work, [])) == []


def test_a_job_that_kills_its_process_is_reported_and_the_others_are_done():
    with Workers(2) as workers:
        assert list(workers.map(work, [1, -1, 2, 3, -2, 4])) == [1, Died(-1), 4, 9, Died(-2), 16]


def test_an_exception_comes_to_the_reader():
    with Workers(1) as workers, pytest.raises(ValueError, match="job 3"):
        list(workers.map(fail, [3]))


def test_the_reader_may_leave_while_jobs_run():
    before = time.monotonic()
    with Workers(2) as workers:
        results = workers.map(time.sleep, [0, 60, 60, 60, 60])
        assert next(results) is None
    assert time.monotonic() - before < 30


def test_a_worker_that_dies_between_two_jobs_is_replaced():
    with Workers(1) as workers:
        (pid,) = workers.map(process_id, [0])
        os.kill(pid, signal.SIGKILL)
        (other,) = workers.map(process_id, [0])
        assert other != pid


def process_id(_: int) -> int:
    return os.getpid()
