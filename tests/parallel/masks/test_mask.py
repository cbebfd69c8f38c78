"""Every mask against its definition, written out pair by pair."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.errors import InputError
from parallel.masks import mask as masks
from parallel.masks import video_patterns
from parallel.masks.mask import Mask
from parallel.masks.video_patterns import Tiling

Bools = npt.NDArray[np.bool_]


def dense(mask: Mask) -> Bools:
    """[queries, keys], and no pair stands twice."""
    pairs = np.zeros((mask.queries, mask.keys), np.int64)
    q, k = np.indices(pairs.shape)
    for q0, q1, k0, k1, low, high in mask.table:
        pairs += (q0 <= q) & (q < q1) & (k0 <= k) & (k < k1) & (low <= q - k) & (q - k <= high)
    assert pairs.max(initial=0) <= 1
    assert pairs.sum() == mask.area
    return pairs > 0


def where(length: int, sees: Callable[..., Bools]) -> Bools:
    return sees(*np.indices((length, length)))


def test_masks_of_positions() -> None:
    assert dense(masks.full(5)).all()
    assert np.array_equal(dense(masks.causal(6)), where(6, lambda q, k: k <= q))
    assert np.array_equal(dense(masks.diagonal(4)), np.eye(4, dtype=bool))
    assert np.array_equal(dense(masks.band(9, 3, 1)), where(9, lambda q, k: (q - k <= 3) & (k - q <= 1)))
    seen = where(11, lambda q, k: (k <= q) & ((q - k <= 2) | (k < 3)))
    assert np.array_equal(dense(masks.window(11, 2, sinks=3)), seen)
    assert np.array_equal(dense(masks.strided(11, 4)), where(11, lambda q, k: (q - k) % 4 == 0))
    assert dense(masks.strided(3, 1)).all()


def test_documents() -> None:
    of = np.repeat([0, 1, 2], [3, 1, 4])
    assert np.array_equal(dense(masks.packed([3, 1, 4])), of[:, None] == of)
    mixed = dense(masks.packed([3, 1, 4], [True, False, False]))
    assert np.array_equal(mixed, where(8, lambda q, k: (of[q] == of[k]) & ((k <= q) | (of[q] > 0))))
    stacked = dense(masks.stack([masks.causal(3), masks.full(1), masks.band(4, 1, 1)]))
    assert np.array_equal(
        stacked,
        where(8, lambda q, k: (of[q] == of[k]) & ((of[q] == 1) | np.where(of[q] == 0, k <= q, abs(q - k) <= 1))),
    )
    rows, columns = np.repeat([0, 1], [3, 2]), np.repeat([0, 1], [1, 4])
    assert np.array_equal(dense(masks.cross([3, 2], [1, 4])), rows[:, None] == columns)


def test_frames() -> None:
    frame = np.arange(12) // 3
    f, g = frame[:, None], frame
    assert np.array_equal(dense(video_patterns.frame_causal(4, 3)), g <= f)
    assert np.array_equal(dense(video_patterns.spatial(4, 3)), g == f)
    place = np.arange(12) % 3
    assert np.array_equal(dense(video_patterns.temporal(4, 3)), place[:, None] == place)
    seen = (g <= f) & ((f - g <= 1) | (g < 1))
    assert np.array_equal(dense(video_patterns.frame_window(4, 3, before=1, sinks=1)), seen)


def test_text_and_video() -> None:
    lengths, video = [2, 3, 1, 2], [False, True, False, True]
    part = np.repeat(range(4), lengths)
    is_video = np.array(video)[part]
    past = where(8, lambda q, k: (k <= q) | ((part[q] == part[k]) & is_video[q]))
    assert np.array_equal(dense(video_patterns.text_video(lengths, video)), past)
    alone = where(8, lambda q, k: (k <= q) & ~(is_video[q] & is_video[k] & (q != k)))
    assert np.array_equal(dense(video_patterns.text_video(lengths, video, "itself")), alone)


TILING = Tiling((3, 4, 5), (2, 2, 2))


def tile_of(tiling: Tiling) -> npt.NDArray[np.int64]:
    """[tokens, 3] in tile order."""
    at = np.indices(tiling.grid).reshape(3, -1).T
    return (at // np.array(tiling.tile))[tiling.order()]


def test_a_tiling_puts_tiles_together() -> None:
    tile = tile_of(TILING)
    number = np.ravel_multi_index(tuple(tile.T), TILING.tiles)
    assert np.array_equal(np.sort(TILING.order()), np.arange(60))
    assert (np.diff(number) >= 0).all()
    assert np.bincount(number).tolist() == TILING.sizes()
    assert TILING.tiles == (2, 2, 3)


def test_tiles() -> None:
    tile = tile_of(TILING)
    apart = np.abs(tile[:, None] - tile)
    assert np.array_equal(dense(video_patterns.neighbourhood(TILING, (0, 1, 1))), (apart <= (0, 1, 1)).all(axis=2))
    assert np.array_equal(dense(video_patterns.criss_cross(TILING)), (apart > 0).sum(axis=2) <= 1)
    assert np.array_equal(dense(video_patterns.dilated(TILING, (1, 2, 2))), (apart % (1, 2, 2) == 0).all(axis=2))
    window = (tile + np.array([1, 0, 1])) // (2, 1, 2)
    shifted = video_patterns.shifted_windows(TILING, (2, 1, 2), (1, 0, 1))
    assert np.array_equal(dense(shifted), (window[:, None] == window).all(axis=2))


@st.composite
def any_mask(draw: st.DrawFn) -> Mask:
    """Of 12 positions."""
    return draw(
        st.one_of(
            st.builds(masks.band, st.just(12), st.integers(0, 12), st.integers(0, 12)),
            st.builds(masks.window, st.just(12), st.integers(0, 5), st.integers(0, 3), st.integers(0, 4)),
            st.builds(masks.strided, st.just(12), st.integers(1, 12)),
            st.builds(masks.packed, st.sampled_from([[12], [5, 7], [1, 10, 1]]), st.booleans()),
            st.builds(video_patterns.frame_window, st.just(4), st.just(3), st.integers(0, 3), st.integers(0, 3)),
        )
    )


@given(any_mask(), any_mask(), any_mask())
@settings(max_examples=200)
def test_combinations(a: Mask, b: Mask, c: Mask) -> None:
    assert np.array_equal(dense(a & b), dense(a) & dense(b))
    assert np.array_equal(dense((a | b) & c), (dense(a) | dense(b)) & dense(c))
    assert np.array_equal(dense(a - (b | c)), dense(a) & ~(dense(b) | dense(c)))


@given(any_mask(), st.lists(st.integers(1, 3), min_size=12, max_size=12))
@settings(max_examples=100)
def test_units(coarse: Mask, sizes: list[int]) -> None:
    unit = np.repeat(range(12), sizes)
    assert np.array_equal(dense(masks.blocks(coarse, sizes)), dense(coarse)[unit][:, unit])


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: masks.packed([3, 0]), "holds at least one token"),
        (lambda: masks.full(0), "holds at least one token"),
        (lambda: masks.band(5, -3, 1), "a band is not empty"),
        (lambda: masks.strided(5, 0), "a stride is at least 1"),
        (lambda: masks.full(3) & masks.full(4), "masks that are combined are of one size"),
        (lambda: masks.blocks(masks.full(3), [1, 1]), "a position for each unit"),
        (lambda: Tiling((0, 1, 1), (1, 1, 1)), "clips and tiles hold tokens"),
        (lambda: masks.parts([1, 1], [["all"]]), "a row and a column for each"),
        (lambda: (masks.band(5, 0, 0) - masks.packed([2, 1, 2])).refuse_blind(), "sees at least one key"),
        (lambda: masks.band(5, -1, 2).refuse_blind(), "queries 4 to 4 of 5 see none"),
    ],
)
def test_what_is_no_mask(make: Callable[[], object], rule: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert rule in str(error.value)


def test_masks_of_a_million_tokens_are_made_at_once() -> None:
    """Not by their size: thousands of rectangles, not millions."""
    tiling = Tiling((64, 128, 128), (4, 8, 8))
    assert tiling.order().shape == (2**20,)
    mask = video_patterns.neighbourhood(tiling, (1, 1, 1))
    assert mask.queries == 2**20
    assert len(mask.table) < 64 * 2**10
    assert len(video_patterns.frame_window(64, 2**14, 8, 8, 1).table) < 200
