"""What a run is when little is said: its objective, its packs, names from elsewhere, and replicas that wait."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from launcher.analysis.attention_plan import ranges_of
from launcher.batches.idle_replicas import as_begun, idle_notes
from launcher.config.config_errors import known_keys
from launcher.config.foreign_keys import ALIASES, VALUES
from launcher.config.loading import check, load, to_yaml
from launcher.config.overrides import setting_meant
from launcher.config.run_config import RunConfig
from launcher.generation.evaluation import Answered, Question, scores_of
from models.objectives.next_token import NextTokenConfig
from models.objectives.rectified_flow import RectifiedFlowConfig
from parallel.errors import InputError
from parallel.mesh import Mesh
from parallel.zero.ema import decay_of
from tests.promises.test_wrong_input import longreel

LM = {
    "kind": "video_lm",
    "language": {
        "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 256,
    },
}  # fmt: skip


def run(**changes: Any) -> RunConfig:
    model = {"kind": "video_dit", "dim": 48, "heads": 4, "text": {"dim": 32, "depth": 1, "heads": 2}}
    return check({"out": "runs/x", "steps": 4, "data": {"dataset": "d"}, "model": model, **changes})


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "run.yaml"
    settings = {"out": "runs/x", "steps": 4, "data": {"dataset": "d"}, "model": {"kind": "video_dit"}}
    path.write_text(yaml.safe_dump({**settings, **changes}))
    return path


def test_the_usual_objective_of_each_model(tmp_path: Path) -> None:
    assert run().objective == RectifiedFlowConfig()
    assert run(model=LM).objective == NextTokenConfig()
    assert run(model=LM, objective={"visual_code": 0.5}).objective == NextTokenConfig(visual_code=0.5)
    assert run(objective=None).objective == RectifiedFlowConfig()
    assert run(objective="rectified_flow", codec="pixel").objective == RectifiedFlowConfig()
    path = written(tmp_path, objective="rectified_flow")
    assert load(path, ["objective.shift=6"]).objective == RectifiedFlowConfig(shift=6)
    assert load(path, ["model=video_dit", "model.dim=96"]).model.dim == 96
    assert check(yaml.safe_load(to_yaml(run()))) == run()


def test_a_kind_of_objective_is_named_with_its_article() -> None:
    with pytest.raises(InputError, match="an objective is one of") as told:
        run(objective="rectified_flo")
    assert "did you mean rectified_flow?" in told.value.remedy
    with pytest.raises(InputError, match="an objective is a kind"):
        run(objective=3)


@pytest.mark.parametrize(
    ("mesh", "segments", "packs"),
    [({}, [], 1), ({"replica": 4}, [], 4), ({"replica": 2, "ring": 2}, [], 2),
     ({"replica": 2}, [{"until": 2, "mesh": {"replica": 6}}, {}], 6)],
)  # fmt: skip
def test_one_pack_a_replica(mesh: dict[str, int], segments: list[Any], packs: int) -> None:
    found = run(mesh=mesh, data={"dataset": "d", "segments": segments})
    assert found.data.packs_per_step == packs
    assert not found.data.chosen_packs
    assert run(mesh=mesh, data={"dataset": "d", "packs_per_step": 3}).data.packs_per_step == 3
    assert not list(idle_notes(run(mesh=mesh)))


@pytest.mark.parametrize(
    ("packs", "replicas", "words"),
    [
        (1, 4, "1 pack a step for 4 replicas: 3 of them compute nothing"),
        (1, 2, "1 pack a step for 2 replicas: 1 of them computes nothing"),
        (2, 6, "2 packs a step for 6 replicas: 4 of them compute nothing"),
        (5, 4, "5 packs a step for 4 replicas: 3 of 8 places stay empty"),
        (7, 3, "7 packs a step for 3 replicas: 2 of 9 places stay empty"),
        (8, 4, ""),
    ],
)
def test_replicas_that_wait_are_told_with_remedies_that_work(packs: int, replicas: int, words: str) -> None:
    data = {"dataset": "d", "packs_per_step": packs}
    settings = run(mesh={"replica": replicas, "ring": 2}, data=data)
    told = list(idle_notes(settings))
    assert len(told) == bool(words)
    if not told:
        return
    assert words in told[0]
    for remedy in told[0].partition("; ")[2].removesuffix(" gives each of them work").split(" or "):
        changed = settings.model_dump(mode="json")
        for one in remedy.split():
            (section, key), value = one.partition("=")[0].split("."), int(one.partition("=")[2])
            changed[section][key] = value
        assert not list(idle_notes(check(changed))), remedy
    (begun,) = idle_notes(settings, begun=True)
    assert "mesh.replica=" in begun  # packs of a run that has begun cannot change


def test_plan_says_it_too(tmp_path: Path, dataset: Path) -> None:
    from tests.support.runs import config

    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(config(tmp_path / "out", dataset, mesh__replica=4, data__packs_per_step=1)))
    assert "3 of them compute nothing" in longreel("plan", path, code=0)
    assert "3 of them compute nothing" in longreel("data", "simulate", path, code=0)


def test_the_average_of_a_short_run_is_not_of_its_first_weights() -> None:
    def left(decay: float, steps: int) -> float:
        share = 1.0
        for step in range(1, steps + 1):
            share *= decay_of(decay, step)
        return share

    assert left(0.9999, 200) < 1e-10  # without warm-up 0.98
    assert left(0.9999, 30) < 1e-6
    assert decay_of(0.9999, 10**6) == 0.9999
    assert decay_of(0.5, 1) == 2 / 11
    assert decay_of(0.0, 5) == 0.0


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("lr", "here it is optimizer.learning_rate"),
        ("optimizer.lr", "here it is optimizer.learning_rate"),
        ("batch_size", "here it is data.packs_per_step"),
        ("data.batch_size", "here it is data.packs_per_step"),
        ("gradient_accumulation_steps", "here it is data.packs_per_step"),
        ("num_train_epochs", "here it is steps: a run counts steps"),
        ("epochs", "here it is steps"),
        ("fp16", "here it is dtype: bf16: fp16 overflows"),
        ("bf16", "here it is dtype: bf16"),
        ("Learning-Rate", "here it is optimizer.learning_rate"),
        ("seq_len", "here it is data.pack_tokens"),
        ("output_dir", "here it is out"),
        ("resume_from_checkpoint", "the same command goes on"),
        ("max_grad_norm", "did you mean optimizer.max_grad_norm?"),
        ("clip_grad", "here it is optimizer.max_grad_norm"),
        ("data.tolerate", "here it is data.max_unreadable_samples"),
        ("restart.patience_seconds", "here it is restart.rejoin_timeout_seconds"),
        ("checkpoint.to", "here it is checkpoint.location"),
        ("data.turning", "here it is data.rope_scaling"),
        ("objective.first_frame", "here it is objective.conditioning"),
        ("objective.silent", "here it is objective.silence"),
        ("restart.hang_seconds", "here it is restart.hang_timeout_seconds"),
        ("guard.limit", "here it is guard.max_consecutive"),
        ("model.merge", "here it is model.temporal_pool"),
        ("zero.zero_stage", "here it is zero.stage"),
        ("learning_rate", "did you mean optimizer.learning_rate?"),
        ("pack_tokens", "did you mean data.pack_tokens?"),
        ("mesh.rings", "did you mean mesh.ring?"),
        ("stpes", "did you mean steps?"),
        ("optimiser.learning_rate", "did you mean optimizer?"),
        ("qqq", "leave it out; there are out, extensions, seed"),
        ("mesh.zzz", "leave it out; there are mesh.replica, mesh.ring, mesh.ulysses"),
    ],
)
def test_an_unknown_key_names_what_it_is_here(tmp_path: Path, key: str, remedy: str) -> None:
    with pytest.raises(InputError) as told:
        load(written(tmp_path), [f"{key}=1"])
    assert remedy in told.value.remedy


@pytest.mark.parametrize(
    ("section", "remedy"),
    [
        ({"training": {"batch_size": 8, "lr": 1e-4}}, "and micro-steps; lr is optimizer.learning_rate"),
        ({"trainer": {"max_epochs": 3, "learning_rate": 1}}, "max_epochs is steps: a run counts steps"),
        ({"optimiser": {"lr": 1e-4}}, "did you mean optimizer?"),
        ({"train": {"steps": 3}}, "steps is steps"),
        ({"foo": {"bar": 3}}, "leave it out; there are out"),
        ({"foo": {}}, "leave it out; there are out"),
        ({"foo": {1: 2}}, "leave it out; there are out"),
    ],
)
def test_an_unknown_section_says_what_its_keys_are_here(tmp_path: Path, section: dict[str, Any], remedy: str) -> None:
    with pytest.raises(InputError) as told:
        load(written(tmp_path, **section))
    assert remedy in told.value.remedy


def test_names_from_elsewhere_lead_to_keys_that_are_there() -> None:
    known = known_keys()
    assert {key for meaning in ALIASES.values() for key in meaning.keys} <= set(known)
    assert set(VALUES) <= set(known)
    assert all(meaning.keys or meaning.why for meaning in ALIASES.values())
    assert not [name for name in ALIASES if name in known]  # the top-level keys of a run itself


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("dtype=fp16", "bf16: fp16 overflows at 65,504 and needs a loss scale"),
        ("dtype=float16", "one of float64, float32, bf16"),
        ("dtype=16", "bf16: fp16"),
        ("dtype=bfloat16", "bf16;"),
        ("device=cuda", "auto: it takes the GPUs"),
        ("zero.offload=cpu", "optimizer, or parameters"),
        ("optimizer.schedule=linear", "wsd"),
    ],
)
def test_a_value_from_elsewhere(tmp_path: Path, override: str, remedy: str) -> None:
    with pytest.raises(InputError) as told:
        load(written(tmp_path), [override])
    assert remedy in told.value.remedy


@pytest.mark.parametrize(("heads", "dim"), [(3, 64), (5, 64), (7, 96), (6, 100), (64, 64), (1, 7)])
def test_heads_that_do_not_divide(tmp_path: Path, heads: int, dim: int) -> None:
    path = written(tmp_path)
    wrong = [f"model.heads={heads}", f"model.dim={dim}"]
    with pytest.raises(InputError) as told:
        load(path, wrong)
    if (heads, dim) == (3, 64):
        assert told.value.remedy.startswith("model.heads=2 or model.heads=4 or ")
    for remedy in told.value.remedy.split(" or "):
        load(path, [*wrong, remedy])


@pytest.mark.parametrize(
    ("option", "given", "remedy"),
    [
        ("--steps", ["run.yaml", "--steps", "10"], "write steps=10"),
        ("--steps", ["run.yaml", "--steps=10"], "write steps=10"),
        ("--mesh.ring", ["--mesh.ring", "2", "run.yaml"], "write mesh.ring=2"),
        ("--lr", ["run.yaml", "--lr", "3e-4"], "write optimizer.learning_rate=3e-4"),
        ("--batch-size", ["run.yaml", "--batch-size", "8"], "write data.packs_per_step=VALUE (packs of"),
        ("--pack-tokens", ["run.yaml", "--pack-tokens", "8"], "write data.pack_tokens=8"),
        ("--stepz", ["run.yaml", "--stepz", "8"], "write steps=8"),
    ],
)
def test_an_option_that_is_a_setting(option: str, given: list[str], remedy: str) -> None:
    found = setting_meant(option, given)
    assert found is not None
    assert found[1].startswith(remedy)


def test_options_are_told_by_every_command_that_takes_settings(tmp_path: Path) -> None:
    path = written(tmp_path)
    for command in (["train"], ["plan"], ["dryrun"], ["submit"], ["data", "simulate"]):
        output = " ".join(longreel(*command, path, "--steps", "10").split())
        assert "found: --steps 10" in output
        assert "remedy: write steps=10" in output
    assert "No such option" in longreel("train", path, "--qqqqq", "10")


def question(kind: str, choices: int) -> tuple[Question, Answered]:
    asked: Any = Question(kind, kind, None, tuple("abcdefgh"[:choices]))  # type: ignore[arg-type]
    return asked, Answered(kind, kind, "a", "a", choices % 2 == 0)


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        ([("", 0), ("", 0)], [("all", 2, 2, 0.0)]),
        (
            [("colour", 2), ("", 0), ("colour", 4)],
            [("colour", 2, 2, 0.375), ("no kind", 1, 1, 0.0), ("all", 3, 3, 0.0)],
        ),
        ([("a", 2), ("b", 3)], [("a", 1, 1, 0.5), ("b", 1, 0, 1 / 3), ("all", 2, 1, 5 / 12)]),
        ([("a", 2)], [("a", 1, 1, 0.5), ("all", 1, 1, 0.5)]),
        ([], []),
    ],
)
def test_the_row_of_all_questions_counts_all(asked: list[tuple[str, int]], rows: list[Any]) -> None:
    pairs = [question(*one) for one in asked]
    found = scores_of([q for q, _ in pairs], [a for _, a in pairs])
    assert [(s.kind, s.questions, s.right, pytest.approx(s.chance)) for s in found] == rows


def test_ranks_that_are_alike_are_one_row() -> None:
    assert ranges_of([0, 1, 2, 3, 4, 5, 6, 7, 16]) == "0-7, 16"
    assert ranges_of([3]) == "3"
    told = longreel("plan", "--mask", "full", "--tokens", "65536", "--ring", "8", "--ulysses", "8", code=0)
    assert "0-63" in told
    assert len([line for line in told.splitlines() if "│   1.000" in line]) == 1
    assert Mesh(1, 8, 8).sequence_ranks == 64


def test_a_run_that_has_begun_keeps_its_packs() -> None:
    """Nobody chose them, and the mesh is another now: the batch is what it was."""
    found: Any = SimpleNamespace(manifest=SimpleNamespace(config={"data": {"packs_per_step": 1}}))
    larger = run(mesh={"replica": 4})
    assert as_begun(larger, None).data.packs_per_step == 4
    kept = as_begun(larger, found)
    assert kept.data.packs_per_step == 1
    assert "mesh.replica=1 mesh.ring=4 gives each of them work" in next(iter(idle_notes(kept, begun=True)))
    chosen = run(mesh={"replica": 4}, data={"dataset": "d", "packs_per_step": 8})
    assert as_begun(chosen, found).data.packs_per_step == 8  # what the resume refuses, and says so
