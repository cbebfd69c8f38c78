"""A text encoder is one file and one call: every mesh trains with it to the same losses, and it can be sampled."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from launcher.analysis.packing_simulation import words_of
from launcher.batches.datasets import open_curriculum
from launcher.config.loading import to_yaml
from launcher.config.run_config import RunConfig
from launcher.generation.sample_request import Request
from launcher.generation.trained_model import load_model, open_run
from launcher.generation.videos import sample_videos
from launcher.preflight.preflight import check
from models.diffusion.byte_encoder import ByteEncoderConfig
from models.diffusion.text_encoder import TEXT_ENCODERS
from models.diffusion.video_dit import VideoDiTConfig
from models.registry import spec_of
from parallel.errors import InputError
from tests.support.runs import config, train

MODULE = "tests.extending.text_encoder"


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """For these tests alone."""
    importlib.import_module(MODULE)
    yield
    del TEXT_ENCODERS._entries["word_vectors"]


def settings(out: Path, dataset: Path, mesh: tuple[int, int, int] = (1, 1, 1), **text: object) -> RunConfig:
    cut = dict(zip(("replica", "ring", "ulysses"), mesh, strict=True))
    kind = {"kind": "word_vectors", "width": 8, **text}
    return config(out, dataset, steps=3, mesh=cut, extensions=[MODULE], model__text=kind, checkpoint__every=3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> tuple[Path, list[float]]:
    out = tmp_path_factory.mktemp("words") / "run"
    return out, [line["loss"] for line in train(settings(out, dataset))]


@pytest.mark.parametrize("mesh", [(1, 2, 1), (1, 1, 2), (1, 2, 2)], ids=str)
def test_losses_are_the_same_on_every_mesh(
    whole: tuple[Path, list[float]], tmp_path: Path, dataset: Path, mesh: tuple[int, int, int]
) -> None:
    lines = train(settings(tmp_path / "run", dataset, mesh))
    assert [line["loss"] for line in lines] == pytest.approx(whole[1], rel=1e-12)
    assert len(lines) == 3


def test_a_run_is_sampled_with_it(whole: tuple[Path, list[float]], tmp_path: Path) -> None:
    """Words, other words and no words are different videos; with guidance, which compares with no words."""
    found = {}
    for prompt in ("a red square", "a blue circle", ""):
        request = Request((prompt,), steps=2, guidance=2.0, frames=2, size=(16, 16))
        (made,), _ = sample_videos(whole[0], request, tmp_path)
        found[prompt] = (tmp_path / made.file).read_bytes()
    assert len(set(found.values())) == 3


def test_its_weights_are_those_of_the_checkpoint(whole: tuple[Path, list[float]]) -> None:
    run, found = open_run(whole[0])
    model = load_model(run, found, 3, torch.device("cpu"), False)
    weight = dict(model.named_parameters())["text.linear.weight"]
    assert weight.shape == (16, 8)
    assert torch.equal(weight.data, found.parameter("text.linear.weight", "master"))


def test_what_asks_an_encoder_asks_this_one(tmp_path: Path, dataset: Path) -> None:
    """Deals of packs, kernels of attention, notes of captions that are too long, and the settings themselves."""
    run = settings(tmp_path, dataset, max_bytes=4)
    assert len(spec_of(run.model).head_shapes(run.model)) == 1
    assert words_of(run, open_curriculum(run))["cut_captions"] > 0
    assert any("model.text.max_bytes" in note for note in check(run).notes)
    assert "kind: word_vectors" in to_yaml(run)
    assert VideoDiTConfig().text == ByteEncoderConfig()
    with pytest.raises(InputError, match=r"(?s)a text encoder is one of: bytes, word_vectors"):
        settings(tmp_path, dataset, kind="word_vector")
    with pytest.raises(InputError, match=r"model\.text\.depth"):
        settings(tmp_path, dataset, depth=2)
