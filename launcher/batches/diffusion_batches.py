"""Micro-steps of clips, for diffusion.

pack --read--> frames --codec--> Packed --objective--> noisy
               or latents
  mask, split --> Plan, one a layer
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from data.streams.clip_reader import Piece
from data.streams.clip_source import ClipSource
from data.streams.curriculum import Curriculum
from data.streams.pack_stream import Pack, PackStream
from launcher.batches.checksum import checksum
from launcher.batches.codec_check import refuse_other_codec
from launcher.batches.family import MicroStep
from models.codecs.codec import Codec
from models.diffusion.attention_schedule import AttentionPattern, area_of, masks_of, token_tile
from models.diffusion.text_encoder import TextEncoderConfig
from models.diffusion.video_dit import DiTBatch, batch_of
from models.layers.patches import patchify
from models.objectives.rectified_flow import Prepared, RectifiedFlow
from parallel import device_stream as streams
from parallel.attention.plan import Keep, Plan, plan_for
from parallel.kernels.kernel import Kernel
from parallel.mesh import Groups
from parallel.sequence.geometry import Geometry
from parallel.sequence.packed import Document, Ranges, lay_out, local_spans, to_read
from parallel.sequence.sharding import balanced


@dataclass(frozen=True, eq=False)
class DiffusionBatch(Prepared):
    """What the objective compares with, and what the model reads beside the noisy tokens.

    Attributes:
        inputs: as of the noisy tokens, before any weight of them was changed.
    """

    inputs: DiTBatch

    @property
    def input(self) -> DiTBatch:
        """What the model is given."""
        return replace(self.inputs, packed=self.packed)


@dataclass(frozen=True)
class ClipBatchBuilder:
    """See `launcher.batches.family.BatchBuilder`.

    Attributes:
        codec: frames to latents.
        objective: latents to input and target.
        attention: patterns of the model's layers.
        groups: of this rank.
        device: of the tensors.
        kernel, keep: of self attention: see `Plan`.
        text: of the model, that reads captions.
    """

    codec: Codec
    objective: RectifiedFlow
    attention: tuple[AttentionPattern, ...]
    groups: Groups
    device: torch.device
    kernel: Kernel | None = None
    keep: Keep = "exchanged"
    text: TextEncoderConfig | None = None

    @cached_property
    def stream(self) -> streams.Stream:
        """What is made goes here."""
        return streams.stream_for(self.device)

    def check(self, curriculum: Curriculum) -> None:
        """Latents were made by this codec."""
        refuse_other_codec(curriculum, self.codec)

    def area(self, stream: PackStream[ClipSource], pack: Pack) -> float:
        """See `BatchBuilder`."""
        return sum(area_of(self.attention, document.grid) for document in pack.documents)

    def micro_step(self, stream: PackStream[ClipSource], pack: Pack) -> MicroStep:
        """See `BatchBuilder`."""
        problems: dict[int, str] = {}
        pieces: list[Piece] = []

        def read(ranges: Ranges) -> Tensor:
            pieces.extend(
                stream.source.read(pack, ranges, lambda number, error: problems.update({number: error.value}))
            )
            return torch.cat([self.values(0), *(self._values(pack, piece) for piece in pieces)])

        batch, plans = self.prepare(pack.documents, read)
        received, held = 0, batch.packed
        for number, start, stop in local_spans(held.lengths, held.ranges):
            document = pack.documents[number]
            if document.weight and number not in problems:  # a padding pack is a copy of what others count
                received += checksum(document.uid, stop - start)
        return MicroStep(batch, plans, received, problems)

    def prepare(
        self, documents: Sequence[Document], read: Callable[[Ranges], Tensor]
    ) -> tuple[DiffusionBatch, tuple[Plan, ...]]:
        """What this rank holds of clips that make up a pack, and who sees whom.

        Args:
            documents: of the pack.
            read: gives the clean values [tokens, token_dim] of ranges of it, whose clips lie frame by frame.
        """
        tile = token_tile(self.attention)
        documents = [replace(document, tile=tile) for document in documents]
        masks = masks_of(self.attention, [d.grid for d in documents])
        split = balanced(max(masks, key=lambda mask: mask.area), self.groups.mesh)
        ranges = split.ranges[self.groups.place.sequence]
        wanted, held = to_read(documents, ranges)
        values = read(wanted)
        if held is not None:
            values = values[self.stream.send(torch.from_numpy(held))]
        noisy = self.objective.prepare(lay_out(documents, ranges, values), self.stream.send)
        inputs = batch_of(noisy.packed, noisy.levels, self.stream.send, self.kernel, self.text)
        plans = {id(mask): plan_for(mask, split, self.groups, kernel=self.kernel, keep=self.keep) for mask in masks}
        for plan in plans.values():
            plan.prepare(self.device)
        return DiffusionBatch(noisy.packed, noisy.target, noisy.levels, inputs), tuple(
            plans[id(mask)] for mask in masks
        )

    def empty_step(self, documents: Sequence[Document], layouts: Sequence[Any], rope: Any) -> MicroStep:
        """See `BatchBuilder`."""
        made = self.prepare(documents, lambda ranges: self.values(sum(b - a for a, b in ranges)).zero_())
        return MicroStep(*made, 0, {})

    def values(self, tokens: int) -> Tensor:
        """Room for the values of so many tokens: [tokens, token_dim]."""
        nothing = torch.zeros(self.codec.geometry.channels, 0, 1, 1, device=self.device)
        return self.codec.normal(nothing).new_empty(tokens, self.codec.geometry.token_dim)

    def _values(self, pack: Pack, piece: Piece) -> Tensor:
        """Clean tokens [stop - start, token_dim] of a piece."""
        geometry, grid = self.codec.geometry, pack.documents[piece.document].grid
        if piece.frames is not None:
            latents = self.codec.encode(self.stream.send(torch.from_numpy(piece.frames)))
            first = first_token(geometry, grid, piece.first_frame)
        else:
            assert piece.latents is not None, "a piece has frames or latents"
            latents = self.codec.normal(self.stream.send(torch.from_numpy(piece.latents)).transpose(0, 1))
            first = piece.first_frame // geometry.patch[0] * grid[1] * grid[2]
        tokens = patchify(latents, geometry.patch)
        return tokens[piece.start - first : piece.stop - first]


def first_token(geometry: Geometry, grid: tuple[int, int, int], first_frame: int) -> int:
    """Position in a document of the first token of frame `first_frame`, which begins a token."""
    per_token = geometry.stride[0] * geometry.patch[0]
    assert first_frame % per_token == 0, f"frame {first_frame} begins no token of {per_token} frames"
    return first_frame // per_token * grid[1] * grid[2]
