"""Where groups are cut, how losses add up, and how long a silent server is waited for."""

from collections import Counter

import pytest

from data.captions.captions import Caption
from data.dataset.outcome import Rejection, Tally
from data.prepare.convert import Todo
from data.prepare.shard_writer import UNKNOWN_BYTES, converted, into_groups
from data.remote.host_backoff import Hosts
from data.sources.files import NO_ANSWER, Place, SourceFile
from data.workers.prefetch import ahead
from data.workers.processes import Workers


def todo(number: int, size: int | None = 10, where: str = "/in") -> Todo:
    place = Place(f"{where}/{number}.mp4", ".mp4", size, None, f"{number:032x}")
    return Todo(number, SourceFile(f"{number}.mp4", place, Caption("words")), place.version, "")


def test_a_group_is_full_by_bytes_or_by_files_and_later_files_do_not_matter():
    items = [todo(n) for n in range(10)]
    sizes = [len(group) for group in into_groups(items, 25, 99)]
    assert sizes == [3, 3, 3, 1]
    assert [len(group) for group in into_groups(items, 1000, 4)] == [4, 4, 2]
    for more in range(10):
        assert (
            list(into_groups(items[: more + 1], 25, 99))[: more // 3] == list(into_groups(items, 25, 99))[: more // 3]
        )
    unknown = [todo(n, None) for n in range(4)]
    assert [len(group) for group in into_groups(unknown, 2 * UNKNOWN_BYTES, 99)] == [2, 2]


def test_a_server_that_is_silent_is_not_waited_for():
    tried = Counter()

    def work(item: Todo) -> Rejection:
        tried[item.tries] += 1
        alive = 500 <= item.number < 502
        return Rejection(item.file.name, "fetch", "other" if alive else NO_ANSWER, "")

    items = [todo(n, where="http://dead") for n in range(500)]
    items += [todo(n, where="http://alive") for n in range(500, 502)] + [todo(502, where="http://dead")]
    with Workers(0) as pool:
        numbers = []
        for group, results in converted(into_groups(items, 1 << 30, 100), work, pool):
            numbers += [(item.number, result.file) for item, result in zip(group, results, strict=True)]
    assert numbers == [(n, f"{n}.mp4") for n in range(503)]
    assert tried == {3: 5, 1: 5 + 4, 0: 489}


def test_a_server_that_answers_again_is_trusted_again():
    hosts = Hosts()
    for answered, tries in [*[(False, 3)] * 3, *[(False, 1)] * 5, *[(False, 0)] * 99, (True, 1), (True, 3)]:
        assert hosts.tries("http://h/a", 3) == tries
        if tries:
            hosts.note("http://h/a", answered)
    assert hosts.tries("http://other/a", 3) == 3


def test_losses_add_up():
    tally = Tally(readable=2, shots=9, kept=4)
    tally.reject(Rejection("a", "fetch", "no answer", ""))
    tally.reject(Rejection("b", "cut", "min_frames", "", clips=3))
    tally.reject(Rejection("b", "filter", "min_motion", "", "0:9", 1))
    tally.reject(Rejection("c", "duplicate", "identical", "", "0:9", 1))
    assert Tally.from_json(tally.as_json()) == tally
    stages, dropped = tally.funnel({"min_frames": "fewer than 8 frames", "min_motion": "min_motion 1"})
    assert stages == [
        ("files found", 3),
        ("readable", 2),
        ("shots", 9),
        ("after min_frames", 6),
        ("after min_motion", 5),
        ("kept", 4),
    ]
    assert dropped == {
        "readable": {"no answer": 1},
        "after min_frames": {"fewer than 8 frames": 3},
        "after min_motion": {"min_motion 1": 1},
        "kept": {"identical": 1},
    }
    twice = Tally()
    twice.add(tally)
    twice.add(tally)
    assert (twice.found, twice.clips.total(), twice.kept) == (6, 10, 8)


def test_ahead_keeps_the_order_and_its_bounds():
    taken = []

    def things():
        for n in range(50):
            taken.append(n)
            yield n

    results = ahead(lambda n: n * n, things(), threads=3, most=7)
    assert next(results) == 0
    assert len(taken) == 7
    assert list(results) == [n * n for n in range(1, 50)]
    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda n: 1 // n, [1, 0]))
