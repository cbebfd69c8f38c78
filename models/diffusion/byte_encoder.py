"""The byte encoder, `model.text.kind: bytes`: bytes in, features out; needs no download and no vocabulary.

Every caption is its UTF-8 bytes after one start token, so that "" (no caption, for guidance) has a token too. Captions
are packed end to end like clips, each seeing itself alone: a pack costs in proportion to the number of its captions,
and to the square of the length of each. A caption of 100 bytes is next to nothing beside its video, so every rank
encodes all captions of its pack; one of 40 KB would be the dearest thing in a step, and one of 300 KB would end it. So
no more than `max_bytes` of each are read, whole characters, as users of T5 read 512 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.diffusion.text_encoder import TEXT_ENCODERS, Floats, TextEncoderConfig, TextEncoderSpec
from models.layers.blocks import MLP, Linear, SelfAttention, norm
from models.layers.rope import Rotary, check_heads
from parallel.attention.plan import Plan, local_plan
from parallel.device_stream import Send, here
from parallel.kernels.kernel import Kernel
from parallel.masks.mask import packed as packed_mask
from parallel.setting_effects import State

START = 256  # the token before the bytes 0 .. 255


class ByteEncoderConfig(TextEncoderConfig):
    """Sizes of the byte encoder; the defaults cost 0.9 million parameters.

    Attributes:
        depth: number of transformer blocks.
        heads: number of attention heads.
        rope_theta: base of the rotary frequencies.
    """

    kind: State[Literal["bytes"]] = "bytes"
    dim: State[int] = Field(default=128, gt=0)
    depth: State[int] = Field(default=4, ge=0)
    heads: State[int] = Field(default=4, gt=0)
    rope_theta: State[float] = Field(default=10_000.0, gt=1)

    def operations(self, tokens: Floats) -> Floats:
        """See `TextEncoderConfig`."""
        wide = 72.0 * self.dim**2  # 12 dim^2 parameters a block, 6 operations each
        return self.depth * tokens * (wide + 12.0 * self.dim * tokens)

    @property
    def attention(self) -> tuple[int, int]:
        """See `TextEncoderConfig`."""
        return self.heads, self.dim // self.heads

    @model_validator(mode="after")
    def _heads_divide(self) -> ByteEncoderConfig:
        check_heads(self.dim, self.heads, axes=1, name="text.")
        return self


def byte_tokens(text: str, limit: int | None = None) -> list[int]:
    """The start token and the UTF-8 bytes; a lone surrogate keeps its three bytes, so that no string fails.

    Args:
        text: a caption.
        limit: bytes of it that are read, less where they would end inside a character; None for all.
    """
    data = text.encode("utf-8", "surrogatepass")
    if limit is not None and len(data) > limit:
        while data[limit] & 0xC0 == 0x80:  # inside a character
            limit -= 1
        data = data[:limit]
    return [START, *data]


@dataclass(frozen=True, eq=False)
class ByteBatch:
    """Captions laid end to end, ready on the device.

    Attributes:
        tokens: [text tokens] int64.
        place: [text tokens, 1] int64, in the own caption.
        lengths: tokens of each caption.
        plan: who sees whom.
    """

    tokens: Tensor
    place: Tensor
    lengths: tuple[int, ...]
    plan: Plan

    @classmethod
    def of(
        cls, texts: Sequence[str], send: Send = here, kernel: Kernel | None = None, limit: int | None = None
    ) -> ByteBatch:
        """Captions of these texts, of which there is one at least; `limit` as of `byte_tokens`."""
        tokens = [byte_tokens(text, limit) for text in texts]
        lengths = tuple(len(t) for t in tokens)
        place = torch.cat([torch.arange(n) for n in lengths])[:, None]
        flat = torch.tensor([token for caption in tokens for token in caption])
        return cls(send(flat), send(place), lengths, local_plan(packed_mask(lengths), kernel))

    def prepare(self, device: torch.device) -> None:
        """See `TextBatch`."""
        self.plan.prepare(device)


class TextBlock(nn.Module):
    """Attention and MLP, each on a norm and added."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention, self.mlp = SelfAttention(dim, heads), MLP(dim, 4 * dim)

    def forward(self, x: Tensor, rotary: Rotary, plan: Plan) -> Tensor:
        """`x` [text tokens, dim] -> the same shape."""
        x = x + self.attention(norm(x), rotary, plan)
        return x + cast(Tensor, self.mlp(norm(x)))


class ByteEncoder(nn.Module):
    """Captions to one feature for each byte."""

    def __init__(self, config: ByteEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(START + 1, config.dim)
        self.blocks = nn.ModuleList(TextBlock(config.dim, config.heads) for _ in range(config.depth))
        self.out = Linear(config.dim, config.dim)

    def forward(self, captions: ByteBatch) -> Tensor:
        """Features [text tokens, dim] of all captions end to end."""
        x = self.embed(captions.tokens)
        rotary = Rotary.at(captions.place, self.config.dim // self.config.heads, self.config.rope_theta, x.dtype)
        for block in self.blocks:
            x = block(x, rotary, captions.plan)
        return cast(Tensor, self.out(norm(x)))


def _tokenize(config: ByteEncoderConfig, texts: Sequence[str], send: Send, kernel: Kernel | None) -> ByteBatch:
    return ByteBatch.of(texts, send, kernel, config.max_bytes)


TEXT_ENCODERS.register("bytes", TextEncoderSpec(ByteEncoderConfig, _tokenize, ByteEncoder))
