"""A dry run for a person and for a script."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from launcher.dryrun.dry_step import DryRun
from launcher.dryrun.memory_timeline import KINDS, Moment

GIB = 1 << 30
RESERVE = 2 * GIB  # of a GPU, for its context, NCCL and what the allocator rounds up
BARS = 60
BLOCKS = " ▁▂▃▄▅▆▇█"


def as_json(found: DryRun) -> str:
    """All of it; `by_kind` is that of the peak."""
    said = asdict(found)
    said.update(
        mesh=[found.mesh.replica, found.mesh.ring, found.mesh.ulysses],
        peak_phase=found.peak.phase,
        by_kind=dict(found.peak.by_kind),
        host_waits=sum(found.host_waits.values()),
        host_waits_at=found.host_waits,
        host_transfers=sum(found.host_transfers.values()),
        host_transfers_at=found.host_transfers,
        sent_bytes=sum(found.sent.values()),
        sent_by=found.sent,
        timeline=[{"phase": m.phase, "bytes": m.bytes, **m.by_kind} for m in found.timeline],
    )
    del said["peak"], said["sent"]
    return json.dumps(said)


def show(found: DryRun, gpu_gib: float, console: Console) -> None:
    """Tables and a verdict."""
    said = f"{found.parameters / 1e9:.2f} G parameters, {found.tokens:,} tokens here"
    console.print(f"rank {found.rank} of {found.mesh} on {found.device}: {said}", highlight=False, soft_wrap=True)
    console.print(escape(f"pack: {found.pack}"), highlight=False, soft_wrap=True)
    console.print(_memory(found))
    console.print(f"{_bars(found.timeline)}  bytes from forward to update", highlight=False, soft_wrap=True)
    console.print(_work(found))
    for place, count in sorted({**found.host_waits, **found.host_transfers}.items()):
        console.print(escape(f"  {count} x {place}"), highlight=False, soft_wrap=True)
    for note in found.notes:
        console.print(f"[yellow]{escape(note)}[/]", highlight=False, soft_wrap=True)
    if found.device == "cuda":
        console.print(_verdict(found, gpu_gib), highlight=False, soft_wrap=True)


def _memory(found: DryRun) -> Table:
    table = Table(title=f"memory at its peak, in {found.peak.phase}", title_justify="left")
    table.add_column("kind")
    table.add_column("GiB", justify="right")
    table.add_column("share", justify="right")
    for kind in KINDS:
        size = found.peak.by_kind[kind]
        if size:
            table.add_row(kind, gib(size), f"{size / found.peak_bytes:.0%}")
    table.add_section()
    table.add_row("[bold]peak", f"[bold]{gib(found.peak_bytes)}", "")
    table.add_row("kept from forward to backward", gib(found.kept_bytes), "")
    table.add_row("largest tensor", gib(found.largest_tensor_bytes), "")
    table.add_row("", escape(found.largest_tensor), "")
    if found.host_bytes:
        table.add_row("in the host's memory", gib(found.host_bytes), "")
    if found.prefetched_bytes:
        table.add_row("batches ready ahead, beside the peak", gib(found.prefetched_bytes), "")
    return table


def _work(found: DryRun) -> Table:
    table = Table(title="a step of this rank", title_justify="left")
    table.add_column("what")
    table.add_column("how much", justify="right")
    table.add_row("TFLOP", f"{found.flops / 1e12:,.2f}")
    table.add_row("of them attention", f"{found.attention_flops / max(1, found.flops):.1%}")
    table.add_row("kernel launches, at least", f"{found.launches:,}")
    table.add_row("waits of the host", f"{sum(found.host_waits.values()):,}")
    table.add_row("transfers between host and device", f"{sum(found.host_transfers.values()):,}")
    for name, size in sorted(found.sent.items()):
        table.add_row(f"GiB sent by {name}", gib(size))
    return table


def _verdict(found: DryRun, gpu_gib: float) -> str:
    need = found.peak_bytes + found.prefetched_bytes + RESERVE
    told = f"{gib(need)} GiB with batches ahead and a reserve of {gib(RESERVE)}, of {gpu_gib:g}"
    if need <= gpu_gib * GIB:
        return f"[green]fits:[/] {told}"
    return f"[bold red]does not fit:[/] {told}"


def _bars(timeline: tuple[Moment, ...]) -> str:
    """Bytes over time, one block a stretch of moments."""
    sizes = [moment.bytes for moment in timeline]
    most = max(sizes, default=1)
    step = max(1, -(-len(sizes) // BARS))
    groups = [max(sizes[n : n + step]) for n in range(0, len(sizes), step)]
    return "".join(BLOCKS[round((len(BLOCKS) - 1) * size / most)] for size in groups)


def gib(size: float) -> str:
    """Bytes as GiB, with as many digits as matter."""
    size /= GIB
    return f"{size:,.1f}" if size >= 10 else f"{size:,.2f}" if size >= 0.1 else f"{size:.4f}"
