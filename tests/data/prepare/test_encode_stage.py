"""Latents are computed once: the dataset of them is exact, whole, and trains as the frames do, bit for bit."""

from __future__ import annotations

import io
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.dataset import latents_file
from data.dataset.index import Index
from data.integrity.check import check
from data.integrity.repair import repair
from data.planning.clip_sampling import Sampling
from data.prepare.encode_stage import EncodeOptions, encode
from data.prepare.import_webdataset import import_tars
from data.prepare.pipeline import PrepareOptions, prepare
from data.streams.shard_reader import ShardReader
from data.synthetic.shapes import synth
from parallel.errors import InputError
from parallel.sequence.geometry import Geometry
from tests.support.datasets import clip, copy, read_all, tar_of, tree, webdataset_keys
from tests.support.encoders import Means, encode_all
from tests.support.kills import Helper

WARNS = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """6 clips of 10 frames of 32 x 32, in 3 shards."""
    folder = tmp_path_factory.mktemp("source")
    synth(folder / "in", 6, seed=0, frames=10)
    prepare(folder / "in", folder / "out", PrepareOptions(workers=0, shard_files=2))
    return folder / "out"


@pytest.fixture(scope="module")
def encoded(source, tmp_path_factory) -> Path:
    """Its latents."""
    out = tmp_path_factory.mktemp("encoded") / "out"
    encode(source, out, Means())
    return out


def frames_of(dataset: Path, row: int) -> np.ndarray:
    index = Index.open(dataset)
    return ShardReader(index, Sampling(Geometry())).frames(row, 0, int(index.frames[row]))


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_a_file_of_latents(dtype):
    moments = np.random.default_rng(0).normal(size=(2, 5, 4, 3, 2)).astype(np.float32)
    if dtype == "bf16":
        moments = (moments.view("<u4") & 0xFFFF0000).view("<f4")
    data, slices = latents_file.encode(moments, dtype)
    plain = np.load(io.BytesIO(data), allow_pickle=False)
    if dtype == "bf16":
        plain = (plain.astype("u4") << 16).view("f4")
    np.testing.assert_array_equal(plain, moments)
    assert slices == latents_file.slices(data)
    assert slices.rows == (0, 1, 2, 3, 4, 5)
    each = 4 * 3 * 2 * (4 if dtype == "float32" else 2)
    assert np.diff(slices.offsets).tolist() == [each] * 5 + [each * 5]
    header = data[: slices.offsets[0]]
    for begin, end in ((0, 5), (1, 2), (3, 5)):
        assert slices.covering(begin, end) == (begin, end)
        found = latents_file.decode(header, data[slices.offsets[begin] : slices.offsets[end]])
        np.testing.assert_array_equal(found, moments[0, begin:end])
    for wrong in (data[:-1], data[:20], b"?" + data[1:]):
        with pytest.raises(InputError, match=r"\.npy of float32"):
            latents_file.slices(wrong)


@WARNS  # webdataset leaves files open
def test_every_clip_is_encoded_and_all_else_is_carried_over(source, encoded):
    before, after = Index.open(source), Index.open(encoded)
    assert len(before) == len(after) == 6
    for row in range(6):
        part = after.part(row)
        data = after.shard(row).read_bytes()[part.offset : part.offset + part.size]
        np.testing.assert_array_equal(np.load(io.BytesIO(data)), Means()(frames_of(source, row)[:9]))
        assert (after.media(row), after.frames[row], after.height[row], after.width[row]) == ("npy", 9, 32, 32)
    kept = ["file", "caption", "caption_long", "start", "stop", "fps", "motion", "sharpness", "black", "phash"]
    assert after.table.select(kept).to_pylist() == before.table.select(kept).to_pylist()
    assert after.table["motion"][0].as_py() is not None
    assert len(set(read_all(encoded))) == 6
    for tar in (encoded / "shards").iterdir():
        assert len(webdataset_keys(tar)) == 2
    assert len(list((encoded / "previews").iterdir())) == len(list((source / "previews").iterdir())) == 3
    assert check(encoded) == []


def test_a_rerun_computes_nothing_and_changes_nothing(source, encoded, tmp_path):
    out, encoder = copy(encoded, tmp_path / "out"), Means()
    summary = encode(source, out, encoder)
    assert (encoder.calls, summary.shards, summary.skipped, summary.generation) == (0, 0, 3, None)
    assert tree(out) == tree(encoded)
    commit = sorted((out / "commits").iterdir())[1]
    commit.unlink()
    shutil.rmtree(out / "manifest")
    summary = encode(source, out, encoder)
    assert (encoder.calls, summary.shards, summary.skipped, summary.generation) == (2, 1, 2, 1)
    assert tree(out) == tree(encoded)


@WARNS
@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_kill_at_every_file_operation(source, tmp_path, every):
    with Helper() as helper:
        whole, out = tmp_path / "whole", tmp_path / "out"
        helper.warm(encode_all, str(source), tmp_path / "warm")
        death = helper.run(encode_all, str(source), whole)
        uids = read_all(whole)
        for at, torn in death.points()[::every]:
            shutil.rmtree(out, ignore_errors=True)
            assert helper.run(encode_all, str(source), out, at=at, torn=torn).killed
            if list((out / "manifest").glob("[0-9]*.json")):
                assert read_all(out) == uids
            else:
                with pytest.raises(InputError):
                    Index.open(out)
            assert not helper.run(encode_all, str(source), out).killed
            assert tree(out) == tree(whole), f"after a kill at {death.operations[at]}"


def test_parts_make_the_same_dataset_and_the_last_one_publishes(source, encoded, tmp_path):
    out = tmp_path / "out"
    for part, left, generation in ((2, 2, None), (1, 1, None), (2, 1, None), (3, 0, 1)):
        summary = encode(source, out, Means(), EncodeOptions(part=part, parts=3))
        assert (summary.left, summary.generation) == (left, generation)
    assert tree(out) == tree(encoded)
    with pytest.raises(InputError, match="--part 4/3"):
        encode(source, out, Means(), EncodeOptions(part=4, parts=3))


def test_processes_that_run_at_once_share_the_work(source, encoded, tmp_path):
    """One is in the middle of a shard; the other does the rest and leaves that one alone."""
    out, inside, go_on = tmp_path / "out", threading.Event(), threading.Event()
    found = []
    slow = Means(before=lambda: (inside.set(), go_on.wait(20)))
    thread = threading.Thread(target=lambda: found.append(encode(source, out, slow)))
    thread.start()
    assert inside.wait(20)
    quick = Means()
    summary = encode(source, out, quick)
    assert (quick.calls, summary.shards, summary.left, summary.generation) == (4, 2, 1, None)
    with pytest.raises(InputError, match="in use"):
        prepare(source.parent / "in", out, PrepareOptions(workers=0))
    go_on.set()
    thread.join()
    assert (slow.calls, found[0].shards, found[0].skipped, found[0].generation) == (2, 1, 2, 1)
    assert tree(out) == tree(encoded)


def test_what_fills_no_latent_is_rejected_and_text_alone_is_carried_over(tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(picture, "PNG")
    members = [("a.mp4", clip(0, 30, 16)), ("a.txt", b"a"), ("b.png", picture.getvalue()), ("b.txt", b"b")]
    (tmp_path / "1.tar").write_bytes(tar_of([*members, ("c.txt", b"words alone")]))
    (tmp_path / "2.tar").write_bytes(tar_of([members[0], ("a.txt", b"again")]))
    import_tars([str(tmp_path)], tmp_path / "in")
    assert frames_of(tmp_path / "in", 1).flags.writeable  # torch takes no other
    wide = Means(stride=(4, 20, 20))
    summary = encode(tmp_path / "in", tmp_path / "out", wide)
    assert (summary.clips, summary.texts, summary.shards, summary.left) == (1, 1, 1, 0)
    reasons = [one.reason for one in summary.rejected]
    assert reasons == ["30 frames of 16 x 16; a latent takes 1 of 20 x 20"] * 2
    (listed,) = (tmp_path / "out" / "quarantine").iterdir()
    assert [json.loads(line)["file"] for line in listed.read_text().splitlines()] == ["1.tar/a", "2.tar/a"]
    index = Index.open(tmp_path / "out")
    assert [(index.media(row), index.caption(row)) for row in range(2)] == [("npy", "b"), ("", "words alone")]
    before = tree(tmp_path / "out")
    again = encode(tmp_path / "in", tmp_path / "out", wide)
    assert [one.reason for one in again.rejected] == reasons
    assert tree(tmp_path / "out") == before
    with pytest.raises(InputError, match=r"none of 3 does; 1\.tar/a: 30 frames of 16 x 16"):
        encode(tmp_path / "in", tmp_path / "none", Means(stride=(4, 64, 64)))
    assert not (tmp_path / "none").exists()
    summary = encode(tmp_path / "in", tmp_path / "small", Means(), EncodeOptions(size=(8, 16), frames=6))
    assert (summary.clips, summary.frames, summary.frames_cut) == (3, 5 + 1 + 5, 50)
    small = Index.open(tmp_path / "small")
    assert {(int(small.height[row]), int(small.width[row])) for row in range(len(small)) if small.frames[row]} == {
        (8, 16)
    }


def test_the_same_latents_twice_are_told(tmp_path):
    """In one shard the second is rejected; in two, a person is told."""
    still = np.zeros((9, 16, 16, 3), np.uint8)
    for name, number in (("1", 0), ("2", 1)):
        members = [(f"{n}.mp4", clip(n, 9 + n)) for n in (number, number + 4)]
        (tmp_path / f"{name}.tar").write_bytes(tar_of([m for a in members for m in (a, (a[0][:-3] + "txt", b"same"))]))
    import_tars([str(tmp_path)], tmp_path / "in")
    blind = type("Blind", (Means,), {"__call__": lambda self, frames: Means.__call__(self, still)})
    summary = encode(tmp_path / "in", tmp_path / "out", blind())
    assert (summary.clips, summary.twice) == (2, 1)
    assert [one.kind for one in summary.rejected] == ["same clip"] * 2


@pytest.mark.parametrize(
    ("encoder", "options", "words"),
    [
        (Means(identity="means 2"), EncodeOptions(), r"codec means 1 \(now means 2\)"),
        (Means(dtype="bf16"), EncodeOptions(), r"dtype float32 \(now bf16\)"),
        (Means(), EncodeOptions(size=(16, 16)), r"size None \(now \[16, 16\]\)"),
        (Means(), EncodeOptions(size=(30, 32)), "use 1 frames of 24 x 32"),
        (Means(), EncodeOptions(frames=0), "at least 1 frames"),
    ],
)
def test_other_options_are_refused(source, encoded, encoder, options, words):
    before = tree(encoded)
    with pytest.raises(InputError, match=words):
        encode(source, encoded, encoder, options)
    assert tree(encoded) == before


def test_what_cannot_be_encoded_is_refused(source, encoded, tmp_path):
    with pytest.raises(InputError, match="holds latents"):
        encode(encoded, tmp_path / "out", Means())
    with pytest.raises(InputError, match="is the source"):
        encode(source, source, Means())
    nan = type("Nan", (Means,), {"__call__": lambda self, frames: Means.__call__(self, frames) * np.nan})
    with pytest.raises(InputError, match=r"finite numbers\n.*0000.*rows 0:10"):
        encode(source, tmp_path / "out", nan())
    assert not list((tmp_path / "out" / "shards").iterdir())


def test_a_shard_with_a_clip_that_cannot_be_read_is_left_for_later(source, encoded, tmp_path):
    ill, out = copy(source, tmp_path / "ill"), tmp_path / "out"
    index = Index.open(ill)
    shard, part = index.shard(3), index.part(3)
    whole = shard.read_bytes()
    shard.chmod(0o644)
    shard.write_bytes(whole[: part.offset + 100] + bytes([whole[part.offset + 100] ^ 1]) + whole[part.offset + 101 :])
    with pytest.raises(InputError, match=f"1 shards have one that cannot; .*sample {index.uid(3)}, part mp4"):
        encode(ill, out, Means())
    assert len(list((out / "commits").iterdir())) == 2
    assert not (out / "manifest").exists()
    shard.write_bytes(whole)
    encoder = Means()
    assert encode(ill, out, encoder).generation == 1
    assert encoder.calls == 2
    assert tree(out) == tree(encoded)


def test_repair_of_a_dataset_of_latents_keeps_its_codec(encoded, tmp_path):
    out = copy(encoded, tmp_path / "out")
    index = Index.open(out)
    part = index.part(4)
    flip(index.shard(4), part.offset + part.size - 1)  # of the log-variance
    (finding,) = check(out)
    assert (finding.kind, finding.sample) == ("changed data", index.uid(4))
    done = repair(out)
    assert (done.generation, check(out), len(Index.open(out))) == (2, [], 5)
    index = Index.open(out)
    assert list(latents_file.makers(index, latents_file.are_latents(index))) == [(out, "means 1")]


def flip(shard: Path, at: int) -> None:
    data = bytearray(shard.read_bytes())
    data[at] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(data)
