"""What reading, decoding, preparing, resuming and planning cost, beside peers and limits.

    python -m benchmarks.data [--rounds 3] [--quick] [--run FOLDER] [--peer-python PYTHON ...]

Ways take turns within each round; medians over rounds, ratios of the same round. CPU-seconds count where cores are
shared: of all threads of the process and of its ended children. Each part is described in a file of its own:

- tars:     index and pread against WebDataset                                               data_tars.py
- decode:   video.decode and decode_slices against a bare PyAV loop                          data_video.py
- prepare:  against decoding and looking for cuts alone                                      data_video.py
- resume:   seconds to the first batch, what is lost or comes twice, against MosaicML
            streaming and Megatron Energon                                     data_resume.py, data_peers.py
- stalls:   share of step time spent waiting for data, of a run or of the quickstart         data_stalls.py
- plan:     seconds to any step of ten million samples, fill, imbalance, bytes of state      data_plan.py

Peers of the resume are no dependencies. Each in an environment of its own, given with --peer-python:
  python -m venv FOLDER && FOLDER/bin/pip install torch==2.13.0 mosaicml-streaming     (or megatron-energon)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import data_plan, data_resume, data_stalls, data_tars, data_video
from benchmarks.data_measure import Row, table
from benchmarks.machine import machine, write_result

SAMPLES = 20_011  # to resume in: a prime, so that nothing divides evenly
PLANNED = 10_000_000
VERSIONS = ("webdataset", "av", "scenedetect", "blake3", "pyarrow")


def main() -> None:
    """Measure, print a table, write the result."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--quick", action="store_true", help="one small round, nothing written: does it run?")
    options.add_argument("--run", type=Path, help="a run to read stalls from; else the quickstart is trained shortly")
    options.add_argument(
        "--peer-python", action="append", default=[], help="an interpreter that has a peer; repeatable"
    )
    options.add_argument("--parts", default="tars,decode,prepare,resume,stalls,plan", help="which to measure")
    given = options.parse_args()
    if given.quick:
        given.rounds = 1
    about: dict[str, Any] = {"machine": machine(), "rounds": given.rounds}
    about["machine"]["versions"] |= {name: version(name) for name in VERSIONS}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts(Path(folder), given, about).items():
            if name in given.parts.split(","):
                began = time.monotonic()
                rows += part()
                print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    about["peers"] = {name: said["about"] for name, said in about.get("resume", {}).items()}
    print(table(rows))
    if not given.peer_python:
        print("\nno --peer-python: nothing to compare resuming with")
    if not given.quick:
        print(write_result("data", about | {"rows": [asdict(row) | {"reached": row.reached} for row in rows]}))


def parts(place: Path, given: argparse.Namespace, about: dict[str, Any]) -> dict[str, Callable[[], list[Row]]]:
    """What there is to measure; `about` grows."""
    films, about["films"] = data_video.films(place)

    def resume() -> list[Row]:
        samples = 2011 if given.quick else SAMPLES
        rows, about["resume"] = data_resume.measure(place, given.rounds, samples, given.peer_python)
        return rows

    def stalls() -> list[Row]:
        if given.run:
            return data_stalls.measure(given.run, str(given.run))
        steps = 20 if given.quick else data_stalls.STEPS
        return data_stalls.measure(data_stalls.trained(place, steps), "quickstart without Ray")

    return {
        "tars": lambda: data_tars.measure(place, given.rounds, 0.2 if given.quick else 1.0),
        "decode": lambda: data_video.decoding(films, place, given.rounds),
        "prepare": lambda: data_video.preparing(films, place, given.rounds),
        "resume": resume,
        "stalls": stalls,
        "plan": lambda: data_plan.measure(PLANNED // 10 if given.quick else PLANNED),
    }


if __name__ == "__main__":
    main()
