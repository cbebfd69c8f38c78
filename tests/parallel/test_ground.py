"""The ground types: random numbers by counter, geometry, packed layout, splits and meshes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parallel.errors import InputError
from parallel.mesh import Mesh
from parallel.random import key_of, normal, uniform
from parallel.sequence.geometry import Geometry
from parallel.sequence.packed import Document, lay_out, local_spans
from parallel.sequence.sharding import contiguous, zigzag

KEYS = st.integers(0, 2**64 - 1)


@given(KEYS, st.integers(0, 5000), st.integers(0, 40), st.integers(1, 50))
def test_any_stretch_draws_the_same_bits(key: int, start: int, rows: int, dim: int) -> None:
    whole = normal(key, 0, start + rows, dim)
    assert normal(key, start, start + rows, dim).tobytes() == whole[start:].tobytes()


def test_draws_are_standard_normal_and_independent() -> None:
    draws = normal(key_of(1, "noise"), 0, 20_000, 12)
    assert abs(draws.mean()) < 0.01
    assert abs(draws.std() - 1) < 0.01
    assert np.abs(np.corrcoef(draws.T) - np.eye(12)).max() < 0.03  # columns
    assert abs(np.corrcoef(draws[1:, 0], draws[:-1, 0])[0, 1]) < 0.03  # neighbours


@given(st.integers(0, 2**64 - 2))
def test_neighbouring_keys_differ(key: int) -> None:
    assert not np.array_equal(normal(key, 0, 1, 8), normal(key + 1, 0, 1, 8))


def test_keys_depend_on_every_part_and_its_type() -> None:
    keys = [key_of(1, "a"), key_of("1", "a"), key_of(1, "b"), key_of(1), key_of("1a"), key_of(11, "a")]
    assert len(set(keys)) == len(keys)
    assert all(0 <= uniform(k) < 1 for k in keys)


@given(st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 60))
def test_usable_frames_fill_tokens(stride: int, patch: int, causal: bool, frames: int) -> None:
    geometry = Geometry(stride=(stride, 1, 1), patch=(patch, 1, 1), causal=causal)
    usable = geometry.usable_frames(frames)
    assert usable <= frames
    if usable:
        t, _, _ = geometry.grid(usable, 4, 4)
        assert t >= 1
        assert geometry.usable_frames(usable) == usable
    else:
        assert frames < geometry.frames_per_token


@given(st.integers(1, 5), st.integers(1, 4), st.data())
def test_frames_of_tokens(t: int, area: int, data: st.DataObject) -> None:
    geometry = Geometry(stride=(2, 1, 1), patch=(3, 1, 1))
    grid = (t, area, 2)
    start = data.draw(st.integers(0, t * area * 2))
    stop = data.draw(st.integers(start, t * area * 2))
    first, last = geometry.frames_of(grid, start, stop)
    needed = sorted({token // (area * 2) for token in range(start, stop)})
    assert (first, last) == ((needed[0] * 6, (needed[-1] + 1) * 6) if needed else (0, 0))


def test_a_size_that_does_not_fit_names_one_that_does() -> None:
    with pytest.raises(InputError, match="use 8 frames of 32 x 64"):
        Geometry(patch=(2, 16, 16)).grid(9, 40, 70)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 7))
def test_the_parts_of_a_pack_are_the_pack(lengths: list[int], ranks: int) -> None:
    documents = [Document(str(i), i, "", (n, 1, 1), weight=i) for i, n in enumerate(lengths)]
    total = sum(lengths)
    values = torch.arange(total, dtype=torch.float64)[:, None]
    whole = lay_out(documents, ((0, total),), values)
    for make in (contiguous, zigzag):
        split = make(total, ranks)
        assert sum(split.tokens(r) for r in range(ranks)) == total
        seen = []
        for rank in range(ranks):
            ranges = split.ranges[rank]
            rows = [p for a, b in ranges for p in range(a, b)]
            part = lay_out(documents, ranges, values[rows])
            for name in ("document", "position", "coordinates", "kind", "noise_level", "weight"):
                assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), name
            assert sum(stop - start for _, start, stop in local_spans(lengths, ranges)) == len(rows)
            seen += rows
        assert sorted(seen) == list(range(total))


def test_mesh_groups_cover_all_ranks_once() -> None:
    mesh = Mesh(2, 3, 2)
    assert sorted(r for ring in mesh.rings() for r in ring) == list(range(12))
    assert sorted(r for group in mesh.ulysses_groups() for r in group) == list(range(12))
    assert mesh.place(9).replica == 1
    assert (mesh.place(9).ring, mesh.place(9).ulysses, mesh.place(9).sequence) == (1, 1, 3)
    assert [0, 2, 4] in mesh.rings()
