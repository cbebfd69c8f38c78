"""`AnswerGenerator`: a video_lm of a run's checkpoint that answers questions, on one device.

turns, frames --chat template, layout--> tokens and rows --keys kept (`models.language.kv_cache`)--> words, one by one
                --or codes (`batches/visual_codes.py`)--> tokens                                       and visual codes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.chat.chat_index import ChatIndex
from data.chat.chat_rows import with_codes
from data.chat.chat_template import DEFAULT_PLACES, encode
from data.chat.tokenizers import open_tokenizer
from data.chat.turns import Conversation, Kind, Turn, Visual
from data.media.timeline import STILL, Timeline
from data.media.video import Frames
from data.planning.clip_sampling import Sampling
from data.streams.chat_layout import ChatLayout, Times, VisualSpan, layout_of, times_of
from launcher.batches.datasets import geometry_of
from launcher.batches.language_batches import ChatBatchBuilder
from launcher.batches.visual_codes import Coding, coding_of
from launcher.checkpoints.external_hashes import TOKENIZER_OF, hash_of_tokenizer, refuse_other_outside
from launcher.checkpoints.reading import Checkpoint
from launcher.config.run_config import RunConfig
from launcher.core.hardware import device_here
from launcher.generation.trained_model import is_averaged, load_model, open_run
from models.language.attention_mask import masks_of
from models.language.causal_lm import Plans, Rope
from models.language.kv_cache import Streamer
from models.language.video_lm import VideoLM
from models.registry import DTYPES, build_objective, objective_spec_of, spec_of
from parallel.attention.plan import local_plan
from parallel.errors import InputError
from parallel.mesh import Groups, Mesh
from parallel.sequence.packed import ASSISTANT, USER, VISUAL_CODE, Document

MOST_WORDS = 256
Ints = npt.NDArray[np.int64]
Look = Callable[[str], Sequence[Frames]]  # frames of each clip that a visual's name stands for


@dataclass(frozen=True)
class Asked:
    """A conversation up to where the assistant is to speak.

    Attributes:
        embeddings: [tokens, dim].
        plans: who of them sees whom.
        words: tokens of what the assistant said in the record, its end included; empty if nothing.
    """

    embeddings: Tensor
    plans: Plans
    words: tuple[int, ...]


@dataclass(frozen=True)
class AnswerGenerator:
    """Answers, with the likeliest words.

    Attributes:
        model: of the checkpoint.
        tokenizer: of its chat dataset.
        places: words that stand for visuals.
        silence: the token that says nothing.
        builder: of its input.
        rope: of the segment that the checkpoint is of.
        step: of the checkpoint.
        sampling: of frames.
        prompts: of the run.
        fps: of videos that it generates.
        coding: how visuals are words; None if they are not.
        times: words of the time of each view; None for no times.
        positions: tokens of the longest conversation.
        chats: that it was trained on.
        weights: which, for names of files; empty for what is usual.
    """

    model: VideoLM
    tokenizer: Any
    places: dict[Kind, str]
    silence: int | None
    builder: ChatBatchBuilder
    rope: Rope
    step: int
    sampling: Sampling
    prompts: tuple[str, ...]
    fps: int = 8
    coding: Coding | None = None
    times: Times | None = None
    positions: int = 1 << 31
    chats: ChatIndex | None = None
    weights: str = ""

    def layout(
        self,
        conversation: Conversation,
        look: Look,
        order: Callable[[int], Ints] | None = None,
        timelines: Callable[[str], Sequence[Timeline]] | None = None,
    ) -> tuple[ChatLayout, Frames]:
        """The layout of a conversation and all frames that it sees.

        Args:
            conversation: the last turn is what the assistant says.
            look: finds frames.
            order: in which the n frames of each clip are shown; None as they are.
            timelines: of each clip; where the model is told times.
        """
        places = {**DEFAULT_PLACES, **self.places}  # a chat dataset knows those alone that its tokenizer has
        encoded = encode(conversation, self.tokenizer, places)
        shown = [list(look(visual.name)) for visual in conversation.visuals]
        kinds, visual_positions = np.where(encoded.answers, ASSISTANT, USER), encoded.visual_positions
        if self.coding is not None:
            coding, none = self.coding, np.zeros((0, 1, 1, 3), np.uint8)
            codes = [np.concatenate([coding.tokens(frames, order) for frames in clips]) for clips in shown]
            tokens, kinds = with_codes(encoded.tokens, kinds, visual_positions, codes)
            return layout_of(tokens, kinds, visual_positions[:0], [], None, self.silence), none
        when = [
            timelines(visual.name) if self.times and timelines else [STILL] * len(clips)
            for visual, clips in zip(conversation.visuals, shown, strict=True)
        ]
        spans = [
            [
                VisualSpan(0, 0, len(frames), False, at, self.sampling.stride)
                for frames, at in zip(clips, times, strict=True)
            ]
            for clips, times in zip(shown, when, strict=True)
        ]
        layout = layout_of(
            encoded.tokens, kinds, visual_positions, spans, self.builder.model.views, self.silence, self.times
        )
        flat = [frames if order is None else frames[order(len(frames))] for clips in shown for frames in clips]
        return layout, np.concatenate(flat) if flat else np.zeros((0, 1, 1, 3), np.uint8)

    @torch.no_grad()
    def asked(self, layout: ChatLayout, frames: Frames) -> Asked:
        """Everything before the last words of the assistant, and these.

        Raises:
            InputError: these are not words alone: what was generated as visual codes is no text that could be compared.
        """
        if len(layout) > self.positions:
            found = f"{len(layout):,} tokens, {self.positions:,} positions"
            remedy = "fewer frames or words, or a run whose data.max_positions are more"
            raise InputError("a conversation is no longer than the positions that the model knows", found, remedy)
        said = np.flatnonzero((layout.kinds == ASSISTANT) | (layout.kinds == VISUAL_CODE))
        if not len(said):  # a template that ends no turn, and nothing is said: it is to be said last
            said = np.array([len(layout) - 1])
        first = int(said[np.flatnonzero(np.diff(said, prepend=-2) > 1)[-1]])
        if VISUAL_CODE in layout.kinds[first : int(said[-1]) + 1]:
            raise InputError("an answer that is judged has words alone", "a video or an image in it", "leave it out")
        document = Document("", 0, "", (len(layout), 1, 1))
        batch, _ = self.builder.prepare([document], [layout], lambda begin, end: frames[begin:end], self.rope)
        embeddings = self.model.embedded(batch)
        # no token sees a later one but in its own frame, and frames are whole before the answer
        masks = masks_of(self.builder.model.windows, self.builder.model.mask, [layout.before(first + 1).runs])
        plans = {window: local_plan(mask) for window, mask in masks.items()}
        return Asked(embeddings[: first + 1], plans, tuple(layout.labels[first : int(said[-1]) + 1].tolist()))

    def answer(self, asked: Asked, most: int = MOST_WORDS) -> str:
        """The likeliest words, up to the end of the turn."""
        return self.text(self.said(asked, most))

    def said(self, asked: Asked, most: int = MOST_WORDS) -> list[int]:
        """Tokens of them, codes among them."""
        end, words = self.ends, []
        for word in self._streamer().generate(asked.embeddings, most, asked.plans):
            if word in end:
                break
            words.append(word)
        return words

    def text(self, said: Sequence[int]) -> str:
        """Of tokens, without codes."""
        words = [word for word in said if self.coding is None or word < self.coding.first]
        return str(self.tokenizer.decode(words)).strip()

    @torch.no_grad()
    def likelihood(self, asked: Asked, text: str) -> float:
        """log p of these words as the answer, its end included, per token."""
        words = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], *self.end]
        taken = torch.tensor(words, device=asked.embeddings.device)
        streamer = self._streamer()
        last = streamer.feed(asked.embeddings, asked.plans)[-1:]
        more = streamer.feed(self.model.lm.embed(taken[:-1])) if len(words) > 1 else last[:0]
        logits = self.model.lm.logits(torch.cat((last, more))).double()
        return float(logits.log_softmax(dim=1).gather(1, taken[:, None]).mean())

    def _streamer(self) -> Streamer:
        mask = self.builder.model.mask
        return Streamer(self.model.lm, mask.window or mask.chunk, mask.sinks, self.rope)

    @property
    def ends(self) -> set[int]:
        """Tokens that end a turn: that of the text, and what the chat template puts after an answer."""
        own = self.tokenizer.eos_token_id
        return {*self.end, *([own] if own is not None else [])}

    @property
    def end(self) -> list[int]:
        """The first token that the chat template puts after an answer; none if it puts nothing there."""
        conversation = Conversation("", (Turn("user", ("?",)), Turn("assistant", ("",))))
        encoded = encode(conversation, self.tokenizer, self.places)
        return [int(token) for token in encoded.tokens[encoded.answers][:1]]


def open_answer_generator(run: Path, step: int | None = None, averaged: bool | None = None) -> AnswerGenerator:
    """The model of a run's checkpoint; the newest, if no step is given; `averaged` as of `is_averaged`.

    Raises:
        InputError: no run, no checkpoint, no chat dataset any more, or a diffusion model.
    """
    config, found = open_run(run, step)
    return answer_generator_of(config, found, averaged)


def answer_generator_of(config: RunConfig, found: Checkpoint, averaged: bool | None = None) -> AnswerGenerator:
    """See `open_answer_generator`."""
    if spec_of(config.model).family != "language":
        found_there = f"model.kind: {config.model.kind}"
        raise InputError("questions are for a language model", found_there, "longreel sample RUN --prompt, for a video")
    if not objective_spec_of(config.objective).generates:
        found_there = f"objective.kind: {config.objective.kind}"
        raise InputError("a model that answers has learned next_token", found_there, "objective.kind=next_token")
    device = device_here(config.device)
    data = config.data_of(found.state.step)
    chats = ChatIndex.open(data.folders[0])
    segment = config.data.merged().index(data)
    refuse_other_outside(found, config, {TOKENIZER_OF.format(segment): hash_of_tokenizer(chats)})
    model = load_model(config, found, 3, device, averaged)
    assert isinstance(model, VideoLM), "a video_lm is built as one"
    mesh = Mesh(1, 1, 1)
    groups = Groups(mesh, mesh.place(0))
    learned: Any = build_objective(config.objective)
    builder = ChatBatchBuilder(config.model, learned, groups, DTYPES[config.dtype], device)
    tokenizer = open_tokenizer(str(chats.tokenizer_folder))
    places: dict[Kind, str] = {
        kind: tokenizer.convert_ids_to_tokens(id_) for kind, id_ in chats.tokenizer["places"].items()
    }
    views = config.model.views
    size = (views.pixels, views.pixels) if views else None
    sampling = Sampling(geometry_of(config), data.frames, size, data.stride)
    coding, silence, asks = coding_of(chats), chats.tokenizer["silence"], config.sample
    return AnswerGenerator(
        model, tokenizer, places, silence, builder, data.rope_items, found.state.step,
        coding.sampling if coding else sampling, asks.prompts, asks.fps, coding,
        times_of(tokenizer) if data.timestamps else None, data.max_positions or config.model.positions, chats,
        "-no-ema" if averaged is False and is_averaged(found) else "",
    )  # fmt: skip


def conversation_about(videos: Sequence[Path], prompt: str) -> Conversation:
    """A question about videos or images, not yet answered.

    Raises:
        InputError: there is no question.
    """
    if not prompt.strip():
        raise InputError("a question has words", repr(prompt), '--prompt "What is it?"')
    seen = tuple(Visual("video", str(video)) for video in videos)
    return Conversation("the prompt", (Turn("user", (*seen, prompt)), Turn("assistant", ("",))))
