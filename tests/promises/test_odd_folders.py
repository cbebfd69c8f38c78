"""Folders of transformers with files that are none: one line that names the folder, no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.chat.tokenizers import byte_tokenizer, open_tokenizer
from models.language.hf_config import read_config
from parallel.errors import InputError

ODD = {
    "deep": "[" * 200_000,
    "list": "[]",
    "number": "5",
    "types": '{"added_tokens_decoder": {"x": 5}, "architectures": 5}',
    "digits": '{"a": ' + "9" * 5000 + "}",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(made)
    return made


@pytest.mark.parametrize("odd", ["deep", "list", "types"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_an_odd_file_of_a_tokenizer(folder: Path, tmp_path: Path, name: str, odd: str) -> None:
    """It is refused, or does no harm."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_text(ODD[odd])
    try:
        assert open_tokenizer(str(tmp_path)).chat_template
    except InputError as error:
        assert str(tmp_path) in error.value  # noqa: PT017 - whether it raises is the library's affair


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_config_of_a_model(tmp_path: Path, odd: str) -> None:
    (tmp_path / "config.json").write_text(ODD[odd])
    with pytest.raises(InputError, match=str(tmp_path)):
        read_config(tmp_path)
