"""Which maker a run's model takes, and what must be true of the data before any rank starts."""

from __future__ import annotations

import torch

from data.streams.curriculum import Curriculum
from launcher.batches.codec_check import refuse_other_codec
from launcher.batches.diffusion_batches import ClipMaker
from launcher.batches.language_batches import TalkMaker, refuse_other_vocabulary
from launcher.batches.loader import Maker
from launcher.batches.visual_codes import refuse_other_mask
from launcher.config.run_config import RunConfig
from models.codecs.open_codec import open_codec
from models.language.video_lm import VideoLMConfig
from models.registry import DTYPES, build_flow, build_talk_objective
from parallel.attention.plan import Keep
from parallel.kernels.kernel import Kernel
from parallel.mesh import Groups


def maker_of(config: RunConfig, groups: Groups, device: torch.device, kernel: Kernel | None = None) -> Maker:
    """What makes micro-steps for the model of a run; `kernel` is that of attention (see `Plan`)."""
    model, dtype = config.model, DTYPES[config.dtype]
    if isinstance(model, VideoLMConfig):
        return TalkMaker(model, build_talk_objective(config.objective), groups, dtype, device, kernel, keep_of(config))
    codec = open_codec(config.codec, model.patch, dtype, device)
    flow, keep = build_flow(config.objective), keep_of(config)
    return ClipMaker(codec, flow, model.attention, groups, device, kernel, keep, model.text.max_bytes)


def keep_of(config: RunConfig) -> Keep:
    """What of attention waits for the backward pass: who computes again can also send again."""
    return "output" if config.model.recompute else "exchanged"


def check_data(config: RunConfig, curriculum: Curriculum) -> None:
    """The model of a run can be trained on its data.

    Raises:
        InputError: latents are of another codec, or tokens of a larger vocabulary.
    """
    if isinstance(config.model, VideoLMConfig):
        refuse_other_vocabulary(curriculum, config.model.vocabulary)
        refuse_other_mask(curriculum, config.objective)
    else:
        refuse_other_codec(curriculum, open_codec(config.codec, config.model.patch))
