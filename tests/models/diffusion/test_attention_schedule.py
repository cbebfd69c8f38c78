"""Patterns of `model.attention`: what each sees, and that the order of tokens which tiles need changes no number."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch

from models.diffusion.attention_schedule import ATTENTION, AttentionPattern, Full, masks_of, token_tile
from models.diffusion.byte_encoder import ByteEncoderConfig
from models.diffusion.sampler import Clip, Given, Solver, sample
from models.diffusion.video_dit import VideoDiT, VideoDiTConfig, batch_of, build
from models.objectives.rectified_flow import RectifiedFlow, RectifiedFlowConfig
from parallel.attention.plan import local_plan
from parallel.errors import InputError
from parallel.masks import rectangles
from parallel.masks.mask import Mask
from parallel.masks.rectangles import FREE
from parallel.sequence.geometry import Grid
from parallel.sequence.packed import Document, lay_out, to_read
from parallel.setting_effects import State

Seen = npt.NDArray[np.bool_]
TILE = (2, 2, 3)
SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "frame_causal": {},
    "frame_window": {"before": 1, "after": 0, "sinks": 1},
    "spatial": {},
    "temporal": {},
    "neighbourhood": {"tile": TILE, "radius": (1, 0, 1)},
    "criss_cross": {"tile": TILE},
    "dilated": {"tile": TILE, "stride": (1, 2, 2)},
    "shifted_windows": {"tile": TILE, "window": (2, 1, 2), "shift": (1, 0, 1)},
}
TILED = [name for name in SETTINGS if "tile" in SETTINGS[name]]
GRID = (3, 4, 7)


def pattern_of(kind: str) -> AttentionPattern:
    return ATTENTION[kind].model_validate({"kind": kind, **SETTINGS[kind]})


def seen_by(kind: str, grid: Grid) -> Seen:
    """[tokens, tokens] in raster order, from the words that define the pattern, pair by pair."""
    at = np.indices(grid).reshape(3, -1).T
    q, k = at[:, None], at[None]
    settings = SETTINGS[kind]
    if "tile" not in settings:
        frame, other = q[..., 0], k[..., 0]
        return {
            "full": lambda: np.ones((len(at), len(at)), bool),
            "frame_causal": lambda: other <= frame,
            "frame_window": lambda: ((frame - 1 <= other) & (other <= frame)) | ((other < 1) & (other <= frame)),
            "spatial": lambda: frame == other,
            "temporal": lambda: (q[..., 1:] == k[..., 1:]).all(-1),
        }[kind]()
    tile, other_tile = q // TILE, k // TILE
    apart = np.abs(tile - other_tile)
    return {
        "neighbourhood": lambda: (apart <= settings["radius"]).all(-1),
        "criss_cross": lambda: (apart == 0).sum(-1) >= 2,
        "dilated": lambda: (apart % settings["stride"] == 0).all(-1),
        "shifted_windows": lambda: (
            (tile + settings["shift"]) // settings["window"] == (other_tile + settings["shift"]) // settings["window"]
        ).all(-1),
    }[kind]()


def mask_from(seen: Seen) -> Mask:
    """The mask of a matrix, pair by pair."""
    rows = [(q, q + 1, k, k + 1, -FREE, FREE) for q, k in zip(*np.nonzero(seen), strict=True)]
    return Mask(rectangles.merge_rows(rectangles.table(rows)), *seen.shape)


def dense(mask: Mask) -> Seen:
    seen = np.zeros((mask.queries, mask.keys), bool)
    q, k = np.arange(mask.queries)[:, None], np.arange(mask.keys)
    for q0, q1, k0, k1, low, high in mask.table.tolist():
        seen |= (q0 <= q) & (q < q1) & (k0 <= k) & (k < k1) & (low <= q - k) & (q - k <= high)
    return seen


class OfMatrix(AttentionPattern):
    """The matrix of another pattern, over tokens frame by frame and row by row."""

    kind: State[Literal["of_matrix"]] = "of_matrix"
    of: State[str]

    def mask(self, grid: Grid) -> Mask:
        return mask_from(seen_by(self.of, grid))


def test_every_pattern_is_tested_here() -> None:
    assert set(SETTINGS) == set(ATTENTION)


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_pattern_sees_what_its_words_say(kind: str) -> None:
    pattern = pattern_of(kind)
    places = Document("", 0, "", GRID, tile=pattern.token_tile()).places(0, 84)
    assert np.array_equal(dense(pattern.mask(GRID)), seen_by(kind, GRID)[np.ix_(places, places)])


@pytest.mark.parametrize("kind", [name for name in SETTINGS if "tile" not in SETTINGS[name]])
def test_patterns_of_frames_are_the_same_in_tiles_of_one_frame(kind: str) -> None:
    places = Document("", 0, "", GRID, tile=(1, 2, 3)).places(0, 84)
    assert np.array_equal(dense(pattern_of(kind).mask(GRID)), seen_by(kind, GRID)[np.ix_(places, places)])


def model_of(*patterns: AttentionPattern) -> VideoDiT:
    """Its numbers are random also where training begins with zeros, so that every parameter matters."""
    config = VideoDiTConfig(
        dim=24,
        depth=2,
        heads=2,
        absolute_positions=True,
        text=ByteEncoderConfig(dim=16, depth=1, heads=2),
        attention=patterns,
    )
    model = build(config, 3, seed=0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def loss_and_grads(*patterns: AttentionPattern) -> tuple[float, dict[str, torch.Tensor]]:
    """Of two clips, one of them with its first frame given."""
    model, tile = model_of(*patterns), token_tile(patterns)
    documents = [
        Document(str(n), 100 + n, "red", grid, tile=tile) for n, grid in enumerate([GRID, (2, 3, 5), (1, 1, 4)])
    ]
    clean = torch.randn(84 + 30 + 4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    everything = ((0, len(clean)),)
    wanted, held = to_read(documents, everything)
    values = torch.cat([clean[start:stop] for start, stop in wanted])
    objective = RectifiedFlow(RectifiedFlowConfig(conditioning={"first_frame": 0.5}))
    prepared = objective.prepare(
        lay_out(documents, everything, values if held is None else values[torch.from_numpy(held)])
    )
    assert 0 < int((prepared.packed.noise_level == 0).sum()) < len(clean)
    plans = [local_plan(mask) for mask in masks_of(patterns, [d.grid for d in documents])]
    loss, _ = objective.weighted_error(model(batch_of(prepared.packed, prepared.levels), plans), prepared)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", TILED)
def test_tokens_in_tiles_are_those_of_a_dense_matrix_in_raster_order(kind: str) -> None:
    """Data, noise, what is given, positions and outputs are those of the token, wherever it lies."""
    loss, grads = loss_and_grads(pattern_of(kind), Full())
    exact, wanted = loss_and_grads(OfMatrix(of=kind), Full())
    other, _ = loss_and_grads(Full())
    assert loss == pytest.approx(exact, rel=1e-12)
    assert abs(loss - other) > 1e-9 * other
    for name, grad in grads.items():
        assert (grad - wanted[name]).abs().max() <= 1e-11 * wanted[name].abs().max(), name


@pytest.mark.parametrize("given", [False, True])
def test_samples_come_out_frame_by_frame(given: bool) -> None:
    first = np.broadcast_to((np.arange(3) == 0)[:, None, None], GRID)
    values = torch.randn(28, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    clips = [Clip(GRID, "red", 3, Given(first, values) if given else None), Clip((2, 3, 5), "blue", 4)]
    found = []
    for pattern in (pattern_of("shifted_windows"), OfMatrix(of="shifted_windows")):
        model = model_of(pattern)
        found.append(sample(model, RectifiedFlow(RectifiedFlowConfig()), clips, Solver(2, 2.0), torch.float64))
    for got, want in zip(*found, strict=True):
        assert (got - want).abs().max() <= 1e-11 * want.abs().max()
    if given:
        assert torch.equal(found[0][0][:28], values)


def test_what_a_rank_reads_of_clips_in_tiles() -> None:
    """All between the first and the last of the tokens that it holds, of which it keeps its own."""
    documents = [Document("", 0, "", (4, 2, 2), tile=(2, 1, 1)), Document("", 1, "", (1, 2, 2), tile=(2, 1, 1))]
    wanted, held = to_read(documents, ((1, 3), (8, 9), (17, 20)))
    assert wanted == ((1, 5), (8, 9), (17, 20))
    rows = np.concatenate([np.arange(start, stop) for start, stop in wanted])[held]
    assert rows.tolist() == [4, 1, 8, 17, 18, 19]
    assert to_read([Document("", 0, "", (4, 2, 2))], ((1, 3),)) == (((1, 3),), None)


NEAR = {"kind": "neighbourhood", "tile": (2, 2, 2), "radius": (1, 1, 1)}


@pytest.mark.parametrize(
    ("schedule", "found", "remedy"),
    [
        (
            [NEAR, {"kind": "criss_cross", "tile": (1, 2, 2)}],
            r"\[2, 2, 2\], criss_cross in tiles",
            r"tile: \[2, 2, 2\]",
        ),
        ([{"kind": "spatial"}, NEAR], "spatial frame by frame", r"tile: \[1, 2, 2\], whose tiles are of one frame"),
        ([{"kind": "neighborhood"}], "kind: neighborhood", r"did you mean neighbourhood\?"),
        ([{"kind": "full", "before": 1}], "before", "Extra inputs"),
        ([{**NEAR, "tile": (0, 1, 1)}], "tile.0", "greater than 0"),
        ([], "attention", "at least 1"),
    ],
)
def test_schedules_that_cannot_be(schedule: list[dict[str, Any]], found: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s){found}.*{remedy}"):
        VideoDiTConfig.model_validate({"attention": schedule})


def test_a_row_by_row_pattern_stands_beside_no_tiles() -> None:
    with pytest.raises(InputError, match="of_matrix row by row") as refused:
        token_tile([OfMatrix(of="full"), pattern_of("criss_cross")])
    assert refused.value.remedy == "kind: full instead of of_matrix"
    assert token_tile([Full(), pattern_of("criss_cross")]) == TILE
    flat = ATTENTION["criss_cross"].model_validate({"tile": (1, 2, 2)})
    assert token_tile([flat, pattern_of("temporal")]) == (1, 2, 2)
