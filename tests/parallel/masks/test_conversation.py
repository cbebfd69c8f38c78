"""Masks of documents with video and words, each against its rule written out pair by pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.attention.attend import attend
from parallel.attention.plan import local_plan
from parallel.errors import InputError
from parallel.masks import mask as masks
from parallel.masks import video_patterns
from parallel.masks.conversation import Run, chunks, frames_whole, unaware
from parallel.masks.mask import Mask
from tests.parallel.attention.test_attend import dense as attended
from tests.parallel.attention.test_attend import dense_mask
from tests.parallel.masks.test_mask import Bools, dense

Document = list[tuple[Run, int]]
DRAWN: Document = [("words", 2), ("frame", 2), ("frame", 2), ("words", 2)]
documents = st.lists(st.tuples(st.sampled_from(("words", "frame")), st.integers(1, 5)), min_size=1, max_size=9)


def rows_of(runs: Sequence[tuple[Run, int]]) -> tuple[npt.NDArray[np.int64], Bools]:
    """Of each row: the number of its run, and whether it is visual."""
    run = np.repeat(np.arange(len(runs)), [length for _, length in runs])
    return run, np.array([kind == "frame" for kind, _ in runs])[run]


def sees(runs: Document, what: str) -> Bools:
    """The rules of the module, for each pair of rows."""
    run, visual = rows_of(runs)
    found = np.zeros((len(run), len(run)), dtype=bool)
    for q in range(len(run)):
        for k in range(len(run)):
            one_frame = visual[q] and run[q] == run[k]
            if what == "frames_whole":
                found[q, k] = k <= q or one_frame
            elif what == "own_frame":
                found[q, k] = one_frame if visual[q] else k <= q
            else:
                found[q, k] = q == k if visual[q] else k <= q
    return found


def chunk_sees(length: int, size: int, overlap: int, sinks: int) -> Bools:
    found = np.zeros((length, length), dtype=bool)
    for q in range(length):
        first = 0
        while first + size <= q:  # the first chunk that holds it
            first += size - overlap
        assert first <= q
        for k in range(q + 1):
            found[q, k] = k >= first or k < sinks
    return found


def drawing(lines: str) -> Bools:
    rows = [line.ljust(16) for line in lines.strip("\n").split("\n")]
    return np.array([[row[2 * column] == "#" for column in range(len(rows))] for row in rows])


@given(documents)
@settings(max_examples=150)
def test_every_document(runs: Document) -> None:
    assert np.array_equal(dense(unaware(runs)), sees(runs, "unaware"))
    assert np.array_equal(dense(unaware(runs, own_frame=True)), sees(runs, "own_frame"))
    assert np.array_equal(dense(frames_whole(runs)), sees(runs, "frames_whole"))
    for mask in (unaware(runs), unaware(runs, own_frame=True), frames_whole(runs)):
        mask.refuse_blind()
        assert len(mask.table) <= len(runs)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 11), st.integers(0, 10))
@settings(max_examples=300)
def test_every_chunk(length: int, size: int, overlap: int, sinks: int) -> None:
    overlap %= size
    mask = chunks(length, size, overlap, sinks)
    assert np.array_equal(dense(mask), chunk_sees(length, size, overlap, sinks))
    mask.refuse_blind()
    assert len(mask.table) <= length // (size - overlap) + 3  # one for each chunk, and one for all their sinks


@given(st.lists(documents, min_size=1, max_size=4))
@settings(max_examples=50)
def test_packs(pack: list[Document]) -> None:
    """Documents do not see each other."""
    document = np.repeat(range(len(pack)), [sum(rows for _, rows in runs) for runs in pack])
    for make, what in ((unaware, "unaware"), (frames_whole, "frames_whole")):
        wanted = np.zeros((len(document), len(document)), dtype=bool)
        for number, runs in enumerate(pack):
            at = np.flatnonzero(document == number)
            wanted[np.ix_(at, at)] = sees(runs, what)
        assert np.array_equal(dense(masks.stack([make(runs) for runs in pack])), wanted)


def test_the_drawing() -> None:
    whole = """
#
# #
# # # #
# # # #
# # # # # #
# # # # # #
# # # # # # #
# # # # # # # #"""
    alone = """
#
# #
    #
      #
        #
          #
# # # # # # #
# # # # # # # #"""
    frames = """
#
# #
    # #
    # #
        # #
        # #
# # # # # # #
# # # # # # # #"""
    overlapped = """
#
# #
# # #
# # # #
#   # # #
#   # # # #
#       # # #
#       # # # #"""
    assert np.array_equal(dense(frames_whole(DRAWN)), drawing(whole))
    assert np.array_equal(dense(unaware(DRAWN)), drawing(alone))
    assert np.array_equal(dense(unaware(DRAWN, own_frame=True)), drawing(frames))
    assert np.array_equal(dense(chunks(8, 4, 2, 1)), drawing(overlapped))


@pytest.mark.parametrize(
    "mask", [unaware(DRAWN), unaware(DRAWN, own_frame=True), frames_whole(DRAWN), chunks(8, 4, 2, 1)]
)
def test_kernels_compute_them(mask: Mask) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 8, 2, 4, generator=generator, dtype=torch.float64)
    found, wanted = attend(q, k, v, local_plan(mask)), attended(q, k, v, dense_mask(mask))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_what_they_have_in_common_with_others() -> None:
    assert np.array_equal(dense(frames_whole([("words", 7)])), dense(masks.causal(7)))
    assert np.array_equal(dense(frames_whole([("frame", 3)] * 4)), dense(video_patterns.frame_causal(4, 3)))
    assert np.array_equal(dense(unaware([("frame", 3)] * 4, own_frame=True)), dense(video_patterns.spatial(4, 3)))
    assert np.array_equal(dense(unaware([("frame", 3)] * 4)), np.eye(12, dtype=bool))
    assert np.array_equal(dense(chunks(9, 9, 0)), dense(masks.causal(9)))
    assert np.array_equal(dense(chunks(9, 3, 0)), dense(masks.packed([3, 3, 3], causal=True)))
    assert np.array_equal(dense(chunks(9, 4, 3, 2)), dense(masks.window(9, 3, sinks=2)))  # a step of one row


@pytest.mark.parametrize("make", [unaware, lambda runs: unaware(runs, own_frame=True), frames_whole])
def test_an_hour_of_video_is_made_at_once(make: Callable[[Document], Mask]) -> None:
    """7,200 frames with words after every eighth: rectangles are counted by runs, not by their pairs."""
    runs: Document = []
    for frame in range(7200):
        runs.append(("frame", 140))
        if frame % 8 == 7:
            runs.append(("words", 20))
    mask = make(runs)
    assert mask.queries == 7200 * 140 + 900 * 20
    assert len(mask.table) <= len(runs)
    assert len(unaware(runs).table) == 1800
    mask.refuse_blind()


def test_chunks_of_a_million_rows_are_few() -> None:
    mask = chunks(2**20, 16384, 4096, 512)
    assert len(mask.table) <= 2**20 // (16384 - 4096) + 3
    assert mask.area < masks.causal(2**20).area / 40


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: unaware([]), "no runs"),
        (lambda: frames_whole([("words", 3), ("frame", 0)]), r"run 1 is \('frame', 0\)"),
        (lambda: frames_whole([("sound", 3)]), "runs of words or frame"),  # type: ignore[list-item]
        (lambda: frames_whole([("frame", 2**20)] * 2**12), "a sequence has at most"),
        (lambda: chunks(0, 4, 2), "holds at least one token"),
        (lambda: chunks(9, 4, 4), "share fewer than all of them"),
        (lambda: chunks(9, 4, -1), "overlap -1"),
        (lambda: chunks(9, 0, 0), "size 0"),
        (lambda: chunks(9, 4, 2, -1), "sinks -1"),
    ],
)
def test_what_is_no_document(make: Callable[[], object], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        make()
