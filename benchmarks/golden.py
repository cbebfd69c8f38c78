"""Golden runs: whether two commits train the same numbers, bit for bit.

    python -m benchmarks.golden BEFORE [AFTER]

Both commits are checked out beside each other, each makes its own data and runs its own command: 20 steps of a video
DiT and of a video-language model, on one rank and a ring of two, in float64 without ZeRO and float32 at ZeRO 0 and 2.
Losses, norms of gradients and every tensor of the last checkpoint (weights, moments, averages) must be equal. AFTER is
the working tree if it is left out. Takes about ten minutes on two cores; exit 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

HOME = Path(__file__).resolve().parent.parent
STEPS = 20
DIT = """
steps: 20
data: {pack_tokens: 256, packs_per_step: 2, frames: 7, size: [32, 32]}
model: {kind: video_dit, dim: 48, depth: 2, heads: 4, patch: [1, 8, 8], text: {dim: 32, depth: 1, heads: 2}}
objective: {kind: rectified_flow, CONDITIONING}
optimizer: {learning_rate: 1.0e-3, warmup_steps: 2, weight_decay: 0.01}
checkpoint: {every: 20}
"""
LANGUAGE = """
steps: 20
data: {pack_tokens: 400, packs_per_step: 2, frames: 5}
model:
  kind: video_lm
  language: {model_type: llama, vocab_size: 263, hidden_size: 24, intermediate_size: 40, num_hidden_layers: 2,
             num_attention_heads: 4, num_key_value_heads: 2, initializer_range: 0.2}
  vision: {model_type: siglip_vision_model, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2,
           num_attention_heads: 2, image_size: 16, patch_size: 4}
  spatial_pool: 2
objective: {kind: next_token}
optimizer: {learning_rate: 1.0e-3, warmup_steps: 2, weight_decay: 0.01}
checkpoint: {every: 20}
"""
MESHES = {"(1,1,1)": (), "(1,2,1)": ("mesh.ring=2",)}
ENGINES = {"float64": ("float64", 0), "float32": ("float32", 0), "float32, ZeRO-2": ("float32", 2)}


@dataclass(frozen=True)
class Tree:
    """A checked out commit, and the folder that its data and runs are written to."""

    home: Path
    work: Path

    def longreel(self, *arguments: str) -> None:
        """The command of this commit; CalledProcessError, with its words, if it fails."""
        env = {**os.environ, "PYTHONPATH": str(self.home), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-m", "launcher", *arguments], cwd=self.work, env=env,
                              capture_output=True, text=True)  # fmt: skip
        if done.returncode:
            sys.exit(
                f"longreel {' '.join(arguments)} in {self.home}: exit {done.returncode}\n{done.stdout}{done.stderr}"
            )

    def data(self) -> None:
        """Clips, and conversations about others, as this commit's datasets."""
        shares = "first_frame: 0.3"
        if (self.home / "models" / "objectives" / "conditioning.py").exists():
            shares = f"conditioning: {{{shares}}}"
        (self.work / "dit.yaml").write_text(DIT.replace("CONDITIONING", shares))
        sources = (file.read_text() for file in (self.home / "models").rglob("*.py"))
        named = any("spatial_pool" in text for text in sources)  # `pool` in commits before
        (self.work / "language.yaml").write_text(LANGUAGE if named else LANGUAGE.replace("spatial_pool", "pool"))
        chat = "talks" if (self.home / "launcher" / "cli_data.py").exists() or self._says("talks") else "chat"
        self.longreel("data", "synth", "--out", "clips", "--clips", "24", "--seed", "0")
        self.longreel("prepare", "clips", "--out", "dit")
        self.longreel("data", "questions", "--out", "asked", "--clips", "24", "--seed", "0")
        self.longreel("prepare", "asked", "--out", "seen")
        self.longreel("data", chat, "asked/conversations.json", "--clips", "seen", "--out", "language")

    def _says(self, command: str) -> bool:
        env = {**os.environ, "PYTHONPATH": str(self.home)}
        shown = subprocess.run(
            [sys.executable, "-m", "launcher", "data", "--help"], env=env, capture_output=True, text=True
        )
        return f" {command} " in shown.stdout

    def run(self, family: str, mesh: str, engine: str) -> Path:
        """Train; gives the run folder."""
        dtype, stage = ENGINES[engine]
        out = f"run-{family}-{mesh}-{dtype}-{stage}"
        settings = [f"out={out}", f"dtype={dtype}", f"zero.stage={stage}", f"data.dataset={family}", *MESHES[mesh]]
        self.longreel("train", f"{family}.yaml", *settings, "--no-ray")
        return self.work / out


def differences(before: Path, after: Path) -> Iterator[str]:
    """What two runs have that is not equal to the last bit."""
    for name in ("loss", "grad_norm"):
        curves = [[line[name] for line in lines(folder) if "step" in line] for folder in (before, after)]
        if curves[0] != curves[1] or len(curves[0]) != STEPS:
            yield f"{name}: {curves[0][-1:]} and {curves[1][-1:]}, {len(curves[0])} and {len(curves[1])} steps"
    old, new = tensors(before), tensors(after)
    if not old:
        yield "no tensors to compare"
    if old.keys() != new.keys():
        yield f"tensors: {sorted(old.keys() ^ new.keys())[:4]}"
    unequal = [name for name in old.keys() & new.keys() if not torch.equal(old[name], new[name])]
    if unequal:
        yield f"{len(unequal)} of {len(old)} tensors, such as {min(unequal)}"


def lines(folder: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of every part of the last checkpoint."""
    found = {}
    for part in sorted((folder / "checkpoints" / f"step-{STEPS:08d}").glob("*.safetensors")):
        with safe_open(part, framework="pt") as file:
            found.update({f"{part.stem}: {name}": file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="commit")
    parser.add_argument("after", nargs="?", help="commit; the working tree if left out")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="golden-") as place:
        trees = []
        for name, commit in (("before", given.before), ("after", given.after)):
            home, work = Path(place, name), Path(place, f"{name}-work")
            work.mkdir()
            if commit is None:
                home = HOME
            else:
                subprocess.run(["git", "clone", "-q", HOME, home], check=True)
                subprocess.run(["git", "-C", home, "checkout", "-q", commit], check=True)
            trees.append(Tree(home, work))
        for tree in trees:
            tree.data()
        worse = False
        for family in ("dit", "language"):
            for mesh in MESHES:
                for engine in ENGINES:
                    found = list(differences(*(tree.run(family, mesh, engine) for tree in trees)))
                    print(f"{family:9} {mesh} {engine:16} {'; '.join(found) or 'equal, bit for bit'}", flush=True)
                    worse |= bool(found)
        sys.exit(worse)


if __name__ == "__main__":
    main()
