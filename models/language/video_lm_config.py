"""Settings of a video-language model: which language model, which vision tower, and how frames become its rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.diffusion.attention_schedule import AttentionPattern, FrameCausal, FrameWindow
from models.language import causal_lm, vision_tower
from models.language.attention_mask import MaskConfig
from models.language.causal_lm import Window, windows_of
from models.language.hf_config import config_of, read_config, refuse_impossible
from models.layers.fused import Compile
from parallel.errors import InputError
from parallel.hf_folder import from_folder
from parallel.sequence.geometry import Grid
from parallel.sequence.visual_tokens import Views
from parallel.setting_effects import Content, Memory, Rounding, State

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
        path: folder of transformers, with config.json and optionally initial weights.
        language: instead of `path`, a transformers config, such as {model_type: llama, hidden_size: 128, ...}.
        vision: with `language`, the config of a vision tower, such as {model_type: siglip_vision_model, ...}; null for
            a text-only model.
        spatial_pool: averages over N x N neighboring features of a frame; N must divide the tower's grid.
        temporal_pool: averages N frames into one view.
        slow_fast: every N-th view keeps full resolution, the others become one token; 1 keeps all.
        mask: who sees whom.
        freeze: parts whose parameters are not trained.
        recompute: whether the backward pass recomputes all but the input and the attention of each layer.
        offload: whether kept activations wait in pinned host memory for the backward pass; best with recompute.
        mlp_tiles: number of tiles of tokens that an MLP computes one after the other, to save activation memory.
        compile: "blocks" fuses each norm of the language model, and each activation with its product,
            by torch.compile; "none" calls several of torch's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ignored_types=(cached_property,))

    kind: State[Literal["video_lm"]] = "video_lm"
    path: Content[Path | None] = None
    language: State[dict[str, Any] | None] = None
    vision: State[dict[str, Any] | None] = None
    spatial_pool: State[int] = Field(default=1, ge=1)
    temporal_pool: State[int] = Field(default=1, ge=1)
    slow_fast: State[int] = Field(default=1, ge=1)
    mask: MaskConfig = MaskConfig()
    freeze: State[tuple[Part, ...]] = ()
    recompute: Memory[bool] = False
    offload: Memory[bool] = False
    mlp_tiles: Rounding[int] = Field(default=1, ge=1)
    compile: Rounding[Compile] = "none"

    @model_validator(mode="after")
    def _whole(self) -> VideoLMConfig:
        if (self.path is None) == (self.language is None) or (self.path is not None and self.vision is not None):
            raise InputError(
                "a video_lm is a folder of transformers, or a language and perhaps a vision config",
                f"path: {self.path}, language: {self.language}, vision: {self.vision}",
                "model.path=FOLDER alone, or model.language={model_type: llama, ...}",
            )
        causal_lm.refuse_unknown(self.text)
        refuse_impossible(self.text)
        if set(self.freeze) >= ({"language"} if self.views is None else {"vision", "projector", "language"}):
            raise InputError("some part of a model is trained", f"model.freeze: {list(self.freeze)}", "leave one out")
        if self.views is None and (self.spatial_pool, self.temporal_pool, self.slow_fast) != (1, 1, 1):
            rule = "model.spatial_pool, temporal_pool and slow_fast need a vision tower"
            raise InputError(rule, "no model.vision", "set model.vision, or leave them out")
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
        side, rest = divmod(tower.image_size // tower.patch_size, self.spatial_pool)
        if tower.image_size < tower.patch_size:
            found = f"image_size: {tower.image_size}, patch_size: {tower.patch_size}"
            raise InputError("a patch of a tower fits into its image", found, "a smaller model.vision.patch_size")
        if rest:
            found = f"{tower.image_size // tower.patch_size} tokens a side, spatial_pool {self.spatial_pool}"
            raise InputError(
                "model.spatial_pool must divide the side of the tower's grid", found, "set a divisor of it"
            )
        return Views(tower.image_size, side, self.temporal_pool, self.slow_fast)

    @property
    def frame_tokens(self) -> int:
        """Rows of a whole frame, after neighbours were averaged; of a model that sees."""
        views = self.views
        assert views is not None, "a model without eyes sees no frames"
        return views.side**2 if self.spatial_pool > 1 else vision_tower.tokens_of(self.transformers)

    @cached_property
    def normal(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and deviation of pixels from 0 to 1: those of the folder, or 0.5."""
        from transformers import AutoImageProcessor

        if self.path is None or not (self.path / "preprocessor_config.json").is_file():
            return USUAL_NORMAL
        try:
            processor = from_folder(AutoImageProcessor, self.path)
            return tuple(processor.image_mean), tuple(processor.image_std)
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            found = f"{self.path / 'preprocessor_config.json'}: {' '.join(str(error).split())[:200]}"
            remedy = "save it again: processor.save_pretrained(FOLDER), or take it out"
            raise InputError("a processor of images tells its mean and deviation", found, remedy) from error

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
    def attention(self) -> tuple[AttentionPattern, ...]:
        """For planners: a document is a row of frames of one token."""
        return tuple(FrameCausal() if w is None else FrameWindow(before=w - 1) for w in windows_of(self.text))
