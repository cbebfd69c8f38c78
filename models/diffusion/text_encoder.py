"""Text encoders of diffusion models: captions to features that clips see by cross attention.

    captions --tokenize, on the host--> TextBatch, on the device --encoder, in the model--> [text tokens, dim]

`TEXT_ENCODERS` has the kinds of `model.text`; the byte encoder (`byte_encoder.py`) is the first, and so the default.
One of your own is a file with one call: its settings, how captions become a batch, and a module that encodes it. A
frozen encoder (T5, CLIP) or embeddings that were computed before fit as well: what they know of a caption is made in
`tokenize`, and the module only projects it (`tests/extending/text_encoder.py`).

Every rank encodes all captions of its pack. "" is a caption too: the one that guidance compares with, and of every clip
whose caption was dropped; it has one feature or more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from parallel.device_stream import Send
from parallel.kernels.kernel import Kernel
from parallel.registries import Registry
from parallel.setting_effects import State

Floats = npt.NDArray[np.float64]


class TextEncoderConfig(BaseModel):
    """What the settings of every text encoder have.

    Attributes:
        kind: name of an entry of `TEXT_ENCODERS`.
        dim: width of a feature.
        max_bytes: bytes of a caption or prompt that are read, from its beginning, in UTF-8 [bytes]; a longer one is
            reported. Packs are balanced by the cost of captions, so a run that has begun keeps it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: State[str]
    dim: State[int] = Field(gt=0)
    max_bytes: State[int] = Field(default=1024, ge=1, le=65536)

    def tokens(self, sizes: npt.NDArray[Any]) -> Floats:
        """How many features captions of so many bytes have, nearly: clips see each of them."""
        return np.asarray(np.minimum(sizes, self.max_bytes) + 1.0, np.float64)

    def operations(self, tokens: Floats) -> Floats:
        """Of encoding captions of so many tokens, forward and backward, each by itself; none for what was before."""
        return np.zeros_like(tokens)

    @property
    def attention(self) -> tuple[int, int] | None:
        """(heads, width of a head) of attention in the encoder; None for none that runs on `parallel.attention`."""
        return None


class TextBatch(Protocol):
    """Captions of a pack, ready on the device.

    Attributes:
        lengths: features of each caption, at least 1.
    """

    @property
    def lengths(self) -> tuple[int, ...]:
        """See above."""

    def prepare(self, device: torch.device) -> None:
        """Lay down what the forward pass needs there, before it begins."""


@dataclass(frozen=True)
class TextEncoderSpec:
    """An entry of `TEXT_ENCODERS`.

    Attributes:
        config: its settings.
        tokenize: (settings, captions, puts a tensor on the device, kernel of attention) to their batch. The same
            captions give the same batch in every process.
        build: settings to a module that gives features [text tokens, dim], those of all captions end to end, of a
            batch; its parameters are trained and kept with the model's.
    """

    config: type[TextEncoderConfig]
    tokenize: Callable[[Any, Sequence[str], Send, Kernel | None], TextBatch]
    build: Callable[[Any], nn.Module]


TEXT_ENCODERS: Registry[TextEncoderSpec] = Registry("text encoder")


def caption_bytes(model: Any) -> int | None:
    """Bytes of a caption that a model of these settings reads; None if it has no text encoder."""
    text = getattr(model, "text", None)
    return None if text is None else int(text.max_bytes)
