"""Video DiT: a diffusion transformer over packed clips of any length and shape.

            noisy tokens                  captions              noise level
                 |                           |                       |
       patch embed (+ place)            text encoder              sinusoids
                 |                           |  \\____ mean ____       |
                 |                           |                \\-- + --|
           +-----v----------------------------------------------------- condition c, one row a stretch -----+
           |  x + gate(c) * self attention(adaLN(x, c))      3-D rotary, query-key norm, `attend` over all ranks
    depth  |  x + cross attention(norm(x), text)             to the words of the own document, local
           |  x + gate(c) * MLP(adaLN(x, c))
           +-----|
              adaLN, linear  ->  prediction

adaLN-zero of Peebles and Xie (DiT, arXiv:2212.09748, sec. 3.2) with a noise level for each token; text by cross
attention as in Wan (arXiv:2503.20314) and Open-Sora (arXiv:2412.20404); the mean of the text features joins the
condition (as the pooled caption in Esser et al., arXiv:2403.03206, fig. 2), which makes short trainings follow prompts.
Gates, cross attention and head start at zero: each block starts as the identity and the prediction as 0.

A block has (12 + 2 mlp_ratio) dim^2 + 2 text_dim dim parameters, 20 dim^2 and a little; a token costs
2 (6 + 2 mlp_ratio) dim^2 FLOP in each, and attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Annotated, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from models.core.specs import HeadShape, ModelSpec, own_heads
from models.diffusion.attention_schedule import Full, Schedule, token_tile
from models.diffusion.byte_encoder import ByteEncoderConfig
from models.diffusion.text_encoder import TEXT_ENCODERS, TextBatch, TextEncoderConfig
from models.layers.blocks import MLP, CrossAttention, Linear, SelfAttention, ZeroLinear, norm
from models.layers.fused import Compile, Kernels, gated, kernels_of, modulated
from models.layers.modulation import Stretches
from models.layers.rope import Rotary, check_heads
from parallel.attention.plan import Plan, cross_plan
from parallel.device_stream import Send, here
from parallel.errors import InputError
from parallel.kernels.kernel import Kernel
from parallel.memory.activation_checkpointing import recompute
from parallel.memory.activation_offload import offload_if
from parallel.memory.tiled import tiled_rows
from parallel.registries import OneOf
from parallel.sequence.geometry import Grid
from parallel.sequence.packed import Packed, local_spans
from parallel.setting_effects import Memory, Rounding, State

LEVEL_FREQUENCIES = 128  # pairs of sinusoids of the noise level
PLACE_FREQUENCIES = 16  # pairs of sinusoids of each coordinate


class VideoDiTConfig(BaseModel):
    """Shape of a video DiT.

    Attributes:
        dim: width of a token.
        depth: number of blocks.
        heads: heads of self and cross attention; dim / heads must be even and at least 6.
        mlp_ratio: hidden width of the MLP / dim.
        mlp_hidden: hidden width of the MLP, instead of mlp_ratio.
        mlp_tiles: number of tiles of tokens that the MLP computes one after the other, to save activation memory.
        patch: latent cells per token along (t, y, x).
        text: the text encoder: a kind of `TEXT_ENCODERS` and its settings; that of bytes if none is named.
        rope_theta: base of the rotary frequencies, and of the sinusoids of `absolute_positions`.
        absolute_positions: add an embedding of each token's own position, besides the rotary embedding (both: Li and
            He, arXiv:2511.13720); short trainings on small clips need it to learn that a word means a direction.
        recompute: whether the backward pass recomputes all but the input and the attention of each block.
        offload: whether kept activations wait in pinned host memory for the backward pass; best with recompute.
        compile: "blocks" fuses each norm with its modulation or rotary embedding, and each gate with
            its residual, by torch.compile; "none" calls several of torch's.
        attention: who sees whom; layer i takes pattern i modulo their number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: State[Literal["video_dit"]] = "video_dit"
    dim: State[int] = Field(default=384, gt=0)
    depth: State[int] = Field(default=12, gt=0)
    heads: State[int] = Field(default=6, gt=0)
    mlp_ratio: State[float] = Field(default=4.0, gt=0)
    mlp_hidden: State[int | None] = Field(default=None, gt=0)
    mlp_tiles: Rounding[int] = Field(default=1, ge=1)
    patch: State[Grid] = (1, 2, 2)
    text: Annotated[TextEncoderConfig, OneOf(TEXT_ENCODERS, lambda spec: spec.config)] = ByteEncoderConfig()
    rope_theta: State[float] = Field(default=10_000.0, gt=1)
    absolute_positions: State[bool] = False
    recompute: Memory[bool] = False
    offload: Memory[bool] = False
    compile: Rounding[Compile] = "none"
    attention: Schedule = Field(default=(Full(),), min_length=1)

    @model_validator(mode="after")
    def _shapes_fit(self) -> VideoDiTConfig:
        check_heads(self.dim, self.heads, axes=3)
        token_tile(self.attention)  # refuses patterns in different orders of tokens
        if min(self.patch) < 1:
            raise InputError(
                "a patch is at least one latent cell along (t, y, x)",
                f"patch: {list(self.patch)}",
                "use 1 for no patching",
            )
        if self.mlp_hidden is not None and self.mlp_ratio != 4.0:
            found = f"mlp_ratio: {self.mlp_ratio}, mlp_hidden: {self.mlp_hidden}"
            raise InputError("the width of an MLP is said once", found, "leave mlp_ratio out")
        return self

    @property
    def hidden(self) -> int:
        """Width of the MLP."""
        return self.mlp_hidden or round(self.mlp_ratio * self.dim)

    def refuse_odd_widths(self) -> None:
        """Widths that the matrix units of a GPU take.

        Raises:
            InputError: one is no multiple of 8, which makes matrix products several times as slow.
        """
        for name, width in (("dim", self.dim), ("text.dim", self.text.dim), ("mlp_hidden", self.hidden)):
            if width % 8:
                rule = "widths of a model on GPUs are multiples of 8"
                raise InputError(rule, f"model.{name}: {width}", f"model.{name}={max(8, round(width / 8) * 8)}")


@dataclass(frozen=True, eq=False)
class DiTBatch:
    """What the model reads, all of it on its device before the forward pass: that asks the host for nothing.

    Attributes:
        packed: what this rank holds, with noisy values; coordinates are read too.
        stretches: where the document and the noise level change.
        captions: of all documents of the pack.
        words: which tokens see which words.
    """

    packed: Packed
    stretches: Stretches
    captions: TextBatch
    words: Plan


def batch_of(
    packed: Packed,
    levels: npt.NDArray[np.float64],
    send: Send = here,
    kernel: Kernel | None = None,
    text: TextEncoderConfig | None = None,
) -> DiTBatch:
    """The input of the model: the one place where it is made, for training and sampling.

    Args:
        packed: on the device, with noisy values.
        levels: [tokens], the noise level of each token of this rank, on the host.
        send: puts a tensor of the host on the device.
        kernel: see `Plan`.
        text: of the model that reads them; the default one if None.
    """
    spans = local_spans(packed.lengths, packed.ranges)
    document = np.repeat([index for index, _, _ in spans], [stop - start for _, start, stop in spans])
    text = text or ByteEncoderConfig()
    captions = TEXT_ENCODERS[text.kind].tokenize(text, [d.text for d in packed.documents], send, kernel)
    words = cross_plan(packed.lengths, packed.ranges, captions.lengths, kernel)
    for needed in (captions, words):
        needed.prepare(packed.values.device)
    return DiTBatch(packed, Stretches.of(document.astype(np.int64), levels, send), captions, words)


class NoiseLevel(nn.Module):
    """Sinusoids of the noise level (Vaswani et al., arXiv:1706.03762, sec. 3.5) through an MLP."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = MLP(2 * LEVEL_FREQUENCIES, dim, dim)

    def forward(self, level: Tensor, dtype: torch.dtype) -> Tensor:
        """`level` [rows] in 0 .. 1 -> [rows, dim] in `dtype`; sinusoids in at least float32."""
        level = level.to(torch.promote_types(dtype, torch.float32))
        steps = torch.arange(LEVEL_FREQUENCIES, device=level.device, dtype=level.dtype)
        angle = 1000.0 * level[:, None] * torch.exp(steps * (-math.log(10_000.0) / LEVEL_FREQUENCIES))
        return cast(Tensor, self.mlp(torch.cat([angle.cos(), angle.sin()], dim=1).to(dtype)))


class Place(nn.Module):
    """Where in the clip a token lies: sinusoids of its coordinates (DiT, sec. 3.2) through an MLP that can mix axes."""

    def __init__(self, dim: int, theta: float) -> None:
        super().__init__()
        self.theta = theta
        self.mlp = MLP(2 * 3 * PLACE_FREQUENCIES, dim, dim)

    def forward(self, coordinates: Tensor, dtype: torch.dtype) -> Tensor:
        """`coordinates` [tokens, 3] -> [tokens, dim] in `dtype`; sinusoids in at least float32."""
        wide = torch.promote_types(dtype, torch.float32)
        steps = torch.arange(PLACE_FREQUENCIES, device=coordinates.device, dtype=wide)
        angle = (coordinates[:, :, None] * self.theta ** (-steps / PLACE_FREQUENCIES)).flatten(1)
        return cast(Tensor, self.mlp(torch.cat([angle.cos(), angle.sin()], dim=1).to(dtype)))


class Block(nn.Module):
    """One layer of the figure above."""

    def __init__(self, config: VideoDiTConfig) -> None:
        super().__init__()
        dim, self.tiles, self.kernels = config.dim, config.mlp_tiles, kernels_of(config.compile)
        self.modulation = ZeroLinear(dim, 6 * dim)
        self.attention = SelfAttention(dim, config.heads, self.kernels)
        self.cross = CrossAttention(dim, config.text.dim, config.heads, self.kernels)
        self.mlp = MLP(dim, config.hidden)

    def forward(
        self, x: Tensor, condition: Tensor, stretches: Stretches, rotary: Rotary, plan: Plan, text: Tensor, words: Plan
    ) -> Tensor:
        """`x` [tokens, dim], `condition` [stretches, dim], `text` [text tokens, text_dim] -> [tokens, dim]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=1)
        spans, kernels = stretches.rows(), self.kernels
        attended = self.attention(modulated(x, shift1, scale1, spans, kernels), rotary, plan)
        x = gated(x, attended, gate1, spans, kernels)
        x = x + self.cross(norm(x), text, words)

        def branch(rows: Tensor, first: int) -> Tensor:
            spans = stretches.rows(first, first + len(rows))
            return gated(rows, self.mlp(modulated(rows, shift2, scale2, spans, kernels)), gate2, spans, kernels)

        return branch(x, 0) if self.tiles == 1 else tiled_rows(branch, x, self.tiles)


class Head(nn.Module):
    """adaLN and a linear layer, both zero at first."""

    def __init__(self, dim: int, token_dim: int, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.modulation, self.linear = ZeroLinear(dim, 2 * dim), ZeroLinear(dim, token_dim)

    def forward(self, x: Tensor, condition: Tensor, stretches: Stretches) -> Tensor:
        """`x` [tokens, dim] -> [tokens, token_dim]."""
        shift, scale = self.modulation(condition).chunk(2, dim=1)
        return cast(Tensor, self.linear(modulated(x, shift, scale, stretches.rows(), self.kernels)))


class VideoDiT(nn.Module):
    """The figure above.

    Args:
        config: its shape.
        channels: of one latent cell.
    """

    def __init__(self, config: VideoDiTConfig, channels: int) -> None:
        super().__init__()
        self.config, self.token_dim = config, channels * math.prod(config.patch)
        self.text = TEXT_ENCODERS[config.text.kind].build(config.text)
        self.pool = MLP(config.text.dim, config.dim, config.dim)
        self.level = NoiseLevel(config.dim)
        self.embed = Linear(self.token_dim, config.dim)
        self.place = Place(config.dim, config.rope_theta) if config.absolute_positions else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head = Head(config.dim, self.token_dim, kernels_of(config.compile))

    def forward(self, batch: DiTBatch, plans: Sequence[Plan]) -> Tensor:
        """Prediction [tokens, token_dim] for the noisy `batch.packed.values`.

        Args:
            batch: what this rank holds.
            plans: which tokens see which, one for each pattern of `config.attention`.

        Runs every layer even if no token is held, so that all ranks touch the same parameters.
        """
        dtype, packed, stretches = self.embed.weight.dtype, batch.packed, batch.stretches
        text = self.text(batch.captions)
        of_each = text.split(batch.captions.lengths)
        caption = self.pool(torch.stack([words.mean(dim=0) for words in of_each]))  # [documents, dim]
        condition = F.silu(self.level(stretches.level, dtype) + caption[stretches.document])  # [stretches, dim]
        rotary = Rotary.at(packed.coordinates, self.config.dim // self.config.heads, self.config.rope_theta, dtype)

        x = self.embed(packed.values.to(dtype))
        if self.place is not None:
            x = x + self.place(packed.coordinates, dtype)
        assert len(plans) == len(self.config.attention), f"{len(plans)} plans for {len(self.config.attention)} patterns"
        with offload_if(self.config.offload):
            for block, plan in zip(self.blocks, cycle(plans), strict=False):
                inputs = (x, condition, stretches, rotary, plan, text, batch.words)
                x = recompute(block, *inputs) if self.config.recompute else block(*inputs)
        return cast(Tensor, self.head(x, condition, stretches))


def build(config: VideoDiTConfig, channels: int, seed: int, dtype: torch.dtype) -> VideoDiT:
    """A model whose first numbers depend on `seed` alone: drawn on CPU in float32, then cast to `dtype`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return VideoDiT(config, channels).to(dtype)


def _head_shapes(config: VideoDiTConfig) -> tuple[HeadShape, ...]:
    own = own_heads(config)
    if config.text.attention is None:
        return own
    heads, dim = config.text.attention
    return *own, HeadShape("model.text.dim / model.text.heads", heads, heads, dim)


def _kept(config: VideoDiTConfig) -> float:
    """Two rows of the width of its MLP, unless that exists in tiles alone."""
    return 2.0 * config.hidden / config.dim if config.mlp_tiles == 1 else 0.0


SPEC = ModelSpec(
    VideoDiTConfig,
    "diffusion",
    lambda config, numbers: build(config, numbers.channels, numbers.seed, numbers.dtype),
    head_shapes=_head_shapes,
    refuse_on_gpu=VideoDiTConfig.refuse_odd_widths,
    kept=_kept,
)
