"""The nodes of a Ray cluster: what each must have before a run starts on it.

    launcher --a task on every node--> versions, and what it sees at the run's paths
             writes a file in the run folder; each node reads it, and writes one that the launcher reads

A path that exists everywhere need not be the same storage everywhere: only a file that goes there and comes back tells.
The checks of three nodes take 2 s, most of it for starting a worker on each.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.run_config import RunConfig
from launcher.core.versions import refuse_other_versions, versions_here
from parallel.errors import InputError

ASK_SECONDS = 60.0  # for a node to start a worker and answer
LAUNCHER = "the launcher"


@dataclass(frozen=True)
class Paths:
    """Where a run reads and writes on every node.

    Attributes:
        written: folders in which each node must be able to write what the others can read.
        read: folders that must hold the same for each node.
    """

    written: tuple[Path, ...]
    read: tuple[Path, ...]


@dataclass(frozen=True)
class Answer:
    """What a node, or the launcher, found.

    Attributes:
        versions: see `versions_here`.
        problems: of each path that cannot be used, why.
        marks: of each path to read, what tells it from another.
    """

    versions: dict[str, str]
    problems: dict[Path, str]
    marks: dict[Path, str]


def check_nodes(ray: Any, config: RunConfig, known: Collection[str] = ()) -> list[str]:
    """Look at every node that is alive and not in `known`, before ranks start there.

    Args:
        ray: the module, connected to a cluster.
        config: of the run, with absolute paths.
        known: ids of nodes that were looked at before.

    Returns:
        ids of the nodes that were looked at now.

    Raises:
        InputError: a node differs in a version, does not see a path of the run, or does not answer.
    """
    names = {i: name for i, name in alive(ray).items() if i not in known}
    if not names:
        return []
    paths = paths_of(config)
    with probed(paths) as word:
        mine = look(paths, word, LAUNCHER)
        answers = ask(ray, names, paths, word)
        refuse_other_versions({LAUNCHER: mine.versions, **{names[i]: a.versions for i, a in answers.items()}})
        for node, answer in answers.items():
            refuse_other_storage(names[node], node, answer, mine, paths, word)
    return list(names)


def alive(ray: Any) -> dict[str, str]:
    """Nodes that are alive, by id, with the names that people know."""
    found = [n for n in ray.nodes() if n["Alive"]]
    return {n["NodeID"]: f"{n['NodeManagerHostname']} ({n['NodeManagerAddress']})" for n in found}


def paths_of(config: RunConfig) -> Paths:
    """Of a run: its folder, a folder of checkpoints elsewhere, its datasets, its codec."""
    written = [config.out]
    if config.checkpoint.location is not None and "://" not in config.checkpoint.location:
        written.append(Path(config.checkpoint.location))
    read = [folder for data in config.data.merged() for folder in data.folders]
    if config.codec.folder is not None:
        read.append(config.codec.folder)
    return Paths(tuple(dict.fromkeys(written)), tuple(dict.fromkeys(read)))


@contextmanager
def probed(paths: Paths) -> Iterator[str]:
    """A file with a word of its own in every folder to write, for as long as the block lasts."""
    word = secrets.token_hex(8)
    try:
        for folder in paths.written:
            folder.mkdir(parents=True, exist_ok=True)
            _probe(folder, word).write_text(word)
        yield word
    finally:
        for folder in paths.written:
            for file in folder.glob(f"{_probe(folder, word).name}*"):
                with suppress(OSError):
                    file.unlink()


def look(paths: Paths, word: str, node: str) -> Answer:
    """What this process has and sees; leaves a file for the launcher in every folder to write."""
    problems, marks = {}, {}
    for folder in paths.written:
        try:
            seen = _probe(folder, word).read_text() == word
            _probe(folder, word, node).write_text(word)
        except OSError as error:
            problems[folder] = error.strerror or str(error)
            continue
        if not seen:
            problems[folder] = "another folder of that name"
    for folder in paths.read:
        try:
            marks[folder] = mark(folder)
        except OSError as error:
            problems[folder] = error.strerror or str(error)
    return Answer(versions_here(), problems, marks)


def mark(folder: Path) -> str:
    """What tells a folder from another of the same name: names and sizes in it and in its manifest, if it has one."""
    found = []
    for where in (folder, folder / "manifest"):
        if where == folder or where.is_dir():
            with os.scandir(where) as entries:
                found += sorted((e.name, e.stat().st_size if e.is_file() else -1) for e in entries)
    return hashlib.sha256(repr(found).encode()).hexdigest()


def ask(ray: Any, names: Mapping[str, str], paths: Paths, word: str) -> dict[str, Answer]:
    """The answer of each node.

    Raises:
        InputError: a node gives none.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(look)
    tasks = {}
    for node in names:
        here = NodeAffinitySchedulingStrategy(node, soft=False)
        options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": here}
        tasks[remote.options(**options).remote(paths, word, node)] = node
    ready, late = ray.wait(list(tasks), num_returns=len(tasks), timeout=ASK_SECONDS)
    if late:
        said = ", ".join(names[tasks[task]] for task in late)
        remedy = "look at the node, or take it out of the cluster: ray stop"
        raise InputError(f"every node of a cluster answers within {ASK_SECONDS:g} s", f"{said}: no answer", remedy)
    answers = {}
    for task in ready:
        try:
            answers[tasks[task]] = ray.get(task)
        except ray.exceptions.RayError as error:
            raise _unanswered(names[tasks[task]], str(error)) from None
    return {node: answers[node] for node in names}


def refuse_other_storage(name: str, node: str, answer: Answer, mine: Answer, paths: Paths, word: str) -> None:
    """A node sees what the launcher sees.

    Raises:
        InputError: names node and path.
    """
    rule = "run folder, dataset and codec lie on storage that every node sees"
    remedy = "mount the same storage there, or give a path that all nodes share"
    problems = dict(answer.problems)
    for folder in paths.written:
        if folder not in problems and not _probe(folder, word, node).exists():
            problems[folder] = "what is written there is not seen here: a folder of its own"
    for folder, theirs in answer.marks.items():
        if mine.marks.get(folder, theirs) != theirs:
            problems[folder] = "holds something else than here"
    if problems:
        raise InputError(rule, "; ".join(f"{name}: {path}: {why}" for path, why in problems.items()), remedy)


def _unanswered(name: str, said: str) -> InputError:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = lines[-1][:300] if lines else "no reason given"
    remedy = "longreel submit, which ships the code to every node; the packages of constraints.txt must be there"
    return InputError("every node of a cluster can run longreel", f"{name}: {reason}", remedy)


def _probe(folder: Path, word: str, node: str = "") -> Path:
    return folder / f".seen-{word}{'-' if node else ''}{node.replace(' ', '-')}"
