"""A folder of what people have becomes a dataset: nothing lost silently, nothing twice, and a kill costs only time."""

import json
import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import webdataset

from data import clips, video
from data.index import Index
from data.prepare import PrepareOptions, prepare
from data.synth import draw, synth
from parallel.errors import InputError

ROOT = Path(__file__).parents[1]
VIDEOS = ROOT.parent / "shared" / "videos"
HERE = PrepareOptions(workers=0)


def clip(seed: int = 0, frames: int = 10, height: int = 32, width: int = 32) -> np.ndarray:
    """A noise picture that slides. [frames, height, width, 3]"""
    rng = np.random.default_rng(seed)
    wide = np.kron(rng.integers(0, 40, (height // 4 + 1, (width + frames) // 4 + 1, 1)), np.ones((4, 4, 1)))
    wide = cv2.GaussianBlur(wide + rng.integers(20, 200, 3), (0, 0), 2)  # a tint of its own: shots differ
    return np.stack([wide[:height, i : i + width] for i in range(frames)]).astype(np.uint8)


def fill(folder: Path, **files: bytes) -> Path:
    """Files by stem, as mp4, each with a caption."""
    folder.mkdir(exist_ok=True)
    for stem, data in files.items():
        (folder / f"{stem}.mp4").write_bytes(data)
        (folder / f"{stem}.txt").write_text(f"this is {stem}")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def mp4(seed: int = 0, **size: int) -> bytes:
    return video.encode(clip(seed, **size), Fraction(10))


# WebDataset leaves its files to the garbage collector
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dataset_holds_what_came_in(tmp_path):
    shots = np.concatenate([clip(1, 12, 48, 64), clip(2, 9, 48, 64), clip(3, 4, 48, 64)])
    source = fill(tmp_path / "in", one=mp4(0), shots=video.encode(shots, Fraction(24000, 1001)))
    seen = []
    summary = prepare(source, tmp_path / "out", HERE, seen.append)
    assert (summary.files, summary.clips, summary.kept, summary.skipped, summary.frames, summary.shards) == (
        2,
        4,
        3,
        0,
        31,
        1,
    )
    assert summary.rejected == [("shots.mp4", "1 of 3 shots have fewer than 8 frames: 21:25")]
    assert [(p.done, p.total, p.file, p.clips) for p in seen] == [(1, 2, "one.mp4", 1), (2, 2, "shots.mp4", 3)]
    index = Index.open(tmp_path / "out")
    rows = [
        (index.file(r), index.caption(r), int(index.frames[r]), int(index.height[r]), int(index.width[r]))
        for r in range(3)
    ]
    assert rows == [
        ("one.mp4", "this is one", 10, 32, 32),
        ("shots.mp4", "this is shots", 12, 48, 64),
        ("shots.mp4", "this is shots", 9, 48, 64),
    ]
    assert index.table["fps"].to_pylist() == pytest.approx([10, 24000 / 1001, 24000 / 1001])
    shards = sorted(str(p) for p in (tmp_path / "out" / "shards").glob("*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == index.table["uid"].to_pylist()
    assert [s["json"]["caption"] for s in samples] == index.table["caption"].to_pylist()
    assert [(s["json"]["start"], s["json"]["stop"]) for s in samples] == [(0, 10), (0, 12), (12, 21)]
    for sample, expected in zip(samples, [clip(0), shots[:12], shots[12:21]], strict=True):
        found = video.decode(sample["mp4"])
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).mean() < 4


def test_a_file_that_is_as_we_would_write_it_is_kept_byte_for_byte(tmp_path):
    data = mp4(0)
    prepare(fill(tmp_path / "in", one=data), tmp_path / "out", HERE)
    index = Index.open(tmp_path / "out")
    part = index.part(0)
    assert (tmp_path / "out" / index.shard(0)).read_bytes()[part.offset : part.offset + part.size] == data


@pytest.mark.parametrize(
    ("change", "may"),
    [
        ({}, True),
        ({"g": "60"}, False),
        ({"pix_fmt": "yuv444p"}, False),
        ({"suffix": ".mkv"}, False),
        ({"codec": "mpeg4"}, False),
    ],
)
def test_what_may_be_copied(tmp_path, change, may):
    path = tmp_path / f"a{change.get('suffix', '.mp4')}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(change.get("codec", "libx264"), rate=10)
        stream.height = stream.width = 32
        stream.pix_fmt = change.get("pix_fmt", "yuv420p")
        stream.options = {"g": change.get("g", "12"), "sc_threshold": "0"}
        for frame in clip(0, 60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    assert clips.may_copy(video.probe(path)) is may


def test_what_cannot_be_used_is_rejected_with_its_reason_and_stops_nothing(tmp_path):
    source = fill(
        tmp_path / "in", good=mp4(0), empty=b"", words=b"not a video " * 99, short=mp4(1)[:-900], tiny=mp4(2, height=8)
    )
    fill(source, again=mp4(0))
    (source / "silent.mp4").write_bytes(mp4(3))
    summary = prepare(source, tmp_path / "out", HERE)
    rejected = dict(summary.rejected)
    assert (summary.files, summary.kept) == (7, 1)
    assert set(rejected) == {"empty.mp4", "words.mp4", "short.mp4", "tiny.mp4", "silent.mp4", "good.mp4"}
    assert rejected["silent.mp4"] == "no caption"
    assert rejected["good.mp4"] == "same bytes as again.mp4"
    assert rejected["tiny.mp4"] == "8 x 32 pixels, smaller than 16"
    assert all("Invalid data" in rejected[name] for name in ("empty.mp4", "words.mp4", "short.mp4"))
    (listed,) = (tmp_path / "out" / "quarantine").iterdir()
    assert [tuple(json.loads(line).values()) for line in listed.read_text().splitlines()] == summary.rejected
    again = prepare(source, tmp_path / "out", HERE)
    assert sorted(again.rejected) == sorted(summary.rejected)
    assert (again.kept, again.skipped, again.shards) == (0, 1, 0)


def test_missing_captions_are_kept_when_allowed(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(mp4(0))
    with pytest.raises(InputError, match=r"1 files, the first is a\.mp4: no caption"):
        prepare(tmp_path / "in", tmp_path / "out", HERE)
    assert not (tmp_path / "out").exists()
    prepare(tmp_path / "in", tmp_path / "out", PrepareOptions(allow_missing_captions=True))
    assert Index.open(tmp_path / "out").caption(0) == ""


def test_sizes_rotation_and_other_formats_end_as_even_upright_h264(tmp_path):
    (tmp_path / "in").mkdir()
    with av.open(str(tmp_path / "in" / "odd.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 33, 17, "yuv444p"
        for frame in clip(0, 10, 33, 17):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    upright = mp4(1, height=32, width=64)
    at = upright.index(b"tkhd") + 44
    quarter = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    (tmp_path / "in" / "turned.mp4").write_bytes(upright[:at] + quarter + upright[at + 36 :])
    prepare(tmp_path / "in", tmp_path / "out", PrepareOptions(allow_missing_captions=True, workers=0))
    index = Index.open(tmp_path / "out")
    assert list(zip(index.height.tolist(), index.width.tolist(), strict=True)) == [(32, 16), (64, 32)]
    prepare(tmp_path / "in", tmp_path / "small", PrepareOptions(allow_missing_captions=True, workers=0, short_side=16))
    index = Index.open(tmp_path / "small")
    assert list(zip(index.height.tolist(), index.width.tolist(), strict=True)) == [(30, 16), (32, 16)]
    for row in range(2):
        part = index.part(row)
        data = (tmp_path / "small" / index.shard(row)).read_bytes()[part.offset : part.offset + part.size]
        found = video.probe(data)
        assert (found.codec, found.rotation, found.height, found.width) == (
            "h264",
            0,
            index.height[row],
            index.width[row],
        )


def test_a_rerun_changes_nothing_and_more_files_append(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    synth(source, 6, seed=0)
    prepare(source, out, HERE)
    before, first = tree(out), Index.open(out)
    again = prepare(source, out, HERE)
    assert (again.kept, again.skipped, again.shards) == (0, 6, 0)
    assert tree(out) == before
    prepare(source, tmp_path / "elsewhere", HERE)
    assert tree(tmp_path / "elsewhere") == before
    fill(source, extra=mp4(7))
    captions = json.loads((source / "captions.json").read_text())
    (source / "captions.json").write_text(json.dumps({**captions, "extra.mp4": "more"}))
    summary = prepare(source, out, HERE)
    assert (summary.kept, summary.skipped, summary.shards) == (1, 6, 1)
    after = Index.open(out)
    assert after.table["uid"].to_pylist()[:6] == first.table["uid"].to_pylist()
    assert len(after) == 7
    assert after.digest != first.digest
    assert {name: data for name, data in tree(out).items() if name in before} == before
    with pytest.raises(InputError, match="has short_side=None"):
        prepare(source, out, PrepareOptions(workers=0, short_side=16))
    (source / "captions.json").write_text(json.dumps({**captions, "extra.mp4": "a better caption"}))
    assert prepare(source, out, HERE).rejected == [
        ("extra.mp4", "it is in the dataset with another caption: prepare into a new folder")
    ]
    assert Index.open(out).digest == after.digest


def test_workers_write_the_same_bytes(tmp_path):
    source = tmp_path / "in"
    synth(source, 5, seed=0)
    (source / "broken.mp4").write_bytes(b"broken")
    options = {"shard_files": 2, "allow_missing_captions": True}
    one = prepare(source, tmp_path / "one", PrepareOptions(workers=0, **options))
    two = prepare(source, tmp_path / "two", PrepareOptions(workers=2, **options))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert one.rejected == two.rejected
    assert one.shards == two.shards == 3


KILLED = """
import os, signal, sys
from pathlib import Path
from data import shards, video
from data.prepare import PrepareOptions, prepare
if __name__ == "__main__":
    at, publish, calls = int(sys.argv[3]), shards._publish, 0
    def counted(temporary, path):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        publish(temporary, path)
    shards._publish = counted
    prepare(Path(sys.argv[1]), Path(sys.argv[2]), PrepareOptions(workers=0, shard_files=2))
"""


@pytest.mark.parametrize("at", [1, 2, 3, 5, 7])
def test_a_kill_before_any_rename_leaves_whole_shards_and_the_rerun_is_the_same(tmp_path, at):
    """4 files, 2 per shard: (tar, rows, commit) x 2, manifest. Each is the last thing that did not happen once."""
    source, out = tmp_path / "in", tmp_path / "out"
    synth(source, 4, seed=1)
    prepare(source, tmp_path / "whole", PrepareOptions(workers=0, shard_files=2))
    command = [sys.executable, "-c", KILLED, str(source), str(out), str(at)]
    ended = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, capture_output=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    for tar in (out / "shards").glob("*.tar"):
        assert tar.read_bytes() == (tmp_path / "whole" / "shards" / tar.name).read_bytes()
    with pytest.raises(InputError):
        Index.open(out)
    summary = prepare(source, out, PrepareOptions(workers=0, shard_files=2))
    assert tree(out) == tree(tmp_path / "whole")
    assert (summary.skipped, summary.kept) == ((at - 1) // 3 * 2, 4 - (at - 1) // 3 * 2)


def test_a_table_of_videos(tmp_path):
    fill(tmp_path, a=mp4(0), b=mp4(1))
    (tmp_path / "list.csv").write_text("path,caption\nb.mp4,bee\nabsent.mp4,gone\na.mp4,ay\n")
    summary = prepare(tmp_path / "list.csv", tmp_path / "out", HERE)
    index = Index.open(tmp_path / "out")
    assert [(index.file(r), index.caption(r)) for r in range(2)] == [("a.mp4", "ay"), ("b.mp4", "bee")]
    assert summary.rejected == [("absent.mp4", "No such file or directory")]


def test_inputs_that_cannot_work(tmp_path):
    source = fill(tmp_path / "in", bad=b"no video")
    with pytest.raises(InputError, match=r"the first is bad\.mp4: Invalid data"):
        prepare(source, tmp_path / "out", HERE)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="have fewer than 8 frames: 0:5") as error:
        prepare(fill(tmp_path / "brief", good=mp4(0, frames=5)), tmp_path / "out", HERE)
    assert error.value.remedy == "lower min_frames"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.doc").write_text("x")
    with pytest.raises(InputError, match=r"thesis\.doc"):
        prepare(source, tmp_path / "other", HERE)
    with pytest.raises(InputError, match="is a file"):
        prepare(source, source / "bad.mp4", HERE)
    for wrong in ({"min_frames": 0}, {"short_side": 8}, {"short_side": 33}, {"workers": -1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            prepare(source, tmp_path / "out", PrepareOptions(**wrong))


def test_an_index_that_was_changed_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        Index.open(tmp_path / "out")
    source, out = fill(tmp_path / "in", a=mp4(0)), tmp_path / "out"
    with pytest.raises(InputError, match=r"has a folder manifest/\n.*has: a\.mp4, a\.txt"):
        Index.open(source)
    prepare(source, out, HERE)
    (part,) = (out / "index").iterdir()
    whole = part.read_bytes()
    part.write_bytes(whole[:-1] + b"?")
    with pytest.raises(InputError, match="the manifest says"):
        Index.open(out)
    part.unlink()
    with pytest.raises(InputError, match="No such file"):
        Index.open(out)
    part.write_bytes(whole)
    (generation,) = (out / "manifest").iterdir()
    text = generation.read_text()
    generation.write_text(text.replace(Index.open(out).digest, "0" * 32))
    with pytest.raises(InputError, match="the digest of its samples"):
        Index.open(out)
    generation.write_text(text.replace('"schema": 2', '"schema": 9'))
    with pytest.raises(InputError, match="schema 2"):
        Index.open(out)


def test_two_at_once_are_refused(tmp_path):
    source = fill(tmp_path / "in", a=mp4(0), b=mp4(1))

    def second(_):
        with pytest.raises(InputError, match="is in use"):
            prepare(source, tmp_path / "out", HERE)

    assert prepare(source, tmp_path / "out", HERE, second).kept == 2


def test_real_clips(tmp_path):
    if not VIDEOS.is_dir():
        pytest.skip(f"the real clips are not at {VIDEOS}")
    summary = prepare(VIDEOS, tmp_path / "out", PrepareOptions(short_side=64, caption="long", workers=0))
    index = Index.open(tmp_path / "out")
    assert (summary.files, summary.kept, summary.rejected) == (3, 9, [])
    assert index.frames.tolist() == [132, 30, 46, 61, 50, 55, 8, 240, 150]
    assert index.height.tolist() == [64] * 9
    assert index.caption(8).startswith("In a dark clean room")


def test_draw_is_one_shot(tmp_path):
    """The quickstart's clips must not be cut: sudden colours on a dark ground are not a cut."""
    source = tmp_path / "in"
    synth(source, 32, seed=5)
    assert prepare(source, tmp_path / "out", HERE).kept == 32
    assert draw("red", "square", "up", (0, 0, 0, 0)).shape == (8, 32, 32, 3)
