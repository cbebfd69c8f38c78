"""Promise 4: a checkpoint is one moment, whole or passed over, in tensors and JSON alone, and any layout reads it."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.streams.curriculum import Position
from launcher.checkpoints.checkpoint_manifest import BrokenError, Manifest, TrainState, name_of, open_manifest, verify
from launcher.checkpoints.part import LARGE, file_of, write_part
from launcher.checkpoints.reading import Checkpoint, newest, one, trusting
from launcher.checkpoints.storage import LocalStorage, RemoteStorage, Storage, open_storage
from launcher.core.run_folder import RunFolder, read_lines
from parallel.errors import InputError
from parallel.fragments import Fragment
from parallel.optimizers.adamw import AdamWConfig
from tests.support.runs import config, train

TENSOR_NAMES = AdamWConfig().tensor_names
SHAPES = {"first.weight": (7, 5), "first.bias": (7,), "last": (3,)}


def tensors(name: str) -> dict[str, torch.Tensor]:
    numel = torch.Size(SHAPES[name]).numel()
    return {key: torch.arange(numel) + 100.0 * n + len(name) / 8 for n, key in enumerate(TENSOR_NAMES)}


def fragments(cuts: list[int]) -> Iterator[list[Fragment]]:
    """Everything laid end to end and cut at these elements: what each rank writes."""
    total = sum(torch.Size(shape).numel() for shape in SHAPES.values())
    edges = [0, *sorted(cuts), total]
    for low, high in pairwise(edges):
        found, before = [], 0
        for name, shape in SHAPES.items():
            numel = torch.Size(shape).numel()
            start, stop = max(0, low - before), min(numel, high - before)
            if start < stop:
                found.append(Fragment(name, start, {k: t[start:stop] for k, t in tensors(name).items()}))
            before += numel
        yield found


def write(storage: Storage, step: int, cuts: list[int]) -> Manifest:
    name = name_of(step)
    parts = [write_part(storage, name, file_of(rank), found) for rank, found in enumerate(fragments(cuts))]
    parts = [part for part in parts if part.fragments]
    manifest = Manifest(TrainState(Position(step), (("d",),)), {"seed": 1}, "layout", {}, (), SHAPES, tuple(parts))
    storage.commit(name, [part.file for part in parts], manifest.to_json())
    return manifest


@pytest.fixture(params=["folder", "store"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "here", None if request.param == "folder" else f"file://{tmp_path}/there")


@pytest.mark.parametrize("large", [LARGE, 12], ids=["through a buffer", "in place"])
@given(cuts=st.lists(st.integers(0, 45), max_size=5), low=st.integers(0, 35), high=st.integers(0, 35))
def test_any_elements_are_read_from_any_parts(
    tmp_path_factory: pytest.TempPathFactory, large: int, cuts: list[int], low: int, high: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("launcher.checkpoints.part.LARGE", large)
        read_anywhere(tmp_path_factory, cuts, low, high)


def read_anywhere(tmp_path_factory: pytest.TempPathFactory, cuts: list[int], low: int, high: int) -> None:
    storage = LocalStorage(tmp_path_factory.mktemp("any"))
    manifest = write(storage, 1, cuts)
    found, broken = newest(storage)
    assert (found and found.manifest, broken) == (manifest, [])
    assert found is not None
    for name in SHAPES:
        for key in TENSOR_NAMES:
            assert torch.equal(found.parameter(name, key).flatten(), tensors(name)[key])
    if low < high:
        empty = Fragment("first.weight", low, {key: torch.full((high - low,), -1.0) for key in TENSOR_NAMES})
        found.fill([empty], TENSOR_NAMES[1:])
        assert torch.equal(empty.tensors["exp_avg"], tensors("first.weight")["exp_avg"][low:high])
        assert torch.equal(empty.tensors["master"], torch.full((high - low,), -1.0))


def test_only_the_needed_bytes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    manifest = write(storage, 1, [20])
    read: list[int] = []

    def count(name: str, file: str, start: int, view: memoryview) -> None:
        LocalStorage(tmp_path).read_into(name, file, start, view)
        read.append(len(view))

    monkeypatch.setattr(storage, "read_into", count)
    wanted = Fragment("first.weight", 18, {key: torch.zeros(4) for key in TENSOR_NAMES})
    Checkpoint(storage, "step-00000001", manifest).fill([wanted], TENSOR_NAMES)
    assert sum(read) == 4 * len(TENSOR_NAMES) * 4


def test_other_programs_read_the_files(storage: Storage) -> None:
    manifest = write(storage, 1, [20])
    for part in manifest.parts:
        found = safetensors.torch.load(bytes(storage.read("step-00000001", part.file)))
        for name, start, stop in part.fragments:
            for key in TENSOR_NAMES:
                assert torch.equal(found[f"{name}[{start}:{stop}].{key}"], tensors(name)[key][start:stop])


def flip(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


DAMAGE: dict[str, Callable[[bytes, bytes], bytes | None]] = {
    "empty": lambda data, other: b"",
    "cut short": lambda data, other: data[:-1],
    "longer": lambda data, other: data + b"\0",
    "flipped": lambda data, other: flip(data),
    "deleted": lambda data, other: None,
    "of another step": lambda data, other: other,
}


@pytest.mark.parametrize("file", ["manifest.json", "part-00000.safetensors", "part-00001.safetensors"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damaged_file_is_named(tmp_path: Path, file: str, damage: str) -> None:
    storage = LocalStorage(tmp_path)
    write(storage, 1, [9])
    write(storage, 2, [20])
    path = tmp_path / "step-00000002" / file
    damaged = DAMAGE[damage](path.read_bytes(), (tmp_path / "step-00000001" / file).read_bytes())
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged)
    found, broken = newest(storage)
    assert found is not None
    assert found.state.step == 1
    ((name, reason),) = broken
    assert name == "step-00000002"
    assert file in reason
    with pytest.raises(InputError, match=file):
        one(storage, name)
    for path in (tmp_path / "step-00000001").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="none of 2 is"):
        newest(storage)


def link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


STRANGE: dict[str, Callable[[Path], None]] = {
    "link": link,
    "folder": replaced(Path.mkdir),
    "pipe": replaced(os.mkfifo),
}


@pytest.mark.parametrize("file", ["manifest.json", "part-00000.safetensors"])
@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_file_is_not_opened(tmp_path: Path, file: str, kind: str) -> None:
    """A link may lead out of the checkpoint, and a pipe would be waited for."""
    storage = LocalStorage(tmp_path)
    write(storage, 1, [9])
    write(storage, 2, [20])
    STRANGE[kind](tmp_path / "step-00000002" / file)
    found, broken = newest(storage)
    assert found is not None
    assert found.state.step == 1
    assert broken == [("step-00000002", f"{file}: is no file of its own, but a link, a folder or a pipe")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 200_000, "is not the JSON that was written"),
        ("", "is not the JSON that was written"),
        ("[1]", "is no JSON object"),
        ("{}", "lacks 'format'"),
    ],
    ids=["deep", "empty", "list", "nothing in it"],
)
def test_a_manifest_that_is_something_else(tmp_path: Path, text: str, said: str) -> None:
    storage = LocalStorage(tmp_path)
    write(storage, 1, [9])
    (tmp_path / "step-00000001" / "manifest.json").write_text(text)
    with pytest.raises(BrokenError, match=said):
        open_manifest(storage, "step-00000001")


def test_every_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    write(storage, 1, [9])
    path = tmp_path / "step-00000001" / "manifest.json"
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        if path.read_bytes().split() != data.split():  # JSON does not care for white space
            with pytest.raises(BrokenError, match=r"manifest\.json"):
                open_manifest(storage, "step-00000001")


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)


def test_pickles_and_paths_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = LocalStorage(tmp_path / "checkpoints")
    manifest = write(storage, 1, [9])
    folder = tmp_path / "checkpoints" / "step-00000001"
    (folder / "part-00002.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(BrokenError, match=r"part-00002\.pt: is no file of this checkpoint"):
        open_manifest(storage, "step-00000001")
    (folder / "part-00002.pt").unlink()
    for file in ("../part-00000.safetensors", "/etc/passwd", "a\\b.safetensors", "part-00000.pkl", ".."):
        bare = json.loads(manifest.to_json())
        bare["parts"][0]["file"] = file
        forged = Manifest.from_json(resealed(bare))
        (folder / "manifest.json").write_bytes(forged.to_json())
        with pytest.raises(BrokenError, match=r"outside of the checkpoint|nothing else is opened"):
            open_manifest(storage, "step-00000001")
    (folder / "manifest.json").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(BrokenError, match=r"manifest\.json"):
        open_manifest(storage, "step-00000001")
    part = folder / "part-00000.safetensors"
    (folder / "manifest.json").write_bytes(manifest.to_json())
    part.write_bytes(pickle.dumps(Evil()).ljust(part.stat().st_size, b"\0"))
    assert verify(storage, "step-00000001", manifest.parts) == f"{part.name}: its content is not what was written"
    assert not (tmp_path / "pwned").exists()


def resealed(record: dict[str, Any]) -> bytes:
    from blake3 import blake3

    record.pop("seal")
    seal = blake3(json.dumps(record, sort_keys=True).encode()).hexdigest()
    return json.dumps({"seal": seal, **record}).encode()


def test_elements_that_are_missing_or_held_twice(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    manifest = write(storage, 1, [9])
    for change in (lambda f: [f[0], f[1] + 1, f[2]], lambda f: [f[0], f[1], f[2] + 1], lambda f: ["strange", 0, 1]):
        bare = json.loads(manifest.to_json())
        bare["parts"][1]["fragments"][0] = change(bare["parts"][1]["fragments"][0])
        (tmp_path / "step-00000001" / "manifest.json").write_bytes(resealed(bare))
        with pytest.raises(BrokenError, match=r"first\.weight|strange"):
            open_manifest(storage, "step-00000001")


def test_a_commit_takes_the_place_of_a_broken_one(storage: Storage) -> None:
    write(storage, 1, [9, 20])
    write(storage, 2, [9, 20, 30])
    write(storage, 2, [5])  # on fewer ranks: the parts of the others are gone
    found, broken = newest(storage)
    assert (found and found.state.step, broken) == (2, [])
    storage.remove("step-00000002")
    found, broken = newest(storage, trusting)
    assert (found and found.state.step, broken) == (1, [])
    storage.remove("step-00000001")
    assert newest(storage) == (None, [])


def test_what_was_not_committed_is_no_checkpoint(storage: Storage) -> None:
    write(storage, 1, [9])
    write_part(storage, "step-00000002", file_of(0), next(fragments([])))
    assert storage.names() == ["step-00000001"]
    storage.abandon()
    write(storage, 2, [])
    assert storage.names() == ["step-00000001", "step-00000002"]


def test_a_store_without_a_driver() -> None:
    with pytest.raises(InputError, match="nosuch"):
        RemoteStorage("nosuch://bucket/run")


def test_metrics_and_checkpoints_of_a_run(tmp_path: Path, dataset: Path) -> None:
    """Through the real saver: what is kept, what is told, what it was written by."""
    changes = {"checkpoint__every": 2, "checkpoint__keep": 1, "checkpoint__keep_every": 4, "optimizer__ema": 0.9}
    train(config(tmp_path, dataset, steps=9, mesh={"ring": 2}, **changes))
    folder = RunFolder(tmp_path)
    storage = LocalStorage(folder.checkpoints)
    assert storage.names() == ["step-00000004", "step-00000008", "step-00000009"]
    found, broken = newest(storage)
    assert broken == []
    assert found is not None
    assert found.manifest.layout == "1 x 2 x 1, ZeRO 0, float64"
    assert found.manifest.keys == (*TENSOR_NAMES, "ema")
    lines = list(read_lines(folder.metrics))
    assert [line["loss"] for line in found.manifest.recent] == [line["loss"] for line in lines[-3:]]
    saved = [event for event in read_lines(folder.events) if event["event"] == "checkpoint"]
    assert [event["step"] for event in saved] == [2, 4, 6, 8, 9]
    assert all(event["bytes"] == saved[0]["bytes"] > 0 for event in saved)
