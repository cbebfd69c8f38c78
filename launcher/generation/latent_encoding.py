"""`longreel data encode`: a codec of `models` in the form that `data` takes it, and what people see at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from data.dataset.latents_file import Dtype, Moments
from data.dataset.outcome import Rejection
from data.media.video import Frames
from data.prepare.encode_stage import EncodeSummary
from launcher.config.proposed_commands import setting
from launcher.core.hardware import device_here
from launcher.core.text import printable
from models.codecs.diffusers_vae import DiffusersCodec, DiffusersCodecConfig
from models.codecs.open_codec import open_codec
from parallel import shell
from parallel.errors import InputError
from parallel.sequence.geometry import Geometry

DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ClipEncoder:
    """An `Encoder` of data/prepare/latent_shard.py.

    Attributes:
        geometry, identity, dtype, settings: see there.
        codec: that computes.
        device: that it computes on.
    """

    geometry: Geometry
    identity: str
    dtype: Dtype
    settings: Mapping[str, Any]
    codec: DiffusersCodec
    device: torch.device

    def __call__(self, frames: Frames) -> Moments:
        """Mean and log-variance, float32 [2, t, channels, h, w], of uint8 frames [n, height, width, 3]."""
        moments = self.codec.posterior(torch.from_numpy(frames).to(self.device))  # [2, channels, t, h, w]
        found: Moments = moments.transpose(1, 2).cpu().contiguous().numpy()
        return found


def open_encoder(folder: Path, dtype: str = "float32", device: str | None = None, tiling: bool = False) -> ClipEncoder:
    """The autoencoder of a folder, ready to encode.

    Args:
        folder: that `diffusers` saved.
        dtype: of what it computes and of what is stored: float32 or bf16.
        device: of torch; None for the GPU if there is one.
        tiling: in tiles of the picture: less memory, slightly other values.

    Raises:
        InputError: no such autoencoder, dtype or device.
    """
    known = next((name for name in DTYPES if name == dtype), None)
    if known is None:
        raise InputError("latents are float32 or bf16", f"--dtype {dtype}", "--dtype float32")
    place = _device(device)
    codec = open_codec(DiffusersCodecConfig(path=folder, tiling=tiling), (1, 1, 1), DTYPES[known], place)
    assert isinstance(codec, DiffusersCodec), f"{codec}"
    return ClipEncoder(codec.geometry, codec.identity, known, {"tiling": tiling}, codec, place)


def part_of(text: str) -> tuple[int, int]:
    """(i, n) of "i/n".

    Raises:
        InputError: it is something else.
    """
    part, slash, parts = text.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise InputError("a part is i/n, i from 1 to n", f"--part {text}", "--part 1/4")
    return int(part), int(parts)


def tables(summary: EncodeSummary, out: Path, codec: Path) -> Iterator[Table | str]:
    """What is printed at the end, of latents in `out` that the codec in a folder has made."""
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for row in _rows(summary):
        table.add_row(*row)
    yield table
    if summary.rejected:
        yield _rejected(summary.rejected)
    if summary.twice:
        mend = shell.join(["longreel", "data", "check", str(out), "--repair"])
        yield f"{summary.twice} samples have the latents and captions of others: {mend}"
    if summary.left:
        yield f"{out}: {summary.left} shards are still to do; who finishes the last one publishes the dataset"
    else:
        yield f"{out}"
        key = setting("data.dataset", str(out))
        path = setting("codec.path", str(codec))
        yield f"next: longreel train RUN.yaml {key} codec.kind=diffusers {path}"


def _rows(summary: EncodeSummary) -> Iterator[tuple[str, str, str]]:
    rate = summary.clips / summary.seconds if summary.seconds else 0.0
    yield "shards written", f"{summary.shards:,}", ""
    if summary.skipped:
        yield "done before", f"{summary.skipped:,}", "not done again"
    yield "clips", f"{summary.clips:,}", f"{rate:,.1f} clips/s"
    if summary.texts:
        yield "text alone", f"{summary.texts:,}", "carried over"
    cut = f"{summary.frames_cut:,} more fill no latent, or were not asked for" if summary.frames_cut else ""
    yield "frames", f"{summary.frames:,}", cut
    yield "rejected", f"{len(summary.rejected):,}", ""
    yield "megabytes", f"{summary.bytes / 1e6:,.1f}", ""
    yield "seconds", f"{summary.seconds:,.1f}", ""


def _rejected(rejected: list[Rejection]) -> Table:
    """By kind, with an example."""
    table = Table(title="rejected", title_justify="left")
    for name, justify in (("reason", "left"), ("times", "right"), ("such as", "left")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for kind, times in Counter(one.kind for one in rejected).most_common():
        one = next(one for one in rejected if one.kind == kind)
        table.add_row(kind, f"{times:,}", printable(f"{one.file} {one.rows}: {one.reason}"))
    return table


def _device(name: str | None) -> torch.device:
    if name is None:
        return device_here()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        found = f"--device {name}: {str(error).splitlines()[0]}"
        raise InputError("a device is one that torch has here", found, "--device cpu, or --device cuda:0") from None
    return device
