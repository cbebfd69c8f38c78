"""The command `longreel plan`. Heavy imports wait until it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from launcher.cli.options import Json, with_options
from launcher.core.terminal import Console
from parallel.errors import InputError

if TYPE_CHECKING:
    from parallel.attention.cost import Heads
    from parallel.attention.plan import Keep
    from parallel.masks.mask import Mask
    from parallel.mesh import Mesh


@dataclass(frozen=True)
class MaskOptions:
    """Who sees whom."""

    mask: Annotated[
        str, typer.Option(help="Mask: full, causal, packed:5000,300, window:64, frame-window:16,2, ...")
    ] = "full"
    tokens: Annotated[int, typer.Option(help="Sequence length; a packed mask has its own.")] = 65536


@dataclass(frozen=True)
class SplitOptions:
    """How a sequence and its keys are shared out."""

    ring: Annotated[int, typer.Option(min=1, help="Ring size (context parallel).")] = 4
    ulysses: Annotated[int, typer.Option(min=1, help="Ulysses size (head parallel).")] = 1
    split: Annotated[str, typer.Option(help="How the sequence is split: balanced, contiguous or zigzag.")] = "balanced"
    transport: Annotated[str, typer.Option(help="How keys and values move: need (only needed blocks) or ring.")] = (
        "need"
    )


@dataclass(frozen=True)
class HeadOptions:
    """Of one layer."""

    heads: Annotated[int, typer.Option(min=1, help="Query heads.")] = 24
    kv_heads: Annotated[int | None, typer.Option(min=1, help="Key heads; the number of query heads if not given.")] = (
        None
    )
    head_dim: Annotated[int, typer.Option(min=1)] = 128


@with_options
def plan(
    run: Annotated[
        Path | None, typer.Argument(help="Run, a YAML file, whose first pack and mesh are used; or give --mask.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings as key=value, such as mesh.ring=2.")] = None,
    asked: MaskOptions = MaskOptions(),
    sharing: SplitOptions = SplitOptions(),
    of_layer: HeadOptions = HeadOptions(),
    picture: Annotated[
        Path | None, typer.Option(help="PNG to write, of the blocks that each rank computes and fetches.")
    ] = None,
    json_: Json = False,
) -> None:
    """Count what attention costs per rank of a mesh: work, bytes and balance of one layer, exactly.

    Example: longreel plan --mask causal --tokens 1048576 --ring 8 --ulysses 8 --picture plan.png
    """
    from launcher.analysis.attention_plan import as_json, cheapest, explained, table

    work = _work_of_run(run, overrides or []) if run is not None else _work_asked(asked, sharing, of_layer)
    if picture is not None and (picture.suffix.lower() != ".png" or picture.is_dir()):
        raise InputError("a picture is a PNG file", f"--picture {picture}", "--picture plan.png")
    mask, mesh = work.mask, work.mesh
    parts, said = explained(mask, sharing.split, mesh, work.heads, sharing.transport, work.keep)
    if picture is not None:
        from launcher.reports.mask_picture import draw

        title = f"{run or asked.mask}: {mask.queries:,} tokens, {mesh.ring} x {mesh.ulysses} ranks, {sharing.split}"
        draw(mask, parts, said, title).save(picture)
    if json_:
        print(as_json(said))
        return
    console = Console()
    for note in work.notes:
        console.print(f"[yellow]{escape(note)}[/]", highlight=False, soft_wrap=True)
    console.print(table(said))
    console.print(f"{mask.area:,} pairs of {mask.queries:,}^2; busiest to mean {said.uneven:.3f}", highlight=False)
    if mesh.sequence_ranks > 1:
        ways = cheapest(mask, mesh.sequence_ranks, work.heads, sharing.split, work.keep)
        told = ", ".join(f"{m.ring} x {m.ulysses}: {sent / 2**20:,.1f} MiB" for m, sent, _ in ways[:4])
        console.print(f"ring x ulysses by bytes of the busiest rank: {told}", highlight=False, soft_wrap=True)
    if picture is not None:
        console.print(f"{picture}", markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class _Work:
    """What is planned, with what a person should know of it."""

    mask: Mask
    heads: Heads
    mesh: Mesh
    keep: Keep = "exchanged"
    notes: tuple[str, ...] = ()


def _work_of_run(run: Path, overrides: list[str]) -> _Work:
    from launcher.analysis.attention_plan import first_pack, words_notes
    from launcher.batches.datasets import keep_of, with_own_codec
    from launcher.batches.idle_replicas import idle_notes
    from launcher.config.loading import load
    from parallel.mesh import Mesh

    config = with_own_codec(load(run, overrides))
    notes = (*idle_notes(config), *words_notes(config))
    mask, heads = first_pack(config)
    return _Work(mask, heads, Mesh(1, config.mesh.ring, config.mesh.ulysses), keep_of(config.model), notes)


def _work_asked(asked: MaskOptions, sharing: SplitOptions, of_layer: HeadOptions) -> _Work:
    from launcher.analysis.attention_plan import mask_of
    from parallel.attention.cost import Heads
    from parallel.mesh import Mesh

    heads = Heads(of_layer.heads, of_layer.kv_heads or of_layer.heads, of_layer.head_dim)
    return _Work(mask_of(asked.mask, asked.tokens), heads, Mesh(1, sharing.ring, sharing.ulysses))
