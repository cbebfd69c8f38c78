"""Workers on a Ray cluster give what workers here give, and a lost actor costs its jobs a second try."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from data.prepare.pipeline import PrepareOptions, prepare
from data.synthetic.shapes import synth
from data.workers.processes import Died, Limits, TimedOut
from data.workers.ray_pool import RayWorkers
from launcher.cluster.connection import connected
from tests.data.prepare.test_pipeline import tree
from tests.support.jobs import HANG, fail, kill_parent, process_id, work

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with connected(None, 2) as found:
        yield found


def test_results_in_order_and_jobs_that_do_harm(ray):
    with RayWorkers(ray, None, Limits(seconds=4)) as workers:
        jobs = [*range(20), -1, HANG, *range(20)]
        results = list(workers.map(work, jobs))
        assert results == [*(j * j for j in range(20)), Died(-1), TimedOut(HANG, 4), *(j * j for j in range(20))]
        with pytest.raises(ValueError, match="job 3"):
            list(workers.map(fail, [3]))
        assert len(set(workers.map(process_id, range(40)))) == 2


def test_a_lost_actor_is_replaced_and_its_jobs_are_done_elsewhere(ray):
    with RayWorkers(ray, 2, Limits(seconds=300)) as workers:
        results = list(workers.map(kill_parent, [1, 2, -3, *range(4, 30)]))
        assert results == [1, 4, Died(-3), *(j * j for j in range(4, 30))]
        assert list(workers.map(kill_parent, range(10))) == [j * j for j in range(10)]


def test_the_reader_may_leave(ray):
    began = time.monotonic()
    with RayWorkers(ray, 2, Limits()) as workers:
        assert next(workers.map(time.sleep, [0, 600, 600, 600])) is None
    assert time.monotonic() - began < 600


def test_the_same_shards_byte_for_byte(ray, tmp_path):
    synth(tmp_path / "in", 12, seed=0)
    (tmp_path / "in" / "broken.mp4").write_bytes(b"broken")
    options = PrepareOptions(shard_files=4, allow_missing_captions=True, workers=0)
    here = prepare(tmp_path / "in", tmp_path / "here", options)
    there = prepare(
        tmp_path / "in", tmp_path / "there", options, make_pool=lambda workers, limits: RayWorkers(ray, None, limits)
    )
    assert tree(tmp_path / "here") == tree(tmp_path / "there")
    assert here.rejected == there.rejected
