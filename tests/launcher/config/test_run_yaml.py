"""Run files that are more than a run: told with exit code 2 and the rule, before anything is built."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.config.loading import load, parse_override, to_yaml
from launcher.config.run_yaml import LARGEST, parse_yaml, read_run
from parallel.errors import InputError
from tests.support.runs import config

LAUGHS = "a: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGES = "a: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12))
NESTED = {
    "brackets": "out: " + "[" * 60_000,
    "braces": "{a: " * 20_000,
    "blocks": "".join(" " * n + "a:\n" for n in range(300)),
    "dashes": "a:\n" + " -" * 5000,
}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (LAUGHS, "a run has at most 20,000 values"),
        (MERGES, "a run has at most 20,000 values"),
        ("a: &a [*a]", r"\*'a' holds itself"),
        ("a: &a {<<: *a}", r"\*'a' holds itself"),
        ("a: &a {b: {c: [1, *a]}}", r"\*'a' holds itself"),
        ("a: *b", r"\*'b' is not known"),
        *((text, "levels deep|a run is a YAML file") for text in NESTED.values()),
        ("out: a\0b", "a run is a YAML file"),
        ("out: \x1b[2J", "a run is a YAML file"),
        ("a: !!python/object/apply:os.system [id]", "a run has no tags"),
        ("steps: !!int '1:30'", "a run has no tags"),
        ("a: !x 1", "a run has no tags"),
        ("a: 1\n---\na: 2", "a run is a YAML file"),
        ("a: 1\na: 2", "a key stands once\n.*: a, again in line 2"),
        ("data:\n  segments:\n    - {frames: 1, frames: 2}", "a key stands once\n.*line 3"),
        ("? [a, b]\n: 1", "a key of a run is a word"),
        ("x" * (LARGEST + 1), "a run has at most 131,072 bytes"),
        ("{" * 100 + "]", "a run is"),
        ("a: 'b", "a run is a YAML file"),
        ("7", "a run is a mapping"),
        ("", "a run is a mapping"),
    ],
)
def test_what_is_more_than_a_run_is_refused(tmp_path: Path, text: str, rule: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=rule) as caught:
            load(file)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert str(file) in caught.value.value
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "text", ["1:30", "190:20:30", "010", "1:30.5", "2024-01-01", "yes", "no", "on", "Off", "=", "0o7"]
)
def test_what_could_mean_two_things_is_a_word(text: str) -> None:
    assert parse_yaml(f"a: {text}", "x")[0] == {"a": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12), ("-3", -3), ("1_000", 1000), ("0x10", 16), ("0", 0), ("1.5", 1.5), ("1.0e-3", 1e-3), (".5", 0.5),
        ("true", True), ("False", False), ("~", None), ("null", None), ("", None), ("'12'", "12"), ("[1, 2]", [1, 2]),
        ("9" * 5000, "9" * 5000), ("-.inf", float("-inf")), ('"\\u00e9"', "é"),
    ],
)  # fmt: skip
def test_numbers_and_words_are_what_they_look_like(text: str, value: Any) -> None:
    assert parse_yaml(f"a: {text}", "x")[0] == {"a": value}


def test_anchors_within_reason_and_lines_of_keys() -> None:
    text = "base: &b {frames: 2, size: [8, 8]}\nuse:\n  <<: *b\n  frames: 3\nagain: *b\n"
    settings, lines = parse_yaml(text, "x")
    assert settings["use"] == {"frames": 3, "size": [8, 8]}
    assert settings["again"] == settings["base"]
    assert lines["use.frames"] == 4


def run(tmp_path: Path, **changes: Any) -> Path:
    settings = yaml.safe_load(to_yaml(config(tmp_path / "out", tmp_path)))
    for key, value in changes.items():
        here, *rest = key.split("__")
        if rest:
            settings[here][rest[0]] = value
        else:
            settings[here] = value
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"out": "a\0b"}, "a path has no NUL in it"),
        ({"out": "runs/" + "a" * 256}, "each name in it at most 255"),
        ({"out": "é" * 128}, "each name in it at most 255"),
        ({"data__dataset": "a/" * 3000}, "a path has at most 4,095 bytes"),
        ({"data__dataset": {"a" * 300: 1.0}}, "each name in it at most 255"),
        ({"out": "s3://bucket/run"}, "out is a path, and no address"),
        ({"data__dataset": "gs://bucket/set"}, "data.dataset is a path, and no address"),
        ({"data__dataset": "hdfs:/set"}, "data.dataset is a path, and no address"),
        ({"checkpoint__location": "s3:/bucket"}, "checkpoint.location is a path, and no address"),
        ({"steps": "1:30"}, "steps: .*integer"),
        ({"k" * 5000: 1}, "every key of a run is known"),
    ],
)
def test_values_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load(run(tmp_path, **change))
    assert len(str(caught.value)) < 1500
    assert str(tmp_path / "run.yaml") in caught.value.value


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "none", "/", "/dev/null"])
def test_a_path_that_is_no_run_file(path: str) -> None:
    with pytest.raises(InputError, match="a run is a YAML file"):
        load(Path(path))


@pytest.mark.parametrize("override", ["a=" + "[" * 10_000, ".".join("a" * 100) + "=1", "steps=*a", "a=!!set {b}"])
def test_overrides_are_read_in_the_same_way(override: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_override(override)
    assert len(str(caught.value)) < 1000


def test_a_whole_run_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    odd = [
        "yes",
        "1:30",
        "010",
        "1e6",
        "2024-01-01",
        "=",
        "null",
        "0x1F",
        "é",
        "- a",
        "1_0",
        "+.5",
        "<<",
        "*a",
        "&a",
        "!x",
    ]
    made = config(tmp_path / "out", tmp_path, sample={"prompts": odd})
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(made))
    assert load(file) == made


def test_a_run_file_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    """That takes seconds, for a person who mistyped a line."""
    file = tmp_path / "run.yaml"
    file.write_text(LAUGHS)
    code = (
        "import sys; from launcher.cli import app as cli; sys.argv = ['longreel', *sys.argv[1:]]\n"
        "try:\n    cli.main()\nexcept SystemExit as left:\n    print(left.code, 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code, "train", str(file)], capture_output=True, text=True)
    assert said.stdout.splitlines()[-1] == "2 False", said.stderr
    assert "a run has at most 20,000 values" in said.stderr


def test_a_recipe_is_found_where_it_was_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of that name that lies here wins; no other path is looked for elsewhere."""
    installed = tmp_path / "share" / "longreel" / "recipes" / "quickstart.yaml"
    installed.parent.mkdir(parents=True)
    installed.write_text("installed")
    entry = metadata.PackagePath("../../share/longreel/recipes/quickstart.yaml")
    entry.dist = metadata.PathDistribution(tmp_path / "lib" / "packages" / "longreel.dist-info")
    monkeypatch.setattr(metadata, "files", lambda name: [metadata.PackagePath("launcher/worker.py"), entry])
    (tmp_path / "lib" / "packages").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "lib")
    assert read_run(Path("recipes/quickstart.yaml")) == "installed"
    for path in ("quickstart.yaml", "recipes/other.yaml", "mine/recipes/quickstart.yaml"):
        with pytest.raises(InputError, match="no such file"):
            read_run(Path(path))
    Path("recipes").mkdir()
    Path("recipes/quickstart.yaml").write_text("mine")
    assert read_run(Path("recipes/quickstart.yaml")) == "mine"
