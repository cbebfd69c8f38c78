"""The house, by its syntax alone: who may import whom, how large things are, and where types may be asked for.

Each list of exceptions says why, and may only shrink: an exception that nothing needs any more fails as well.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parent.parent
PACKAGES = ("parallel", "models", "data", "launcher")
# Lowest first. A sub-package imports only what stands before it, imports inside of functions included.
FLOORS = {
    "parallel": "parallel masks optimizers zero sequence kernels memory attention",
    "models": "core codecs objectives layers diffusion language models",
    "data": "containers workers media remote planning captions dataset chat sources statistics curation integrity "
    "streams synthetic prepare",
    "launcher": "core config checkpoints reports faults batches training generation preflight dryrun supervision "
    "analysis cluster doctor tables cli launcher",
}
BELOW = {"parallel": (), "models": ("parallel",), "data": ("parallel",), "launcher": ("parallel", "models", "data")}

LARGE_FILES: dict[str, str] = {}
LARGE_FUNCTIONS: dict[str, str] = {
    "launcher.training.loop.run": "the loop of a rank on one page: it names every phase of a step in their order",
}
MANY_PARAMETERS: dict[str, str] = {
    "parallel.attention.ring.backward": "the six tensors of the backward pass of flash attention, and the plan",
    "parallel.kernels.grid.backward": "the six tensors of the backward pass of flash attention, and the launch",
}
TYPE_QUESTIONS: dict[str, int] = {}  # isinstance on a class of settings: registries are asked instead
KNOW_THE_WHOLE_RUN: tuple[str, ...] = (  # modules that import RunConfig; others take the section that they need
    "launcher.analysis.attention_plan",
    "launcher.analysis.data_audit",
    "launcher.analysis.fault_drill",
    "launcher.analysis.packing_simulation",
    "launcher.batches.datasets",
    "launcher.batches.idle_replicas",
    "launcher.checkpoints.compatibility",
    "launcher.checkpoints.deepspeed_universal",
    "launcher.checkpoints.external_hashes",
    "launcher.cli.cluster",
    "launcher.cluster.job",
    "launcher.cluster.job_package",
    "launcher.cluster.jobs",
    "launcher.cluster.node_checks",
    "launcher.cluster.ray_host",
    "launcher.cluster.ray_ranks",
    "launcher.config.config_errors",
    "launcher.config.config_schema",
    "launcher.config.loading",
    "launcher.config.proposed_commands",
    "launcher.dryrun.dry_step",
    "launcher.dryrun.fake_packs",
    "launcher.generation.answers",
    "launcher.generation.sample_prompts",
    "launcher.generation.sample_request",
    "launcher.generation.trained_model",
    "launcher.generation.videos",
    "launcher.preflight.memory_floor",
    "launcher.preflight.memory_savers",
    "launcher.preflight.preflight",
    "launcher.supervision.failure_causes",
    "launcher.supervision.local_ranks",
    "launcher.supervision.rank_group",
    "launcher.supervision.rank_processes",
    "launcher.supervision.run",
    "launcher.supervision.supervisor",
    "launcher.training.loop",
    "launcher.training.number_digests",
    "launcher.training.resume",
    "launcher.training.run_kernel",
    "launcher.worker",
)
GROUPS_IN_MODELS: tuple[str, ...] = ()  # models know no ranks
UNUSED: dict[str, str] = {
    "parallel.consistency.compare": "of two ranks' digests, for callers of the library",
    "parallel.masks.video_patterns.text_video": "text and video in one sequence; models here have text beside it",
    "parallel.sequence.relayout.next_tokens": "the label of a rank's last token, for language models of callers",
    "parallel.sequence.scan.refuse_order": "a recurrence over ranks, for layers to come",
    "data.containers.fragmented_mp4.is_clip": "what a stored clip is, for readers of shards",
    "data.curation.shot_detection.cuts": "the whole of shot detection in one call",
    "data.synthetic.shapes.recognise": "the judge of sampled shapes, for tests of learning and for benchmarks",
    "launcher.generation.mesh_sampling.sample_over": "sampling over many ranks, a library call",
    "launcher.reports.run_report.write_report": "the page of a run without what else the command does",
}
TWINS = {"launcher.cli"}  # its modules have the names of what they drive


@cache
def trees() -> dict[str, ast.Module]:
    """Module -> its syntax."""
    files = [file for package in PACKAGES for file in sorted((HOME / package).rglob("*.py"))]
    return {".".join(f.relative_to(HOME).with_suffix("").parts): ast.parse(f.read_text()) for f in files}


def modules() -> list[str]:
    return [name for name in trees() if not name.endswith("__init__")]


def folder_of(module: str) -> str:
    return module.rpartition(".")[0]


@cache
def imported(module: str) -> tuple[str, ...]:
    """Modules of the project that a module imports, wherever it does."""
    known, found = trees(), []
    for node in ast.walk(known[module]):
        if isinstance(node, ast.ImportFrom) and node.module:
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name if name in known else node.module for name in full]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return tuple(name for name in found if name in known)


def functions(module: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions of a module with their names, methods as Class.method."""

    def below(node: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield ".".join((*names, child.name)), child
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield from below(child, (*names, child.name))
            else:
                yield from below(child, names)

    yield from below(trees()[module], ())


def test_the_floors_name_every_folder_once():
    folders = {folder_of(module) for module in modules()}
    named = [
        package if name == package else f"{package}.{name}" for package in FLOORS for name in FLOORS[package].split()
    ]
    assert sorted(named) == sorted(folders)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_down(package):
    floors = [package if name == package else f"{package}.{name}" for name in FLOORS[package].split()]
    for module in modules():
        if module.split(".")[0] != package:
            continue
        for other in imported(module):
            home, there = folder_of(module), folder_of(other)
            if there.split(".")[0] == package:
                assert home == there or floors.index(there) < floors.index(home), f"{module} imports {other}"
            else:
                assert there.split(".")[0] in BELOW[package], f"{module} imports {other}"


def test_models_know_no_ranks():
    found = []
    for module in modules():
        if module.startswith("models"):
            source = ast.unparse(trees()[module])
            if re.search(r"torch\.distributed|parallel\.mesh|ProcessGroup", source):
                found.append(module)
    assert sorted(found) == sorted(GROUPS_IN_MODELS)


def test_a_folder_has_2_to_15_modules():
    sizes = Counter(folder_of(module) for module in modules())
    alone = {"models"}  # the registry, on top of its folders
    assert {folder: size for folder, size in sizes.items() if not 2 <= size <= 15 and folder not in alone} == {}


def test_a_module_name_stands_once():
    names = Counter(module.rpartition(".")[2] for module in modules() if folder_of(module) not in TWINS)
    assert [name for name, times in names.items() if times > 1] == []


def test_files_have_at_most_400_lines():
    large = {module for module in modules() if (HOME / f"{module.replace('.', '/')}.py").read_text().count("\n") > 400}
    assert large == set(LARGE_FILES)


def test_functions_have_at_most_60_lines():
    long = set()
    for module in modules():
        for name, node in functions(module):
            assert node.end_lineno is not None
            if node.end_lineno - node.lineno >= 60:
                long.add(f"{module}.{name}")
    assert long == set(LARGE_FUNCTIONS)


def test_functions_have_at_most_8_parameters():
    many = set()
    for module in modules():
        for name, node in functions(module):
            given = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            if len([g for g in given if g not in ("self", "cls", "ctx")]) > 8:
                many.add(f"{module}.{name}")
    assert many == set(MANY_PARAMETERS)


def test_types_of_settings_are_asked_for_in_the_registry_alone():
    asked: Counter[str] = Counter()
    for module in modules():
        for node in ast.walk(trees()[module]):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance" and len(node.args) == 2:
                asked[module] += bool(re.search(r"\w+Config\b", ast.unparse(node.args[1])))
    assert {module: times for module, times in asked.items() if times} == TYPE_QUESTIONS


def test_few_modules_know_the_whole_run():
    found = []
    for module in modules():
        names = [a.name for n in ast.walk(trees()[module]) if isinstance(n, ast.ImportFrom) for a in n.names]
        if "RunConfig" in names:
            found.append(module)
    assert sorted(found) == sorted(KNOW_THE_WHOLE_RUN)


def test_public_functions_are_used():
    used: defaultdict[str, int] = defaultdict(int)
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Name | ast.Attribute):
                used[node.id if isinstance(node, ast.Name) else node.attr] += 1
            elif isinstance(node, ast.alias) and node.asname:
                used[node.name] += 1
    unused = set()
    for module in modules():
        for node in trees()[module].body:
            is_public = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
            if is_public and not used[node.name] and not node.decorator_list:  # a command is used by its decorator
                unused.add(f"{module}.{node.name}")
    assert unused == set(UNUSED)


def test_modules_that_are_named_in_words_are_there():
    known = set(trees()) | {name.removesuffix(".__init__") for name in trees()}
    tests = {".".join(f.relative_to(HOME).with_suffix("").parts) for f in (HOME / "tests").rglob("*.py")}
    wrong = []
    files = [f for p in (*PACKAGES, "tests", "benchmarks") for f in (HOME / p).rglob("*.py") if f != Path(__file__)]
    for file in [*files, *HOME.glob("*.md"), *(HOME / "docs").glob("*.md"), HOME / "Makefile"]:
        for path in re.findall(
            r"(?<![\w./-])((?:parallel|models|data|launcher|tests)/[a-z_/]+)\.py\b", file.read_text()
        ):
            if path.replace("/", ".") not in known | tests:
                wrong.append(f"{file.relative_to(HOME)}: {path}.py")
        for name in re.findall(r"`((?:parallel|models|launcher)\.[a-z_]+(?:\.[a-z_]+)?)", file.read_text()):
            parts = name.split(".")
            if not any(".".join(parts[:n]) in known for n in range(2, len(parts) + 1)):
                wrong.append(f"{file.relative_to(HOME)}: {name}")
    assert wrong == []
