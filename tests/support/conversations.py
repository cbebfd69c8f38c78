"""Small chat datasets for tests: clips, conversations about some of them and about none, and a model for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.chat.chat_builder import write
from data.chat.tokenizers import byte_tokenizer
from data.dataset.index import Index

LANGUAGE: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 263, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2,
}  # fmt: skip
VISION: dict[str, Any] = {
    "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 4,
}  # fmt: skip
MODEL: dict[str, Any] = {"kind": "video_lm", "language": LANGUAGE, "vision": VISION, "spatial_pool": 2}


def said(question: str, answer: str) -> list[dict[str, str]]:
    """A turn and its answer, as LLaVA writes them."""
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def records(index: Index) -> list[tuple[str, Any]]:
    """A question about each clip; one about two clips; words alone, one of them so long that it fills a pack."""
    files = [index.file(row) for row in range(len(index))]
    about = [
        {"id": f"c{n}", "video": file, "conversations": said("<video>\nWhat is it?", f"It is number {n}.")}
        for n, file in enumerate(files)
    ]
    both = {"id": "both", "video": files[:2], "conversations": said("<video>\nand <video>\nAlike?", "No.")}
    words = [{"id": f"w{n}", "conversations": said("Count.", " ".join(map(str, range(n))))} for n in (4, 9, 120)]
    return [(str(one["id"]), one) for one in (*about, both, *words)]


def make(out: Path, clips: Path, only: str = "") -> Path:
    """A chat dataset of all records, or of those whose id begins so."""
    found = [(where, record) for where, record in records(Index.open(clips)) if where.startswith(only)]
    write(found, byte_tokenizer(), out, clips)
    return out


def settings(chats: Path, **changes: Any) -> dict[str, Any]:
    """What `tests.support.runs.config` needs beside `out` to train on a chat dataset."""
    usual = {
        "data": {"dataset": str(chats), "pack_tokens": 400, "packs_per_step": 3, "frames": 5},
        "model": MODEL,
        "objective": {"kind": "next_token"},
    }
    return {**usual, **changes}
