"""Parts of `gpu_first` about speed: a training step of a 1.3B DiT and of an 8B language model, and torch.compile.

One GPU holds neither a million tokens of all layers nor the states of 8B parameters, so a step is of as many layers as
fit into its memory and into the time that is left; layers are alike, so MFU is that of the whole, and the seconds of
all are those of a layer times their number. Packs are one clip, or one text, without data: values do not matter.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_first_rows import Case, Row, seconds_of, tflops
from benchmarks.gpu_first_zero import meet
from launcher.training.peak_flops import bf16_peak
from parallel.optimizers.adamw import AdamWConfig

TOKENS = (1 << 15, 1 << 17, 1 << 19, 1 << 20)
PICTURE = (30, 52)  # tokens of a frame of 480 x 832 pixels
CHANNELS, PATCH = 16, (1, 2, 2)
WORDS = 32_000
FULL = 0.8  # of the free memory may be planned
KEPT = {"dit": 6.5, "lm": 4.5}  # bytes that are kept of a token and layer under recompute, in widths of the model
WORKING = {"dit": 60, "lm": 24}  # bytes of one block's backward of a token, MLP in tiles, in widths of the model
STATES = 18  # bytes of a parameter: weight, gradient in float32 too, master and two moments
GUESS = 250e12  # FLOP/s, before anything was measured
LONG = 10.0  # seconds of a step that is measured once, without one that warms up


@dataclass(frozen=True)
class Model:
    """A size of one family.

    Attributes:
        family: "dit" or "lm".
        name: for a person.
        dim, heads, kv_heads, wide, layers: its shape; `wide` of its MLP.
        matrices: parameters of a layer.
        around: parameters outside of the layers.
    """

    family: str
    name: str
    dim: int
    heads: int
    kv_heads: int
    wide: int
    layers: int
    matrices: int
    around: int


DIT = Model("dit", "DiT 1.3B", 1536, 12, 12, 8960, 30, 56_262_400, 11_000_000)
LM = Model("lm", "LM 8B", 4096, 32, 8, 14336, 32, 218_000_000, 263_000_000)
SMALL = {
    "dit": Model("dit", "DiT, small", 96, 2, 2, 560, 2, 300_000, 100_000),
    "lm": Model("lm", "LM, small", 128, 4, 2, 448, 2, 300_000, 100_000),
}


def steps(case: Case) -> Iterator[Row]:
    """Seconds of a step and MFU, with recompute, of both families at growing lengths."""
    meet(case)
    reached = GUESS
    for tokens in (1024, 2048) if case.small else TOKENS:
        for model in (SMALL["dit"], SMALL["lm"]) if case.small else (DIT, LM):
            layers, why = fitting(model, tokens, room(case), case.left, reached)
            what = f"{model.name}, {tokens:,} tokens"
            if not layers:
                yield Row(what, why, "left out")
                continue
            try:
                row, reached = measured(case, model, tokens, layers, "none", reached)
            except torch.OutOfMemoryError as error:
                row = Row(what, f"{layers} layers do not fit: {str(error).splitlines()[0][:120]}", "left out")
            yield row
            gc.collect()
            if case.kind == "cuda":
                torch.cuda.empty_cache()


def compiled(case: Case) -> Iterator[Row]:
    """The same step of the DiT with its blocks compiled, where elementwise work counts: short sequences."""
    from models.diffusion.video_dit import VideoDiTConfig

    if "compile" not in VideoDiTConfig.model_fields:
        yield Row("model.compile", "this checkout's models have no such key", "left out")
        return
    meet(case)
    model, tokens = (SMALL["dit"], 512) if case.small else (DIT, 1 << 14)
    layers, why = fitting(model, tokens, room(case), case.left, GUESS)
    if not layers:
        yield Row(f"{model.name}, {tokens:,} tokens", why, "left out")
        return
    for way in ("none", "blocks"):
        yield measured(case, model, tokens, layers, way, GUESS)[0]


def fitting(model: Model, tokens: int, free: float, seconds: float, reached: float) -> tuple[int, str]:
    """As many layers as memory and time allow, and why there are none if there are none."""
    fixed = STATES * model.around + WORKING[model.family] * model.dim * tokens
    of_layer = STATES * model.matrices + KEPT[model.family] * model.dim * tokens
    by_memory = int((FULL * free - fixed) // of_layer)
    if by_memory < 1:
        return 0, f"a layer takes {(fixed + of_layer) / 2**30:.0f} GiB, {free / 2**30:.0f} are free"
    once = work_of(model, tokens, 1) * 4 / 3 / reached  # a quarter of the other work is done again
    for layers in range(min(model.layers, by_memory), 0, -1):
        step = once * layers
        if (2 if step > LONG else 4) * step < 0.7 * seconds:
            return layers, ""
    return 0, f"a layer takes about {once:.0f} s, {seconds:.0f} are left"


def work_of(model: Model, tokens: int, layers: int) -> float:
    """Model FLOPs of a step: 6 a parameter and token, 12 a pair, dim and layer."""
    pairs = tokens * tokens * (1.0 if model.family == "dit" else 0.5)
    return 6.0 * (model.matrices * layers + model.around) * tokens + 12.0 * pairs * model.dim * layers


def room(case: Case) -> float:
    """Bytes that are free."""
    if case.kind == "cuda":
        return float(torch.cuda.mem_get_info(case.device)[0])
    from launcher.core.hardware import memory

    return float(memory()[1])


def measured(case: Case, model: Model, tokens: int, layers: int, way: str, reached: float) -> tuple[Row, float]:
    """One row, and the FLOP/s that it reached."""
    make = dit if model.family == "dit" else language
    module, builder, stream, pack = make(case, model, tokens, layers, way)
    step, area = step_of(case, module, builder, stream, pack)
    parameters = sum(p.numel() for p in module.parameters())
    work = 6.0 * parameters * pack.tokens + 12.0 * area * model.dim * layers
    long = work * 4 / 3 / reached > LONG
    if case.kind == "cuda":
        torch.cuda.reset_peak_memory_stats(case.device)
    seconds = seconds_of(step, case.device, 1 if long else 3)
    peak = bf16_peak(torch.cuda.get_device_name(case.device)) if case.kind == "cuda" else None
    share = f", MFU {100 * work / seconds / peak:.1f} %" if peak else ""
    held = torch.cuda.max_memory_allocated(case.device) if case.kind == "cuda" else 0
    memory = f", peak {held / 2**30:.1f} GiB" if held else ""
    some = f"{layers} of {model.layers} layers"
    whole = f", {seconds * model.layers / layers:.3g} s for all" if layers < model.layers else ""
    title = f"{model.name}, {pack.tokens:,} tokens{', compiled' if way == 'blocks' else ''}"
    found = f"{seconds:.3g} s a step of {some}{whole}, {tflops(work, seconds)}{share}{memory}"
    figures = {
        "seconds": seconds, "layers": layers, "of_layers": model.layers, "flops": work, "parameters": parameters,
        "peak_bytes": held, "tokens": pack.tokens, "compile": way, "mfu": work / seconds / peak if peak else None,
    }  # fmt: skip
    return Row(title, found, figures=figures), work / seconds


def step_of(
    case: Case, module: torch.nn.Module, builder: Any, stream: Any, pack: Any
) -> tuple[Callable[[], None], float]:
    """Forward, backward and update on a batch that the feed's own builder makes once; and the pairs of its masks."""
    from parallel.zero.stages import engine_for

    micro = builder.micro_step(stream, pack)
    if case.kind == "cuda":
        torch.cuda.synchronize(case.device)
    engine = engine_for(module, AdamWConfig(), 0, 1, device=case.device)

    def step() -> None:
        loss, _ = engine.forward(micro.batch, micro.plans)
        engine.backward(loss / pack.tokens)
        engine.step(1e-5)

    return step, builder.area(stream, pack)


def filled(make: Callable[[], torch.nn.Module], device: torch.device) -> torch.nn.Module:
    """A module with small numbers, made on the device: billions of them take a CPU minutes."""
    from parallel.zero.meta_init import give_memory, on_meta

    with on_meta():
        module = make()
    give_memory(module, device)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.02) if parameter.dim() > 1 else parameter.fill_(1.0)
    return module


def dit_config(model: Model, layers: int, way: str) -> Any:
    """Of the DiT; keys that this checkout's models have not are left out."""
    from models.diffusion.video_dit import VideoDiTConfig

    fields = VideoDiTConfig.model_fields
    wide = {"mlp_hidden": model.wide} if "mlp_hidden" in fields else {"mlp_ratio": (model.wide + 0.5) / model.dim}
    more = {key: value for key, value in {"mlp_tiles": 8, "compile": way}.items() if key in fields}
    return VideoDiTConfig(dim=model.dim, depth=layers, heads=model.heads, patch=PATCH, recompute=True, **wide, **more)


def language_config(model: Model, layers: int, words: int, way: str) -> Any:
    """Of the Llama."""
    from models.language.video_lm_config import VideoLMConfig

    described = {
        "model_type": "llama", "vocab_size": words, "hidden_size": model.dim, "intermediate_size": model.wide,
        "num_hidden_layers": layers, "num_attention_heads": model.heads, "num_key_value_heads": model.kv_heads,
        "max_position_embeddings": 1 << 21,
    }  # fmt: skip
    more = {"compile": way} if "compile" in VideoLMConfig.model_fields else {}
    return VideoLMConfig(language=described, recompute=True, mlp_tiles=8, **more)


def dit(case: Case, model: Model, tokens: int, layers: int, way: str) -> tuple[torch.nn.Module, Any, Any, Any]:
    """Module, builder, and a pack of one clip of latents with where it is read from."""
    from data.streams.clip_reader import Piece
    from data.streams.pack_stream import Pack
    from launcher.batches.diffusion_batches import ClipBatchBuilder
    from models.objectives.rectified_flow import RectifiedFlow, RectifiedFlowConfig
    from models.registry import build_loss
    from parallel.mesh import Groups, Mesh
    from parallel.sequence.geometry import Geometry
    from parallel.sequence.packed import Document

    config = dit_config(model, layers, way)
    geometry = Geometry(channels=CHANNELS, stride=(4, 8, 8), patch=PATCH, causal=True, sliceable=False)
    codec: Any = SimpleNamespace(geometry=geometry, normal=lambda latents: latents)
    y, x = (4, 8) if case.small else PICTURE
    frames = max(1, tokens // (y * x))
    document = Document("drawn", 1, "x" * 255, (frames, y, x))
    latents = np.zeros((frames * PATCH[0], CHANNELS, y * PATCH[1], x * PATCH[2]), np.float32)
    piece = Piece(0, 0, document.tokens, 0, None, latents)
    pack = Pack((0,), (document,), (0,), float(document.tokens))
    stream = SimpleNamespace(source=SimpleNamespace(read=lambda pack, ranges, told: [piece]))
    objective = RectifiedFlow(RectifiedFlowConfig())
    groups = Groups(Mesh(), Mesh().place(0))
    builder = ClipBatchBuilder(codec, objective, config.attention, groups, case.device)
    module = filled(lambda: build_loss(config, CHANNELS, 0, torch.bfloat16, objective.config), case.device)
    return module, builder, stream, pack


def language(case: Case, model: Model, tokens: int, layers: int, way: str) -> tuple[torch.nn.Module, Any, Any, Any]:
    """The same of a Llama and one text."""
    from data.streams.chat_layout import layout_of
    from data.streams.pack_stream import Pack
    from launcher.batches.language_batches import ChatBatchBuilder
    from models.objectives.next_token import NextTokenConfig
    from models.registry import build_loss, build_objective
    from parallel.mesh import Groups, Mesh
    from parallel.sequence.packed import ASSISTANT, Document

    size = case.scaled(WORDS, 263)
    config = language_config(model, layers, size, way)
    words = np.arange(tokens, dtype=np.int64) % size
    layout = layout_of(words, np.full(tokens, ASSISTANT), np.zeros(0, np.int64), [], None, None)
    document = Document("drawn", 1, "", (tokens, 1, 1))
    pack = Pack((0,), (document,), (0,), float(tokens))
    stream = SimpleNamespace(source=SimpleNamespace(layout=lambda row: layout, options=SimpleNamespace(rope=())))
    objective = NextTokenConfig()
    groups = Groups(Mesh(), Mesh().place(0))
    builder = ChatBatchBuilder(config, build_objective(objective), groups, torch.bfloat16, case.device)
    module = filled(lambda: build_loss(config, 0, 0, torch.bfloat16, objective), case.device)
    return module, builder, stream, pack
