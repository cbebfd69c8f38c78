"""The family of language: conversations as tokens, with rows of the frames that they are about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.chat.chat_index import ChatIndex
from data.chat.tokenizers import open_tokenizer
from data.dataset.index import Index
from data.planning.clip_sampling import Sampling
from data.streams.chat_layout import times_of
from data.streams.chat_source import ChatOptions, ChatSource
from data.streams.clip_reader import ClipReader
from data.streams.curriculum import Curriculum
from data.streams.pack_stream import Pack
from launcher.batches.clip_family import cost_of
from launcher.batches.drawn_packs import DrawnPack, drawn_conversations
from launcher.batches.family import FAMILIES, FamilySpec, OnRank
from launcher.batches.language_batches import ChatBatchBuilder, refuse_other_vocabulary
from launcher.batches.visual_codes import refuse_other_mask
from launcher.config.sections import DataConfig
from models.codecs.codec import CodecConfig
from models.language.hf_config import refuse_rope
from models.language.video_lm_config import VideoLMConfig
from models.registry import build_objective, objective_spec_of
from parallel.errors import InputError
from parallel.sequence.geometry import Geometry


def clips_of(model: VideoLMConfig, data: DataConfig, seed: int, chats: ChatIndex) -> ClipReader | None:
    """Open the clips of a chat dataset, a frame a token, resized to the input of the vision tower.

    None if the model has no tower, or the dataset no clips.

    Raises:
        InputError: a dataset of clips is missing or changed, or the settings ask for another size.
    """
    views = model.views
    if views is None or not chats.clips:
        return None
    side = (views.pixels, views.pixels)
    if data.size not in (None, side):
        found = f"data.size={list(data.size or ())}, the model sees {views.pixels} x {views.pixels}"
        raise InputError("frames have the size that the model sees", found, "leave data.size out")
    clips = Index.join([Index.open(folder, digest) for folder, digest in chats.clips])
    sampling = Sampling(frame_geometry(model), data.frames, side, data.stride)
    return ClipReader(clips, sampling, seed, data.workers)


def frame_geometry(model: VideoLMConfig, codec: CodecConfig | None = None) -> Geometry:
    """How frames become tokens: each is one."""
    pixels = model.views.pixels if model.views else 1
    return Geometry(stride=(1, pixels, pixels), patch=(1, 1, 1))


def _open_index(folders: Sequence[Path], digests: Sequence[str | None]) -> ChatIndex:
    return ChatIndex.join([ChatIndex.open(folder, digest) for folder, digest in zip(folders, digests, strict=True)])


def _source(
    model: VideoLMConfig, codec: CodecConfig, data: DataConfig, seed: int, geometry: Geometry, chats: ChatIndex
) -> ChatSource:
    attention, dim = model.attention, model.dim
    refuse_rope({**model.text.rope_parameters, **(data.rope_scaling or {})})
    times = times_of(open_tokenizer(str(chats.tokenizer_folder))) if data.timestamps else None
    options = ChatOptions(model.views, data.max_positions or model.positions, data.rope_items, times)
    clips = clips_of(model, data, seed, chats)
    return ChatSource(chats, clips, options, seed, lambda tokens: cost_of(attention, dim, (tokens, 1, 1)))


def _builder(model: VideoLMConfig, objective: Any, codec: CodecConfig, where: OnRank) -> ChatBatchBuilder:
    learned: Any = build_objective(objective)
    return ChatBatchBuilder(model, learned, where.groups, where.dtype, where.device, where.kernel, where.keep)


def _check_data(model: VideoLMConfig, objective: Any, codec: CodecConfig, curriculum: Curriculum) -> None:
    refuse_other_vocabulary(curriculum, model.vocabulary)
    refuse_other_mask(curriculum, objective_spec_of(objective).mask_token(objective))


def _drawn_pack(
    model: VideoLMConfig, data: DataConfig, geometry: Geometry, stream: Any, documents: int | None
) -> DrawnPack:
    return drawn_conversations(model, data, documents)


def _layouts(source: ChatSource, pack: Pack) -> tuple[Any, ...]:
    return tuple(source.layout(row) for row in pack.rows)


def _caption_bytes(model: VideoLMConfig) -> int | None:
    return None  # text of a conversation is tokens of its pack


FAMILIES.register(
    "language",
    FamilySpec(
        _open_index, frame_geometry, _source, _builder, _check_data, _drawn_pack, _layouts, _caption_bytes,
        of_latents=False,
    ),
)  # fmt: skip
