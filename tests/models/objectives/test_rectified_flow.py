"""Rectified flow: the same bits however the sequence is cut, the right distribution, and a model that learns."""

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
import torch

from models.diffusion.byte_encoder import ByteEncoderConfig
from models.diffusion.sampler import SAMPLERS, Clip, Given, Solver, sample
from models.diffusion.video_dit import VideoDiTConfig, batch_of, build
from models.objectives.rectified_flow import RectifiedFlow, RectifiedFlowConfig, shifted
from parallel.attention.plan import local_plan
from parallel.errors import InputError
from parallel.masks.mask import packed as packed_mask
from parallel.random import key_of
from parallel.sequence.packed import Document, lay_out
from parallel.sequence.sharding import contiguous, zigzag

SMALL = VideoDiTConfig(
    dim=48,
    depth=2,
    heads=4,
    patch=(1, 2, 2),
    absolute_positions=True,
    rope_theta=30.0,
    text=ByteEncoderConfig(dim=16, depth=1, heads=2),
)
DOCUMENTS = [Document(f"{i}", key_of(i), f"clip {i}", grid) for i, grid in enumerate([(2, 3, 4), (1, 2, 2), (3, 1, 5)])]
TOTAL = sum(d.tokens for d in DOCUMENTS)


def whole(documents, dtype=torch.float32, dim=12):
    total = sum(d.tokens for d in documents)
    values = torch.randn(total, dim, generator=torch.Generator().manual_seed(0)).to(dtype)
    return lay_out(documents, ((0, total),), values)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("predict", ["velocity", "clean"])
def test_any_cut_gives_the_same_bits(dtype, predict):
    objective = RectifiedFlow(
        RectifiedFlowConfig(predict=predict, conditioning={"first_frame": 0.5}, caption_dropout=0.5)
    )
    full = whole(DOCUMENTS, dtype)
    reference = objective.prepare(full)
    splits = [contiguous(TOTAL, 2), contiguous(TOTAL, 5), zigzag(TOTAL, 3), contiguous(TOTAL, TOTAL + 3)]
    for split in splits:
        for ranges in split.ranges:
            rows = torch.tensor([i for start, stop in ranges for i in range(start, stop)], dtype=torch.int64)
            part = objective.prepare(lay_out(DOCUMENTS, ranges, full.values[rows]))
            assert part.packed.documents == reference.packed.documents
            assert torch.equal(part.target, reference.target[rows])
            for field in ("values", "noise_level", "weight", "coordinates"):
                assert torch.equal(getattr(part.packed, field), getattr(reference.packed, field)[rows]), field
    assert reference.packed.values.dtype == dtype
    assert reference.packed.noise_level.dtype == torch.promote_types(dtype, torch.float32)


def test_formula():
    """z = (1 - s) x + s e, target e - x, loss = weighted squared error of the velocity, in both parametrisations."""
    packed = whole(DOCUMENTS, torch.float64)
    velocity, clean = (RectifiedFlow(RectifiedFlowConfig(predict=p)) for p in ("velocity", "clean"))
    a, b = velocity.prepare(packed), clean.prepare(packed)
    level = a.packed.noise_level[:, None]
    torch.testing.assert_close(a.packed.values - level * a.target, packed.values)
    torch.testing.assert_close(a.packed.values + (1 - level) * a.target, a.target + packed.values)
    assert torch.equal(b.target, packed.values)
    guess = torch.randn_like(packed.values)
    as_velocity = clean.velocity(guess, b.packed.values, b.packed.noise_level)
    for ours, theirs in zip(clean.weighted_error(guess, b), velocity.weighted_error(as_velocity, a), strict=True):
        torch.testing.assert_close(ours, theirs)
    loss, weight = velocity.weighted_error(guess, a)
    torch.testing.assert_close(loss, (guess - a.target).square().mean(dim=1).sum())
    assert weight == TOTAL
    assert velocity.weighted_error(a.target, a)[0] == 0


def test_weight_of_a_document_counts():
    padding = [replace(DOCUMENTS[0], weight=0.0), *DOCUMENTS[1:]]
    objective = RectifiedFlow(RectifiedFlowConfig())
    prepared = objective.prepare(whole(padding))
    loss, weight = objective.weighted_error(torch.zeros_like(prepared.target), prepared)
    assert weight == TOTAL - 24
    torch.testing.assert_close(loss, prepared.target[24:].square().mean(dim=1).sum())
    assert loss.dtype == torch.float32


def test_loss_of_bf16_is_summed_in_float32():
    prepared = RectifiedFlow(RectifiedFlowConfig()).prepare(
        whole([Document("a", 1, "", (1, 100, 100))], torch.bfloat16)
    )
    loss, weight = RectifiedFlow(RectifiedFlowConfig()).weighted_error(
        torch.zeros(10_000, 12, dtype=torch.bfloat16), prepared
    )
    assert weight.dtype == loss.dtype == torch.float32
    assert weight == 10_000  # bf16 would have stopped at 256


def test_levels_are_logit_normal_and_shifted():
    """Quantiles of 4000 levels against the closed form (Esser et al., eq. 19 and 23)."""
    config = RectifiedFlowConfig(logit_mean=0.3, logit_std=0.8, shift="tokens", base_tokens=6)
    objective = RectifiedFlow(config)
    assert objective.shift_of(24) == 2.0
    levels = torch.tensor([objective.level(Document("", key_of(i), "", (2, 3, 4))) for i in range(4000)])
    for share in (0.1, 0.5, 0.9):
        normal = NormalDist(0.3, 0.8).inv_cdf(share)
        want = shifted(torch.tensor(normal).sigmoid(), 2.0)
        assert abs((levels < want).float().mean() - share) < 0.02
    assert shifted(torch.tensor([0.0, 1.0]), 3.0).tolist() == [0.0, 1.0]


def test_caption_drop_rate():
    objective = RectifiedFlow(RectifiedFlowConfig(caption_dropout=0.25))
    documents = [Document("", key_of(i), "words", (1, 1, 1)) for i in range(4000)]
    dropped = sum(d.text == "" for d in objective.prepare(whole(documents, dim=1)).packed.documents)
    assert abs(dropped / 4000 - 0.25) < 0.02
    keep = RectifiedFlow(RectifiedFlowConfig(caption_dropout=0.0)).prepare(whole(documents[:100], dim=1))
    assert all(d.text == "words" for d in keep.packed.documents)


def test_first_frame_is_given_clean_and_not_counted():
    packed = whole(DOCUMENTS)
    prepared = RectifiedFlow(RectifiedFlowConfig(conditioning={"first_frame": 1.0})).prepare(packed)
    first = (packed.coordinates[:, 0] == 0) & (packed.document != 1)  # document 1 has one frame: nothing would be left
    assert torch.equal(prepared.packed.noise_level == 0, first)
    assert torch.equal(prepared.packed.weight == 0, first)
    assert torch.equal(prepared.packed.values[first], packed.values[first])
    for predict in ("velocity", "clean"):
        objective = RectifiedFlow(RectifiedFlowConfig(conditioning={"first_frame": 1.0}, predict=predict))
        loss, weight = objective.weighted_error(torch.zeros_like(packed.values), objective.prepare(packed))
        assert torch.isfinite(loss)
        assert weight == TOTAL - int(first.sum())


def learn(model, objective, documents, values, steps, lr):
    """First and last loss of `steps` of Adam, with fresh noise in each."""
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    losses = []
    for step in range(steps):
        fresh = [replace(d, key=key_of(d.key, step)) for d in documents]
        prepared = objective.prepare(lay_out(fresh, ((0, len(values)),), values))
        plan = [local_plan(packed_mask(prepared.packed.lengths))]
        loss, weight = objective.weighted_error(model(batch_of(prepared.packed, prepared.levels), plan), prepared)
        optimiser.zero_grad()
        (loss / weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach() / weight))
    return losses


def test_a_small_model_overfits_one_clip():
    document, values = DOCUMENTS[0], torch.randn(24, 12, generator=torch.Generator().manual_seed(3))
    objective = RectifiedFlow(RectifiedFlowConfig(caption_dropout=0.0))
    model = build(SMALL, 3, 0, torch.float32)
    losses = learn(
        model, objective, [replace(document, key=i) for i in range(4)], values.repeat(4, 1), steps=120, lr=1e-2
    )
    assert sum(losses[-10:]) < 0.15 * sum(losses[:10])
    (clip,) = sample(model, objective, [Clip(document.grid, document.text, 1)], Solver(20), torch.float32)
    assert (clip - values).square().mean() < 0.1 * values.square().mean()


def test_words_matter_after_a_few_steps():
    """Two captions, two constant clips: each prompt brings its own back, with and without guidance."""
    documents = [Document("0", 0, "dark", (1, 2, 2)), Document("1", 1, "bright", (1, 2, 2))] * 4
    values = torch.cat([torch.full((4, 12), -1.0), torch.full((4, 12), 1.0)] * 4)
    objective = RectifiedFlow(RectifiedFlowConfig(predict="clean", caption_dropout=0.1))
    model = build(SMALL, 3, 0, torch.float32)
    learn(model, objective, [replace(d, key=i) for i, d in enumerate(documents)], values, steps=60, lr=3e-3)
    for guidance in (1.0, 2.0):
        clips = [Clip((1, 2, 2), "dark", 5), Clip((1, 2, 2), "bright", 6)]
        dark, bright = sample(model, objective, clips, Solver(8, guidance), torch.float32)
        assert dark.mean() < -0.6
        assert bright.mean() > 0.6


@pytest.fixture(scope="module")
def model():
    """A model that is not zero."""
    made = build(SMALL, 3, 0, torch.float32)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return made


FLOW = RectifiedFlow(RectifiedFlowConfig(shift=2.0))
GRIDS = ((2, 2, 2), (1, 3, 2))


def draw(model, prompts, keys, guidance, steps=4, given=(None, None), kind="euler", dtype=torch.float32):
    clips = [Clip(*clip) for clip in zip(GRIDS, prompts, keys, given, strict=False)]
    return sample(model, FLOW, clips, Solver(steps, guidance, kind), dtype)


def test_samples_are_deterministic(model):
    first, second = (draw(model, ["a", "b"], [1, 2], 3.0) for _ in range(2))
    assert [t.numpy().tobytes() for t in first] == [t.numpy().tobytes() for t in second]
    assert [t.shape for t in first] == [(8, 12), (6, 12)]
    other = draw(model, ["a", "b"], [3, 2], 3.0)
    assert not torch.equal(other[0], first[0])
    torch.testing.assert_close(other[1], first[1])  # the key of one clip does not touch another


def test_guidance_one_follows_the_prompt_alone(model):
    """Twins without a prompt are left out at 1, and at 1 + tiny they cancel."""
    one, near, more = (draw(model, ["a", "b"], [1, 2], g) for g in (1.0, 1.0 + 1e-9, 4.0))
    for a, b, c in zip(one, near, more, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(a, c, rtol=1e-3, atol=1e-3)


def test_guidance_is_linear_in_one_step(model):
    cond, uncond, guided = (draw(model, p, [1], g, steps=1)[0] for p, g in ((["a"], 1.0), ([""], 1.0), (["a"], 3.0)))
    torch.testing.assert_close(guided, uncond + 3.0 * (cond - uncond), rtol=1e-4, atol=1e-5)


def test_a_given_first_frame_stays(model):
    frame = torch.randn(4, 12)
    first = np.array([True, False])[:, None, None]
    drawn = draw(model, ["a", "b"], [1, 2], 2.0, given=[Given(first, frame), None])
    assert torch.equal(drawn[0][:4], frame)
    plain = draw(model, ["a", "b"], [1, 2], 2.0)
    assert not torch.allclose(drawn[0][4:], plain[0][4:])
    torch.testing.assert_close(drawn[1], plain[1])


def test_sampling_refuses_what_cannot_work(model):
    with pytest.raises(InputError, match="0 clips, steps: 4"):
        draw(model, [], [], 1.0)
    with pytest.raises(InputError, match="steps: 0"):
        draw(model, ["a"], [1], 1.0, steps=0)
    with pytest.raises(InputError, match=r"(?s)a sampler is one of: euler, heun.*did you mean euler"):
        draw(model, ["a"], [1], 1.0, kind="eule")
    with pytest.raises(InputError, match=r"4 tokens of 12, values \[3, 12\]"):
        draw(model, ["a"], [1], 1.0, given=[Given(np.array([True, False])[:, None, None], torch.zeros(3, 12))])


def test_a_part_of_what_is_given_lies_where_it_belongs(model):
    """Any tokens, not whole frames: they stay, and the others are free."""
    tokens = np.zeros((2, 2, 2), bool)
    tokens[0, 1, 0] = tokens[1, 0, 1] = tokens[1, 1, 1] = True
    values = torch.randn(3, 12)
    (clip,) = draw(model, ["a"], [1], 2.0, given=[Given(tokens, values)])
    flat = torch.from_numpy(tokens.reshape(-1))
    assert torch.equal(clip[flat], values)
    assert not torch.isclose(clip[~flat], draw(model, ["a"], [1], 2.0)[0][~flat]).any(dim=1).all()


def test_heun_is_of_second_order():
    """dz/ds = z from 1 to 0 is z / e: twice the steps halve the error of Euler, and quarter that of Heun."""

    def error(kind, steps):
        levels = np.linspace(1, 0, steps + 1)[:, None]
        found = SAMPLERS[kind](lambda values, level: values, torch.ones(1, 1, dtype=torch.float64), levels)
        return abs(float(found) - math.exp(-1))

    for kind, ratio in (("euler", 2), ("heun", 4)):
        # the last step of Heun is one of Euler, so that the velocity is never asked for at 0
        assert error(kind, 50) / error(kind, 100) == pytest.approx(ratio, rel=0.1)
