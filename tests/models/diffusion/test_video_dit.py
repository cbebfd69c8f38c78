"""The video DiT: zero at first, packed like separate, whole like cut, and every parameter touched with no token."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from models import registry
from models.diffusion.byte_encoder import ByteBatch, ByteEncoder, ByteEncoderConfig, byte_tokens
from models.diffusion.video_dit import DiTBatch, VideoDiT, VideoDiTConfig, batch_of, build
from models.layers.fused import EAGER, gated, modulated
from models.layers.modulation import Stretches
from models.objectives.rectified_flow import RectifiedFlow, RectifiedFlowConfig
from parallel.attention.plan import cross_plan, local_plan
from parallel.errors import InputError
from parallel.masks.mask import packed as packed_mask
from parallel.sequence.packed import Document, Packed, lay_out

SMALL = VideoDiTConfig(
    dim=36, depth=2, heads=3, patch=(1, 2, 2), absolute_positions=True, text=ByteEncoderConfig(dim=16, depth=1, heads=2)
)
GRIDS = [(2, 3, 4), (1, 2, 2), (3, 1, 5)]
TEXTS = ["a red square", "", "ein grüner Kreis"]
DOCUMENTS = [Document(str(i), 100 + i, text, grid) for i, (text, grid) in enumerate(zip(TEXTS, GRIDS, strict=True))]


def awake(model: VideoDiT) -> VideoDiT:
    """The model with random numbers where it starts with zeros, so that every parameter matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


def pack(documents: list[Document], dtype: torch.dtype = torch.float64) -> Packed:
    values = [torch.randn(d.tokens, 12, generator=torch.Generator().manual_seed(d.key)) for d in documents]
    return lay_out(documents, ((0, sum(d.tokens for d in documents)),), torch.cat(values).to(dtype))


def read(packed: Packed) -> DiTBatch:
    """What the model reads, at the noise levels of `packed`."""
    return batch_of(packed, packed.noise_level.double().numpy())


def loss_and_grads(model: VideoDiT, packed: Packed) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    objective = RectifiedFlow(RectifiedFlowConfig(conditioning={"first_frame": 0.5}))
    prepared = objective.prepare(packed)
    model.zero_grad()
    loss, _ = objective.weighted_error(
        model(read(prepared.packed), [local_plan(packed_mask(packed.lengths))]), prepared
    )
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def test_output_is_zero_at_first():
    packed = pack(DOCUMENTS)
    out = build(SMALL, 3, seed=0, dtype=torch.float64)(read(packed), [local_plan(packed_mask(packed.lengths))])
    assert out.shape == packed.values.shape
    assert torch.count_nonzero(out) == 0


@pytest.mark.parametrize("recompute", [False, True])
def test_packed_equals_separate(recompute):
    model = awake(build(SMALL.model_copy(update={"recompute": recompute}), 3, seed=0, dtype=torch.float64))
    loss, grads = loss_and_grads(model, pack(DOCUMENTS))
    apart = [loss_and_grads(model, pack([d])) for d in DOCUMENTS]
    torch.testing.assert_close(loss, sum(part[0] for part in apart), rtol=1e-12, atol=0)
    for name, grad in grads.items():
        total = sum(part[1][name] for part in apart)
        assert (grad - total).abs().max() <= 1e-12 * total.abs().max(), name
        assert grad.abs().max() > 0, name


def test_recompute_changes_nothing():
    runs = []
    for recompute in (False, True):
        model = awake(build(SMALL.model_copy(update={"recompute": recompute}), 3, seed=0, dtype=torch.float64))
        runs.append(loss_and_grads(model, pack(DOCUMENTS)))
    assert torch.equal(runs[0][0], runs[1][0])
    assert all(torch.equal(grad, runs[1][1][name]) for name, grad in runs[0][1].items())


@pytest.mark.parametrize("recompute", [False, True])
def test_tiles_of_the_mlp_change_nothing(recompute):
    """7 tiles of 43 tokens: stretches of documents and of clean first frames go across their borders."""
    runs = []
    for tiles in (1, 7):
        config = SMALL.model_copy(update={"recompute": recompute, "mlp_tiles": tiles})
        runs.append(loss_and_grads(awake(build(config, 3, seed=0, dtype=torch.float64)), pack(DOCUMENTS)))
    torch.testing.assert_close(runs[1][0], runs[0][0], rtol=1e-12, atol=0)
    for name, grad in runs[0][1].items():
        assert (grad - runs[1][1][name]).abs().max() <= 1e-12 * grad.abs().max(), name


class Live(TorchDispatchMode):
    """Bytes of all storages that operators have made and nobody has let go of."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.held:
                storage = tensor.untyped_storage()
                self.held[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self.gone, storage._cdata)
                self.peak = max(self.peak, self.now)
        return made

    def gone(self, storage):
        self.now -= self.held.pop(storage, 0)


def working_set(**changes) -> float:
    """The most that a backward pass adds to what waited for it, in numbers of a row for each token."""
    found = []
    for frames in (8, 24):
        config = VideoDiTConfig(dim=64, depth=2, heads=2, mlp_hidden=384, text=SMALL.text, recompute=True, **changes)
        model, packed = (
            build(config, 3, 0, torch.bfloat16),
            pack([Document("a", 1, "", (frames, 8, 8))], torch.bfloat16),
        )
        batch, plan = read(packed), [local_plan(packed_mask(packed.lengths))]
        model(batch, plan).sum().backward()  # gradients of weights are there
        live = Live()
        for parameter in model.parameters():
            live.held |= {t.untyped_storage()._cdata: 0 for t in (parameter, parameter.grad)}
        with live:
            loss = model(batch, plan).sum()
            before = live.peak = live.now
            loss.backward()
        found.append(live.peak - before)
    return (found[1] - found[0]) / (16 * 64 * 64 * 2)


def test_a_block_needs_little_beside_what_it_keeps():
    """Written out, with float32 copies of queries and keys and every norm kept, it was 42 rows a token; 2 wide ones
    of 6 rows each are what tiles take away.
    """
    whole, tiled = working_set(), working_set(mlp_tiles=8)
    assert whole < 34
    assert tiled < whole - 8


def test_order_of_documents_does_not_matter():
    model = awake(build(SMALL, 3, seed=0, dtype=torch.float64))
    torch.testing.assert_close(
        loss_and_grads(model, pack(DOCUMENTS))[0], loss_and_grads(model, pack(DOCUMENTS[::-1]))[0], rtol=1e-12, atol=0
    )


def test_no_tokens_give_zero_gradients_for_every_parameter():
    for recompute in (False, True):
        model = awake(build(SMALL.model_copy(update={"recompute": recompute}), 3, seed=0, dtype=torch.float64))
        packed = lay_out(DOCUMENTS, (), torch.zeros(0, 12, dtype=torch.float64))
        prepared = RectifiedFlow(RectifiedFlowConfig()).prepare(packed)
        nothing = [replace(cross_plan(packed.lengths, (), packed.lengths), keys=0)]
        out = model(read(prepared.packed), nothing)
        assert out.shape == (0, 12)
        loss, weight = RectifiedFlow(RectifiedFlowConfig()).weighted_error(out, prepared)
        assert loss == weight == 0
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert torch.count_nonzero(parameter.grad) == 0, name


def test_noise_level_is_read_for_each_token():
    model, packed = awake(build(SMALL, 3, seed=0, dtype=torch.float64)), pack(DOCUMENTS[:1])
    plan = [local_plan(packed_mask(packed.lengths))]
    level = torch.full((24,), 0.3, dtype=torch.float64)
    flat = model(read(replace(packed, noise_level=level)), plan)
    frames = level.clone()
    frames[:12] = 0.0
    assert not torch.allclose(model(read(replace(packed, noise_level=frames)), plan), flat)
    alternating = level.clone()
    alternating[::2] = 0.9  # one stretch a token
    assert len(read(replace(packed, noise_level=alternating)).stretches.spans) == 24
    assert torch.isfinite(model(read(replace(packed, noise_level=alternating)), plan)).all()
    assert len(read(replace(packed, noise_level=level)).stretches.spans) == 1


@pytest.mark.parametrize("absolute", [False, True])
def test_only_absolute_places_tell_a_clip_from_its_shifted_twin(absolute):
    model = awake(build(SMALL.model_copy(update={"absolute_positions": absolute}), 3, seed=0, dtype=torch.float64))
    packed = pack(DOCUMENTS)
    plan = [local_plan(packed_mask(packed.lengths))]
    moved = replace(packed, coordinates=packed.coordinates + torch.tensor([3, 1, 2]))
    difference = (model(read(moved), plan) - model(read(packed), plan)).abs().max()
    assert (difference > 1e-3) == absolute
    assert absolute or difference < 1e-12


def test_modulation_equals_a_table_for_each_token():
    document, level = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([0.0, 0.5, 0.5, 0.5, 0.5, 0.1, 0.1])
    stretches = Stretches.of(document, level)
    assert stretches.spans == ((0, 1), (1, 3), (3, 5), (5, 7))
    row = torch.tensor([0, 1, 1, 2, 2, 3, 3])
    inputs = [torch.randn(n, 5, dtype=torch.float64, requires_grad=True) for n in (7, 4, 4)]
    x, a, b = inputs
    spans = stretches.rows()
    y = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, a, b: modulated(x, a, b, spans, EAGER), inputs)
    assert torch.autograd.gradcheck(lambda x, a: gated(x, y, a, spans, EAGER), inputs[:2])
    assert torch.autograd.gradcheck(lambda y: gated(x, y, a, spans, EAGER), [y])
    normed = torch.nn.functional.layer_norm(x, (5,), eps=1e-6)
    torch.testing.assert_close(modulated(x, a, b, spans, EAGER), normed * (1 + b[row]) + a[row])
    torch.testing.assert_close(gated(x, y, a, spans, EAGER), x + y * a[row])
    assert stretches.rows(2, 6) == ((1, 0, 1), (2, 1, 3), (3, 3, 4))


def test_caption_reaches_only_its_document():
    model = awake(build(SMALL, 3, seed=0, dtype=torch.float64))
    packed = pack(DOCUMENTS)
    plan = [local_plan(packed_mask(packed.lengths))]
    other = replace(packed, documents=(replace(DOCUMENTS[0], text="a blue one"), *DOCUMENTS[1:]))
    changed = (model(read(packed), plan) - model(read(other), plan)).abs().amax(dim=1) > 1e-9
    assert torch.equal(changed, packed.document == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_build_depends_on_the_seed_alone(dtype):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    model, again, wide = (build(SMALL, 3, 7, d) for d in (dtype, dtype, torch.float32))
    assert torch.equal(torch.random.get_rng_state(), state)  # no global draw is used up
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, again.get_parameter(name))
        assert torch.equal(parameter, wide.get_parameter(name).to(dtype))
    assert not torch.equal(build(SMALL, 3, 8, dtype).embed.weight, model.embed.weight)


def test_bf16_is_near_float32():
    packed = pack(DOCUMENTS, torch.float32)
    plan = [local_plan(packed_mask(packed.lengths))]
    wide = awake(build(SMALL, 3, 0, torch.float32))(read(packed), plan)
    narrow = awake(build(SMALL, 3, 0, torch.bfloat16))(read(packed), plan)
    assert narrow.dtype == torch.bfloat16
    assert (narrow - wide).abs().max() < 0.05 * wide.abs().max()


def test_text_encoder_packs_captions_and_cuts_none():
    encoder = ByteEncoder(ByteEncoderConfig(dim=16, depth=2, heads=2)).double()
    texts = ["", "a red square", "é" * 2000]
    captions = ByteBatch.of(texts)
    features, lengths = encoder(captions), captions.lengths
    assert lengths == (1, 13, 4001)
    assert features.shape == (sum(lengths), 16)
    for text, part in zip(texts, features.split(lengths), strict=True):
        torch.testing.assert_close(encoder(ByteBatch.of([text])), part)
    swapped = encoder(ByteBatch.of(["a red squaer"])).mean(dim=0)  # the order of bytes counts
    assert not torch.allclose(swapped, features.split(lengths)[1].mean(dim=0))
    assert byte_tokens("\ud800") == [256, 0xED, 0xA0, 0x80]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": 100, "heads": 3}, "dim: 100, heads: 3"),
        ({"dim": 12, "heads": 3}, "model.heads=2 or model.dim=18"),
        ({"text": {"dim": 15, "heads": 2}}, r"text\.dim: 15, text\.heads: 2"),
        ({"patch": (1, 0, 2)}, "at least one latent cell"),
        ({"depht": 3}, "depht"),
        ({"mlp_ratio": 3, "mlp_hidden": 64}, "said once"),
        ({"mlp_tiles": 0}, "mlp_tiles"),
    ],
)
def test_shapes_that_cannot_work_are_named(change, words):
    with pytest.raises(ValidationError, match=words):
        VideoDiTConfig(**change)


def test_remedy_works():
    VideoDiTConfig(dim=18, heads=3)


def test_the_width_of_the_mlp_is_exact():
    assert VideoDiTConfig(dim=1536, heads=12, mlp_ratio=5.8333333).hidden == 8960
    assert VideoDiTConfig(dim=1536, heads=12, mlp_hidden=8960).hidden == 8960
    assert build(SMALL.model_copy(update={"mlp_hidden": 40}), 3, 0, torch.float32).blocks[0].mlp.up.out_features == 40


def test_odd_widths_are_refused_where_they_are_slow():
    VideoDiTConfig(dim=1536, heads=12, mlp_hidden=8960).refuse_odd_widths()
    for change, words in (({"mlp_hidden": 8959}, "mlp_hidden=8960"), ({"dim": 36, "heads": 3}, "dim=32")):
        with pytest.raises(InputError, match=words):
            VideoDiTConfig(**change).refuse_odd_widths()


def test_unknown_kind_names_the_nearest():
    from pydantic import TypeAdapter

    adapter = TypeAdapter(registry.ModelConfig)
    assert adapter.validate_python({"kind": "video_dit", "dim": 48}) == VideoDiTConfig(dim=48)
    assert adapter.validate_python(SMALL) == SMALL
    with pytest.raises(ValidationError, match="did you mean video_dit") as caught:
        adapter.validate_python({"kind": "vido_dit"})
    assert "one of: video_dit" in str(caught.value)
    with pytest.raises(ValidationError, match="rectified_flow"):
        TypeAdapter(registry.ObjectiveConfig).validate_python({"kind": "rectfied_flow"})
    assert adapter.validate_python("video_dit") == VideoDiTConfig()
    with pytest.raises(ValidationError, match="a mapping with a kind"):
        adapter.validate_python(3)
    objective = registry.build_objective(TypeAdapter(registry.ObjectiveConfig).validate_python({}))
    assert objective.config == RectifiedFlowConfig()
    assert isinstance(registry.build(SMALL, 3, 0, torch.float32), VideoDiT)
