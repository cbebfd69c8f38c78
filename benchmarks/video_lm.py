"""What training a language model costs beside transformers and DeepSpeed: seconds, memory, the longest text that fits.

    python -m benchmarks.video_lm [--rounds 3] [--quick] [--parts speed,longest,ranks,loss] [--device cpu]

A step is forward, loss and backward of a Llama of 4 layers of 256 and 32,000 words, float32; no optimiser.

- speed:   tokens/s and peak memory on one rank, beside transformers' LlamaForCausalLM ("sdpa", its own loss)
- longest: tokens that fit into the memory that transformers' step takes for 1,024; also at 2,000 words
- ranks:   tokens/s on 2 and 4 ranks of a thread each, ulysses and ring, beside DeepSpeed's UlyssesSPAttentionHF
- loss:    memory of `tiled_cross_entropy` at 32K tokens and 128K words, beside torch's own on whole logits

Ways (`video_lm_ways.py`) take turns within each round, nobody else runs meanwhile. Ratios are medians of those of the
rounds: of seconds, and for a machine that others use, of CPU-seconds of all threads. Before anything is timed, its
gradients are compared with those of transformers; "error" is the largest relative one of a parameter. Memory is the
growth of the resident set to its peak over model and text, one step in a fresh process, after a short step that sets up
kernels, with a malloc that gives freed blocks back at once. On CUDA (bf16, never run yet) it is the allocator's peak,
and `ranks` is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import video_lm_ways as ways
from benchmarks.machine import machine, write_result
from benchmarks.video_lm_ways import OWN, OWN_AGAIN, OWN_LEAST, PEER, PEER_AGAIN, RANKED, RANKED_PEER, Found, Shape

WORLDS = (2, 4)
SPEED_GOAL, LENGTH_GOAL, LOSS_GOAL, GAP_GOAL = 1.0, 4.0, 0.1, 1e-12
FEW_WORDS = 2000  # at which the logits are a small part of the memory
FARTHEST = 32  # times the base: no longer text is tried


def main() -> None:
    """Measure, print tables, write the result."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 8192])
    options.add_argument("--base", type=int, default=1024, help="tokens of transformers whose memory is the budget")
    options.add_argument("--ranked", type=int, default=4096, help="tokens of all ranks together")
    options.add_argument("--loss", type=int, nargs=2, default=[32_768, 131_072], help="tokens and words")
    options.add_argument("--words", type=int, default=Shape.words)
    options.add_argument("--layers", type=int, default=Shape.layers)
    options.add_argument("--parts", default="speed,longest,ranks,loss")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--quick", action="store_true", help="small sizes, one round, nothing written: does it run?")
    given = options.parse_args()
    if given.quick:
        given.rounds, given.lengths, given.base, given.ranked, given.loss = 1, [512], 1024, 512, [32_768, 2048]
        given.words, given.layers = 8192, 2
    shape = Shape(words=given.words, layers=given.layers, device=given.device)
    vocabularies = (shape,) if given.quick else (shape, replace(shape, words=FEW_WORDS))
    preload()
    print(f"{shape.layers} layers of {shape.dim}, {shape.words} words, {shape.dtype}, {shape.device}")
    parts: dict[str, Callable[[], Any]] = {
        "speed": lambda: told_speed(shape, given.lengths, given.rounds),
        "longest": lambda: [told_longest(of_words, given.base) for of_words in vocabularies],
        "ranks": lambda: [told_ranks(shape, given.ranked, ranks, given.rounds) for ranks in WORLDS],
        "loss": lambda: told_loss(given.loss[0], given.loss[1], shape.device),
    }
    if shape.device == "cuda":
        del parts["ranks"]
    about = {"rounds": given.rounds, "shape": asdict(shape), "dtype": str(shape.dtype)}
    for name in (name for name in parts if name in given.parts):
        result = about | {"machine": machine() | ways.versions(shape.device), "found": parts[name]()}
        if not given.quick:
            keep(name, result)


def keep(part: str, result: Found) -> None:
    """Write one part of the result; the others stay as they were."""
    file = Path(__file__).parent / "results" / "video_lm.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    print(write_result("video_lm", before | {part: result}))


def preload() -> None:
    """Have the server that processes are forked from load what all of them need, once."""
    from tests.support import process_groups

    process_groups.PRELOAD += ["transformers.models.llama.modeling_llama", ways.__name__]


def in_world(ranks: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(rank, ...)` found on each rank of fresh processes."""
    from tests.support.process_groups import run_world

    return run_world(ranks, work, *arguments, seconds=1800)


def told_speed(shape: Shape, counts: list[int], rounds: int) -> list[Found]:
    """Print and keep tokens/s and peaks of one rank at some lengths."""
    load, rows = os.getloadavg()[0], []
    (all_found,) = in_world(1, ways.seconds_alone, shape, counts, rounds)
    for count, found in all_found.items():
        for name, row in found.items():
            (peak,) = in_world(1, ways.peak_of_step, name, shape, count)
            row["peak_bytes"] = peak["peak_bytes"]
        told(f"{count} tokens, one rank, {ways.THREADS} threads", found, PEER, count)
        ratio = found[OWN]["x_peer"]
        print(f"{OWN} to {PEER}: {ratio:.2f}, goal {SPEED_GOAL}: {verdict(ratio >= SPEED_GOAL)}")
        rows.append({"tokens": count, "load_before": load, "ways": found})
    return rows


def told_longest(shape: Shape, base: int) -> Found:
    """Print and keep the lengths that fit into the peak of transformers at `base` tokens."""
    (budget,) = in_world(1, ways.peak_of_step, PEER, shape, base)
    room = budget["peak_bytes"]
    title = f"{shape.words} words: longest text in the {room / 2**20:.0f} MiB of {PEER} at {base}"
    print(f"\n{title:64}{'tokens':>8}{'x peer':>8}{'peak MiB':>10}{'tokens/s':>10}")
    found: Found = {}
    for name in (PEER_AGAIN, OWN_AGAIN, OWN_LEAST):
        count, tried = longest(name, shape, base, room)
        found[name] = {"tokens": count, "x_peer": count / base, **tried[count], "tried": tried}
        speed = count / tried[count]["seconds"]
        print(f"{name:64}{count:8}{count / base:8.2f}{tried[count]['peak_bytes'] / 2**20:10.0f}{speed:10.0f}")
    ratio = found[OWN_LEAST]["x_peer"]
    print(f"{OWN_LEAST} to {PEER}: {ratio:.2f}, goal {LENGTH_GOAL}: {verdict(ratio >= LENGTH_GOAL)}")
    return {"words": shape.words, "budget_bytes": room, "budget_tokens": base, "ways": found}


def longest(name: str, shape: Shape, base: int, room: int) -> tuple[int, dict[int, Found]]:
    """The longest text that was seen to fit, and what was seen.

    Peaks grow with tokens in a line, so two of them tell where to look: at most four times, until one takes 97 % to
    100 % of the room.
    """
    tried: dict[int, Found] = {}

    def peak(count: int) -> int:
        if count not in tried:
            (tried[count],) = in_world(1, ways.peak_of_step, name, shape, count)
        of_count: int = tried[count]["peak_bytes"]
        return of_count

    low, high = base // 2, base
    for _ in range(4):
        slope = max((peak(high) - peak(low)) / (high - low), 1.0)
        count = min(int(low + (0.99 * room - peak(low)) / slope), FARTHEST * base) // 32 * 32
        if count in tried or 0.97 * room <= peak(count) <= room:
            break
        low, high = sorted(tried)[-2:]
    return max(count for count in tried if peak(count) <= room), tried


def told_ranks(shape: Shape, count: int, ranks: int, rounds: int) -> Found:
    """Print and keep tokens/s of several ranks."""
    load = os.getloadavg()[0]
    of_ranks = [found[count] for found in in_world(ranks, ways.seconds_ranked, shape, [count], rounds)]
    found: Found = {}
    for name in RANKED:
        rows = [row[name] for row in of_ranks]
        slowest = [max(of_round) for of_round in zip(*(row["seconds"] for row in rows), strict=True)]
        cpu = [sum(of_round) for of_round in zip(*(row["cpu_seconds"] for row in rows), strict=True)]
        found[name] = {"error": rows[0]["error"], "seconds": slowest, "cpu_seconds": cpu}
    told(f"{count} tokens, {ranks} ranks of a thread each", found, RANKED_PEER, count)
    return {"ranks": ranks, "tokens": count, "load_before": load, "ways": found}


def told(title: str, found: Found, peer: str, count: int) -> None:
    """Fill in medians and ratios, and print a table."""
    print(f"\n{title:46}{'tokens/s':>9}{'x peer':>8}{'by CPU':>8}{'peak MiB':>10}{'error':>9}")
    for name, row in found.items():
        row["tokens_per_second"] = count / statistics.median(row["seconds"])
        row["x_peer"] = ratio_of(found[peer]["seconds"], row["seconds"])
        row["x_peer_cpu"] = ratio_of(found[peer]["cpu_seconds"], row["cpu_seconds"])
        peak = f"{row['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in row else ""
        print(
            f"{name:46}{row['tokens_per_second']:9.0f}{row['x_peer']:8.2f}{row['x_peer_cpu']:8.2f}"
            f"{peak:>10}{row['error']:9.0e}"
        )


def told_loss(tokens: int, words: int, device: str) -> Found:
    """Print and keep the memory of the loss; of whole logits at a vocabulary at which they fit."""
    fit, (room,) = words, in_world(1, ways.room, device)
    while 3.5 * 4 * tokens * fit > room:  # logits, their log-softmax and their gradient, and some more
        fit //= 2
    peaks = {}
    print(
        f"\n{f'loss of {tokens} tokens, {ways.LOSS_DIM} numbers each, float32':50}{'words':>8}{'MiB':>8}{'seconds':>9}"
    )
    for name, count in dict.fromkeys((("untiled", fit), ("tiled", fit), ("tiled", words))):
        (row,) = in_world(1, ways.peak_of_loss, name, tokens, count, device)
        peaks[f"{name} {count}"] = row
        print(f"{name + ', measured':50}{count:8}{row['peak_bytes'] / 2**20:8.0f}{row['seconds']:9.1f}")
    measured, mine = peaks[f"untiled {fit}"]["peak_bytes"], peaks[f"tiled {words}"]["peak_bytes"]
    least, scaled = 2 * 4 * tokens * words, measured * words / fit
    print(f"{'untiled, computed: logits and their gradient':50}{words:8}{least / 2**20:8.0f}")
    print(f"{'untiled, computed: what was measured, times words':50}{words:8}{scaled / 2**20:8.0f}")
    shares = {
        "measured, both": peaks[f"tiled {fit}"]["peak_bytes"] / measured,
        "measured to logits and gradient": mine / least,
        "measured to measured times words": mine / scaled,
    }
    for name, share in shares.items():
        print(f"tiled to untiled, {name:34}{share:.3f}, goal {LOSS_GOAL}: {verdict(share <= LOSS_GOAL)}")
    (gap,) = in_world(1, ways.gap_of_loss)
    print(f"largest relative difference in float64: {gap:.1e}, goal {GAP_GOAL}: {verdict(gap <= GAP_GOAL)}")
    computed = {"least_bytes": least, "scaled_bytes": scaled}
    return {"tokens": tokens, "words": words, "measured": peaks, "computed": computed, "shares": shares, "gap": gap}


def ratio_of(peer: Iterable[float], own: Iterable[float]) -> float:
    """How many times as fast, the median of the rounds."""
    return statistics.median(a / b for a, b in zip(peer, own, strict=True))


def verdict(reached: bool) -> str:
    """In words."""
    return "reached" if reached else "NOT reached"


if __name__ == "__main__":
    main()
