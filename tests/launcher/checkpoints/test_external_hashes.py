"""What is read beside a checkpoint stays what it was, or the run, its samples and its exports are refused."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from data.chat.chat_index import ChatIndex
from data.chat.tokenizers import byte_tokenizer
from data.streams.curriculum import Position
from launcher.checkpoints.checkpoint_manifest import Manifest, TrainState
from launcher.checkpoints.compatibility import refuse_changes
from launcher.checkpoints.export import export, export_folder
from launcher.checkpoints.external_hashes import Hashes, hash_of_tokenizer, outside_of, refuse_other_outside
from launcher.checkpoints.part import file_of, write_part
from launcher.checkpoints.reading import Checkpoint
from launcher.checkpoints.safetensors_files import SINGLE, stored_in
from launcher.checkpoints.storage import LocalStorage
from launcher.config.run_config import RunConfig
from launcher.core.run_folder import RunFolder
from models.language.video_lm import VideoLM
from models.language.video_lm_config import VideoLMConfig
from models.registry import build
from parallel.errors import InputError
from parallel.fragments import Fragment, trained
from tests.support import conversations
from tests.support.runs import config, events, lines, run, train

TOWER, HEAD = "vision_tower", "lm_head"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that sees, as transformers saves it."""
    folder = tmp_path_factory.mktemp("original") / "llava"
    made = build(VideoLMConfig.model_validate(conversations.MODEL), 3, 0, torch.float32)
    assert isinstance(made, VideoLM)
    made.lm.model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "llava"))


def run_of(out: Path, folder: Path, dataset: Path = Path("nowhere"), **changes: Any) -> RunConfig:
    model = {"kind": "video_lm", "path": str(folder), "freeze": ["vision"], "spatial_pool": 2}
    return config(out, dataset, dtype="float32", **conversations.settings(dataset, model=model), **changes)


def hashes_of(folder: Path) -> dict[str, str]:
    settings = run_of(Path("out"), folder)
    return outside_of(settings, build(settings.model, 3, 0, torch.float32, settings.objective), None, Hashes())


def edit(folder: Path, part: str) -> None:
    """One number of a tensor of that part of the model, with the file's size and time as before."""
    file = folder / SINGLE
    state, tensors = file.stat(), safetensors.torch.load_file(file)
    name = next(name for name, tensor in tensors.items() if part in name and tensor.ndim > 1)
    tensors[name].view(-1)[0] += 1
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert file.stat().st_size == state.st_size


def test_a_frozen_part_is_named_by_its_numbers_wherever_they_lie(folder: Path, original: Path) -> None:
    before = hashes_of(original)
    assert sorted(before) == ["model.path config", "model.path frozen"]
    assert hashes_of(folder) == before
    edit(folder, HEAD)  # it is trained, so the checkpoint has it
    assert hashes_of(folder) == before
    edit(folder, TOWER)
    assert hashes_of(folder) == before | {"model.path frozen": hashes_of(folder)["model.path frozen"]} != before


def test_settings_of_a_folder_are_named_by_what_they_mean(folder: Path, original: Path) -> None:
    file = folder / "config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "transformers_version": "99"}))
    assert hashes_of(folder) == hashes_of(original)
    settings["text_config"]["rms_norm_eps"] = 0.5
    file.write_text(json.dumps(settings))
    assert hashes_of(folder)["model.path config"] != hashes_of(original)["model.path config"]


def test_files_are_read_once_as_long_as_nobody_touches_them(folder: Path, tmp_path: Path) -> None:
    read: list[int] = []

    def make() -> str:
        read.append(1)
        return f"hash {len(read)}"

    def ask() -> str:
        hashes = Hashes(tmp_path / "hashes")
        found = hashes.of("weights", [folder / SINGLE], make)
        hashes.keep()
        return found

    assert (ask(), ask(), len(read)) == ("hash 1", "hash 1", 1)
    edit(folder, TOWER)  # the same size and time
    assert (ask(), ask()) == ("hash 2", "hash 2")
    (tmp_path / "hashes").write_text("{")
    assert ask() == "hash 3"


def test_a_tokenizer_is_named_with_its_template(tmp_path: Path, dataset: Path) -> None:
    spoken = ChatIndex.open(conversations.make(tmp_path / "chats", dataset, "w"))
    before = hash_of_tokenizer(spoken)
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(spoken.tokenizer_folder)
    assert hash_of_tokenizer(spoken) == before
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|end|>\n")
    tokenizer.save_pretrained(spoken.tokenizer_folder)
    assert hash_of_tokenizer(spoken) != before


def checkpoint_of(root: Path, settings: RunConfig) -> Checkpoint:
    """With the first numbers of the model."""
    module = build(settings.model, 3, 0, torch.float32, settings.objective)
    fragments = [Fragment(name, 0, {"master": p.detach().flatten()}) for name, p in trained(module).items()]
    storage, name = LocalStorage(root), "step-00000001"
    part = write_part(storage, name, file_of(0), fragments)
    shapes = {name: tuple(parameter.shape) for name, parameter in trained(module).items()}
    state = TrainState(Position(1), (("digest",),))
    outside = outside_of(settings, module, None, Hashes())
    manifest = Manifest(state, settings.model_dump(mode="json"), "", {}, (), shapes, (part,), outside=outside)
    storage.commit(name, [part.file], manifest.to_json())
    assert Manifest.from_json(storage.read(name, "manifest.json")).outside == outside
    return Checkpoint(storage, name, manifest)


def test_an_export_counts_what_it_writes_and_refuses_another_tower(folder: Path, tmp_path: Path) -> None:
    settings = run_of(tmp_path / "run", folder)
    found = checkpoint_of(tmp_path / "checkpoints", settings)
    every, learned = len(stored_in(folder)), len(found.manifest.shapes)
    assert learned < every
    told = export_folder(found, tmp_path / "whole", None, "float32")
    assert told["tensors"] == len(stored_in(tmp_path / "whole")) == every
    told = export(found, tmp_path / "alone.safetensors", None, "float32")
    assert (told["tensors"], told["frozen"]) == (learned, every - learned)
    edit(folder, TOWER)
    with pytest.raises(InputError, match=r"model\.path frozen: its hash is"):
        export_folder(found, tmp_path / "other", None, "float32")
    assert not (tmp_path / "other").exists()


def test_segments_that_have_not_begun_may_have_another_tokenizer(folder: Path, tmp_path: Path) -> None:
    settings = run_of(tmp_path / "run", folder, data__segments=[{"until": 3}, {"frames": 2}])
    found = checkpoint_of(tmp_path / "checkpoints", settings)
    found.manifest.outside.update({"tokenizer of segment 0": "a", "tokenizer of segment 1": "b"})  # type: ignore[attr-defined]
    refuse_other_outside(found, settings, {"tokenizer of segment 1": "c"})
    with pytest.raises(InputError, match="put back what was there: the tokenizer folder"):
        refuse_other_outside(found, settings, {"tokenizer of segment 0": "c"})


def test_a_run_does_not_go_on_with_another_tower(folder: Path, original: Path, tmp_path: Path, dataset: Path) -> None:
    """It is told before the first step; the remedies work: put it back, or give a copy of it."""
    spoken, out = conversations.make(tmp_path / "chats", dataset), tmp_path / "run"
    train(run_of(out, folder, spoken, steps=2, checkpoint__every=1))
    edit(folder, TOWER)
    (end,) = run(run_of(out, folder, spoken, steps=3))
    assert end.refusal is not None
    rule, value, remedy = end.refusal
    assert "stays as it was" in rule
    assert "model.path frozen" in value
    assert "model.path=FOLDER" in remedy
    assert len(lines(out)) == 2
    assert not events(out, "differs")
    assert len(train(run_of(out, original, spoken, steps=3))) == 3
    assert RunFolder(out).root.joinpath(".hashes.json").exists()


def test_an_autoencoder_is_named_by_its_settings_and_weights(tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in ("vae", "moved"))
    first.mkdir()
    (first / "config.json").write_text('{"_class_name": "AutoencoderKL", "scaling_factor": 0.5}')
    (first / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    shutil.copytree(first, second)

    def named(folder: Path) -> dict[str, str]:
        codec = {"kind": "diffusers", "path": str(folder)}
        return outside_of(config(tmp_path / "run", tmp_path, codec=codec), None, None, Hashes())

    assert list(named(first)) == ["codec.path"]
    assert named(first) == named(second)
    (second / "config.json").write_text('{"_class_name": "AutoencoderKL", "scaling_factor": 0.6}')
    assert named(first) != named(second)
    shutil.copy(first / "config.json", second)
    (second / "diffusion_pytorch_model.safetensors").write_bytes(b"others!")
    assert named(first) != named(second)
    (second / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"moved: .* has no diffusion_pytorch_model"):
        named(second)


def test_a_path_may_change_and_what_lies_there_may_not(folder: Path, original: Path, tmp_path: Path) -> None:
    """Of an older checkpoint nobody knows what lay there: its path stays."""
    settings = run_of(tmp_path / "run", original)
    found = checkpoint_of(tmp_path / "checkpoints", settings)
    moved = run_of(tmp_path / "run", folder)
    refuse_changes(found, moved)
    refuse_other_outside(found, moved, hashes_of(folder))
    edit(folder, TOWER)
    with pytest.raises(InputError, match=r"give a copy of it: model\.path=FOLDER"):
        refuse_other_outside(found, moved, hashes_of(folder))
    older = replace(found, manifest=replace(found.manifest, outside={}))
    with pytest.raises(InputError, match=r"model\.path: .* became"):
        refuse_changes(older, moved)
