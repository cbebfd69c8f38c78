"""Video-language models: any language model of transformers that `models.backbone` knows, with or without eyes.

    frames --tower, projector, averages--> rows --+
    words ---------------embed-------------------+-> layers, `attend` over all ranks -> hidden -> loss

The shape is that of LLaVA, so that its weights load and save under their own names. What it is trained on is a `Heard`
(`Packed`, and what a language model needs besides); who sees whom is causal in a document unless the config says more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from models import backbone, vision
from models.backbone import Backbone, Plans, Rope, Window, windows_of
from models.next_token import Ints, Learned
from models.schedule import AttentionConfig
from models.vision import Places, Seen, VisionLM
from parallel import mask as masks
from parallel.errors import InputError
from parallel.geometry import Grid
from parallel.mask import Mask
from parallel.mesh import Groups
from parallel.packed import Packed
from parallel.views import Views

USUAL_NORMAL = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # mean and deviation of pixels: those of SigLIP
Part = Literal["vision", "projector", "language"]
TOWER, LAYERS = "model.vision_tower.", "model.language_model."
PARTS: dict[Part, tuple[str, ...]] = {  # prefixes of parameters
    "vision": (TOWER,),
    "projector": ("model.multi_modal_projector.",),
    "language": (LAYERS, "lm_head."),
}


class VideoLMConfig(BaseModel):
    """Which language model, and how it sees.

    Attributes:
        path: a folder of transformers, with config.json and perhaps weights to begin with.
        language: instead, a transformers config, such as {model_type: llama, hidden_size: 128, ...}.
        vision: with it, that of a tower, such as {model_type: siglip_vision_model, ...}; none for words alone.
        pool: rows of a frame are averaged over pool x pool neighbours.
        merge: rows of so many frames are averaged into those of one view.
        slow: every so many-th view is whole, the others are one row; 1 for whole ones alone.
        freeze: parts that are not trained.
        recompute: keep only the input of each layer and its attention for the backward pass, compute the rest again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ignored_types=(cached_property,))

    kind: Literal["video_lm"] = "video_lm"
    path: Path | None = None
    language: dict[str, Any] | None = None
    vision: dict[str, Any] | None = None
    pool: int = Field(default=1, ge=1)
    merge: int = Field(default=1, ge=1)
    slow: int = Field(default=1, ge=1)
    freeze: tuple[Part, ...] = ()
    recompute: bool = False

    @model_validator(mode="after")
    def _whole(self) -> VideoLMConfig:
        if (self.path is None) == (self.language is None) or (self.path is not None and self.vision is not None):
            raise InputError(
                "a video_lm is a folder of transformers, or a language and perhaps a vision config",
                f"path: {self.path}, language: {self.language}, vision: {self.vision}",
                "model.path=FOLDER alone, or model.language={model_type: llama, ...}",
            )
        backbone.refuse_unknown(self.text)
        if self.views is None and (self.pool, self.merge, self.slow) != (1, 1, 1):
            raise InputError("averages are of what is seen", "pool, merge or slow without vision", "give model.vision")
        return self

    @cached_property
    def transformers(self) -> Any:
        """The config of transformers."""
        return read_config(self.path) if self.path else config_of(self.language or {}, self.vision)

    @property
    def text(self) -> Any:
        """That of the language model."""
        return self.transformers.get_text_config() if self.transformers.model_type == "llava" else self.transformers

    @property
    def views(self) -> Views | None:
        """How frames become rows; None if it does not see."""
        if self.transformers.model_type != "llava":
            return None
        tower = self.transformers.vision_config
        side, rest = divmod(tower.image_size // tower.patch_size, self.pool)
        if rest:
            found = f"{tower.image_size // tower.patch_size} tokens a side, pool {self.pool}"
            raise InputError("neighbours are averaged where they divide the side", found, "a pool that divides it")
        return Views(tower.image_size, side, self.merge, self.slow)

    @property
    def normal(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and deviation of pixels from 0 to 1: those of the folder, or 0.5."""
        from transformers import AutoImageProcessor

        if self.path is None or not (self.path / "preprocessor_config.json").is_file():
            return USUAL_NORMAL
        reader: Any = AutoImageProcessor
        processor = reader.from_pretrained(self.path, local_files_only=True)
        return tuple(processor.image_mean), tuple(processor.image_std)

    @property
    def dim(self) -> int:
        """Width of a token."""
        return int(self.text.hidden_size)

    @property
    def depth(self) -> int:
        """Layers of the language model."""
        return int(self.text.num_hidden_layers)

    @property
    def heads(self) -> int:
        """Of queries."""
        return int(self.text.num_attention_heads)

    @property
    def positions(self) -> int:
        """Tokens of the longest document that the language model knows."""
        return int(self.text.max_position_embeddings)

    @property
    def vocabulary(self) -> int:
        """Rows of it."""
        return int(self.text.vocab_size)

    @property
    def windows(self) -> tuple[Window, ...]:
        """Of its layers, each once."""
        return tuple(dict.fromkeys(windows_of(self.text)))

    @property
    def patch(self) -> Grid:
        """For codecs: a token is a token."""
        return (1, 1, 1)

    @property
    def attention(self) -> tuple[AttentionConfig, ...]:
        """For planners: a document is a row of frames of one token."""
        return tuple(
            AttentionConfig(kind="frame_causal") if w is None else AttentionConfig(kind="frame_window", before=w - 1)
            for w in windows_of(self.text)
        )


class Objective(Protocol):
    """What a language model learns.

    Attributes:
        causal: whether tokens see the past alone.
    """

    causal: bool

    def learned(self, tokens: Ints, labels: Ints, kinds: Ints, key: int) -> Learned:
        """Of one conversation."""

    def head(self, lm: Any, hidden: Tensor, heard: Any) -> Tensor:
        """This rank's part of the sum of weighted losses."""

    def loss(self, prediction: Tensor, heard: Any) -> tuple[Tensor, Tensor]:
        """What the head said, and the weight of this rank's tokens."""


@dataclass(frozen=True, eq=False)
class Heard:
    """What one rank holds of a pack of conversations.

    Attributes:
        packed: documents, positions, weights; no values.
        tokens: [tokens] int64.
        labels: [tokens] int64.
        seen: frames that this rank's tower sees; None if the model sees nothing.
        places: where their rows go.
        groups: of this rank.
        objective: that is learned.
        rope: rotary frequencies, where they differ from the model's own.
    """

    packed: Packed
    tokens: Tensor
    labels: Tensor
    seen: Seen | None
    places: Places | None
    groups: Groups
    objective: Objective
    rope: Rope = ()

    @property
    def input(self) -> Heard:
        """What the model is given."""
        return self


class VideoLM(nn.Module):
    """A language model, with or without eyes.

    Args:
        lm: the model.
        pool: see `VideoLMConfig`.
    """

    def __init__(self, lm: Backbone, pool: int = 1) -> None:
        super().__init__()
        self.lm, self.pool = lm, pool

    def forward(self, heard: Heard, plans: Plans) -> Tensor:
        """This rank's part of the sum of weighted losses. Collective over the ranks of the replica."""
        self.lm.turn(heard.rope)
        hidden = self.lm.hidden(self.embedded(heard), heard.packed.position, plans)
        return heard.objective.head(self.lm, hidden, heard)

    def embedded(self, heard: Heard) -> Tensor:
        """Words, and rows of visuals in their places: [tokens, dim]."""
        if heard.seen is None or heard.places is None:
            return self.lm.embed(heard.tokens)
        assert isinstance(self.lm, VisionLM), "a model without eyes was shown frames"
        return self.lm.see(heard.tokens, heard.seen, heard.places, heard.groups, self.pool)


def build(config: VideoLMConfig, dtype: torch.dtype, seed: int) -> VideoLM:
    """The model of a config, its first numbers a function of `seed` alone; frozen parts are not trained."""
    make = vision.make if config.views else backbone.make
    lm = make(config.transformers, dtype, seed, config.recompute)
    still = (*(prefix for part in config.freeze for prefix in PARTS[part]), *unused(config))
    for name, parameter in lm.model.named_parameters():
        plain = name if config.views else name.replace("model.", LAYERS, 1)
        parameter.requires_grad_(not plain.startswith(still))
    return VideoLM(lm, config.pool)


def unused(config: VideoLMConfig) -> tuple[str, ...]:
    """Prefixes of parameters of the tower that its features do not depend on: layers after the one that is taken."""
    if not config.views:
        return ()
    tower, layer = config.transformers.vision_config, config.transformers.vision_feature_layer
    layers = [layer] if isinstance(layer, int) else list(layer)
    last = max(n if n >= 0 else tower.num_hidden_layers + 1 + n for n in layers)
    after = [f"encoder.layers.{n}." for n in range(last, tower.num_hidden_layers)]
    found = (*after, "post_layernorm.", "head.")
    return tuple(f"{TOWER}{inner}{name}" for name in found for inner in ("", "vision_model."))


def masks_of(config: VideoLMConfig, lengths: Sequence[int], causal: bool = True) -> dict[Window, Mask]:
    """Who sees whom in a pack, by window of the layer's own."""
    if causal:
        return backbone.masks_of(config.windows, lengths)
    return {window: masks.packed(lengths) for window in config.windows}


def config_of(language: dict[str, Any], tower: dict[str, Any] | None) -> Any:
    """A transformers config of plain settings.

    Raises:
        InputError: transformers does not take them.
    """
    from transformers import AutoConfig

    rule = "a model is described as in config.json of transformers"
    for name, settings in (("language", language), ("vision", tower)):
        if settings is not None and "model_type" not in settings:
            raise InputError(rule, f"model.{name} has no model_type", f"model.{name}.model_type: llama")
    try:
        text = AutoConfig.for_model(**language)
        _refuse_unknown_keys("language", language, text)
        if tower is None:
            return text
        seen = AutoConfig.for_model(**tower)
        _refuse_unknown_keys("vision", tower, seen)
        return AutoConfig.for_model(
            "llava", text_config=text.to_dict(), vision_config=seen.to_dict(), image_token_id=text.vocab_size - 1,
            vision_feature_layer=-1, vision_feature_select_strategy="default" if _has_class(seen) else "full",
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(rule, f"{type(error).__name__}: {str(error)[:200]}", "see its page of transformers") from error


def read_config(path: Path) -> Any:
    """The transformers config of a folder; nothing is downloaded.

    Raises:
        InputError: there is none.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        found = f"{path}: {str(error).splitlines()[0][:200]}"
        raise InputError(
            "model.path is a folder as transformers saves it", found, "model.save_pretrained(FOLDER)"
        ) from error


def _has_class(tower: Any) -> bool:
    """Whether the tower has a token that is no patch."""
    return str(tower.model_type) == "clip_vision_model"


def _refuse_unknown_keys(name: str, settings: dict[str, Any], config: Any) -> None:
    known = set(type(config)().to_dict()) | {"model_type", "rope_theta", "rope_scaling"}
    for key in settings:
        if key not in known:
            from difflib import get_close_matches

            near = get_close_matches(key, sorted(known), n=1, cutoff=0.0)
            raise InputError(f"every key of model.{name} is known", f"model.{name}.{key}", f"did you mean {near[0]}?")
