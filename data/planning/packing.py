"""Packing: lengths into bins of one capacity, and bins into steps that any number of replicas can share evenly.

Best fit decreasing (Johnson 1973: at most 11/9 of the optimum): the longest first, each into the fullest bin with room.
Where many small samples follow one another into the same bin they are placed as one run, found by bisection; so a
million placements take about a second for packs of ten samples, and a tenth of that for packs of a thousand.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from data.planning.permutation import Ints, permute

Floats = npt.NDArray[np.float64]


def best_fit_decreasing(lengths: Ints, capacity: int) -> tuple[Ints, Ints]:
    """Bins of at most `capacity`: (positions in `lengths`, bin after bin; where each bin begins, and the end).

    The free space of all bins is one sorted list of integers, free x 2^32 + bin, so the best fit is one bisection. A
    run goes on in its bin while there is room and no other bin, all fuller than it, could take the next item.

    Args:
        lengths: [n], each 1 to `capacity`.
        capacity: of a bin, below 2^31.
    """
    # One sort of (length, position) as whole numbers: half the time of a stable sort of lengths.
    order = np.sort(((np.int64(1 << 31) - lengths) << 32) | np.arange(len(lengths))) & 0xFFFFFFFF
    falling = lengths[order]
    negative, total = (-falling).tolist(), np.concatenate(([0], np.cumsum(falling))).tolist()
    free: list[int] = []
    run_bins: list[int] = []
    run_starts: list[int] = []
    bins, item, n = 0, 0, len(order)
    while item < n:
        at = bisect_left(free, -negative[item] << 32)
        if at == len(free):
            room, index = capacity, bins
            bins += 1
        else:
            room, index = free[at] >> 32, free[at] & 0xFFFFFFFF
            del free[at]
        fits = bisect_right(total, total[item] + room, item + 2) - 1
        if at:  # the fullest bins cannot take this item, but may take a later one
            fits = bisect_left(negative, -(free[at - 1] >> 32), item + 1, fits)
        run_bins.append(index)
        run_starts.append(item)
        room -= total[fits] - total[item]
        item = fits
        if room:
            insort(free, room << 32 | index)
    bin_of, firsts = np.array(run_bins, np.int64), np.array([*run_starts, n], np.int64)
    by_bin = np.argsort(bin_of, kind="stable")  # of runs: far fewer than items
    sizes = np.diff(firsts)[by_bin]
    ends = np.cumsum(sizes)
    items = np.repeat(firsts[by_bin] - (ends - sizes), sizes) + np.arange(n)
    starts = np.concatenate(([0], ends[np.flatnonzero(np.diff(bin_of[by_bin], append=bins))]))
    return order[items], starts


def arrange(costs: Floats, head: int, step: int, key: int) -> Ints:
    """An order of bins in which the bins of each step of `step` are of about the same cost, the steps shuffled.

        | head | step | step | step | tail |      the head ends a step that an earlier window began, the tail begins one

    Head and tail come from the middle of the costs, so that the two parts of a divided step are alike too.

    Args:
        costs: [bins].
        head: how many bins the step before still takes.
        step: bins of one step.
        key: of the shuffle.
    """
    n = len(costs)
    head = min(head, n)
    tail = (n - head) % step
    falling = np.argsort(-costs, kind="stable")
    steps = (n - head - tail) // step
    above = steps // 2 * step
    middle = falling[above : above + head + tail]
    middle = middle[permute(np.arange(len(middle)), len(middle), key)] if len(middle) else middle
    groups = np.delete(falling, np.s_[above : above + head + tail]).reshape(steps, step)
    groups = groups[permute(np.arange(steps), steps, key)] if steps else groups
    return np.concatenate((middle[:head], groups.reshape(-1), middle[head:]))


def assign(costs: Sequence[float], replicas: int) -> list[list[int]]:
    """The bins of a step for each replica: costs balanced, none with more than ceil(bins / replicas), dearest first.

    Longest processing time first (Graham 1969), among the replicas with a place left. Replicas with fewer bins get
    padding packs from the caller; only they know how a pack of no weight looks.
    """
    most = -(-len(costs) // replicas)
    mine: list[list[int]] = [[] for _ in range(replicas)]
    loads = [(0.0, replica) for replica in range(replicas)]  # of those with a place left, ascending
    for item in np.argsort(-np.asarray(costs, np.float64), kind="stable").tolist():
        load, replica = loads.pop(0)
        mine[replica].append(item)
        if len(mine[replica]) < most:
            insort(loads, (load + costs[item], replica))
    return mine
