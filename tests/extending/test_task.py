"""A conditioning task is one file and one call: every mesh trains with it to the same losses, and it can be sampled."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from launcher.config.run_config import RunConfig
from launcher.generation.mesh_sampling import sample_over
from launcher.generation.sample_request import Request
from launcher.generation.videos import sample_videos
from models.diffusion.byte_encoder import ByteEncoderConfig
from models.diffusion.sampler import Clip, Given, Solver
from models.diffusion.video_dit import VideoDiT, VideoDiTConfig, build
from models.objectives.conditioning import CONDITIONING
from models.objectives.rectified_flow import RectifiedFlow, RectifiedFlowConfig
from parallel.errors import InputError
from parallel.mesh import Mesh, join
from tests.support.process_groups import run_world
from tests.support.runs import config, train

TASK = "tests.extending.task"
MESHES = [(1, 1, 1), (1, 2, 1), (1, 1, 2), (1, 2, 2)]


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """For these tests alone."""
    importlib.import_module(TASK)
    yield
    del CONDITIONING._entries["even_frames"]


def settings(out: Path, dataset: Path, mesh: tuple[int, int, int] = (1, 1, 1), share: float = 0.8) -> RunConfig:
    cut = dict(zip(("replica", "ring", "ulysses"), mesh, strict=True))
    shares = {"even_frames": share, "first_frame": 0.1} if share else {}
    return config(
        out, dataset, steps=3, mesh=cut, extensions=[TASK], objective__conditioning=shares, checkpoint__every=3
    )


def losses(run: RunConfig) -> list[float]:
    return [line["loss"] for line in train(run)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> tuple[Path, list[float]]:
    out = tmp_path_factory.mktemp("task") / "run"
    return out, losses(settings(out, dataset))


@pytest.mark.parametrize("mesh", MESHES[1:], ids=str)
def test_losses_are_the_same_on_every_mesh(
    whole: tuple[Path, list[float]], tmp_path: Path, dataset: Path, mesh: tuple[int, int, int]
) -> None:
    assert len(whole[1]) == 3
    assert losses(settings(tmp_path / "run", dataset, mesh)) == pytest.approx(whole[1], rel=1e-12)


def test_the_task_changes_what_is_learned(whole: tuple[Path, list[float]], tmp_path: Path, dataset: Path) -> None:
    alone = losses(settings(tmp_path / "run", dataset, share=0.0))
    assert alone[0] != pytest.approx(whole[1][0], rel=1e-3)


def test_a_run_is_sampled_with_it(whole: tuple[Path, list[float]], tmp_path: Path) -> None:
    """Frames 0 and 2 of 4 are given as a folder of pictures, and named in what is written."""
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{name}.png")
    given = (("even_frames", tmp_path),)
    usual = Request(("x",), steps=1, guidance=1.0, frames=4, size=(16, 16), given=given)
    (made,), _ = sample_videos(whole[0], usual, tmp_path / "out")
    assert made.given == {"even_frames": str(tmp_path)}
    with pytest.raises(InputError, match="a folder has a picture for each frame"):
        sample_videos(whole[0], Request(("x",), frames=6, size=(16, 16), given=given), tmp_path / "out")


def model() -> VideoDiT:
    """One that is not zero."""
    text = ByteEncoderConfig(dim=16, depth=1, heads=2)
    made = build(VideoDiTConfig(dim=48, depth=2, heads=4, patch=(1, 2, 2), text=text), 3, 0, torch.float64)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return made


def sampled(rank: int, mesh: Mesh, kind: str) -> list[torch.Tensor]:
    """Two clips with guidance, of which the first is given every second frame."""
    importlib.import_module(TASK)
    tokens = CONDITIONING["even_frames"].tokens((4, 2, 3), 0)
    assert tokens is not None
    values = torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    clips = [Clip((4, 2, 3), "a cat", 1, Given(tokens, values)), Clip((3, 3, 1), "a dog", 2)]
    flow = RectifiedFlow(RectifiedFlowConfig(shift="tokens", base_tokens=6))
    return sample_over(join(mesh, rank), model(), flow, clips, Solver(3, 2.5, kind), torch.float64)


@pytest.mark.parametrize("kind", ["euler", "heun"])
def test_samples_are_the_same_on_every_mesh(kind: str) -> None:
    alone = run_world(1, sampled, Mesh(1, 1, 1), kind)[0]
    given = torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    frames = alone[0].reshape(4, 6, 12)
    assert torch.equal(frames[::2].reshape(12, 12), given)
    assert np.isfinite(alone[1].numpy()).all()
    for mesh in MESHES[1:]:
        for found in run_world(mesh[1] * mesh[2], sampled, Mesh(*mesh), kind):
            for one, want in zip(found, alone, strict=True):
                torch.testing.assert_close(one, want, rtol=1e-10, atol=1e-11)
