"""Tokens and their places: patchify round trip, and a rotary embedding that knows differences only."""

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.patches import patchify, unpatchify
from models.layers.rope import Rotary, pairs_per_axis
from parallel.errors import InputError
from parallel.sequence.geometry import Geometry
from parallel.sequence.packed import Document, lay_out

SMALL = st.tuples(*[st.integers(1, 3)] * 3)


@given(grid=SMALL, patch=SMALL, channels=st.integers(1, 4))
@settings(max_examples=40)
def test_unpatchify_is_the_inverse_of_patchify(grid, patch, channels):
    latents = torch.arange(channels * prod(grid) * prod(patch)).reshape(
        channels, *(g * p for g, p in zip(grid, patch, strict=True))
    )
    tokens = patchify(latents, patch)
    assert tokens.shape == (prod(grid), channels * prod(patch))
    assert torch.equal(unpatchify(tokens, grid, patch, channels), latents)


def test_tokens_are_numbered_like_the_packed_sequence():
    """A cell that holds its own token's coordinates lands on the token with these coordinates."""
    grid, patch = (2, 3, 4), (1, 2, 2)
    axes = [torch.arange(g).repeat_interleave(p) for g, p in zip(grid, patch, strict=True)]
    latents = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # [3, t, h, w]
    tokens = patchify(latents, patch).unflatten(1, (3, -1))
    packed = lay_out([Document("a", 0, "", grid)], ((0, prod(grid)),), torch.zeros(prod(grid), 1))
    assert torch.equal(tokens[:, :, 0], packed.coordinates)
    assert torch.equal(tokens, tokens[:, :, :1].expand_as(tokens))


def test_a_stretch_of_tokens_needs_the_frames_that_geometry_names():
    geometry, latents = Geometry(patch=(2, 4, 4)), torch.randn(3, 8, 8, 8)
    tokens = patchify(latents, geometry.patch)
    first, last = geometry.frames_of(geometry.grid(8, 8, 8), 5, 11)
    assert torch.equal(patchify(latents[:, first:last], geometry.patch)[5 - first // 2 * 4 :][:6], tokens[5:11])


def test_patchify_refuses_a_rest():
    with pytest.raises(InputError, match="3 x 8 x 8 cells"):
        patchify(torch.zeros(3, 3, 8, 8), (2, 4, 4))


@pytest.mark.parametrize("head_dim", [6, 8, 10, 12, 32, 64, 128])
def test_all_pairs_are_given_to_an_axis(head_dim):
    assert sum(pairs_per_axis(head_dim, 3)) == head_dim // 2
    assert min(pairs_per_axis(head_dim, 3)) >= 1
    assert pairs_per_axis(head_dim, 1) == (head_dim // 2,)


def test_pairs_of_64_as_drawn():
    assert pairs_per_axis(64, 3) == (12, 10, 10)


@pytest.mark.parametrize("head_dim", [6, 10, 64])
def test_scores_depend_on_differences_of_coordinates_alone(head_dim):
    q, k = torch.randn(2, 9, 3, head_dim, dtype=torch.float64)
    place = torch.randint(0, 50, (9, 3))

    def scores(at):
        rotary = Rotary.at(at, head_dim, 1e4, torch.float64)
        return torch.einsum("qhd,khd->hqk", rotary(q), rotary(k))

    moved = scores(place + torch.tensor([7, -3, 100]))
    torch.testing.assert_close(moved, scores(place), rtol=0, atol=1e-11)
    for axis in range(3):  # and they do depend on each axis
        other = place.clone()
        other[4, axis] += 1
        assert not torch.allclose(scores(other), scores(place), rtol=0, atol=1e-3)


def test_rotary_reads_coordinates_not_memory():
    x, place, order = torch.randn(7, 2, 12), torch.randint(0, 9, (7, 3)), torch.randperm(7)
    turned = Rotary.at(place, 12, 1e4, torch.float32)(x)
    assert torch.equal(Rotary.at(place[order], 12, 1e4, torch.float32)(x[order]), turned[order])


def test_rotary_computes_bf16_in_float32():
    x, place = torch.randn(5, 2, 16), torch.randint(0, 1000, (5, 3))
    wide = Rotary.at(place, 16, 1e4, torch.float32)(x.bfloat16().float())
    narrow = Rotary.at(place, 16, 1e4, torch.bfloat16)(x.bfloat16())
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(narrow, wide.bfloat16())
