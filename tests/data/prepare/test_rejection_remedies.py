"""What is left out says why and what to do, and both are true: each remedy was tried, or is an option that exists."""

import io
import json
from dataclasses import fields
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data.captions.captions import Caption
from data.curation.filters import Filters
from data.dataset.index import Index
from data.dataset.publish import publish
from data.dataset.shards import digest_of
from data.integrity.check import check
from data.integrity.findings import LEAVE_OUT, LEAVE_OUT_BAD, LEAVE_OUT_SECOND, LEAVE_OUT_UNDECODED, REBUILD, RESTORE
from data.integrity.repair import repair
from data.prepare import rejection_remedies
from data.prepare.pipeline import PrepareOptions, prepare
from data.prepare.shard_writer import same_bytes
from data.sources.files import SourceFile, local_place
from launcher.core.terminal import Console
from launcher.tables.prepare_tables import print_summary
from parallel.errors import InputError
from tests.support import datasets
from tests.support.datasets import CONFIG, add, copy, make, read_all
from tests.support.films import ONE, TWO30, stamped, turned, write


def sound(path: Path) -> bytes:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 8000
        container.mux(stream.encode(samples))
        container.mux(stream.encode(None))
    return path.read_bytes()


def picture(size: tuple[int, int], form: str = "JPEG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(stamped(1, *size)[0]).save(data, form, quality=95)
    return data.getvalue()


@pytest.fixture(scope="module")
def rejected(tmp_path_factory):
    """{file: (reason, remedy)} of a folder of what people have; and the summary."""
    work = tmp_path_factory.mktemp("remedies")
    film = {name: write(work / f"a.{name}", stamped(16), rate=25).read_bytes() for name in ("mp4", "avi", "mkv")}
    tilted = turned(film["mp4"], (ONE // 2, ONE // 2, 0, -ONE // 2, ONE // 2, 0, 0, 0, TWO30))
    damaged = bytearray(write(work / "damaged.mp4", stamped(24), rate=25).read_bytes())
    at = damaged.index(b"mdat") + 900
    damaged[at : at + 200] = bytes(200)
    files = {
        "good.mp4": film["mp4"],
        "again.mp4": film["mp4"],
        "empty.mp4": b"",
        "text.mp4": b"no film\n" * 99,
        "zip.mp4": b"PK\x03\x04" + bytes(range(200)),
        "lfs.mp4": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "zeros.mp4": bytes(5000),
        "noise.mp4": bytes(range(255, 0, -1)) * 20,
        "cut.mp4": film["mp4"][:-200],
        "cut.avi": film["avi"][: len(film["avi"]) * 3 // 4],
        "cut.mkv": film["mkv"][: len(film["mkv"]) * 3 // 4],
        "damaged.mp4": bytes(damaged),
        "sound.mp4": sound(work / "sound.mp4"),
        "tilted.mp4": tilted,
        "short.mp4": write(work / "short.mp4", stamped(16)[5:9], rate=25).read_bytes(),
        "other.jpg": picture((48, 64), "AVIF"),
        "scan.png": picture((48, 64), "TIFF"),
        "tiny.jpg": picture((8, 64)),
        "half.jpg": picture((48, 64))[:800],
        "silent.mp4": write(work / "silent.mp4", stamped(16)[::-1], rate=25).read_bytes(),
    }
    for name, data in files.items():
        (work / "in" / name).parent.mkdir(exist_ok=True)
        (work / "in" / name).write_bytes(data)
    (work / "in" / "captions.json").write_text(json.dumps({name: name for name in files if name != "silent.mp4"}))
    summary = prepare(work / "in", work / "out", PrepareOptions(workers=0, previews=False))
    return {one.file: (one.reason, rejection_remedies.remedy_of(one)) for one in summary.rejected}, summary


@pytest.mark.parametrize(
    ("file", "reason", "remedy"),
    [
        ("empty.mp4", "the file is empty", "download it again"),
        ("text.mp4", "no video but text", "leave it out"),
        ("zip.mp4", "no video but a zip archive", "unpack it"),
        ("lfs.mp4", "a Git LFS pointer", "git lfs pull"),
        ("zeros.mp4", "never written to the end", "download it again"),
        ("noise.mp4", "no kind of video that FFmpeg knows", "convert it"),
        ("cut.mp4", "cut short", "download it again"),
        ("cut.avi", "cut short: its frames go to byte", "download it again"),
        ("cut.mkv", "cut short: its frames go to byte", "download it again"),
        ("damaged.mp4", "frames that others refer to are missing", "ffmpeg -i IN OUT.mp4"),
        ("sound.mp4", "no video stream (it has: audio)", "the file that has the pictures"),
        ("tilted.mp4", "it is displayed tilted", "upright"),
        ("short.mp4", "fewer than 8 frames", "--min-frames"),
        ("other.jpg", "no video but a picture (AVIF)", "save it as JPEG"),
        ("scan.png", "no video but a picture (TIFF)", "save it as JPEG"),
        ("tiny.jpg", "smaller than 16", "larger"),
        ("half.jpg", "truncated", "save it again"),
        ("silent.mp4", "no caption", "--allow-missing-captions"),
        ("good.mp4", "same bytes as again.mp4; its words differ", "give them to again.mp4"),
    ],
)
def test_each_rejection_says_why_and_what_to_do(rejected, file, reason, remedy):
    told, summary = rejected
    assert reason in told[file][0]
    assert remedy in told[file][1]
    assert summary.kept == 1


def test_the_table_of_rejections_has_the_remedies(rejected, tmp_path):
    console = Console(width=400, file=io.StringIO())
    print_summary(console, rejected[1], tmp_path, None)
    said = console.file.getvalue()
    for _, remedy in rejected[0].values():
        assert remedy.split("[")[0][:40] in said


@pytest.mark.parametrize(
    ("first", "words", "reason", "remedy"),
    [
        ("A", "A", "same bytes as a.mp4", "none is needed: it is in the dataset"),
        ("A", "", "same bytes as a.mp4", "none is needed: it is in the dataset"),
        ("A", "B", "same bytes as a.mp4; its words differ and are not used", "give them to a.mp4 and prepare into a"),
        ("", "B", "same bytes as a.mp4; its words differ and are not used", "give them to a.mp4 and prepare into a"),
    ],
)
def test_a_twin_with_other_words_says_that_these_are_not_used(tmp_path, first, words, reason, remedy):
    (tmp_path / "b.mp4").write_bytes(b"video")
    file = SourceFile("b.mp4", local_place(tmp_path / "b.mp4"), Caption(words))
    found = same_bytes(file, "a.mp4", digest_of(Caption(first)))
    assert found.reason == reason
    assert remedy in rejection_remedies.remedy_of(found)


def test_every_limit_has_its_remedy():
    limits = {one.name: rejection_remedies.KINDS[one.name] for one in fields(Filters)}
    for name, remedy in limits.items():
        assert f"--{name.replace('_', '-')}" in remedy


def test_nothing_usable_names_the_remedy_of_the_first(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(b"")
    (tmp_path / "in" / "a.txt").write_text("words")
    with pytest.raises(InputError, match="the file is empty") as error:
        prepare(tmp_path / "in", tmp_path / "out", PrepareOptions(workers=0))
    assert "download it again" in error.value.remedy
    assert "ffprobe" not in str(error.value)


# --- Findings in a dataset: the remedy is followed, and then nothing is left to find ----------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("findings") / "dataset")


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def a_row(dataset: Path) -> dict:
    return Index.open(dataset).table.slice(0, 1).to_pylist()[0]


def in_the_media(ill: Path) -> None:
    flip(ill / a_row(ill)["shard"], a_row(ill)["media_offset"] + 99)


def in_the_words(ill: Path) -> None:
    flip(ill / a_row(ill)["shard"], a_row(ill)["json_offset"] + 3)


def in_a_header(ill: Path) -> None:
    flip(ill / a_row(ill)["shard"], a_row(ill)["json_offset"] - 500)


def at_the_end(ill: Path) -> None:
    tar = ill / a_row(ill)["shard"]
    tar.write_bytes(tar.read_bytes()[:-512])


def in_the_index(ill: Path) -> None:
    part = ill / "index" / f"{Path(a_row(ill)['shard']).stem}.parquet"
    flip(part, 200)


def without_an_index(ill: Path) -> None:
    (ill / "index" / f"{Path(a_row(ill)['shard']).stem}.parquet").unlink()


def twice(ill: Path) -> None:
    add(ill, (1, 4))
    publish(ill, digest_of(CONFIG))


def half_written(ill: Path) -> None:
    (ill / "shards" / ".a.tar.tmp").write_bytes(b"half")


def half_a_folder(ill: Path) -> None:
    (ill / "shards" / ".a.tar.tmp").mkdir()


@pytest.mark.parametrize(
    ("damage", "kind", "remedy"),
    [
        (in_the_media, "changed data", LEAVE_OUT),
        (in_the_words, "changed data", RESTORE),
        (in_a_header, "changed header", RESTORE),
        (at_the_end, "short shard", RESTORE),
        (in_the_index, "changed index", REBUILD),
        (without_an_index, "missing index", REBUILD),
        (twice, "same sample", LEAVE_OUT_SECOND),
        (half_written, "stray file", "--repair removes it"),
        (half_a_folder, "stray file", "--repair moves it to quarantine/"),
    ],
)
def test_a_finding_is_gone_once_its_remedy_is_followed(whole, tmp_path, damage, kind, remedy):
    ill = copy(whole, tmp_path / "ill")
    before = set(read_all(ill))
    damage(ill)
    found = next(one for one in check(ill) if one.kind == kind)
    assert found.remedy == remedy
    done = repair(ill)
    assert check(ill) == []
    lost = len(done.lost)
    assert lost == ("leaves" in remedy)
    if remedy in (RESTORE, REBUILD):
        assert set(read_all(ill)) == before
    if "removes" in remedy:
        assert not list(ill.rglob(".a.tar.tmp"))
    if damage is half_a_folder:
        assert list((ill / "quarantine").rglob(".a.tar.tmp"))


def test_what_was_written_badly_is_not_better_in_a_copy(tmp_path, monkeypatch):
    right = datasets._row
    monkeypatch.setattr(datasets, "_row", lambda n: {**right(n), **({"frames": 31} if n == 1 else {})})
    ill = make(tmp_path / "ill")
    (found,) = check(ill, decode=True)
    assert found.remedy == LEAVE_OUT_UNDECODED
    assert repair(ill).lost == []  # without --decode nothing is found
    assert [entry["sample"] for entry in repair(ill, decode=True).lost] == [found.sample]
    assert "copy" in LEAVE_OUT_BAD


def test_an_index_that_the_disk_refuses_is_left_alone(whole, tmp_path):
    ill = copy(whole, tmp_path / "ill")
    part = ill / "index" / f"{Path(a_row(ill)['shard']).stem}.parquet"
    part.unlink()
    part.mkdir()
    found = [one for one in check(ill) if one.kind != "stray file"]
    assert [(one.kind, one.file) for one in found] == [("unreadable", f"index/{part.name}")]
    assert "look at the disk" in found[0].remedy
