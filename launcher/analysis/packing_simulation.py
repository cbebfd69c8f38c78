"""`longreel data simulate`: from a run, or from made-up lengths, to the figures of an epoch on many ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from data.planning.data_plan import DataPlan, window_for
from data.planning.mix import Mix
from data.planning.simulate import log_normal_lengths, simulate
from data.streams.curriculum import Curriculum, Position
from launcher.batches.datasets import open_curriculum, with_own_codec
from launcher.batches.family import family_of
from launcher.batches.idle_replicas import Deal
from launcher.config.loading import load
from launcher.config.run_config import RunConfig
from models.diffusion.attention_schedule import masks_of, token_tile
from parallel.errors import InputError
from parallel.mesh import Mesh
from parallel.sequence.packed import to_read
from parallel.sequence.sharding import balanced

STEPS_READ = 4  # of a run, for the bytes that each rank reads

RANKS, SEQUENCE, PACKS = 64, 8, 4  # without a run

WORDS = {
    "replicas": "replicas",
    "sequence": "ranks of a replica",
    "packs_per_step": "packs of a step, over all replicas",
    "samples": "samples of an epoch",
    "tokens": "tokens",
    "windows": "windows",
    "packs": "packs",
    "steps": "steps",
    "fill": "packs are full to",
    "least_fill": "emptiest window",
    "imbalance": "cost of the dearest replica, over the mean",
    "worst": "the same, worst whole step",
    "share_of_words": "cost of long captions, of all",
    "cut_captions": "captions of which only a beginning is read",
    "padding_packs": "padding packs",
    "pack_tokens_of_a_rank": "tokens of a pack on a rank",
    "seek_seconds": "seconds to seek to any step",
    "state_bytes": "bytes of state",
    "bytes_of_a_rank": "bytes read by a rank in a step, mean",
    "bytes_of_the_busiest": "the same, busiest rank",
    "share_of_a_rank": "bytes read by a rank, of those of its packs",
    "seconds": "seconds that this took",
}


@dataclass(frozen=True)
class RankCounts:
    """On how many ranks; None takes what the run says, or a default without one.

    Attributes:
        ranks: in all.
        sequence: that share one sequence.
        packs: of each replica in a step.
    """

    ranks: int | None = None
    sequence: int | None = None
    packs: int | None = None

    def settled(self, ranks: int, sequence: int) -> tuple[int, int]:
        """(replicas, ranks of each), with these where nothing was asked.

        Raises:
            InputError: ranks are not whole replicas.
        """
        ranks = self.ranks or (ranks if self.sequence is None else max(ranks, self.sequence))
        sequence = self.sequence or gcd(ranks, sequence)
        if ranks % sequence:
            rule = "ranks are replicas of --sequence ranks each"
            raise InputError(rule, f"{ranks} ranks, {sequence} each", f"--ranks {-(-ranks // sequence) * sequence}")
        return ranks // sequence, sequence


def simulated(
    run: Path | None,
    overrides: Sequence[str],
    asked: RankCounts,
    synthetic: tuple[int, float, float, int, int],
    on_progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """The figures by name; those of reading only for a run, whose clips exist."""
    if run is None:
        samples, mean, sigma, pack_tokens, dim = synthetic
        replicas, sequence = asked.settled(RANKS, SEQUENCE)
        step = replicas * (asked.packs or PACKS)
        lengths = log_normal_lengths(samples, mean, sigma, pack_tokens)
        costs = lengths * (lengths + 6.0 * dim)
        window = window_for(lengths, pack_tokens, step)
        plan = DataPlan(lengths, costs, Mix((samples,)), pack_tokens, step, 0, window)
        return told(replicas, sequence, step) | asdict(simulate(plan, replicas, sequence, on_progress))
    config = with_own_codec(load(run, overrides))
    mesh = config.mesh.mesh()
    replicas, sequence = asked.settled(mesh.ranks, mesh.ring * mesh.ulysses)
    step = config.data.packs_per_step
    if asked.packs is not None or not config.data.chosen_packs:
        step = replicas * (asked.packs or 1)
    config = with_own_codec(load(run, [*overrides, f"data.packs_per_step={step}"]))
    curriculum = open_curriculum(config)
    found = asdict(simulate(curriculum.streams[0].plan, replicas, sequence, on_progress))
    found |= words_of(config, curriculum)
    return told(replicas, sequence, step) | found | reading(config, curriculum, replicas, sequence)


def idle_in(found: Mapping[str, Any]) -> Iterator[str]:
    """Whether replicas have nothing to compute in some micro-step of these figures, in words."""
    deal = Deal(found["packs_per_step"], found["replicas"])
    if deal.empty:
        yield f"{deal}; --packs {deal.micro_steps}, or data.packs_per_step={deal.micro_steps * deal.replicas}"


def told(replicas: int, sequence: int, step: int) -> dict[str, int]:
    """What the figures are of."""
    return {"replicas": replicas, "sequence": sequence, "packs_per_step": step}


def words_of(config: RunConfig, curriculum: Curriculum) -> dict[str, float]:
    """What captions cost, beside their first sentence or two, and how many are longer than the model reads."""
    source: Any = curriculum.streams[0].source
    most = family_of(config.model).caption_bytes(config.model)
    if most is None:
        return {}
    sizes = source.index.caption_bytes(config.data.merged()[0].caption)
    share = float(source.caption_costs.sum() / curriculum.streams[0].plan.costs.sum())
    return {"share_of_words": share, "cut_captions": int((sizes > most).sum())}


def reading(config: RunConfig, curriculum: Curriculum, replicas: int, sequence: int) -> dict[str, float]:
    """Bytes that ranks read from shards in the first steps, going by the slice tables."""
    mesh, position = Mesh(1, sequence, 1), Position()
    if not family_of(config.model).of_latents:
        return {}  # frames of conversations are dealt to ranks apart from their text
    per_rank, whole, steps, tile = [], 0, 0, token_tile(config.model.attention)
    for steps in range(1, STEPS_READ + 1):  # noqa: B007
        stream, packs, position = curriculum.next_step(position)
        source: Any = stream.source
        for pack in packs:
            mask = max(masks_of(config.model.attention, [d.grid for d in pack.documents]), key=lambda m: m.area)
            clips = [replace(document, tile=tile) for document in pack.documents]
            read = [to_read(clips, ranges)[0] for ranges in balanced(mask, mesh).ranges]
            per_rank.append([source.bytes_of(pack, ranges) for ranges in read])
            whole += source.bytes_of(pack, ((0, pack.tokens),))
    table = np.array(per_rank, np.float64)  # [packs, ranks of a replica]
    packs_of_a_replica = len(table) / steps / replicas
    return {
        "bytes_of_a_rank": float(table.mean() * packs_of_a_replica),
        "bytes_of_the_busiest": float(table.mean(axis=0).max() * packs_of_a_replica),
        "share_of_a_rank": float(table.sum() / sequence / whole),
    }


def table_of(found: dict[str, Any]) -> Table:
    """One row a figure."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, words in WORDS.items():
        if name in found:
            table.add_row(words, _text(name, found[name]))
    return table


def _text(name: str, value: float) -> str:
    if name in ("fill", "least_fill", "share_of_a_rank", "share_of_words"):
        return f"{math.floor(10_000 * value) / 100:.2f} %"  # never rounded up to a full 100
    if name in ("imbalance", "worst"):
        return f"{value:.4f}"
    return f"{value:,.4f}" if name == "seek_seconds" else f"{value:,.1f}" if name == "seconds" else f"{value:,.0f}"
