"""A folder of what people have becomes a dataset: nothing lost silently, nothing twice, and a kill costs only time."""

import json
import os
from collections import Counter
from fractions import Fraction
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset

import data.prepare.convert
from data.curation import clips
from data.curation.clips import CutOptions
from data.curation.filters import Filters
from data.dataset.index import Index
from data.dataset.outcome import Rejection, Tally
from data.media import video
from data.media.h264 import encode
from data.prepare.history import History
from data.prepare.pipeline import PrepareOptions, prepare
from data.synthetic.shapes import synth
from parallel.errors import InputError
from tests.data.sources.test_listing import tar_of
from tests.support.jobs import convert_but_hang
from tests.support.stores import served

HERE = PrepareOptions(workers=0)


def picture(seed: int = 0, frames: int = 10, height: int = 32, width: int = 32) -> np.ndarray:
    """A noise picture that slides. [frames, height, width, 3]"""
    rng = np.random.default_rng(seed)
    wide = np.kron(rng.integers(0, 40, (height // 4 + 1, (width + frames) // 4 + 1, 1)), np.ones((4, 4, 1)))
    wide = cv2.GaussianBlur(wide + rng.integers(20, 200, 3), (0, 0), 2)  # a tint of its own: shots differ
    return np.stack([wide[:height, i : i + width] for i in range(frames)]).astype(np.uint8)


@cache
def mp4(seed: int = 0, **size: int) -> bytes:
    return encode(picture(seed, **size), Fraction(10))


def fill(folder: Path, **files: bytes) -> Path:
    """Files by stem, as mp4, each with a caption."""
    folder.mkdir(exist_ok=True)
    for stem, content in files.items():
        (folder / f"{stem}.mp4").write_bytes(content)
        (folder / f"{stem}.txt").write_text(f"this is {stem}")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def reasons(summary) -> dict[str, str]:
    return {one.file: one.reason for one in summary.rejected}


def column(out: Path, name: str) -> list:
    return Index.open(out).table[name].to_pylist()


# WebDataset leaves its files to the garbage collector
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dataset_holds_what_came_in(tmp_path):
    shots = np.concatenate([picture(1, 12, 48, 64), picture(2, 9, 48, 64), picture(3, 4, 48, 64)])
    source = fill(tmp_path / "in", one=mp4(0), shots=encode(shots, Fraction(24000, 1001)))
    (source / "shots.json").write_text('{"long": "three of them"}')
    (source / "still.png").write_bytes(cv2.imencode(".png", shots[0])[1].tobytes())
    (source / "still.json").write_text('{"long": "only long"}')
    seen = []
    summary = prepare(source, tmp_path / "out", HERE, seen.append)
    assert (summary.files, summary.kept, summary.skipped, summary.frames, summary.shards) == (3, 4, 0, 32, 1)
    assert summary.tally == Tally(readable=3, shots=5, kept=4, clips=Counter(min_frames=1))
    (lost,) = summary.rejected
    assert (lost.file, lost.stage, lost.kind, lost.clips) == ("shots.mp4", "cut", "min_frames", 1)
    assert lost.reason == "1 of 3 shots have fewer than 8 frames: 21:25"
    files = [(1, 3, "one.mp4", 1), (2, 3, "shots.mp4", 3), (3, 3, "still.png", 4)]
    assert [(p.done, p.total, p.file, p.clips) for p in seen] == files
    rows = Index.open(tmp_path / "out").table.to_pylist()
    assert [(r["file"], r["caption"], r["caption_long"], r["frames"], r["height"], r["media"]) for r in rows] == [
        ("one.mp4", "this is one", "", 10, 32, "mp4"),
        ("shots.mp4", "this is shots", "three of them", 12, 48, "mp4"),
        ("shots.mp4", "this is shots", "three of them", 9, 48, "mp4"),
        ("still.png", "only long", "", 1, 48, "png"),
    ]
    assert [r["fps"] for r in rows[:3]] == pytest.approx([10, 24000 / 1001, 24000 / 1001])
    shards = sorted(str(p) for p in (tmp_path / "out" / "shards").glob("*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == [r["uid"] for r in rows]
    assert [s["json"]["caption_long"] for s in samples] == [r["caption_long"] for r in rows]
    for sample, expected in zip(samples, [picture(0), shots[:12], shots[12:21]], strict=False):
        found = video.decode(sample["mp4"])
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).mean() < 4
    (sheet,) = (tmp_path / "out" / "previews").iterdir()
    assert sheet.name == f"{Path(shards[0]).stem}-0000.jpg"
    assert cv2.imread(str(sheet)).shape == (4 * 54, 768, 3)


def test_previews_may_be_left_out_and_change_nothing_else(tmp_path):
    source = fill(tmp_path / "in", one=mp4(0))
    prepare(source, tmp_path / "with", HERE)
    prepare(source, tmp_path / "without", PrepareOptions(workers=0, previews=False))
    without = tree(tmp_path / "without")
    assert not any(name.startswith("previews") for name in without)
    assert {k: v for k, v in tree(tmp_path / "with").items() if not k.startswith("previews")} == without


def test_what_cannot_be_used_is_rejected_with_its_reason_and_stops_nothing(tmp_path):
    source = fill(
        tmp_path / "in", good=mp4(0), empty=b"", words=b"not a video " * 99, short=mp4(1)[:-900], tiny=mp4(2, height=8)
    )
    fill(source, again=mp4(0))
    (source / "silent.mp4").write_bytes(mp4(3))
    (source / "gone.mp4").symlink_to("nowhere")
    summary = prepare(source, tmp_path / "out", HERE)
    rejected = reasons(summary)
    assert (summary.files, summary.kept) == (8, 1)
    assert set(rejected) == {f"{n}.mp4" for n in ("empty", "words", "short", "tiny", "silent", "good", "gone")}
    assert rejected["silent.mp4"] == "no caption"
    assert rejected["good.mp4"] == "same bytes as again.mp4; its words differ and are not used"
    assert rejected["tiny.mp4"] == "8 x 32 pixels, smaller than 16"
    assert rejected["gone.mp4"] == "No such file or directory"
    assert [one.file for one in summary.rejected] == sorted(rejected)
    assert summary.tally.files == {"unusable file": 4, "no caption": 1, "same bytes": 1, "cannot be read": 1}
    assert summary.tally.found == 8
    (listed,) = (tmp_path / "out" / "quarantine").iterdir()
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [Rejection.from_json(line) for line in lines] == summary.rejected
    before = tree(tmp_path / "out")
    again = prepare(source, tmp_path / "out", HERE)
    assert again.rejected == summary.rejected
    assert (again.kept, again.skipped, again.shards) == (0, 5, 0)
    assert tree(tmp_path / "out") == before
    assert again.dataset == summary.dataset


def test_clips_that_break_a_limit_are_listed_with_rows_value_and_limit(tmp_path):
    still = np.repeat(picture(1, 1), 12, axis=0)
    source = fill(tmp_path / "in", film=encode(np.concatenate([picture(0, 16), still]), Fraction(10)), short=mp4(5))
    filters = Filters(min_motion=0.1, min_seconds=1.2, min_side=30, max_caption_chars=20)
    options = PrepareOptions(workers=0, filters=filters, cut=CutOptions(short_side=16))
    summary = prepare(source, tmp_path / "out", options)
    assert summary.kept == 1
    assert summary.tally.clips == {"min_motion": 1, "min_seconds": 1}
    told = {(one.file, one.rows): one for one in summary.rejected}
    assert set(told) == {("film.mp4", "16:28"), ("short.mp4", "0:10")}
    assert {one.stage for one in summary.rejected} == {"filter"}
    assert told["short.mp4", "0:10"].reason == "min_seconds: lasts 1 s, less than 1.2"
    assert "less than 0.1" in told["film.mp4", "16:28"].reason
    stages, dropped = summary.tally.funnel(summary.limits)
    assert stages == [
        ("files found", 2),
        ("readable", 2),
        ("shots", 3),
        ("after min_frames", 3),
        ("after min_seconds", 2),
        ("after min_side", 2),
        ("after min_motion", 1),
        ("kept", 1),
    ]
    assert dropped == {"after min_seconds": {"min_seconds 1.2": 1}, "after min_motion": {"min_motion 0.1": 1}}


def test_near_copies_are_found_in_the_same_run_and_in_what_was_there(tmp_path):
    brighter = np.clip(picture(0, 12, 64, 64).astype(int) + 12, 0, 255).astype(np.uint8)
    source = fill(tmp_path / "in", a=mp4(0, frames=12, height=64, width=64), b=mp4(1, height=64, width=64))
    fill(source, c=encode(brighter, Fraction(8)))
    options = PrepareOptions(workers=0, filters=Filters(near_duplicates=6))
    one = prepare(source, tmp_path / "out", options)
    assert (one.kept, one.tally.clips) == (2, {"near_duplicates": 1})
    assert reasons(one) == {"c.mp4": "nearly the same picture as a.mp4 0:12, within 6 bits"}
    (source / "c.mp4").unlink()
    prepare(source, tmp_path / "later", options)
    later = fill(tmp_path / "more", d=encode(brighter, Fraction(8)), e=mp4(2))
    two = prepare(later, tmp_path / "later", options)
    assert (two.kept, reasons(two)) == (1, {"d.mp4": "nearly the same picture as a.mp4 0:12, within 6 bits"})


def test_missing_captions_are_kept_when_allowed(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(mp4(0))
    with pytest.raises(InputError, match=r"1 files, the first is a\.mp4: no caption"):
        prepare(tmp_path / "in", tmp_path / "out", HERE)
    assert not (tmp_path / "out").exists()
    prepare(tmp_path / "in", tmp_path / "out", PrepareOptions(allow_missing_captions=True))
    assert column(tmp_path / "out", "caption") == [""]


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
    assert summary.dataset.kept == 7
    after = Index.open(out)
    assert after.table["uid"].to_pylist()[:6] == first.table["uid"].to_pylist()
    assert len(after) == 7
    assert {name: content for name, content in tree(out).items() if name in before} == before
    for changed in (captions, {**captions, "extra.mp4": {"short": "more", "long": "and more"}}):
        (source / "captions.json").write_text(json.dumps({**changed, "extra.mp4": changed.get("extra.mp4", "other")}))
        assert reasons(prepare(source, out, HERE)) == {
            "extra.mp4": "it is in the dataset with another caption: prepare into a new folder"
        }
    assert Index.open(out).digest == after.digest


def test_files_are_known_by_their_bytes_when_they_move_or_are_touched(tmp_path, monkeypatch):
    source, out = fill(tmp_path / "in", a=mp4(0), b=mp4(1)), tmp_path / "out"
    prepare(source, out, HERE)
    read = []
    monkeypatch.setattr("data.prepare.pending.digest", lambda place: read.append(place.where) or digest(place))
    from data.sources.files import digest

    assert prepare(source, out, HERE).skipped == 2
    assert not read  # not even read again
    os.utime(source / "a.mp4", (1, 1))
    source.rename(tmp_path / "moved")
    assert prepare(tmp_path / "moved", out, HERE).skipped == 2
    assert len(read) == 2
    assert len(Index.open(out)) == 2


def test_other_options_are_refused_with_a_list_of_what_differs(tmp_path):
    source, out = fill(tmp_path / "in", a=mp4(0)), tmp_path / "out"
    prepare(source, out, HERE)
    other = PrepareOptions(workers=0, cut=CutOptions(short_side=16, sizes=None), filters=Filters(min_motion=0.1))
    with pytest.raises(InputError, match=r"min_motion none \(now 0\.1\), short_side none \(now 16\)"):
        prepare(source, out, other)
    sizes = PrepareOptions(workers=0, cut=CutOptions(sizes=((32, 32), (16, 32))))
    prepare(source, tmp_path / "sizes", sizes)
    assert prepare(source, tmp_path / "sizes", sizes).skipped == 1


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


def test_a_file_that_hangs_is_rejected_and_tried_again(tmp_path):
    source, out = fill(tmp_path / "in", a=mp4(0), hangs=mp4(1), z=mp4(2)), tmp_path / "out"
    options = PrepareOptions(workers=1, timeout=5.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.prepare.pipeline.convert", convert_but_hang)
        summary = prepare(source, out, options)
    assert summary.kept == 2
    (lost,) = summary.rejected
    assert (lost.file, lost.kind, lost.reason, lost.again) == (
        "hangs.mp4",
        "took too long",
        "not done within 5 s: raise the timeout",
        True,
    )
    first = tree(out)
    again = prepare(source, out, HERE)
    assert (again.kept, again.skipped, again.rejected) == (1, 2, [])
    assert {name: content for name, content in tree(out).items() if name in first} == first
    assert again.dataset == Tally(readable=3, shots=3, kept=3)
    assert prepare(source, out, HERE).skipped == 3


def test_a_file_that_vanishes_or_changes_meanwhile_is_rejected(tmp_path, monkeypatch):
    source, out = fill(tmp_path / "in", a=mp4(0), b=mp4(1), c=mp4(2)), tmp_path / "out"

    def meddle(path, options):
        (source / "b.mp4").unlink(missing_ok=True)
        if path.name == "c.mp4":
            path.write_bytes(mp4(3))
        return clips.cut_into_clips(path, options)

    monkeypatch.setattr(data.prepare.convert, "cut_into_clips", meddle)
    summary = prepare(source, out, HERE)
    assert summary.kept == 1
    assert reasons(summary) == {"b.mp4": "No such file or directory", "c.mp4": "it was changed while it was prepared"}
    assert all(one.again for one in summary.rejected)


def test_the_first_files_only(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    synth(source, 6, seed=0)
    assert prepare(source, out, PrepareOptions(workers=0, limit=2)).files == 2
    summary = prepare(source, out, PrepareOptions(workers=0, limit=5))
    assert (summary.files, summary.skipped, summary.kept) == (5, 2, 3)
    assert column(out, "file") == [f"clip-{n:05d}.mp4" for n in range(5)]


def test_a_table_of_urls_and_paths(tmp_path, monkeypatch):
    """What is committed is not asked for again, what is absent is told, what only failed this time comes later."""
    monkeypatch.setattr("data.remote.remote_files.FIRST_WAIT_SECONDS", 0.01)
    fill(tmp_path / "web", a=mp4(0), b=mp4(1), twin=mp4(0))
    fill(tmp_path, here=mp4(2))
    with served(tmp_path / "web") as server:
        table = [f"{server.url}/{name}.mp4,{name},long {name}" for name in ("a", "b", "absent", "twin")]
        (tmp_path / "list.csv").write_text("\n".join(["path,caption,long", *table, "here.mp4,here,"]))
        server.faults = {"/a.mp4": ["cut", 503], "/b.mp4": [500, 500, 500]}
        summary = prepare(tmp_path / "list.csv", tmp_path / "out", HERE)
        assert server.asked == {"/a.mp4": 3, "/b.mp4": 3, "/absent.mp4": 1, "/twin.mp4": 1}
        assert column(tmp_path / "out", "file") == ["here.mp4", f"{server.url}/a.mp4"]
        assert column(tmp_path / "out", "caption_long") == ["", "long a"]
        told = {name.rpartition("/")[2]: reason for name, reason in reasons(summary).items()}
        assert told == {
            "b.mp4": "the server says 500 Internal Server Error (3 tries)",
            "absent.mp4": "there is no such file",
            "twin.mp4": f"same bytes as {server.url}/a.mp4; its words differ and are not used",
        }
        server.asked.clear()
        before = tree(tmp_path / "out")
        again = prepare(tmp_path / "list.csv", tmp_path / "out", HERE)
        assert server.asked == {"/absent.mp4": 1, "/b.mp4": 1}
        assert (again.kept, again.skipped) == (1, 3)
        assert {name: content for name, content in tree(tmp_path / "out").items() if name in before} == before


def test_tars_are_sources(tmp_path):
    tar_of(tmp_path / "a.tar", **{"0__mp4": mp4(0), "0__txt": b"zero", "1__mp4": b"broken", "1__txt": b"one"})
    with served(tmp_path) as server:
        one = prepare(tmp_path / "a.tar", tmp_path / "one", HERE)
        two = prepare(f"{server.url}/a.tar", tmp_path / "two", HERE)
        assert prepare(f"{server.url}/a.tar", tmp_path / "two", HERE).skipped == 2
    for summary in (one, two):
        assert (summary.files, summary.kept, set(reasons(summary))) == (2, 1, {"a.tar/1.mp4"})
    assert column(tmp_path / "one", "uid") == column(tmp_path / "two", "uid")
    assert prepare(tmp_path / "a.tar", tmp_path / "one", HERE).skipped == 2


def test_inputs_that_cannot_work(tmp_path):
    source = fill(tmp_path / "in", bad=b"no video")
    with pytest.raises(InputError, match=r"the first is bad\.mp4: no video but text"):
        prepare(source, tmp_path / "out", HERE)
    assert not (tmp_path / "out").exists()
    brief = fill(tmp_path / "brief", good=mp4(0, frames=5))
    with pytest.raises(InputError, match="have fewer than 8 frames: 0:5") as error:
        prepare(brief, tmp_path / "out", HERE)
    assert error.value.remedy == "lower --min-frames, or leave it out"
    long = PrepareOptions(workers=0, cut=CutOptions(min_frames=1), filters=Filters(min_seconds=9))
    with pytest.raises(InputError, match=r"lasts 0\.5 s, less than 9") as error:
        prepare(brief, tmp_path / "out", long)
    assert error.value.remedy == "loosen --min-seconds"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.doc").write_text("x")
    with pytest.raises(InputError, match=r"thesis\.doc"):
        prepare(source, tmp_path / "other", HERE)
    with pytest.raises(InputError, match="is a file"):
        prepare(source, source / "bad.mp4", HERE)
    for wrong in ({"limit": 0}, {"workers": -1}, {"timeout": 0}, {"timeout": float("nan")}, {"memory": 5}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} is at least"):
            prepare(source, tmp_path / "out", PrepareOptions(**wrong))
    with pytest.raises(InputError, match="no samples in its tars"):
        prepare(tar_of(tmp_path / "empty.tar"), tmp_path / "out", HERE)
    with pytest.raises(InputError, match="max_black is 0 to 1"):
        prepare(source, tmp_path / "out", PrepareOptions(filters=Filters(max_black=2)))


def test_two_at_once_are_refused(tmp_path):
    source = fill(tmp_path / "in", a=mp4(0), b=mp4(1))

    def second(_):
        with pytest.raises(InputError, match="is in use"):
            prepare(source, tmp_path / "out", HERE)

    assert prepare(source, tmp_path / "out", HERE, second).kept == 2


def test_a_ledger_of_many_files_is_small(tmp_path):
    source, out = fill(tmp_path / "in", a=mp4(0)), tmp_path / "out"
    prepare(source, out, HERE)
    (commit,) = (out / "commits").iterdir()
    history = History.read(out, json.loads(commit.read_text())["config"], pictures=True)
    (entry,) = history.versions.values()
    assert (entry.file, entry.kept, entry.rejected, entry.again) == ("a.mp4", True, (), False)
    assert history.seen.near(column(out, "phash")[0], 0) == "a.mp4 0:10"


def test_real_clips(tmp_path, real_clips):
    options = PrepareOptions(cut=CutOptions(short_side=64), workers=0)
    summary = prepare(real_clips, tmp_path / "out", options)
    index = Index.open(tmp_path / "out")
    assert (summary.files, summary.kept, summary.rejected) == (3, 9, [])
    assert index.frames.tolist() == [132, 30, 46, 61, 50, 55, 8, 240, 150]
    assert index.height.tolist() == [64] * 9
    assert index.caption(8, "long").startswith("In a dark clean room")
    assert len(index.caption(8)) < len(index.caption(8, "long"))


def test_drawn_clips_are_one_shot(tmp_path):
    """The quickstart's clips must not be cut: sudden colours on a dark ground are not a cut."""
    source = tmp_path / "in"
    synth(source, 32, seed=5)
    assert prepare(source, tmp_path / "out", HERE).kept == 32
