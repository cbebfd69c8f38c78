"""A model drawn layer by layer and cut at once has the numbers of one that was made whole, and needs little room."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from launcher.config.run_config import RunConfig
from launcher.training.loop import build_engine, build_loader
from launcher.training.rendezvous import RankPlace
from models.diffusion.byte_encoder import ByteEncoderConfig
from models.diffusion.video_dit import VideoDiTConfig, build
from models.registry import DTYPES
from parallel.zero.meta_init import Drawn
from tests.support.process_groups import run_world
from tests.support.runs import config

BIG = VideoDiTConfig(dim=96, depth=6, heads=4, text=ByteEncoderConfig(dim=16, depth=1, heads=2))


class Live(TorchDispatchMode):
    """Bytes of all storages on the CPU that operators have made and nobody has let go of."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                if storage._cdata not in self.held:
                    self.held[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.gone, storage._cdata)
                    self.peak = max(self.peak, self.now)
        return made

    def gone(self, storage: int) -> None:
        self.now -= self.held.pop(storage, 0)


def test_no_more_than_the_part_and_one_layer_is_held() -> None:
    whole = build(BIG, 3, 0, torch.float32)
    total = sum(p.nbytes for p in whole.parameters())
    largest = max(p.nbytes for p in whole.parameters())
    drawn = Drawn(1, 4)
    with Live() as live, drawn.cutting():
        build(BIG, 3, 0, torch.float32)
    assert drawn.bytes <= total / 4 + 1e-3 * total
    assert live.peak <= drawn.bytes + 2 * largest + 1e-2 * total
    assert live.peak < total / 2


def masters(rank: int, settings: RunConfig) -> dict[str, tuple[int, Tensor]]:
    loader = build_loader(settings, RankPlace(rank, dist.get_world_size(), rank, 1, ""), torch.device("cpu"))
    engine = build_engine(settings, loader, torch.device("cpu"))
    return {f.name: (f.start, f.tensors["master"].clone()) for f in engine.held()}


@pytest.mark.parametrize(("ranks", "dtype"), [(2, "float32"), (3, "bf16")])
def test_numbers_are_those_of_the_whole(dataset: Path, ranks: int, dtype: str) -> None:
    settings = config(Path("unused"), dataset, mesh={"ring": ranks}, zero__stage=3, dtype=dtype)
    whole = build(settings.model, 3, settings.seed, DTYPES[dtype])
    found = {name: torch.zeros(p.numel()) for name, p in whole.named_parameters()}
    for of_rank in run_world(ranks, masters, settings):
        for name, (start, part) in of_rank.items():
            found[name][start : start + len(part)] = part
    for name, parameter in whole.named_parameters():
        assert torch.equal(found[name], parameter.detach().float().view(-1)), name
