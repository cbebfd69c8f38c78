"""`longreel plan`: what attention costs on a mesh, before a GPU is rented for it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import get_args

from rich.table import Table

from data.streams.clip_source import ClipSource
from data.streams.curriculum import Position
from launcher.batches.datasets import notes_on_words, open_curriculum
from launcher.config.run_config import RunConfig
from models.diffusion.attention_schedule import masks_of
from parallel.attention.cost import Explanation, Heads, explain
from parallel.attention.plan import Keep, Transport
from parallel.errors import InputError
from parallel.masks import mask as masks
from parallel.masks import video_patterns
from parallel.masks.mask import Mask
from parallel.mesh import Mesh
from parallel.sequence.sharding import Split, balanced, contiguous, zigzag

EXAMPLES = (
    "full, causal, packed:5000,300,9000, packed-causal:5000,300, window:BEFORE,AFTER,SINKS, "
    "frame-causal:FRAMES, frame-window:FRAMES,BEFORE,AFTER,SINKS, spatial:FRAMES"
)
LEAST_SHARE = 0.01  # of a pack's cost, from which on a person is told what has it
NUMBER_BYTES = {"bf16": 2, "float32": 4, "float64": 8}


def mask_of(text: str, tokens: int) -> Mask:
    """The mask that `name` or `name:numbers` means, over so many tokens.

    Raises:
        InputError: no such mask, or numbers that it does not take.
    """
    name, _, rest = text.partition(":")
    try:
        numbers = [int(n) for n in rest.split(",") if n.strip()]
    except ValueError:
        raise InputError("a mask is a name, or a name and whole numbers", f"--mask {text}", EXAMPLES) from None
    makers: dict[str, tuple[range, Callable[..., Mask]]] = {
        "full": (range(1), lambda: masks.full(tokens)),
        "causal": (range(1), lambda: masks.causal(tokens)),
        "packed": (range(1, 10**6), lambda *lengths: masks.packed(lengths)),
        "packed-causal": (range(1, 10**6), lambda *lengths: masks.packed(lengths, causal=True)),
        "window": (range(1, 4), lambda *sizes: masks.window(tokens, *sizes)),
        "frame-causal": (range(1, 2), lambda frames: video_patterns.frame_causal(frames, _frame(tokens, frames))),
        "frame-window": (
            range(2, 5),
            lambda frames, *n: video_patterns.frame_window(frames, _frame(tokens, frames), *n),
        ),
        "spatial": (range(1, 2), lambda frames: video_patterns.spatial(frames, _frame(tokens, frames))),
    }
    if name not in makers or len(numbers) not in makers[name][0]:
        raise InputError("a mask that longreel plan can draw", f"--mask {text}", EXAMPLES)
    return makers[name][1](*numbers)


def split_of(name: str, mask: Mask, mesh: Mesh) -> Split:
    """The split of that name.

    Raises:
        InputError: there is none.
    """
    makers: dict[str, Callable[[], Split]] = {
        "balanced": lambda: balanced(mask, mesh),
        "contiguous": lambda: contiguous(mask.queries, mesh.sequence_ranks),
        "zigzag": lambda: zigzag(mask.queries, mesh.ring, mesh.ulysses),
    }
    if name not in makers:
        raise InputError("a split has a name", f"--split {name}", ", ".join(makers))
    return makers[name]()


def explained(
    mask: Mask, split: str, mesh: Mesh, heads: Heads, transport: str, keep: Keep = "exchanged"
) -> tuple[Split, Explanation]:
    """A split of that name, and what it costs.

    Raises:
        InputError: no such split or transport, or a mask that cannot be computed.
    """
    for transport_ in get_args(Transport):
        if transport_ == transport:
            made = split_of(split, mask, mesh)
            return made, explain(mask, made, mesh, heads, transport_, keep)
    raise InputError("keys travel in one of two ways", f"--transport {transport}", " or ".join(get_args(Transport)))


def first_pack(config: RunConfig) -> tuple[Mask, Heads]:
    """The largest mask of the first pack that a run trains on, and its heads."""
    _, (pack, *_), _ = open_curriculum(config).next_step(Position())
    size = NUMBER_BYTES[config.dtype]
    heads = Heads(config.model.heads, config.model.heads, config.model.dim // config.model.heads, size, max(4, size))
    found = masks_of(config.model.attention, [document.grid for document in pack.documents])
    return max(found, key=lambda mask: mask.area), heads


def words_notes(config: RunConfig) -> list[str]:
    """What captions cost in the first pack of a run, where that is something, and which of them are cut."""
    curriculum = open_curriculum(config)
    stream, (pack, *_), _ = curriculum.next_step(Position())
    notes = notes_on_words(config, curriculum)
    source, rows = stream.source, list(pack.rows)
    share = float(source.caption_costs[rows].sum()) / pack.cost if isinstance(source, ClipSource) else 0.0
    if share >= LEAST_SHARE:
        notes.append(f"{share:.0%} of the cost of the first pack are long captions, which the table does not show")
    return notes


def table(said: Explanation) -> Table:
    """One row for each class of ranks whose figures are the same, as they are shown."""
    forward, backward = said.forward_bytes.sum(axis=1), said.backward_bytes.sum(axis=1)
    found = Table(title=f"{said.mesh}, keys by {said.transport}", title_justify="left")
    for name in (
        "ranks",
        "tokens",
        "million pairs",
        "of mean",
        "TFLOP",
        "MiB sent forward",
        "backward",
        "MiB of keys in flight",
    ):
        found.add_column(name, justify="right", overflow="fold")
    classes: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for rank in range(said.mesh.sequence_ranks):
        place = rank // said.mesh.ulysses
        figures = (
            f"{said.rank_tokens[rank]:,}",
            f"{said.area[place] / 1e6:,.1f}",
            f"{said.flops[rank] / said.flops.mean():.3f}",
            f"{3.5 * said.flops[rank] / 1e12:,.2f}",
            *(f"{sent / 2**20:,.1f}" for sent in (forward[rank], backward[rank], said.keys_held[rank])),
        )
        classes[figures].append(rank)
    for figures, ranks in classes.items():
        found.add_row(ranges_of(ranks), *figures)
    return found


def ranges_of(numbers: Sequence[int]) -> str:
    """Ascending numbers as people write them: "0-7, 16"."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in found)


def as_json(said: Explanation) -> str:
    """For a script: of one layer, forward and backward."""
    return json.dumps(
        {
            "tokens": said.rank_tokens.tolist(),
            "area": said.area.tolist(),
            "busiest_to_mean": said.uneven,
            "forward_flops": said.flops.tolist(),
            "forward_bytes": said.forward_bytes.tolist(),
            "backward_bytes": said.backward_bytes.tolist(),
            "keys_held_bytes": said.keys_held.tolist(),
        }
    )


def cheapest(
    mask: Mask, ranks: int, heads: Heads, split: str, keep: Keep = "exchanged"
) -> Sequence[tuple[Mesh, int, float]]:
    """Every ring x ulysses of so many ranks: bytes that the busiest rank sends, and unevenness; fewest bytes first."""
    found = []
    for ulysses in range(1, min(ranks, heads.queries) + 1):
        if ranks % ulysses == 0:
            mesh = Mesh(1, ranks // ulysses, ulysses)
            said = explain(mask, split_of(split, mask, mesh), mesh, heads, keep=keep)
            found.append((mesh, int((said.forward_bytes + said.backward_bytes).sum(axis=1).max()), said.uneven))
    return sorted(found, key=lambda one: one[1])


def _frame(tokens: int, frames: int) -> int:
    if frames < 1 or tokens % frames:
        raise InputError("frames divide the tokens", f"{tokens} tokens in {frames} frames", "change --tokens")
    return tokens // frames
