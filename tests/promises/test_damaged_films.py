"""Damaged films through one `prepare`: no crash, no hang, within the limits; each is kept or rejected with a reason."""

import threading
import time
from collections import Counter
from pathlib import Path

import av
import pytest

from data.dataset.index import Index
from data.prepare.pipeline import PrepareOptions, Summary, prepare
from data.workers.processes import Workers
from tests.support.damaged import variants
from tests.support.films import calm, write

MEMORY = 1 << 30
DEATHS = ("worker died", "took too long", "too much memory")


def prepared(folder: Path, films: list[bytes], count: int, seed: int, timeout: float) -> tuple[Summary, list[str]]:
    """What comes of so many damaged films and a good one, and what was done to each."""
    (folder / "in").mkdir()
    done = []
    for number, (how, data) in enumerate(variants(films, count, seed)):
        (folder / "in" / f"{number:03}.mp4").write_bytes(data)
        done.append(how)
    write(folder / "in" / "good.mp4", calm(16, 32, 48, seed=9))
    options = PrepareOptions(allow_missing_captions=True, timeout=timeout, memory=MEMORY, previews=False)
    return prepare(folder / "in", folder / "out", options), done


def check(folder: Path, summary: Summary, done: list[str]) -> None:
    """Every file is accounted for, and what is kept is whole, read by FFmpeg alone."""
    index = Index.open(folder / "out")
    kept = {index.file(row) for row in range(len(index))}
    assert "good.mp4" in kept
    reasons = {one.file: (one.kind, one.reason) for one in summary.rejected}
    names = {f"{number:03}.mp4": how for number, how in enumerate(done)}
    assert names.keys() <= kept | reasons.keys()
    assert summary.files == len(done) + 1
    assert [(names[file], kind, why) for file, (kind, why) in reasons.items() if kind in DEATHS] == []
    assert all(why for _, why in reasons.values())
    for name in sorted(kept)[:20]:
        with av.open(str(folder / "in" / name)) as container:
            assert sum(1 for _ in container.decode(video=0))
    assert set(Counter(done)) == {"flipped", "cut", "zeroed", "resized", "twice", "swapped"}


def test_thirty_damaged_films(tmp_path):
    films = [write(tmp_path / f"{n}.mp4", calm(24, 48, 64, seed=n)).read_bytes() for n in range(2)]
    summary, done = prepared(tmp_path, films, 30, seed=1, timeout=120)
    check(tmp_path, summary, done)


@pytest.mark.slow
def test_three_hundred_damaged_variants_of_real_clips(tmp_path, real_clips, monkeypatch):
    """The memory of a worker is looked at all the time, the time of all is bounded by what the limits allow."""
    films = [file.read_bytes() for file in sorted(real_clips.glob("*.mp4"))]
    peak, ended = [0], threading.Event()
    pools: list[Workers] = []
    real = Workers.__init__

    def noted(self: Workers, *given: object) -> None:
        real(self, *given)
        pools.append(self)

    monkeypatch.setattr(Workers, "__init__", noted)

    def watch() -> None:
        while not ended.wait(0.02):
            for process in [one for pool in pools for one in list(pool._all)]:
                peak[0] = max(peak[0], process.memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    try:
        summary, done = prepared(tmp_path, films, 300, seed=2, timeout=120)
    finally:
        ended.set()
        watcher.join()
    print(f"{summary.kept} clips kept, {len(summary.rejected)} rejected, {time.monotonic() - began:.0f} s", end=" ")
    print(f"{peak[0] / 2**20:.0f} MiB at most")
    check(tmp_path, summary, done)
    assert peak[0] < MEMORY
