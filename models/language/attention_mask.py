"""Who of a conversation sees whom.

                                 w f f f w
                               w #
    apart: words see words,    f   #
    rows of visuals see rows   f   # #
                               f   # # #
                               w #       #

Masks of one document are made of its runs (drawn in `parallel.masks.conversation`); documents of a pack do not see each
other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.language import causal_lm
from models.language.causal_lm import Window
from models.objectives.lm_objective import Sees
from parallel.errors import InputError
from parallel.masks import conversation
from parallel.masks import mask as masks
from parallel.masks.conversation import Runs
from parallel.masks.mask import Mask
from parallel.setting_effects import State


class MaskConfig(BaseModel):
    """Who of a conversation sees whom; by default each token sees all before it. Layers with a window keep theirs.

    Attributes:
        visual: what a visual token sees: "causal": all tokens before it; "bidirectional_frames": its whole frame too;
            "self_only": itself (EE-MLLM, arXiv:2408.11795: no attention among visual tokens); "own_frame": its frame
            alone.
        window: sliding window: a token sees the N tokens up to itself, and the sinks [tokens].
        chunk: instead, a token sees its chunk of N tokens, and the sinks (StreamingVLM, arXiv:2510.09608) [tokens].
        overlap: tokens that two neighboring chunks share [tokens].
        sinks: first tokens of the conversation that all tokens see [tokens].
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    visual: State[Literal["causal", "bidirectional_frames", "self_only", "own_frame"]] = "causal"
    window: State[int | None] = Field(default=None, ge=1)
    chunk: State[int | None] = Field(default=None, ge=1)
    overlap: State[int] = Field(default=0, ge=0)
    sinks: State[int] = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_of_them(self) -> MaskConfig:
        if self.window and self.chunk:
            raise InputError("tokens see a window or a chunk", f"{self.window} and {self.chunk}", "leave one out")
        if self.overlap and not (self.chunk and self.overlap < self.chunk):
            found = f"overlap {self.overlap} of chunks of {self.chunk}"
            raise InputError("chunks overlap by less than their length", found, "a smaller model.mask.overlap")
        if self.sinks and not (self.window or self.chunk):
            raise InputError("sinks are beside a window or a chunk", f"sinks: {self.sinks}", "give model.mask.window")
        return self

    def of(self, runs: Runs) -> Mask:
        """The mask of one conversation."""
        length = sum(rows for _, rows in runs)
        made: dict[str, Callable[[], Mask]] = {
            "causal": lambda: masks.causal(length),
            "bidirectional_frames": lambda: conversation.frames_whole(runs),
            "self_only": lambda: conversation.unaware(runs),
            "own_frame": lambda: conversation.unaware(runs, own_frame=True),
        }
        found = made[self.visual]()
        if self.window:
            after = length - 1 if self.visual == "bidirectional_frames" else 0
            return found & masks.window(length, self.window - 1, after, self.sinks)
        if self.chunk:
            return found & conversation.chunks(length, self.chunk, self.overlap, self.sinks)
        return found


def masks_of(
    windows: Sequence[Window], mask: MaskConfig, documents: Sequence[Runs], sees: Sees = "past"
) -> dict[Window, Mask]:
    """Who sees whom in a pack, by window of the layer's own.

    Args:
        windows: of the layers, each once.
        mask: of the model.
        documents: the runs of each.
        sees: see `models.objectives.lm_objective.LMObjective`.
    """
    lengths = [sum(rows for _, rows in runs) for runs in documents]
    if sees != "past":
        found = masks.packed(lengths) if sees == "all" else masks.stack([apart(runs) for runs in documents])
        return dict.fromkeys(windows, found)
    if mask == MaskConfig():
        return causal_lm.masks_of(windows, lengths)
    whole = masks.stack([mask.of(runs) for runs in documents])
    near = causal_lm.masks_of(windows, lengths)
    return {window: whole if window is None else whole & near[window] for window in windows}


def apart(runs: Runs) -> Mask:
    """Words see the words before them, rows of visuals the rows before them."""
    kinds = [kind for kind, _ in groupby(runs, key=lambda run: run[0])]
    lengths = [sum(rows for _, rows in of_kind) for _, of_kind in groupby(runs, key=lambda run: run[0])]
    past: list[list[masks.Sees]] = [
        ["none" if there != here or j > i else "past" if i == j else "all" for j, there in enumerate(kinds)]
        for i, here in enumerate(kinds)
    ]
    return masks.parts(lengths, past)
