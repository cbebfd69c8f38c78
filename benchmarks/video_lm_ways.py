"""Ways to do one training step of a language model, forward, loss and backward, and what a process measures of them.

    way.loss()  ->  mean loss of this process' graph  --backward-->  gradients
                    of one process: of all tokens; of a rank: its own share, the gradients of ranks are summed

All have the same config and the same first numbers, those of a Llama. What belongs to a batch and is made once for all
layers (masks, plans, rotary tables) is made within the step; cutting the batch over the ranks is not: a data loader
does it, ours and DeepSpeed's alike.

    transformers        LlamaForCausalLM with "sdpa" and its own loss
    ours                the same layers with `attend`, and `tiled_cross_entropy`
    deepspeed           UlyssesSPAttentionHF as DeepSpeed's own test drives it: registered in place of "sdpa", data from
                        UlyssesSPDataLoaderAdapter, the losses of the ranks gathered and weighted by their tokens

No engine, for none of them: ZeRO would add the same to each.
"""

from __future__ import annotations

import ctypes
import gc
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.language.causal_lm import Backbone, make, masks_of
from parallel.attention.plan import local_plan, plan_for
from parallel.masks.mask import causal
from parallel.memory.activation_checkpointing import recompute
from parallel.memory.tiled import TILE_TOKENS, tiled, tiled_cross_entropy
from parallel.mesh import Groups, Mesh, join
from parallel.sequence.packed import IGNORED, local_spans
from parallel.sequence.relayout import next_tokens
from parallel.sequence.sharding import balanced

THREADS = 2  # of one process alone
CHECKED, CHECKED_WORDS = 256, 500  # tokens and words of the comparison with transformers
RIGHT = {torch.float32: 1e-5, torch.bfloat16: 0.1}  # the largest relative error of a parameter's gradient
WARM_UP = 128  # tokens of the first step
LOSS_DIM = 64
MLP_TILES = 8
SHORT_TILE = 512  # rows of logits at a time, where memory counts


@dataclass(frozen=True)
class Shape:
    """Of the model, and where it is."""

    words: int = 32_000
    layers: int = 4
    dim: int = 256
    wide: int = 688
    heads: int = 4
    kv_heads: int = 2
    device: str = "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """bf16 where there is hardware for it."""
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    def config(self) -> Any:
        """As transformers takes it."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.words, hidden_size=self.dim, intermediate_size=self.wide, num_hidden_layers=self.layers,
            num_attention_heads=self.heads, num_key_value_heads=self.kv_heads, max_position_embeddings=1 << 20,
            pad_token_id=None,
        )  # fmt: skip

    def tokens(self, count: int) -> Tensor:
        """A text: always the same one."""
        found = torch.randint(self.words, (count,), generator=torch.Generator().manual_seed(1))
        return found.to(self.device)


@dataclass(frozen=True)
class Way:
    """One way to do a step.

    Attributes:
        model: whose gradients are wanted.
        loss: forward pass and loss, []; its gradients are what `backward` leaves in the model.
        share: what the gradients of a rank are multiplied with before they are summed.
    """

    model: Any
    loss: Callable[[], Tensor]
    share: float = 1.0

    def step(self) -> float:
        """One step from gradients that are not there."""
        self.model.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        return float(loss.detach())


def transformers(again: bool = False) -> Callable[[Shape, int], Way]:
    """LlamaForCausalLM; `again` with its own recomputation of every layer."""

    def made(shape: Shape, count: int) -> Way:
        model, tokens = _transformers(shape, again), shape.tokens(count)[None]

        def loss() -> Tensor:
            found: Tensor = model(input_ids=tokens, labels=tokens, use_cache=False).loss
            return found

        return Way(model, loss)

    return made


def ours(again: bool = False, mlp_tiles: int = 1, tile_tokens: int = TILE_TOKENS) -> Callable[[Shape, int], Way]:
    """`Backbone`; `again` with `recompute` of every layer but its attention, the MLP in tiles if there are several."""

    def made(shape: Shape, count: int) -> Way:
        backbone = _ours(shape, again, mlp_tiles)
        tokens, position = shape.tokens(count), torch.arange(count, device=shape.device)
        labels = torch.cat([tokens[1:], tokens.new_tensor([IGNORED])])

        def loss() -> Tensor:
            plans = {window: local_plan(mask) for window, mask in masks_of(backbone.windows, [count]).items()}
            hidden = backbone.hidden(backbone.embed(tokens), position, plans)
            summed, weight = backbone.loss(hidden, labels, tile_tokens=tile_tokens)
            return summed / weight

        return Way(backbone.model, loss)

    return made


def ours_ranked(axis: str) -> Callable[[Shape, int], Way]:
    """`Backbone` on all ranks along one axis of the mesh, "ring" or "ulysses"."""

    def made(shape: Shape, count: int) -> Way:
        mesh = Mesh(**{axis: dist.get_world_size()})
        backbone, groups, mask = _ours(shape), _groups(mesh), causal(count)
        split = balanced(mask, mesh)
        ranges = split.ranges[groups.place.sequence]
        position = torch.cat([torch.arange(a, b) for _, a, b in local_spans([count], ranges)])
        tokens = shape.tokens(count)[position]  # one document: places in it are places in the pack
        labels = next_tokens(tokens, [count], split, groups)

        def loss() -> Tensor:
            plans = {window: plan_for(mask, split, groups) for window in backbone.windows}
            hidden = backbone.hidden(backbone.embed(tokens), position, plans)
            summed, _ = backbone.loss(hidden, labels)
            return summed / (count - 1)

        return Way(backbone.model, loss)

    return made


def deepspeed(how: str) -> Callable[[Shape, int], Way]:
    """UlyssesSPAttentionHF, with one of three losses.

    Args:
        how: "whole": transformers' loss of whole logits and gathered as in DeepSpeed's test; "its tiles":
            TiledFusedLogitsLoss; "ours": `tiled_cross_entropy`, so that nothing but attention differs from ours.
    """

    def made(shape: Shape, count: int) -> Way:
        model, ranks = _transformers(shape), dist.get_world_size()
        group = _hooked(replace(shape, words=CHECKED_WORDS))  # one for all: it asks for heads alone
        batch = next(_adapter(shape, count, group))
        labels = batch.pop("shift_labels")

        def whole() -> Tensor:
            logits = model(**batch, use_cache=False).logits
            own = model.loss_function(logits=logits, labels=None, shift_labels=labels, vocab_size=shape.words)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch's word on the gather that its test uses
                gather: Any = torch.distributed.nn.functional.all_gather  # type: ignore[attr-defined]
                losses, counts = (gather(x, group=group) for x in (own, (labels != IGNORED).sum()))
            weighted = [one * number for one, number in zip(losses, counts, strict=True)]
            mean: Tensor = torch.stack(weighted).sum() / sum(counts)
            return mean

        def of_rows(_: Any, rows: Tensor, wanted: Tensor) -> Tensor:
            logits = model.lm_head(rows).float()
            return nn.functional.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum") / (count - 1)

        def its_tiles() -> Tensor:
            from deepspeed.runtime.sequence_parallel.ulysses_sp import TiledFusedLogitsLoss

            hidden = model.model(**batch, use_cache=False).last_hidden_state
            tiles, params = -(-hidden.shape[1] // TILE_TOKENS), [model.lm_head.weight]
            found: Tensor = TiledFusedLogitsLoss.apply(of_rows, None, hidden, labels, None, tiles, params, "sum")
            return found

        def with_ours() -> Tensor:
            hidden = model.model(**batch, use_cache=False).last_hidden_state
            return tiled_cross_entropy(hidden[0], model.lm_head.weight, labels[0])[0] / (count - 1)

        losses = {"whole": (whole, 1 / ranks), "its tiles": (its_tiles, 1.0), "ours": (with_ours, 1.0)}
        return Way(model, *losses[how])

    return made


Makers = dict[str, Callable[[Shape, int], Way]]
Found = dict[str, Any]
PEER, OWN = "transformers", "ours"
PEER_AGAIN, OWN_AGAIN, OWN_LEAST = "transformers, recompute", "ours, recompute", "ours, recompute, MLP in tiles"
ALONE: Makers = {
    PEER: transformers(),
    OWN: ours(),
    PEER_AGAIN: transformers(again=True),
    OWN_AGAIN: ours(again=True, tile_tokens=SHORT_TILE),
    OWN_LEAST: ours(again=True, mlp_tiles=MLP_TILES, tile_tokens=SHORT_TILE),
}
RANKED_PEER = "deepspeed ulysses"
RANKED: Makers = {
    RANKED_PEER: deepspeed("whole"),
    "deepspeed ulysses, its tiled loss": deepspeed("its tiles"),
    "deepspeed ulysses, our loss": deepspeed("ours"),
    "ours ulysses": ours_ranked("ulysses"),
    "ours ring": ours_ranked("ring"),
}


def untiled_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """What everybody writes first."""
    return nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="sum")


def tiled_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Ours."""
    return tiled_cross_entropy(hidden, weight, labels)[0]


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"untiled": untiled_loss, "tiled": tiled_loss}


@cache
def _transformers(shape: Shape, again: bool = False) -> Any:
    """With our first numbers: those of one seed."""
    from transformers import AutoModelForCausalLM

    made: Any = AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = made.from_config(shape.config(), attn_implementation="sdpa", dtype=shape.dtype).to(shape.device)
    if again:
        model.activation_checkpointing_enable()
    return model


@cache
def _ours(shape: Shape, again: bool = False, mlp_tiles: int = 1) -> Backbone:
    backbone = make(shape.config(), shape.dtype, seed=0).to(shape.device)
    for layer in backbone.decoder.layers:
        _spare(layer, again, mlp_tiles)
    return backbone


def _spare(layer: Any, again: bool, mlp_tiles: int) -> None:
    """Have a layer of transformers recomputed by ours instead of torch's checkpoint, and its MLP in tiles."""
    layer.gradient_checkpointing, layer._gradient_checkpointing_func = again, recompute
    if mlp_tiles > 1:
        forward = layer.mlp.forward
        layer.mlp.forward = lambda x: tiled(forward, x[0], mlp_tiles)[None]


@cache
def _groups(mesh: Mesh) -> Groups:
    return join(mesh, dist.get_rank())


def _adapter(shape: Shape, count: int, group: Any) -> Iterator[dict[str, Tensor]]:
    """DeepSpeed's way to cut a batch over ranks."""
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPDataLoaderAdapter

    tokens = shape.tokens(count)[None]
    whole = {"input_ids": tokens, "position_ids": torch.arange(count)[None], "labels": tokens}
    given: Any = UlyssesSPDataLoaderAdapter
    found: Any = given([whole], dist.get_rank(), group, dist.get_world_size(), torch.device(shape.device))
    return iter(found)


@cache
def _hooked(shape: Shape) -> Any:
    """DeepSpeed's hook in place of "sdpa", and its group. It is global to a process: a second would wrap the first."""
    import deepspeed as peer
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    with redirect_stdout(StringIO()):
        peer.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    made: Any = UlyssesSPAttentionHF
    mpu = made.register_with_transformers(
        model_name_or_path=_transformers(shape),
        core_attn_implementation="sdpa",
        sequence_parallel_size=dist.get_world_size(),
        micro_batch_size=1,
        seq_length_is_variable=True,
    )
    return mpu.get_sequence_parallel_group()


def seconds_alone(_: int, shape: Shape, counts: list[int], rounds: int) -> dict[int, Found]:
    """Seconds of each way in turns, in this process, at each length, and how wrong it is."""
    torch.set_num_threads(THREADS)
    return timed(ALONE, errors(ALONE, shape), shape, counts, rounds)


def seconds_ranked(_: int, shape: Shape, counts: list[int], rounds: int) -> dict[int, Found]:
    """The same of this rank among others."""
    return timed(RANKED, errors(RANKED, shape), shape, counts, rounds)


def timed(makers: Makers, wrong: dict[str, float], shape: Shape, counts: list[int], rounds: int) -> dict[int, Found]:
    """Seconds and CPU-seconds of each round; one before them is not counted."""
    all_found: dict[int, Found] = {}
    for count in counts:
        found = all_found[count] = {name: {"error": wrong[name], "seconds": [], "cpu_seconds": []} for name in makers}
        made = {name: make(shape, count) for name, make in makers.items()}
        for number in range(rounds + 1):
            for name, way in made.items():
                dist.barrier()
                begin, cpu = time.perf_counter(), time.process_time()
                way.step()  # which hands the loss to Python, so that a GPU is done with the forward pass
                if shape.device == "cuda":
                    torch.cuda.synchronize()
                seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
                way.model.zero_grad(set_to_none=True)
                if number:
                    found[name]["seconds"].append(seconds)
                    found[name]["cpu_seconds"].append(cpu_seconds)
    return all_found


def errors(makers: Makers, shape: Shape) -> dict[str, float]:
    """Largest relative error (Frobenius) of a parameter's gradient, over all ranks, at few tokens and words.

    Raises:
        RuntimeError: a way is wrong.
    """
    small = replace(shape, words=CHECKED_WORDS)
    expected = gradients(transformers()(small, CHECKED))  # before DeepSpeed puts itself in its place
    found = {}
    for name, make_way in makers.items():
        grads = gradients(make_way(small, CHECKED))
        for grad in grads.values():
            dist.all_reduce(grad)
        found[name] = max(float((grads[n] - wanted).norm() / wanted.norm()) for n, wanted in expected.items())
        if not found[name] < RIGHT[shape.dtype]:
            raise RuntimeError(f"{name}: gradients differ from transformers' by {found[name]:.1e}")
    return found


def gradients(way: Way) -> dict[str, Tensor]:
    """This rank's share of them, in float64."""
    way.step()
    grads = {name: x.grad for name, x in way.model.named_parameters()}
    return {name: grad.double().cpu() * way.share for name, grad in grads.items()}


def peak_of_step(_: int, name: str, shape: Shape, count: int) -> Found:
    """Bytes over model and text, and seconds."""
    torch.set_num_threads(THREADS)
    give_back()
    warm, way = ALONE[name](shape, WARM_UP), ALONE[name](shape, count)
    warm.step()
    way.model.zero_grad(set_to_none=True)
    return peak_of(way.step, shape.device)


def peak_of_loss(_: int, name: str, tokens: int, words: int, device: str) -> Found:
    """Bytes over hidden states, weight and labels, and seconds, forward and backward."""
    torch.set_num_threads(THREADS)
    give_back()
    backward(name, loss_inputs(WARM_UP, 1000, torch.float32, device))
    inputs = loss_inputs(tokens, words, torch.float32, device)
    return peak_of(lambda: backward(name, inputs), device)


def gap_of_loss(_: int) -> float:
    """Largest difference between the two losses and their gradients, relative to the largest number of each."""
    found = {}
    for name in LOSSES:
        inputs = loss_inputs(500, 1000, torch.float64, "cpu")
        found[name] = backward(name, inputs), inputs[0].grad, inputs[1].grad
    pairs = [(a, b) for a, b in zip(*found.values(), strict=True) if a is not None and b is not None]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def loss_inputs(tokens: int, words: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and labels; a tenth of these are left out."""
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(tokens, LOSS_DIM, generator=generator, dtype=dtype)
    weight = torch.randn(words, LOSS_DIM, generator=generator, dtype=dtype) * LOSS_DIM**-0.5
    labels = torch.randint(words, (tokens,), generator=generator)
    labels[::10] = IGNORED
    return hidden.to(device).requires_grad_(), weight.to(device).requires_grad_(), labels.to(device)


def backward(name: str, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The loss, its gradients left in the inputs."""
    loss = LOSSES[name](*inputs)
    loss.backward()
    return loss.detach()


def peak_of(work: Callable[[], object], device: str) -> Found:
    """Bytes by which memory grows to its peak while `work` runs, and seconds."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = torch.cuda.memory_allocated() if device == "cuda" else told_by("/proc/self/status", "VmRSS")
    begin = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    after = torch.cuda.max_memory_allocated() if device == "cuda" else told_by("/proc/self/status", "VmHWM")
    return {"peak_bytes": after - before, "seconds": seconds}


def give_back() -> None:
    """Have glibc's malloc return blocks of 64 KB and more to the system when they are freed."""
    threshold = -3  # M_MMAP_THRESHOLD of malloc.h
    ctypes.CDLL(None).mallopt(threshold, 65_536)


def room(_: int, device: str) -> int:
    """Bytes that are free."""
    return torch.cuda.mem_get_info()[0] if device == "cuda" else told_by("/proc/meminfo", "MemAvailable")


def told_by(file: str, name: str) -> int:
    """Bytes, from a file of /proc that has kilobytes."""
    return int(next(x for x in Path(file).read_text().splitlines() if x.startswith(name)).split()[1]) * 1024


def versions(device: str) -> Found:
    """Of the peer, and which GPU, for the result."""
    return {"transformers": version("transformers"), "gpu": torch.cuda.get_device_name() if device == "cuda" else None}
