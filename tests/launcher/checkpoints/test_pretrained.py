"""Folders of Hugging Face: loaded by ranks that hold parts, saved parameter by parameter, and the same both ways."""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

from data.streams.curriculum import Position
from launcher.checkpoints.checkpoint_manifest import Manifest, TrainState, Updates
from launcher.checkpoints.part import file_of, write_part
from launcher.checkpoints.pretrained import config_of, load, matched
from launcher.checkpoints.pretrained_writer import export, save
from launcher.checkpoints.reading import Checkpoint
from launcher.checkpoints.safetensors_files import COMPUTED, INDEX, SINGLE, split
from launcher.checkpoints.storage import open_storage
from models.language import causal_lm, vision_tower
from models.language.causal_lm import Backbone, masks_of
from parallel.attention.plan import plan_for
from parallel.errors import InputError
from parallel.fragments import Fragment
from parallel.mesh import Mesh, join
from parallel.optimizers.adamw import AdamWConfig
from parallel.sequence.packed import local_spans
from parallel.sequence.relayout import next_tokens
from parallel.sequence.sharding import balanced
from parallel.zero import deepspeed_engine
from parallel.zero.engine import Engine
from parallel.zero.meta_init import on_meta
from parallel.zero.plain import PlainEngine
from parallel.zero.stages import engine_for
from tests.models.language.test_causal_lm import VOCABULARY
from tests.models.language.test_causal_lm import config as words_config
from tests.support.process_groups import run_world

TENSOR_NAMES = AdamWConfig().tensor_names
RANKS = 4
KINDS = ("llama", "qwen3", "llava")  # of several files; tied; of older names
CASES = [*((kind, torch.float32) for kind in KINDS), ("qwen3", torch.bfloat16), ("qwen3", torch.float64)]
IMAGE, TOKENS = 8, 4  # pixels to a side; words' places
SMALL = 9_000  # bytes of a file: several for each of these models


def config(kind: str) -> Any:
    from transformers import AutoConfig

    if kind != "llava":
        return words_config(kind, num_hidden_layers=2)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    sight = {"model_type": "clip_vision_model", **sizes, "image_size": IMAGE, "patch_size": IMAGE // 2}
    text = words_config("qwen2", num_hidden_layers=2).to_dict()
    return AutoConfig.for_model("llava", vision_config=sight, text_config=text, vision_feature_layer=-1)


def make(config: Any, dtype: torch.dtype, seed: int = 0) -> Backbone:
    kind = vision_tower if config.model_type == "llava" else causal_lm
    made: Backbone = kind.make(config, dtype, seed)
    return made


def opened(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """By transformers alone."""
    from transformers import AutoConfig, AutoModelForCausalLM, LlavaForConditionalGeneration

    llava = AutoConfig.from_pretrained(folder).model_type == "llava"
    made: Any = LlavaForConditionalGeneration if llava else AutoModelForCausalLM
    return made.from_pretrained(folder, dtype=dtype)


def names_in(folder: Path) -> dict[str, str]:
    """Of all tensors, and the file of each."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            found.update(dict.fromkeys(tensors.keys(), file.name))
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """As transformers saves them."""
    root = tmp_path_factory.mktemp("weights")
    for kind in KINDS:
        size = "20KB" if kind == "llama" else "1GB"
        make(config(kind), torch.float32, seed=7).model.save_pretrained(root / kind, max_shard_size=size)
        (root / kind / "tokenizer.json").write_text("{}")
    assert (root / "llama" / INDEX).is_file()
    assert (root / "qwen3" / SINGLE).is_file()
    assert "language_model.model.norm.weight" in names_in(root / "llava")
    assert "lm_head.weight" not in names_in(root / "qwen3")
    return {kind: root / kind for kind in KINDS}


class Task(nn.Module):
    """A language model, with or without eyes, and its loss on some words of this rank."""

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.model = model

    def forward(self, rank: int) -> Tensor:
        draw, model = torch.Generator().manual_seed(rank), self.model
        groups, lengths = join(Mesh(dist.get_world_size(), 1, 1), rank), (5, 2 * TOKENS + 3)
        masks = masks_of(model.windows, lengths)
        split = balanced(masks[model.windows[0]], Mesh(1, 1, 1))
        plans = {window: plan_for(mask, split, groups) for window, mask in masks.items()}
        words = torch.randint(VOCABULARY - 1, (sum(lengths),), generator=draw)
        embedded = model.embed(words)
        if isinstance(model, vision_tower.VisionLM):
            pixels = torch.randn(2, 3, IMAGE, IMAGE, generator=draw).to(embedded.dtype)
            rows = torch.cat(model.model.model.get_image_features(pixels, return_dict=True).pooler_output)
            embedded = embedded.index_copy(0, torch.arange(4, 4 + len(rows)), rows)
        position = torch.cat([torch.arange(a, b) for _, a, b in local_spans(lengths, split.ranges[0])])
        hidden = model.hidden(embedded, position, plans)
        loss, _ = model.loss(hidden, next_tokens(words, lengths, split, groups))
        return loss


@dataclass(frozen=True)
class Found:
    """What a rank saw of one model.

    Attributes:
        curve: losses and norms of two steps.
        state: (name, start, tensors) of all fragments afterwards.
        wrong: fragments that were not what the files hold.
        model: (dtypes of buffers, whether the numbers of the model followed the masters).
    """

    curve: list[float]
    state: list[tuple[str, int, dict[str, Tensor]]]
    wrong: list[str]
    model: tuple[list[torch.dtype], bool]


def stepped(engine: Engine, rank: int) -> list[float]:
    curve = []
    for _ in range(2):
        loss = engine.forward(rank)
        engine.backward(loss)
        curve += [float(loss.detach()), engine.step(1e-2)]
    return curve


def followed(engine: Engine) -> bool:
    """Whether the model's own numbers are the masters, in its dtype."""
    parameters: dict[str, Any] = dict(engine.module.named_parameters())
    for fragment in engine.held():
        of_model = parameters[fragment.name]
        part = of_model.ds_tensor if hasattr(of_model, "ds_tensor") else of_model.detach().flatten()[fragment.start :]
        master = fragment.tensors["master"]
        if not torch.equal(part[: len(master)], master.to(part.dtype)):
            return False
    return True


def from_folder(rank: int, folder: Path, stage: int, dtype: torch.dtype, out: Path | None = None) -> Found:
    """An engine made on the meta device and loaded from a folder; saved again under `out`; then trained."""
    with on_meta():
        module = Task(make(config_of(folder), dtype))
    engine = engine_for(module, AdamWConfig(weight_decay=0.1), stage, 1)
    assert all(fragment.tensors["master"].isnan().all() for fragment in engine.held())
    load(folder, engine)
    expected = dict(opened(folder).named_parameters())
    wrong = []
    for fragment in engine.held():
        whole = expected[fragment.name.removeprefix("model.model.")].detach().flatten()
        if not torch.equal(fragment.tensors["master"], whole[fragment.start : fragment.stop].to(torch.float32)):
            wrong.append(fragment.name)
    told = ([buffer.dtype for buffer in module.buffers()], followed(engine))
    if out is not None:
        pairs = AssertionError("with NCCL, a message that is in no batch starts a communicator for one pair of ranks")
        with patch.object(dist, "send", side_effect=pairs), patch.object(torch.distributed, "recv", side_effect=pairs):
            save(out / "same", engine, like=folder)
            save(out / "small", engine, torch.bfloat16, SMALL)
    curve = stepped(engine, rank)
    return Found(curve, state_of(engine), wrong, told)


def from_whole(rank: int, folder: Path, stage: int, dtype: torch.dtype) -> Found:
    """The same by a model that is whole on every rank."""
    module = Task(make(config_of(folder), dtype))
    module.model.model.load_state_dict(opened(folder, dtype).state_dict())
    engine = engine_for(module, AdamWConfig(weight_decay=0.1), stage, 1)
    told = ([buffer.dtype for buffer in module.buffers()], followed(engine))
    return Found(stepped(engine, rank), state_of(engine), [], told)


def state_of(engine: Engine) -> list[tuple[str, int, dict[str, Tensor]]]:
    return [(f.name, f.start, {key: tensor.clone() for key, tensor in f.tensors.items()}) for f in engine.held()]


Pairs = dict[tuple[str, torch.dtype], tuple[Found, Found]]


def all_kinds(rank: int, folders: dict[str, Path], out: Path) -> Pairs:
    found = {}
    for kind, dtype in CASES:
        place = out / kind if dtype == torch.float32 else None
        made = from_folder(rank, folders[kind], 3, dtype, place)
        found[kind, dtype] = (made, from_whole(rank, folders[kind], 3, dtype))
    return found


@pytest.fixture(scope="module")
def cut(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Pairs], Path]:
    """What four ranks of ZeRO-3 saw, and where they saved."""
    out = tmp_path_factory.mktemp("saved")
    return run_world(RANKS, all_kinds, folders, out), out


def compare(made: Found, whole: Found, exact: bool) -> None:
    assert made.wrong == []
    assert made.model == whole.model
    assert made.model[1]
    assert [(name, start) for name, start, _ in made.state] == [(name, start) for name, start, _ in whole.state]
    if exact:
        assert made.curve == whole.curve
        for (name, _, got), (_, _, want) in zip(made.state, whole.state, strict=True):
            for key in TENSOR_NAMES:
                assert torch.equal(got[key], want[key]), (name, key)


@pytest.mark.parametrize(("kind", "dtype"), CASES, ids=str)
def test_parts_are_those_of_the_whole(cut: tuple[list[Pairs], Path], kind: str, dtype: torch.dtype) -> None:
    """Every rank holds what the files say, and two steps are bit for bit those of an engine of the whole model.

    In bf16 the masters keep the digits of the files, which a model in bf16 has lost.
    """
    for of_rank in cut[0]:
        compare(*of_rank[kind, dtype], exact=dtype != torch.bfloat16)


def other_stages(rank: int, folders: dict[str, Path]) -> list[tuple[bool, Found, Found]]:
    cases = [(stage, dtype) for stage in (0, 1, 2) for dtype in (torch.float32, torch.bfloat16)]
    folder = folders["qwen3"]
    return [
        (dtype == torch.float32, from_folder(rank, folder, stage, dtype), from_whole(rank, folder, stage, dtype))
        for stage, dtype in cases
    ]


def test_other_stages(folders: dict[str, Path]) -> None:
    for of_rank in run_world(2, other_stages, folders):
        for exact, made, whole in of_rank:
            compare(made, whole, exact)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_by_ranks_is_what_was_loaded(folders: dict[str, Path], cut: tuple[list[Pairs], Path], kind: str) -> None:
    """One file of the same names and numbers, and several of bf16; both give transformers its logits."""
    same, small = cut[1] / kind / "same", cut[1] / kind / "small"
    assert names_in(same).keys() == names_in(folders[kind]).keys()
    assert (same / "tokenizer.json").is_file()
    assert json.loads((same / "config.json").read_text())["dtype"] == "float32"
    assert not list(cut[1].rglob("*.part"))
    index = json.loads((small / INDEX).read_text())
    assert index["weight_map"] == names_in(small)
    sizes = {file: (small / file).stat().st_size for file in set(index["weight_map"].values())}
    alone = [file for file in sizes if list(index["weight_map"].values()).count(file) == 1]
    assert all(size < SMALL + 4096 or file in alone for file, size in sizes.items())
    words = torch.arange(20)[None]
    for folder, dtype in ((same, torch.float32), (small, torch.bfloat16)):
        back, original = opened(folder, dtype), opened(folders[kind], dtype)
        for name, tensor in original.state_dict().items():
            assert torch.equal(back.state_dict()[name], tensor), name
        assert torch.equal(back(words).logits, original(words).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_becomes_a_folder(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    model = make(config(kind), torch.float32, seed=3)
    found = checkpoint(model, tmp_path)
    with on_meta():
        empty = make(config(kind), torch.float32)
    export(tmp_path / "master", found, empty)
    export(tmp_path / "ema", found, empty, "ema", like=folders[kind])
    assert names_in(tmp_path / "master").keys() == names_in(folders[kind]).keys()
    for folder, add in (("master", 0.0), ("ema", 1.0)):
        back = opened(tmp_path / folder).state_dict()
        for name, tensor in model.model.state_dict().items():
            assert torch.equal(back[name], tensor + add), name
    with pytest.raises(InputError, match=r"master is there"):
        export(tmp_path / "master", found, empty)
    with pytest.raises(InputError, match=r"has no exp_avg"):
        export(tmp_path / "other", found, empty, "exp_avg")
    with pytest.raises(InputError, match=r"are of one alone"):
        export(tmp_path / "other", found, make(config("qwen3" if kind != "qwen3" else "llama"), torch.float32))


def checkpoint(model: Backbone, root: Path) -> Checkpoint:
    """With an average that is one more than the weights."""
    storage, name = open_storage(root / "checkpoints"), "step-00000001"
    flat = {name: parameter.detach().flatten() for name, parameter in model.named_parameters()}
    fragments = [Fragment(name, 0, {"master": tensor, "ema": tensor + 1}) for name, tensor in flat.items()]
    part = write_part(storage, name, file_of(0), fragments)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    manifest = Manifest(TrainState(Position(), (), Updates(1)), {}, "", {}, (), shapes, (part,))
    storage.commit(name, [part.file], manifest.to_json())
    return Checkpoint(storage, name, manifest)


def test_files_have_at_most_so_many_bytes() -> None:
    sizes = {"a": 3, "b": 4, "c": 9, "d": 1, "e": 7, "f": 0}
    assert split(sizes, 8) == [["a", "b"], ["c"], ["d", "e", "f"]]
    assert split(sizes, 100) == [[*sizes]]


def test_on_meta_takes_no_memory_and_keeps_ties_and_buffers() -> None:
    with on_meta():
        made = make(config("qwen3"), torch.bfloat16)
    real = make(config("qwen3"), torch.bfloat16)
    assert all(parameter.is_meta and parameter.dtype == torch.bfloat16 for parameter in made.parameters())
    assert made.model.lm_head.weight is made.model.model.embed_tokens.weight
    assert all(torch.equal(one, other) for one, other in zip(made.buffers(), real.buffers(), strict=True))
    assert not nn.Linear(1, 1).weight.is_meta


# What is refused. Each fault changes a folder of llama (several files) or qwen3 (one file, tied).


def tensors(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / SINGLE)


def write(folder: Path, tensors: dict[str, Tensor]) -> None:
    safetensors.torch.save_file(tensors, folder / SINGLE, {"format": "pt"})


def missing(folder: Path) -> None:
    write(folder, {name: tensor for name, tensor in tensors(folder).items() if "norm" not in name})


def of_another_shape(folder: Path) -> None:
    write(folder, {**tensors(folder), "model.norm.weight": torch.zeros(23)})


def of_no_use(folder: Path) -> None:
    write(folder, {**tensors(folder), "model.layers.9.bias": torch.zeros(2)})


def quantised(folder: Path) -> None:
    write(folder, {**tensors(folder), "model.norm.weight": torch.zeros(24, dtype=torch.int8)})


def untied(folder: Path) -> None:
    write(folder, {**tensors(folder), "lm_head.weight": tensors(folder)["model.embed_tokens.weight"] + 1})


def pickled(folder: Path) -> None:
    torch.save(tensors(folder), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()


def truncated(folder: Path) -> None:
    file = folder / SINGLE
    file.write_bytes(file.read_bytes()[:-1])


def nothing(folder: Path) -> None:
    (folder / SINGLE).unlink()


def no_index(folder: Path) -> None:
    (folder / INDEX).write_text("{}")


def without_file(folder: Path) -> None:
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def elsewhere(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    file = index["weight_map"]["lm_head.weight"]
    index["weight_map"] = dict.fromkeys(index["weight_map"], file)
    (folder / INDEX).write_text(json.dumps(index))


FAULTS: dict[Callable[[Path], None], tuple[str, str]] = {
    missing: ("qwen3", r"missing: model.layers.0.self_attn.q_norm.weight, .* and 3 more"),
    of_another_shape: ("qwen3", r"of another shape: model.norm.weight is \[23\] instead of \[24\]"),
    of_no_use: ("qwen3", r"of no use: model.layers.9.bias"),
    quantised: ("qwen3", r"not trained: model.norm.weight is I8"),
    untied: ("qwen3", r"other numbers for model.embed_tokens.weight and lm_head.weight"),
    pickled: ("qwen3", r"pytorch_model.bin is a pickle"),
    truncated: ("qwen3", r"no whole safetensors file"),
    nothing: ("qwen3", r"has neither"),
    no_index: ("llama", r"is no index"),
    without_file: ("llama", r"no whole safetensors file"),
    elsewhere: ("llama", r"which the index places there"),
}


def refused(rank: int, faulty: dict[Callable[[Path], None], Path]) -> list[tuple[str, bool]]:
    """The message for each folder, and whether the model is as it was."""
    found = []
    for fault, folder in faulty.items():
        module = make(config(FAULTS[fault][0]), torch.float32)
        before = [parameter.detach().clone() for parameter in module.parameters()]
        try:
            load(folder, PlainEngine(module, AdamWConfig()))
        except InputError as error:
            same = all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))
            found.append((str(error), same))
        else:
            found.append(("not refused", False))
    return found


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_wrong_folders_are_refused_before_anything_is_written(folders: dict[str, Path], tmp_path: Path) -> None:
    faulty = {fault: copied(folders[kind], tmp_path / fault.__name__) for fault, (kind, _) in FAULTS.items()}
    for fault, folder in faulty.items():
        fault(folder)
    for (fault, (_, pattern)), (message, same) in zip(FAULTS.items(), run_world(1, refused, faulty)[0], strict=True):
        with pytest.raises(InputError, match=pattern):
            raise InputError(message, "", "")
        assert same, fault


def test_a_config_that_is_not_there_or_of_nobody(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config.json is not there"):
        config_of(tmp_path)
    folder = copied(folders["llama"], tmp_path / "folder")
    for text in ("{", '{"model_type": "nobody"}', '{"auto_map": {"AutoConfig": "code.Config"}, "model_type": "own"}'):
        (folder / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"tells a model of transformers|no code of its own"):
            config_of(folder)


def test_what_older_files_have_too_is_passed_over(folders: dict[str, Path], tmp_path: Path) -> None:
    """Buffers that the model computes, and a tied tensor under both names, or under the second alone."""
    folder, model = copied(folders["qwen3"], tmp_path / "folder"), make(config("qwen3"), torch.float32).model
    every = tensors(folder)
    buffers = {f"model.layers.0.self_attn.{name}": torch.arange(3) for name in COMPUTED}
    write(folder, {**every, **buffers, "lm_head.weight": every["model.embed_tokens.weight"].clone()})
    assert matched(folder, model)["model.embed_tokens.weight"].name == "model.embed_tokens.weight"
    (folder / INDEX).write_text(json.dumps({"weight_map": names_in(folder)}))
    assert matched(folder, model)["model.embed_tokens.weight"].name == "model.embed_tokens.weight"
    (folder / INDEX).unlink()
    write(folder, {"lm_head.weight": every.pop("model.embed_tokens.weight"), **every})
    assert matched(folder, model)["model.embed_tokens.weight"].name == "lm_head.weight"


def test_older_names_stay_as_they_are(folders: dict[str, Path], tmp_path: Path) -> None:
    """Files of LLaVA as others published them have one more prefix, which transformers drops where it saves anew."""
    folder, model = copied(folders["llava"], tmp_path / "folder"), make(config("llava"), torch.float32)
    every = tensors(folder)
    write(folder, {name.replace("vision_tower.", "vision_tower.vision_model."): t for name, t in every.items()})
    assert names_in(folder).keys() != names_in(folders["llava"]).keys()
    assert len(matched(folder, model.model)) == len(every)
    export(tmp_path / "out", checkpoint(model, tmp_path), model, like=folder)
    assert names_in(tmp_path / "out").keys() == names_in(folder).keys()
    back = opened(tmp_path / "out").state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in model.model.state_dict().items())


def with_offload(rank: int, folder: Path) -> tuple[list[str], bool]:
    with on_meta():
        module = make(config_of(folder), torch.bfloat16)
    engine = engine_for(module, AdamWConfig(), 3, 1, "parameters")
    load(folder, engine)
    of_model: dict[str, Any] = dict(module.named_parameters())
    return [str(parameter.ds_tensor.device) for parameter in of_model.values()], followed(engine)


def test_with_offload(folders: dict[str, Path]) -> None:
    for devices, same in run_world(2, with_offload, folders["qwen3"]):
        assert set(devices) == {"cpu"}
        assert same


# Memory, in a model of 200 MB of which no parameter has more than 17 MB.

MEGA = 1 << 20


def large() -> Any:
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "vocab_size": 4096}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 128}
    return words_config("qwen3", **sizes, **heads, tie_word_embeddings=False)


MMAP_THRESHOLD = -3  # of mallopt(3)


class Watch:
    """What this process takes, sampled every millisecond while a block runs."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.stop = module, threading.Event()
        self.begin = now()
        self.memory = self.whole = 0.0  # MB at most since the block began, and of parameters that are not cut

    def __enter__(self) -> Watch:
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def run(self) -> None:
        while not self.stop.wait(0.001):
            self.memory = max(self.memory, now() - self.begin)
            here = [parameter.data for parameter in self.module.parameters()]
            self.whole = max(self.whole, sum(data.nbytes for data in here if not data.is_meta) / MEGA)


def now() -> float:
    """MB of this process, without what it maps from files."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024


def memory(rank: int, folder: Path, out: Path) -> dict[str, float]:
    """MB that each phase takes at most beyond what there was before it."""
    ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 16)  # what is freed is given back, and does not count
    engine_for(nn.Linear(2, 2), AdamWConfig(), 3, 1).destroy()  # imports, and what DeepSpeed makes once
    make(config("qwen3"), torch.float32)
    begin, found = now(), {}
    with on_meta():
        module = make(config_of(folder), torch.float32)
    found["on_meta"] = now() - begin
    with Watch(module) as engine_made:
        give = deepspeed_engine.give_memory

        def given(*args: Any) -> None:
            give(*args)
            found["given"] = engine_made.memory

        vars(deepspeed_engine)["give_memory"] = given  # in this process alone
        engine = engine_for(module, AdamWConfig(), 3, 1)
    with Watch(module) as loaded:
        load(folder, engine)
    with Watch(module) as saved:
        save(out, engine)
    phases = {"engine": engine_made, "loaded": loaded, "saved": saved}
    found["whole"] = max(watch.whole for watch in phases.values())
    return found | {phase: watch.memory for phase, watch in phases.items()}


def test_no_rank_ever_holds_the_whole(tmp_path: Path) -> None:
    """Making takes a part and one parameter; DeepSpeed then masters and gradients; loading moments; saving nothing."""
    begin = now()
    model = make(large(), torch.float32)
    total = now() - begin
    with Watch(model) as watch:
        model.model.save_pretrained(tmp_path / "folder")
    sizes = [parameter.nbytes / MEGA for parameter in model.parameters()]
    assert min(1.2 * total, watch.whole) >= sum(sizes) > 200  # what the figures are worth
    del model
    part, room = sum(sizes) / RANKS, 2 * max(sizes) + 16
    for of_rank in run_world(RANKS, memory, tmp_path / "folder", tmp_path / "saved"):
        assert of_rank["on_meta"] < 16
        assert of_rank["whole"] < room
        assert of_rank["given"] < part + room
        assert of_rank["engine"] < 3 * part + room
        assert of_rank["loaded"] < 2 * part + room
        assert of_rank["saved"] < room
