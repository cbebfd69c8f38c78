"""Parts of `gpu_first` about whole runs: kill and resume at each ZeRO stage, bf16 beside float32, bytes of a dry run.

Each run is `python -m launcher train --no-ray`, on clips and conversations that are drawn here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu_first_rows import Case, Row

HOME = Path(__file__).resolve().parent.parent
STEPS, KILLED, SAVED = 6, 5, 3
STAGES = {"dit": (0, 1, 2, 3), "lm": (0, 1, 2, 3)}
FEW_STAGES = {"dit": (0, 3), "lm": (2,)}  # in miniature
CURVE, FOLLOWS = 30, 0.05  # steps; the largest relative distance of bf16 from float32, in the mean of the last steps
LAST = 5
BYTES_NEAR = 0.10  # of the dry run's bytes from those of the allocator
LLAMA = {
    "model_type": "llama", "vocab_size": 263, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32768,
}  # fmt: skip
TOWER = {
    "model_type": "clip_vision_model", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
}  # fmt: skip


class Workshop:
    """A folder with clips, conversations about them, and runs.

    Args:
        case: of the part.
        root: the folder.
    """

    def __init__(self, case: Case, root: Path) -> None:
        self.case, self.root = case, root
        clips = case.scaled(96, 12)
        self.do("data", "questions", "--out", root / "clips", "--clips", clips, "--seed", 0)
        self.do("prepare", root / "clips", "--out", root / "data")
        self.do(
            "data", "chat", root / "clips" / "conversations.json", "--clips", root / "data", "--out", root / "chats"
        )

    def settings(self, family: str, **changes: Any) -> dict[str, Any]:
        """Of a run of one family, "dit" or "lm"; keys with dots as double underscores."""
        dit: dict[str, Any] = {
            "kind": "video_dit", "dim": self.case.scaled(384, 64), "depth": self.case.scaled(4, 2),
            "heads": self.case.scaled(6, 2), "patch": [2, 8, 8], "text": {"dim": 64, "depth": 1, "heads": 2},
        }  # fmt: skip
        found: dict[str, Any] = {
            "steps": STEPS, "dtype": "bf16", "zero": {"stage": 0},
            "data": {"dataset": str(self.root / ("data" if family == "dit" else "chats")),
                     "pack_tokens": self.case.scaled(16384, 512)},
            "model": dit if family == "dit" else self.language(),
            "objective": {"kind": "rectified_flow"} if family == "dit" else {"kind": "next_token"},
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 4},
            "checkpoint": {"every": SAVED, "blocking": True},
        }  # fmt: skip
        for key, value in changes.items():
            *path, last = key.split("__")
            here = found
            for name in path:
                here = here.setdefault(name, {})
            here[last] = value
        return found

    def language(self) -> dict[str, Any]:
        """A language model that sees, of a size that fits the case."""
        smaller = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2} if self.case.small else {}
        return {"kind": "video_lm", "language": LLAMA | smaller, "vision": TOWER}

    def train(self, name: str, settings: Mapping[str, Any], env: Mapping[str, str] | None = None) -> Trained:
        """To the end."""
        import yaml

        out, file = self.root / name, self.root / f"{name}.yaml"
        file.write_text(yaml.safe_dump({"out": str(out), **settings}))
        done = self.run(env or {}, "train", file, "--no-ray")
        return Trained(done.returncode, done.stdout[-2000:], lines(out / "metrics.jsonl"), lines(out / "events.jsonl"))

    def do(self, *arguments: object) -> None:
        """A command that must work."""
        done = self.run({}, *arguments)
        if done.returncode:
            raise RuntimeError(f"longreel {' '.join(map(str, arguments))}: {done.stdout[-1500:]}")

    def run(self, env: Mapping[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
        """A command of longreel, from this checkout."""
        path = os.pathsep.join(filter(None, (str(HOME), os.environ.get("PYTHONPATH"))))
        own = {} if self.case.kind == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(
            [sys.executable, "-m", "launcher", *map(str, arguments)], cwd=self.root, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": path, **own, **env},
        )  # fmt: skip


class Trained:
    """How a run ended, its last words, and its records."""

    def __init__(self, code: int, words: str, steps: list[dict[str, Any]], events: list[dict[str, Any]]) -> None:
        self.code, self.words, self.steps, self.events = code, words, steps, events

    def names(self) -> list[str]:
        """Of its events."""
        return [event.get("event", "") for event in self.events]

    def last_words(self) -> str:
        """One line of why it failed."""
        failures = [e.get("words") or e.get("reason") for e in self.events if e.get("event") == "failure"]
        return str(failures[-1] if failures else (self.words.strip().splitlines() or ["no word"])[-1])[:300]


def lines(file: Path) -> list[dict[str, Any]]:
    """Of a record."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def resumes(case: Case) -> Iterator[Row]:
    """Both families at ZeRO 0 to 3: the rank is killed in a step after a checkpoint, and the run goes on to its end."""
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(case, Path(folder))
        for family, stages in (FEW_STAGES if case.small else STAGES).items():
            for stage in stages:
                faults = [{"kind": "kill", "rank": 0, "step": KILLED}]
                done = shop.train(f"{family}-{stage}", shop.settings(family, zero__stage=stage, faults=faults))
                yield resumed(f"{family}, ZeRO {stage}", done)


def resumed(what: str, done: Trained) -> Row:
    """The verdict on a run that was killed once."""
    steps, names = [line["step"] for line in done.steps], done.names()
    losses = [line["loss"] for line in done.steps]
    if done.code or steps != list(range(1, STEPS + 1)):
        return Row(what, f"exit code {done.code} after step {max(steps, default=0)}: {done.last_words()}", "wrong")
    killed = "fault" in names and "restart" in names and "resume" in names
    proof = next((e for e in done.events if e.get("event") in ("verified", "differs")), {})
    told = f"{proof.get('identical', 0)} of {len(proof.get('steps', ()))} steps done again identical"
    finite = all(loss == loss and abs(loss) < 1e6 for loss in losses)
    good = killed and finite and proof.get("event") == "verified"
    found = f"killed in step {KILLED}, resumed, loss {losses[0]:.3f} to {losses[-1]:.3f}; {told}"
    return Row(what, found if killed else "was not killed", "ok" if good else "wrong", {"losses": losses})


def curve(case: Case) -> Iterator[Row]:
    """bf16 on the device beside float32 on the CPU: the same run, the same noise, the same order of clips."""
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(case, Path(folder))
        steps, least = case.scaled(CURVE, LAST), case.scaled(4096, 512)
        for family in ("dit", "lm"):
            settings = {"steps": steps, "data__pack_tokens": least, "checkpoint__every": 1000}
            half = shop.train(f"{family}-bf16", shop.settings(family, **settings))
            full = shop.train(
                f"{family}-float32", shop.settings(family, dtype="float32", **settings), {"CUDA_VISIBLE_DEVICES": ""}
            )
            yield follows(f"{family}, {steps} steps", half, full, steps)


def follows(what: str, half: Trained, full: Trained, steps: int) -> Row:
    """The verdict on two curves."""
    for name, done in (("bf16", half), ("float32 on the CPU", full)):
        if done.code or len(done.steps) != steps:
            return Row(what, f"{name}: exit code {done.code}, {len(done.steps)} steps: {done.last_words()}", "wrong")
    curves = [[line["loss"] for line in done.steps] for done in (half, full)]
    ends = [sum(losses[-LAST:]) / LAST for losses in curves]
    off = abs(ends[0] - ends[1]) / abs(ends[1])
    found = f"bf16 ends at {ends[0]:.4f}, float32 on the CPU at {ends[1]:.4f}: {100 * off:.2f} % off"
    figures = {"bf16": curves[0], "float32": curves[1]}
    return Row(what, found, "ok" if off < FOLLOWS else "wrong", figures)


CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {  # of the comparison of bytes
    "dit": ("dit", {}),
    "dit, recompute": ("dit", {"model__recompute": True}),
    "dit, ZeRO 2, recompute": ("dit", {"model__recompute": True, "zero__stage": 2}),
    "dit, ZeRO 3": ("dit", {"zero__stage": 3}),
    "dit, frame window": ("dit", {"model__attention": [{"kind": "frame_window", "before": 2}, {"kind": "full"}]}),
    "lm": ("lm", {}),
    "lm, recompute, 8 tiles": ("lm", {"model__recompute": True, "model__mlp_tiles": 8}),
    "lm, ZeRO 2": ("lm", {"zero__stage": 2}),
}


def dry_run_bytes(case: Case) -> Iterator[Row]:
    """The peak that a dry run counts beside the allocator's own, of the first step."""
    try:
        from launcher.dryrun.dry_step import dry_run
    except ImportError:
        yield Row("eight configs", "this checkout has no launcher.dryrun", "left out")
        return
    from launcher.config.loading import check

    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(case, Path(folder))
        for name, (family, changes) in list(CONFIGS.items())[:2] if case.small else CONFIGS.items():
            settings = shop.settings(family, steps=2, checkpoint__every=1000, **changes)
            counted = dry_run(check({"out": str(shop.root / "dry"), **settings}), 0, case.kind)
            planned = counted.peak_bytes + counted.prefetched_bytes
            if case.kind != "cuda":
                found = f"{planned / 2**20:,.0f} MiB by the dry run; a CPU has no allocator that counts"
                yield Row(name, found, figures={"planned_bytes": planned})
                continue
            done = shop.train(name.replace(",", "").replace(" ", "-"), settings)
            if done.code or not done.steps:
                yield Row(name, f"exit code {done.code}: {done.last_words()}", "wrong")
                continue
            seen = done.steps[-1]["memory_bytes"]
            off = planned / seen - 1
            found = (
                f"{planned / 2**20:,.0f} MiB by the dry run, {seen / 2**20:,.0f} by the allocator: {100 * off:+.1f} %"
            )
            figures = {"planned_bytes": planned, "seen_bytes": seen}
            yield Row(name, found, "ok" if abs(off) < BYTES_NEAR else "wrong", figures)
