"""The command `longreel data chat`. Heavy imports wait until it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.options import Json, frame_size, with_options
from launcher.core.terminal import Console
from parallel.errors import InputError


@dataclass(frozen=True)
class WordOptions:
    """How words and places of visuals become tokens, and whether captions become conversations."""

    tokenizer: Annotated[str, typer.Option(help="Tokenizer folder as transformers saves it, or `bytes`.")] = "bytes"
    captions: Annotated[
        bool, typer.Option("--captions", help="Add a question about each clip, with its caption as the answer.")
    ] = False
    video_token: Annotated[str, typer.Option(help="Token that stands for a video.")] = "<video>"
    image_token: Annotated[str, typer.Option(help="Token that stands for an image.")] = "<image>"


@dataclass(frozen=True)
class CodeOptions:
    """Visuals as tokens of the vocabulary."""

    codes: Annotated[
        str | None,
        typer.Option(help="Store visuals as discrete tokens: colour:PATCH[:LEVELS], or the folder of a VQModel."),
    ] = None
    code_size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH of coded frames; the stored size if not given.")
    ] = None
    code_frames: Annotated[int | None, typer.Option(min=1, help="Maximum coded frames per clip, from its first.")] = (
        None
    )
    code_stride: Annotated[int, typer.Option(min=1, help="Code every N-th frame.")] = 1

    def refuse_sizes_alone(self) -> None:
        """Sizes are of visuals that are coded.

        Raises:
            InputError: some are given without codes.
        """
        if self.codes is None and (self.code_size or self.code_frames or self.code_stride > 1):
            asked = "--code-size, --code-frames or --code-stride alone"
            raise InputError("sizes of codes are for visuals that are coded", asked, "give --codes, too")


@dataclass(frozen=True)
class UnusableOptions:
    """What becomes of records that cannot be used."""

    leave_out: Annotated[
        bool, typer.Option("--leave-out/--strict", help="List unusable records and continue, or stop at the first.")
    ] = True
    ignore: Annotated[list[str] | None, typer.Option(help="Record key to ignore, such as fps; may be repeated.")] = None


@with_options
def chat(
    out: Annotated[Path, typer.Option(help="Chat dataset folder to write; its content is replaced.")],
    conversations: Annotated[
        list[Path] | None, typer.Argument(help="JSON lists, or JSON lines: LLaVA, ShareGPT, messages ...")
    ] = None,
    clips: Annotated[Path | None, typer.Option(help="Dataset folder of their videos and images.")] = None,
    words: WordOptions = WordOptions(),
    coding: CodeOptions = CodeOptions(),
    unusable: UnusableOptions = UnusableOptions(),
    json_: Json = False,
) -> None:
    """Tokenize conversations about clips into a chat dataset, which a video_lm trains on.

    With --codes, videos and images become tokens of the vocabulary, so that a model without a vision tower reads and
    generates them.

    Example: longreel data chat llava.json --clips datasets/mine --tokenizer models/qwen2 --out chats/mine

    Example: longreel data chat draw.json --clips datasets/mine --codes models/vqvae --code-size 256x256 --out chats/d
    """
    from data.chat.chat_builder import ChatBuildOptions, write
    from data.chat.chat_index import ChatIndex
    from data.chat.tokenizers import open_tokenizer
    from data.chat.turns import Kind
    from launcher.batches.visual_codes import closing_lines, coder_for
    from launcher.core.progress_bar import Bar
    from launcher.tables.chat_tables import as_json, records, table_of

    if not conversations and not words.captions:
        raise InputError(
            "a chat dataset must be made of conversations or captions", "neither", "give CONVERSATIONS, or --captions"
        )
    coding.refuse_sizes_alone()
    console, opened = Console(stderr=json_), open_tokenizer(words.tokenizer)
    size = None if coding.code_size is None else frame_size(coding.code_size, clips)
    coder = coder_for(coding.codes, clips, size, coding.code_frames, coding.code_stride) if coding.codes else None
    with Bar(console, "records") as bar:
        found, total = records(conversations or [], clips if words.captions else None)
        places: dict[Kind, str] = {"video": words.video_token, "image": words.image_token}
        tell = lambda done: bar.update(done, total, "")  # noqa: E731
        options = ChatBuildOptions(places, unusable.leave_out, coder, unusable.ignore or ())
        told = write(found, opened, out, clips, options, tell)
    if json_:
        print(as_json(told))
        return
    more = closing_lines(told, ChatIndex.open(out)) if coder else []
    for said in (*table_of(told, out), *more):
        console.print(said, highlight=False, markup=False, soft_wrap=isinstance(said, str))
