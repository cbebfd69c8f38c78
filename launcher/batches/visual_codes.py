"""Visuals as words: a frozen quantiser (`models.codecs.vq`) and its place in the vocabulary of conversations.

    vocabulary    0 .. first - 1  words  |  first .. first + words - 1  codes  |  mask

    clip  --first frames, scaled-->  frames --quantiser--> codes [n, y, x] --+ first, row by row-->  tokens
    what a model says  --runs of codes, whole frames--> codes --quantiser--> frames -->  PNG, or mp4 of several

The shape of LWM (Liu et al., arXiv:2402.08268): one model reads and draws with one vocabulary. Settings of the coding
are in the manifest of the chat dataset, so that what is asked later is coded as what was learned.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from data.chat.chat_builder import ChatBuildSummary
from data.chat.chat_index import ChatIndex
from data.chat.chat_rows import Coder
from data.dataset.index import Index
from data.media.video import Frames, encode
from data.planning.clip_sampling import Sampling, Size
from data.streams.chat_source import ChatSource
from data.streams.clip_reader import ClipReader
from data.streams.curriculum import Curriculum
from launcher.core.hardware import device_here
from launcher.core.run_folder import keep
from models.codecs.vq import DiffusersCodes, Quantiser, enlarged, open_codes
from parallel.errors import InputError
from parallel.sequence.geometry import Geometry

KEPT = 64  # clips whose codes are remembered while a dataset is written: many questions in a row are about one clip
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Drawn:
    """Visuals among what a model has said.

    Attributes:
        visuals: uint8 [n, height, width, 3] of each.
        left: codes that fill no whole frame.
    """

    visuals: tuple[Frames, ...]
    left: int


@dataclass(frozen=True)
class Coding:
    """How visuals are words.

    Attributes:
        quantiser: that makes codes.
        first: token of code 0.
        size: (height, width) of frames.
        frames: of a clip, at most, from its first.
        stride: every so many-th frame is coded.
    """

    quantiser: Quantiser
    first: int
    size: Size
    frames: int
    stride: int

    @property
    def grid(self) -> tuple[int, int]:
        """Codes (y, x) of a frame."""
        return self.quantiser.grid(*self.size)

    @property
    def most(self) -> int:
        """Codes of the longest clip."""
        return self.frames * prod(self.grid)

    @property
    def sampling(self) -> Sampling:
        """How frames are read: a frame is a token, and clips are whole, of which the first frames are coded."""
        return Sampling(Geometry(stride=(1, *self.size), patch=(1, 1, 1)), None, self.size, self.stride)

    def tokens(self, frames: Frames, order: Callable[[int], Ints] | None = None) -> Ints:
        """Tokens [n] of the first of these frames, uint8 [frames, height, width, 3].

        Args:
            frames: as `sampling` gives them.
            order: in which the n of them that are coded are shown; None as they are.
        """
        taken = frames[: self.frames]
        taken = taken if order is None else taken[order(len(taken))]
        return self.first + self.quantiser.encode(torch.from_numpy(taken)).flatten().numpy()

    def drawn(self, said: Sequence[int]) -> Drawn:
        """What was drawn between words: each run of codes is a visual, as many frames as it fills."""
        visuals, left = [], 0
        y, x = self.grid
        for coded, run in groupby(said, key=self.is_code):
            if coded:
                codes = torch.tensor(list(run)) - self.first
                whole = len(codes) // (y * x)
                left += len(codes) - whole * y * x
                if whole:
                    visuals.append(self.quantiser.decode(codes[: whole * y * x].reshape(whole, y, x)).numpy())
        return Drawn(tuple(visuals), left)

    def is_code(self, token: int) -> bool:
        """Whether a token is one."""
        return self.first <= token < self.first + self.quantiser.words


def coder_for(name: str, clips: Path | None, size: Size | None, frames: int | None, stride: int) -> Coder:
    """What makes codes of the clips of a dataset.

    Args:
        name: of the quantiser, see `models.codecs.vq.open_codes`.
        clips: the dataset; None for words alone, which then need size and frames.
        size: (height, width) that frames are scaled and cropped to; None as they are stored.
        frames: of a clip, at most, from its first; None for all.
        stride: every so many-th frame is coded.

    Raises:
        InputError: no such quantiser or dataset, or the size does not fill codes, or clips have several.
    """
    quantiser = open_codes(name, _device())
    index = Index.open(clips) if clips else None
    size = size or _size_of(index)
    frames = frames or -(-_longest(index) // stride)
    coding = Coding(quantiser, 0, size, frames, stride)
    about = {
        "kind": "folder" if isinstance(quantiser, DiffusersCodes) else name,
        "identity": quantiser.identity,
        "words": quantiser.words,
        "grid": list(coding.grid),
        "size": list(size),
        "frames": frames,
        "stride": stride,
    }
    files = _files(quantiser.folder) if isinstance(quantiser, DiffusersCodes) else ()
    return Coder(about, _code_of(coding, index), files)


def coding_of(chats: ChatIndex) -> Coding | None:
    """How visuals of these conversations are words; None if they are not.

    Raises:
        InputError: the quantiser is gone, or another one.
    """
    about: dict[str, Any] | None = chats.tokenizer.get("codes")
    if about is None:
        return None
    folder = chats.folder_of_codes
    quantiser = open_codes(str(folder) if about["kind"] == "folder" else about["kind"], _device())
    if quantiser.identity != about["identity"]:
        found = f"{folder}: {quantiser.identity}, the conversations were made with {about['identity']}"
        raise InputError(
            "codes are decoded by what made them", found, "make the chat dataset again: longreel data chat"
        )
    height, width = about["size"]
    return Coding(quantiser, about["first"], (height, width), about["frames"], about["stride"])


def refuse_other_mask(curriculum: Curriculum, token: int | None) -> None:
    """What stands where a code is hidden is a token that a chat dataset keeps for that.

    Args:
        curriculum: of the run.
        token: that the objective names; None if it hides nothing.

    Raises:
        InputError: a chat dataset has no codes, or the objective names another token.
    """
    if token is None:
        return
    for stream in curriculum.streams:
        assert isinstance(stream.source, ChatSource), "conversations are for models that speak"
        mask, folder = stream.source.index.tokenizer.get("mask"), stream.index.folders[0]
        if mask is None:
            rule = "masked_token hides codes of conversations"
            raise InputError(rule, f"{folder}: visuals are no codes", "longreel data chat --codes, or next_token")
        if token != mask:
            rule = "a token that a chat dataset keeps for it stands where a code is hidden"
            found = f"objective.mask_token={token}, {folder} keeps {mask}"
            raise InputError(rule, found, f"objective.mask_token={mask}")


def write_drawn(drawn: Drawn, folder: Path, name: str, fps: int) -> list[Path]:
    """Write each visual: a PNG of one frame, an mp4 of several, small ones enlarged by whole factors.

    Args:
        drawn: visuals.
        folder: made if it is not there.
        name: of the files, without a suffix; with a number from the second on.
        fps: frames a second.
    """
    found = []
    for number, frames in enumerate(drawn.visuals, 1):
        shown, suffix = enlarged(frames), ".png" if len(frames) == 1 else ".mp4"
        data = _png(shown[0]) if len(frames) == 1 else encode(shown, Fraction(fps))
        kept = keep(folder, f"{name}-{number}" if number > 1 else name, {suffix: data})
        found.append(folder / f"{kept}{suffix}")
    return found


def closing_lines(told: ChatBuildSummary, chats: ChatIndex) -> list[str]:
    """For a person who has coded visuals of conversations: what a run of them must know."""
    about, tokens, mask = chats.tokenizer["codes"], chats.tokenizer["tokens"], chats.tokenizer["mask"]
    y, x = about["grid"]
    return [
        f"{told.codes:,} codes, {y} x {x} a frame, of {about['words']:,} words: {about['identity']}",
        f"model.language.vocab_size={tokens} or more; to draw, objective.visual_code=1; "
        f"masked_token: objective.mask_token={mask}",
    ]


def _code_of(coding: Coding, index: Index | None) -> Callable[[Sequence[str]], Ints]:
    """Codes [n] of clips by uid; those of the last ones are remembered."""
    if index is None:
        return lambda uids: np.zeros(0, np.int64)  # `ClipNames` of no dataset knows no clip
    reader = ClipReader(index, coding.sampling, 0)
    rows = {uid: row for row, uid in enumerate(index.table["uid"].to_pylist())}

    @lru_cache(maxsize=KEPT)
    def of_clip(uid: str) -> Ints:
        row = rows[uid]
        if not reader.lengths[row] or reader.latents[row]:
            found = f"{uid} of {index.file(row)}: {'latents' if reader.latents[row] else 'no frames'}"
            raise InputError("codes are made of frames", found, "--clips: the dataset that holds frames")
        return coding.tokens(reader.frames(row, coding.frames))

    return lambda uids: np.concatenate([of_clip(uid) for uid in uids])


def _size_of(index: Index | None) -> Size:
    sizes = {(0, 0)}
    if index is not None:
        sizes = set(zip(index.height.tolist(), index.width.tolist(), strict=True)) - {(0, 0)}
    if index is None or len(sizes) != 1:
        found = f"{len(sizes)} sizes, such as {sorted(sizes)[:3]}" if index is not None else "no clips are given"
        usual = (index.usual_size if index is not None else None) or (256, 256)
        remedy = f"--code-size {usual[0]}x{usual[1]}"
        raise InputError("all frames that are coded have one size", found, remedy)
    ((height, width),) = sizes
    return int(height), int(width)


def _longest(index: Index | None) -> int:
    if index is None:
        raise InputError("a drawing has at most so many frames", "no clips are given", "--code-frames 16")
    return int(index.frames.max())


def _files(folder: Path) -> tuple[Path, ...]:
    """Of a quantiser as `diffusers` saves it."""
    patterns = ("config.json", "*.safetensors", "*.safetensors.index.json")
    return tuple(sorted(file for pattern in patterns for file in folder.glob(pattern)))


def _png(frame: Frames) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()


def _device() -> torch.device:
    return device_here()
