"""Every epoch holds every sample once, packs fit, and the sequence does not depend on where one stops or starts."""

from collections import Counter
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.planning.data_plan import Cursor, DataPlan, window_for
from data.planning.mix import Mix, mix_of
from data.planning.packing import arrange, assign, best_fit_decreasing
from data.planning.permutation import permute
from parallel.errors import InputError
from tests.support.counting import calls, peak_bytes

PACK = 64
lengths_of = st.lists(st.integers(1, PACK), min_size=1, max_size=120).map(lambda values: np.array(values, np.int64))
windows, seeds, steps = st.integers(1, 50), st.integers(0, 2**63), st.integers(1, 7)
examples = settings(max_examples=50)


def plan_of(lengths, seed=0, window=50, step=1, mix=None, capacity=PACK):
    return DataPlan(lengths, lengths.astype(float) ** 2, mix or Mix((len(lengths),)), capacity, step, seed, window)


def epoch_of(plan, epoch=0):
    """The packs of one epoch, by windows whose steps all begin in them."""
    return [b for at in range(plan.windows) for b in _bins(plan.window_at(epoch, at, 0))]


def _bins(window):
    return window.bins(0, len(window))


@examples
@given(lengths_of, seeds, windows, steps)
def test_each_epoch_holds_each_sample_once_in_packs_that_fit(lengths, seed, window, step):
    plan = plan_of(lengths, seed, window, step)
    for number in range(2):
        bins = epoch_of(plan, number)
        assert sorted(s for b in bins for s in b.samples) == list(range(len(lengths)))
        assert all(set(b.epochs) == {number} for b in bins)
        assert max(sum(int(lengths[s]) for s in b.samples) for b in bins) <= PACK


@examples
@given(lengths_of, seeds, windows, steps)
def test_walking_in_steps_shows_each_epoch_once(lengths, seed, window, step):
    plan, cursor, seen = plan_of(lengths, seed, window, step), Cursor(), Counter()
    while cursor.epoch < 2:
        bins, cursor = plan.packs(cursor, step)
        seen.update((s, e) for b in bins for s, e in zip(b.samples, b.epochs, strict=True))
    assert {e: sum(1 for s, of in seen if of == e) for e in (0, 1)} == {0: len(lengths), 1: len(lengths)}
    assert set(seen.values()) == {1}


@examples
@given(lengths_of, seeds, windows, steps, st.lists(st.integers(0, 12), min_size=1, max_size=8))
def test_any_partition_is_the_same_sequence(lengths, seed, window, step, counts):
    plan = plan_of(lengths, seed, window, step)
    whole, end = plan.packs(Cursor(), sum(counts))
    cursor, parts = Cursor(), []
    for count in counts:
        part, cursor = plan.packs(Cursor.from_json(cursor.to_json()), count)
        assert len(part) == count
        parts += part
    assert (parts, cursor) == (whole, end)
    assert len(cursor.to_json()) < 100


def test_the_sequence_never_changes():
    """A checkpoint of today must resume with the libraries of tomorrow."""
    assert [permute(np.arange(8), 8, key).tolist() for key in (1, 2**64 - 1)] == PINNED
    bins, _ = plan_of(np.arange(1, 13), seed=5, window=8, step=2).packs(Cursor(), 4)
    assert [b.samples for b in bins] == PINNED_BINS


PINNED = [[3, 0, 1, 2, 7, 4, 6, 5], [2, 4, 7, 0, 1, 3, 5, 6]]
PINNED_BINS = [(11, 8, 7, 6, 4, 2, 1, 0), (10, 9, 5, 3), (9, 8, 7, 6, 4, 3, 2, 1), (11, 10, 5, 0)]


@given(st.integers(1, 5000), seeds)
@examples
def test_a_permutation_is_one(n, key):
    assert sorted(permute(np.arange(n), n, key).tolist()) == list(range(n))


def test_permutations_differ_and_have_no_pattern():
    orders = {tuple(permute(np.arange(50), 50, 2**63 + low)) for low in range(20)}
    assert len(orders) == 20
    places = np.stack([permute(np.arange(16), 16, key) for key in range(4000)])
    counts = np.stack([np.bincount(places[:, at], minlength=16) for at in range(16)])
    chi2 = ((counts - 250) ** 2 / 250).sum()  # 225 degrees of freedom: 225 +- 21
    assert 130 < chi2 < 330, "each item comes to each place about equally often"
    neighbours = np.bincount(((places[:, 1] - places[:, 0]) % 16), minlength=16)[1:]
    assert neighbours.max() < 1.35 * neighbours.min()


def test_one_key_for_each_position():
    keys = np.array([3, 9, 3], np.uint64)
    found = permute(np.array([4, 4, 5]), 10, keys)
    assert found.tolist() == [int(permute(np.array([p]), 10, int(k))[0]) for p, k in zip([4, 4, 5], keys, strict=True)]


def test_a_drawing_of_best_fit_decreasing():
    #  capacity 10      9 8 5 4 3 1
    #  [9 1] [8 ] [5 4 ] [3 ]   and not [8 1]: the fullest bin with room takes it
    items, starts = best_fit_decreasing(np.array([5, 8, 1, 9, 3, 4]), 10)
    assert [items[a:b].tolist() for a, b in pairwise(starts)] == [[3, 2], [1], [0, 5], [4]]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=200), st.integers(40, 400))
@examples
def test_runs_place_as_one_by_one(values, capacity):
    """The same bins as best fit decreasing without runs, whatever the ties."""
    lengths = np.array(values)
    items, starts = best_fit_decreasing(lengths, capacity)
    free: list[int] = []
    for length in sorted(values, reverse=True):
        room = min((f for f in free if f >= length), default=None)
        if room is None:
            free.append(capacity - length)
        else:
            free[free.index(room)] -= length
    sums = np.add.reduceat(lengths[items], starts[:-1])
    assert sorted(capacity - sums) == sorted(free)
    assert sorted(items.tolist()) == list(range(len(values)))


@given(st.lists(st.integers(1, 9), max_size=60), st.integers(0, 8), st.integers(1, 8), seeds)
@examples
def test_steps_are_of_like_cost(costs, head, step, key):
    order = arrange(np.array(costs, float), head, step, key)
    assert sorted(order.tolist()) == list(range(len(costs)))
    head = min(head, len(costs))
    groups = [sorted(costs[i] for i in order[a : a + step]) for a in range(head, len(costs) - step + 1, step)]
    middle = (len(costs) - head) % step + head
    by_cost = sorted(groups)
    overlaps = sum(a[-1] > b[0] for a, b in pairwise(by_cost))
    assert overlaps == 0, f"{by_cost}, and {middle} of the middle"


@given(st.lists(st.floats(0.1, 9), min_size=1, max_size=60), st.integers(1, 9))
@examples
def test_assignment_deals_every_pack_once(costs, replicas):
    shares = assign(costs, replicas)
    assert sorted(i for share in shares for i in share) == list(range(len(costs)))
    assert max(map(len, shares)) == -(-len(costs) // replicas)
    for share in shares:
        assert [costs[i] for i in share] == sorted((costs[i] for i in share), reverse=True)


@pytest.mark.parametrize("weights", [[1, 1], [1, 1, 1], [97, 2, 1], [5, 3, 2, 7, 11, 13], [1000, 1], [1] * 12])
def test_a_mix_is_exact_at_every_prefix(weights):
    sizes = tuple(range(3, 3 + len(weights)))
    mix = Mix(sizes, tuple(weights))
    source, ordinal = mix.turns(0, 3 * sum(weights))
    n = np.arange(1, len(source) + 1)
    for s, weight in enumerate(weights):
        drawn = np.cumsum(source == s)
        assert np.abs(drawn - n * weight / sum(weights)).max() < 1
        assert ordinal[source == s].tolist() == list(range(drawn[-1]))
    middle = slice(len(n) // 3, len(n) // 2)
    again = mix.turns(middle.start, middle.stop)
    assert (again[0].tolist(), again[1].tolist()) == (source[middle].tolist(), ordinal[middle].tolist())


def test_each_source_of_a_mix_is_seen_whole_before_it_is_seen_again():
    mix = mix_of([7, 100, 31], {"a": 0.5, "b": 0.3, "c": 0.2})
    assert mix.weights == (5, 3, 2)
    samples, epochs = mix.draws(0, 1380, seed=3)
    first = (0, 7, 107, 138)
    for low, high in pairwise(first):
        mine = (samples >= low) & (samples < high)
        seen = samples[mine].tolist()
        size = high - low
        for epoch in range(len(seen) // size):
            assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(low, high))
        assert epochs[mine].tolist() == [i // size for i in range(len(seen))]
        assert len(seen) < 2 * size or seen[:size] != seen[size : 2 * size]
    ahead, _ = mix.draws(500, 600, seed=3)
    assert ahead.tolist() == samples[500:600].tolist()


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"a": 0, "b": 1}, "a: 0"), ({"a": -1, "b": 1}, "positive"), ({"a": 0.123456789, "b": 1}, "round them")],
)
def test_weights_that_make_no_mix_are_refused(weights, message):
    with pytest.raises(InputError, match=message):
        mix_of([5, 5], weights)


def test_an_empty_source_is_named():
    with pytest.raises(InputError, match="b: none"):
        mix_of([5, 0], {"a": 1, "b": 1})


def log_normal(capacity, mean, sigma, n):
    lengths = np.random.default_rng(0).lognormal(np.log(mean), sigma, n)
    return np.clip(lengths, 1, capacity).astype(np.int64)


@pytest.mark.parametrize("capacity", [1 << 15, 1 << 18, 1 << 20])
@pytest.mark.parametrize(("part", "sigma"), [(0.01, 1.0), (0.05, 1.5), (0.2, 0.5)])
def test_packs_are_full_and_replicas_share_evenly(capacity, part, sigma):
    lengths = log_normal(capacity, capacity * part, sigma, 140_000)
    replicas = 4
    step = 4 * replicas
    window = window_for(lengths, capacity, step)
    plan = plan_of(lengths, window=window, step=step, capacity=capacity)
    found = plan.window_at(0, 0, 3)
    tokens = np.add.reduceat(lengths[found.samples], found.starts[:-1])
    assert tokens.max() <= capacity
    assert tokens.mean() / capacity >= 0.99
    loads = np.array(
        [
            [costs[share].sum() for share in assign(costs, replicas)]
            for at in range(3, len(found) - step + 1, step)
            for costs in [found.costs[at : at + step]]
        ]
    )
    assert loads.max(axis=1).sum() / loads.mean(axis=1).sum() <= 1.05


def test_seeking_takes_no_longer_for_more_samples():
    """Nor for samples that lie before: as many calls, of which none touches all."""
    many = log_normal(1 << 18, 8192, 1.0, 3_000_000)
    few = many[:100_000]
    work = {}
    for lengths in (few, many):
        plan = plan_of(lengths, window=window_for(lengths, 1 << 18, 8), step=8, capacity=1 << 18)
        for at in (0, plan.windows // 2, plan.windows - 2):
            seek = partial(plan.packs, Cursor(7, at, 5, 5), 8)
            work[len(lengths), at] = calls(seek), peak_bytes(seek)
    called, taken = zip(*work.values(), strict=True)
    assert max(called) < 1.2 * min(called), work
    assert max(taken) < many.nbytes / 10, work


@examples
@given(st.text(max_size=20))
def test_what_is_no_cursor_is_refused(text):
    with pytest.raises(InputError, match="epoch, window, pack"):
        Cursor.from_json(text)


@pytest.mark.parametrize("text", ['{"epoch": -1}', '{"epoch": 0.5}', '{"epok": 1}', "[1, 2, 3]", '{"pack": true}'])
def test_a_broken_cursor_is_refused(text):
    with pytest.raises(InputError):
        Cursor.from_json(text)


def test_a_cursor_of_another_plan_is_refused():
    plan = plan_of(np.full(10, 8))
    with pytest.raises(InputError, match="pack 99 of 2 in window 0 of epoch 0"):
        plan.packs(Cursor(0, 0, 99), 1)
    with pytest.raises(InputError, match="window 3 of 1"):
        plan.packs(Cursor(0, 3, 0), 1)


def test_lengths_that_cannot_be_packed_are_refused():
    for lengths, message in [
        ([], "has samples"),
        ([4, 0], "has tokens"),
        ([4, 65, 99], "2 of 3 are longer, the longest has 99"),
    ]:
        with pytest.raises(InputError, match=message):
            plan_of(np.array(lengths, np.int64))
