"""Tokenizers: those of transformers, from a folder on this machine, and one of bytes that needs no download.

    bytes    256 bytes | <|system|> <|user|> <|assistant|> <|end|> <video> <image> <|silence|>

Its chat template is `<|user|>...<|end|>`, and so on. A text of n bytes is n tokens, of any language; a model from
scratch has to learn to spell, which costs a small one a few hundred steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parallel.errors import InputError
from parallel.hf_folder import from_folder

BYTES = "bytes"
SILENCE_TOKEN = "<|silence|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def open_tokenizer(name: str) -> Any:
    """The tokenizer of bytes, or that of a folder; nothing is downloaded.

    Raises:
        InputError: the folder holds none, or one without a chat template.
    """
    if name == BYTES:
        return byte_tokenizer()
    from transformers import AutoTokenizer

    rule = "a tokenizer is a folder as transformers saves it, or bytes"
    if not Path(name).is_dir():
        raise InputError(rule, f"{name}: no such folder", "tokenizer.save_pretrained(FOLDER), and give that")
    try:
        found = from_folder(AutoTokenizer, name)
    except InputError:
        raise
    except (OSError, ValueError, KeyError) as error:
        found_there = f"{name}: {str(error).splitlines()[0][:200]}"
        raise InputError(rule, found_there, "tokenizer.save_pretrained(FOLDER), and give that") from error
    if not found.chat_template:
        remedy = "tokenizer.chat_template = ..., save it again; or the tokenizer of a model that chats"
        raise InputError("a tokenizer has a chat template", f"{name}: none", remedy)
    return found


def byte_tokenizer() -> Any:
    """See above."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE({byte: number for number, byte in enumerate(alphabet)}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    kind: Any = PreTrainedTokenizerFast
    made = kind(tokenizer_object=model, chat_template=TEMPLATE, eos_token="<|end|>")
    made.add_special_tokens({"additional_special_tokens": [*ROLES, "<video>", "<image>", SILENCE_TOKEN]})
    return made


def silence_of(tokenizer: Any) -> int | None:
    """The token that says nothing: its own, or the one that ends an answer; None if it has neither."""
    own = tokenizer.convert_tokens_to_ids(SILENCE_TOKEN)
    if own is not None and own != tokenizer.unk_token_id:
        return int(own)
    return None if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)
