"""A text encoder from outside of the packages: one embedding a word, which was there before, and a projection of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from models.diffusion.text_encoder import TEXT_ENCODERS, TextEncoderConfig, TextEncoderSpec
from models.layers.blocks import Linear
from parallel.device_stream import Send
from parallel.kernels.kernel import Kernel
from parallel.random import key_of, normal
from parallel.setting_effects import State


class WordVectorsConfig(TextEncoderConfig):
    """Sizes.

    Attributes:
        width: of the embedding of a word.
    """

    kind: State[Literal["word_vectors"]] = "word_vectors"
    dim: State[int] = 16
    width: State[int] = 12


@dataclass(frozen=True, eq=False)
class WordVectors:
    """Embeddings [words, width] of captions end to end, on the device, and the words of each."""

    vectors: Tensor
    lengths: tuple[int, ...]

    def prepare(self, device: torch.device) -> None:
        """Nothing is left to do."""


class Projection(nn.Module):
    """Of each embedding."""

    def __init__(self, config: WordVectorsConfig) -> None:
        super().__init__()
        self.linear = Linear(config.width, config.dim)

    def forward(self, batch: WordVectors) -> Tensor:
        """Features [words, dim]."""
        out: Tensor = self.linear(batch.vectors.to(self.linear.weight.dtype))
        return out


def tokenize(config: WordVectorsConfig, texts: Sequence[str], send: Send, kernel: Kernel | None) -> WordVectors:
    """A number of its own for each word stands for a file of embeddings; no words are one embedding, too."""
    words = [text.encode()[: config.max_bytes].decode(errors="ignore").split() or [""] for text in texts]
    vectors = [normal(key_of(word), 0, 1, config.width) for caption in words for word in caption]
    return WordVectors(send(torch.from_numpy(np.concatenate(vectors))), tuple(map(len, words)))


TEXT_ENCODERS.register("word_vectors", TextEncoderSpec(WordVectorsConfig, tokenize, Projection))
