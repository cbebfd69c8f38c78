"""A stream heard piece by piece gives what one pass over all of it gives, with the same mask; memory stays."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.language.causal_lm import KINDS, Backbone, make
from models.language.kv_cache import Streamer
from parallel.attention.plan import local_plan
from parallel.errors import InputError
from parallel.masks import mask
from tests.models.language.test_causal_lm import config, words

LENGTH = 40
MADE = {kind: make(config(kind), torch.float64, seed=0) for kind in ("llama", "mistral", "qwen2")}


def whole(backbone: Backbone, window: int | None, sinks: int) -> torch.Tensor:
    """One pass, with the mask of each layer."""
    plans: dict[Any, Any] = {}
    for own in backbone.windows:
        narrow = min((w for w in (window, own) if w is not None), default=None)
        seen = mask.causal(LENGTH) if narrow is None else mask.window(LENGTH, narrow - 1, sinks=sinks)
        plans[own] = local_plan(seen)
    with torch.no_grad():
        return backbone.hidden(backbone.embed(words(LENGTH)), torch.arange(LENGTH), plans)


@settings(max_examples=30)
@given(
    kind=st.sampled_from(sorted(MADE)),
    window=st.sampled_from([None, 1, 2, 7, 100]),
    sinks=st.integers(0, 5),
    cuts=st.lists(st.integers(1, LENGTH - 1), max_size=6),
)
def test_pieces_give_what_the_whole_gives(kind: str, window: int | None, sinks: int, cuts: list[int]) -> None:
    backbone = MADE[kind]
    streamer, edges = Streamer(backbone, window, sinks), sorted({0, *cuts, LENGTH})
    embeddings = backbone.embed(words(LENGTH)).detach()
    pieces = [embeddings[start:stop] for start, stop in pairwise(edges)]
    found = torch.cat([streamer.feed(piece) for piece in pieces])
    assert torch.allclose(found, whole(backbone, window, sinks), rtol=0, atol=1e-10)


def test_memory_does_not_grow() -> None:
    backbone = MADE["llama"]
    streamer, held = Streamer(backbone, window=8, sinks=4), []
    for start in range(0, 400, 10):
        streamer.feed(backbone.embed(words(400)[start : start + 10]).detach())
        held.append(streamer.memory.bytes)
    assert len(set(held[1:])) == 1
    assert held[-1] == 3 * 2 * (8 - 1 + 4) * 6 * 8  # layers, keys and values, tokens, head_dim of one head, float64


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"mistral", "qwen2"}))
def test_says_what_transformers_says(kind: str) -> None:
    """Greedy generation, with no window: that of `generate`."""
    from transformers import AutoModelForCausalLM

    backbone = make(config(kind), torch.float64, seed=0)
    model: Any = AutoModelForCausalLM
    model = model.from_config(config(kind), attn_implementation="sdpa", dtype=torch.float64)
    model.load_state_dict(backbone.model.state_dict())
    heard = words(12)
    expected = model.generate(heard[None], max_new_tokens=20, do_sample=False, eos_token_id=-1, pad_token_id=0)[0, 12:]
    assert list(Streamer(backbone).generate(backbone.embed(heard), 20)) == expected.tolist()


def test_wrong_windows_are_refused() -> None:
    for window, sinks in ((0, 0), (4, -1)):
        with pytest.raises(InputError, match="a window has a key at least"):
            Streamer(MADE["llama"], window, sinks)
