"""Any causal language model of transformers, over one packed sequence that many ranks hold: its layers, our attention.

    embeddings [tokens, dim], positions in each document
        |
    layer of transformers: norms, projections, rotary, MLP        rows alone: nothing crosses a document or a rank
        |   q, k, v --AttentionInterface--> `attend(q, k, v, plan)`       documents, windows, ring, ulysses
        |
    hidden [tokens, dim] --tiled_cross_entropy(lm_head)--> loss           the whole logits never exist

transformers looks up attention by name (`AttentionInterface`) and hands keyword arguments of a call through to it, so
the plan of a batch travels with the call, and two models, or two batches, do not meet in global state. Its own hook for
Ulysses is global to the process, and it knows neither rings nor packs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from models.layers import fused
from models.layers.fused import Compile
from parallel.attention.attend import attend
from parallel.attention.plan import Plan
from parallel.errors import InputError
from parallel.masks import mask
from parallel.masks.mask import Mask
from parallel.memory.activation_checkpointing import recompute as recomputed
from parallel.memory.tiled import TILE_TOKENS, tiled, tiled_cross_entropy

NAME = "longreel"
KINDS = ("llama", "mistral", "qwen2", "qwen3")  # their layers are those of the picture, and a test compares each
Window = int | None  # keys that a query of a layer sees, itself included; None for all
Plans = Mapping[Window, Plan]  # of one batch
Rope = tuple[tuple[str, Any], ...]  # what differs from the config's `rope_parameters`, by name


class Backbone(nn.Module):
    """A causal language model.

    Args:
        model: `LlamaForCausalLM` or another of `KINDS`, or a model that has one for its words; made by `make`.
        recompute: keep only the input of each layer and its attention for the backward pass, compute the rest again.
        mlp_tiles: of each MLP, whose wide rows exist for one tile of tokens at a time (`parallel.memory.tiled`).
        compile_blocks: "blocks" makes one kernel of each norm, and of each activation with its product.
    """

    def __init__(
        self, model: Any, recompute: bool = False, mlp_tiles: int = 1, compile_blocks: Compile = "none"
    ) -> None:
        super().__init__()
        self.model = model
        self._rotary: dict[Rope, nn.Module] = {}  # no parts of this module: they have no parameters
        if compile_blocks != "none":
            _compile(self.decoder)
        if mlp_tiles > 1:
            for layer in self.decoder.layers:
                layer.mlp.forward = partial(_in_tiles, layer.mlp.forward, mlp_tiles)
        if recompute:
            for layer in self.decoder.layers:
                layer.forward = partial(_recomputed, layer.forward)

    @property
    def decoder(self) -> Any:
        """Its layers, without the head."""
        return self.model.model

    @property
    def layer_windows(self) -> tuple[Window, ...]:
        """Of each layer."""
        return windows_of(self.decoder.config)

    @property
    def windows(self) -> tuple[Window, ...]:
        """Those of its layers, each once: a batch needs a plan for each."""
        return tuple(dict.fromkeys(self.layer_windows))

    def embed(self, tokens: Tensor) -> Tensor:
        """Words [tokens] int64 -> [tokens, dim]."""
        found: Tensor = self.model.get_input_embeddings()(tokens)
        return found

    def describe(self, rope: Rope, positions: int | None) -> None:
        """Let the config say with which frequencies, and up to which length, the model was trained."""
        config = self.model.config.get_text_config()
        config.rope_parameters = {**config.rope_parameters, **dict(rope)}
        config.max_position_embeddings = positions or config.max_position_embeddings

    def hidden(self, embeddings: Tensor, position: Tensor, plans: Plans, memory: Any = None, rope: Rope = ()) -> Tensor:
        """What the last layer says, [tokens, dim].

        Args:
            embeddings: [tokens, dim], of the tokens that this rank holds.
            position: [tokens] int64, inside the document.
            plans: of this batch, by window.
            memory: keys and values of earlier tokens (`models.language.kv_cache`).
            rope: rotary frequencies, where they differ from the config's: no parameters, so a curriculum may change
                them.
        """
        where = {"inputs_embeds": embeddings[None], "position_ids": position[None]}
        with self._with_rotary(rope):
            out = self.decoder(**where, past_key_values=memory, use_cache=False, plans=plans)
        found: Tensor = out.last_hidden_state[0]
        return found

    @contextmanager
    def _with_rotary(self, rope: Rope) -> Iterator[None]:
        """Within it the layers are turned by these frequencies; the module of each is made once."""
        decoder, own = self.decoder, self.decoder.rotary_emb
        if rope and rope not in self._rotary:
            config = deepcopy(decoder.config)
            config.rope_parameters = {**decoder.config.rope_parameters, **dict(rope)}
            self._rotary[rope] = type(own)(config).to(own.inv_freq.device)
        decoder.rotary_emb = self._rotary[rope] if rope else own
        try:
            yield
        finally:
            decoder.rotary_emb = own

    def logits(self, hidden: Tensor) -> Tensor:
        """[tokens, dim] -> [tokens, vocabulary]."""
        found: Tensor = self.model.lm_head(hidden)
        return found

    def loss(
        self, hidden: Tensor, labels: Tensor, weight: Tensor | None = None, tile_tokens: int = TILE_TOKENS
    ) -> tuple[Tensor, Tensor]:
        """See `tiled_cross_entropy`; to be called within the forward pass of the module that ZeRO-3 wraps."""
        return tiled_cross_entropy(hidden, self.model.lm_head.weight, labels, weight, tile_tokens)


def make(
    config: Any,
    dtype: torch.dtype,
    seed: int,
    recompute: bool = False,
    mlp_tiles: int = 1,
    compile_blocks: Compile = "none",
) -> Backbone:
    """A model of a transformers config, its first numbers a function of `seed` alone.

    Raises:
        InputError: it is not one of `KINDS`, or has what our attention does not compute.
    """
    from transformers import AutoModelForCausalLM

    refuse_unknown(config)
    register()
    made: Any = AutoModelForCausalLM
    model = drawn(lambda own: made.from_config(own, attn_implementation=NAME), config, dtype, seed)
    return Backbone(model, recompute, mlp_tiles, compile_blocks)


def drawn(make_it: Callable[[Any], Any], config: Any, dtype: torch.dtype, seed: int) -> Any:
    """A model of transformers whose first numbers are drawn in float32, so that they are the same in any dtype.

    It has a config of its own: transformers writes into the one that it gets, and a dtype that stands there is the one
    that the next model would be drawn in.
    """
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_default_dtype(torch.float32)
        try:
            model = make_it(deepcopy(config))
        finally:
            torch.set_default_dtype(before)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)  # not the buffers: frequencies stay in float32
    for part in (model.config, *(getattr(model.config, name) for name in model.config.sub_configs)):
        part.dtype = dtype
    return model


def refuse_unknown(config: Any) -> None:
    """A language model that our attention computes.

    Raises:
        InputError: its layers are not known, or drop out.
    """
    refuse_model_type(config)
    if getattr(config, "attention_dropout", 0.0):
        raise InputError(
            "attention has no dropout: ranks would each drop others",
            f"attention_dropout: {config.attention_dropout}",
            "attention_dropout: 0.0",
        )


def refuse_model_type(config: Any) -> None:
    """A language model whose layers we know.

    Raises:
        InputError: we do not.
    """
    if config.model_type not in KINDS:
        raise InputError(
            f"a language model is one of: {', '.join(KINDS)}",
            f"model_type: {config.model_type}",
            "take one of these, or add it to models/language/causal_lm.py and to the test of parity",
        )


def masks_of(windows: Sequence[Window], lengths: Sequence[int]) -> dict[Window, Mask]:
    """Of packed documents: each token sees those before it in its document, and with a window only the last of them."""
    return {
        window: mask.packed(lengths, causal=True)
        if window is None
        else mask.stack([mask.window(length, window - 1) for length in lengths])
        for window in windows
    }


def register() -> None:
    """Make our attention known to transformers, by a name that no other model asks for."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)


def _compile(decoder: Any) -> None:
    """Norms, and activations with their product, as one kernel each; modules and their hooks stay as they are."""
    for module in decoder.modules():
        if type(module).__name__.endswith("RMSNorm"):
            norm = _norm(module.variance_epsilon, fused.BACKEND)
            module.forward = partial(_normed, module, norm)
    for layer in decoder.layers:
        product = _product(decoder.config.hidden_act, fused.BACKEND)
        layer.mlp.forward = partial(_mlp, layer.mlp, product)


def _normed(module: Any, norm: Callable[[Tensor, Tensor], Tensor], hidden: Tensor) -> Tensor:
    return norm(hidden.flatten(0, -2), module.weight).view(hidden.shape)


def _mlp(mlp: Any, product: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
    """As transformers computes it, but for the product; `x` is [..., dim]."""
    a, b = mlp.gate_proj(x), mlp.up_proj(x)
    found: Tensor = mlp.down_proj(product(a.flatten(0, -2), b.flatten(0, -2)).view(a.shape))
    return found


@cache
def _norm(epsilon: float, backend: str) -> Callable[..., Any]:
    def norm(hidden: Tensor, weight: Tensor) -> Tensor:
        wide = hidden.to(torch.float32)  # as transformers does, whatever the dtype
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        return weight * wide.to(hidden.dtype)

    return fused.compiled(norm, norm, backend)


@cache
def _product(activation: str, backend: str) -> Callable[..., Any]:
    from transformers.activations import ACT2FN

    act = ACT2FN[activation]

    def product(a: Tensor, b: Tensor) -> Tensor:
        found: Tensor = act(a) * b
        return found

    return fused.compiled(product, product, backend)


def _recomputed(forward: Callable[..., Tensor], hidden: Tensor, **more: Any) -> Tensor:
    """A layer, of which only the input and attention are kept; ZeRO's hooks are outside of it, and run once a pass."""
    return recomputed(partial(forward, **more), hidden) if torch.is_grad_enabled() else forward(hidden, **more)


def _in_tiles(forward: Callable[[Tensor], Tensor], tiles: int, x: Tensor) -> Tensor:
    """An MLP of [1, tokens, dim]."""
    return tiled(lambda rows: forward(rows), x[0], tiles)[None]


def _attention(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention_mask: None,
    *,
    plans: Plans,
    scaling: float,
    **more: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: [1, heads, tokens, head_dim] -> [1, tokens, heads, head_dim]."""
    plan = plans[more.get("sliding_window")]
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
    return attend(q, k, v, plan, scaling)[None], None


def windows_of(config: Any) -> tuple[Window, ...]:
    """Of each layer of a transformers config."""
    window = getattr(config, "sliding_window", None)
    usual = ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or usual
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
