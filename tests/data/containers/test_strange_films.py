"""Of many strange films, drawn by chance, every frame comes out, at its time, or the reason names the true cause.

What is stored is read by others: the tar by `tarfile`, clips by PyAV, rows of times by numpy.
"""

import io
import json
import re
import tarfile
from collections import defaultdict
from pathlib import Path

import av
import numpy as np
import pytest

from data.prepare.pipeline import PrepareOptions, prepare
from tests.support.films import stamps
from tests.support.strange_films import KINDS, Strange, draw

SHORT = re.compile(r"(\d+):(\d+)")


def stored(dataset: Path) -> dict[str, list[tuple[dict, list[int]]]]:
    """(facts, numbers of the frames in order) of each clip, by source file, in the order of the source."""
    found = defaultdict(list)
    for shard in sorted((dataset / "shards").glob("*.tar")):
        with tarfile.open(shard) as tar:
            parts = {member.name: tar.extractfile(member).read() for member in tar}
        for name, data in parts.items():
            if name.endswith(".json"):
                facts = json.loads(data)
                with av.open(io.BytesIO(parts[name.replace(".json", ".mp4")])) as container:
                    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
                assert len(frames) == facts["frames"]
                found[facts["file"]].append((facts, stamps(np.stack(frames))))
    return {file: sorted(clips, key=lambda clip: clip[0]["start"]) for file, clips in found.items()}


def wrong(film: Strange, clips: list[tuple[dict, list[int]]], reasons: str) -> str | None:
    """What did not become of a film what must; None if all did."""
    shown = [number for _, numbers in clips for number in numbers]
    if film.refused:
        return None if not shown and re.search(film.reason, reasons) else f"{len(shown)} frames came; told: {reasons}"
    if shown != sorted(shown):
        return f"frames are out of order: {shown}"
    missing, strangers = set(film.seconds) - set(shown), set(shown) - set(film.seconds)
    told = {row for a, b in SHORT.findall(reasons) for row in range(int(a), int(b))}
    if strangers or (missing and not re.search(film.reason or "$^", reasons)) or missing - film.optional - told:
        return f"{sorted(missing)} are missing, {sorted(strangers)} were never there; told: {reasons or 'nothing'}"
    for facts, numbers in clips if film.timed else ():
        first = [at for at, number in enumerate(numbers) if not at or number != numbers[at - 1]]
        rows, seconds = facts["time_rows"], facts["time_seconds"]
        when = np.interp(first, rows, seconds) + np.maximum(np.array(first) - rows[-1], 0) / facts["fps"]
        off = np.abs(when - [film.seconds[numbers[at]] for at in first]).max()
        if off > 0.5 / facts["fps"] + 0.002:
            return f"rows {facts['start']} to {facts['stop']} are told {off:.3f} s wrong, at {facts['fps']} a second"
    return None


def check(folder: Path, count: int, seed: int) -> None:
    """Draws, prepares and reads back."""
    (folder / "films").mkdir()
    films = list(draw(folder / "films", count, seed))
    summary = prepare(folder / "films", folder / "dataset", PrepareOptions(None, True, workers=0, previews=False))
    reasons: dict[str, str] = defaultdict(str)
    for one in summary.rejected:
        reasons[one.file] += one.reason + "\n"
    clips = stored(folder / "dataset")
    found = {film: wrong(film, clips.get(film.file, []), reasons[film.file]) for film in films}
    bad = [f"{film.file}: {said}\n    {film.about}" for film, said in found.items() if said]
    assert not bad, f"{len(bad)} of {len(films)}:\n" + "\n".join(bad)


def test_strange_films(tmp_path):
    check(tmp_path, 8 * len(KINDS), seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_more_strange_films(tmp_path, seed):
    check(tmp_path, 8 * len(KINDS), seed)
