"""Whatever happens to a file of a dataset is found and named; what its own bytes can mend is mended, byte for byte."""

import os
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from data.containers.byte_ranges import Slices, digest_bytes
from data.dataset import index, latents_file, shards
from data.dataset.index import SCHEMA, Index
from data.dataset.lock import held
from data.dataset.publish import publish
from data.dataset.shards import Sample, digest_of, uid_of
from data.integrity.check import check
from data.integrity.expected_bytes import layout
from data.integrity.rebuild_index import as_stored, json_of
from data.integrity.repair import repair
from data.media import image
from data.media.h264 import encode
from data.prepare.pipeline import PrepareOptions, prepare
from data.synthetic.shapes import draw, synth
from parallel.errors import InputError
from tests.support import datasets
from tests.support.datasets import CONFIG, add, copy, make, read_all, tree, webdataset_keys

WEBDATASET = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
# where the fields of a tar header begin: name, mode, uid, gid, size, mtime, checksum, type, link, magic, version,
# user, group, device numbers, prefix, filling
HEADER = (0, 100, 108, 116, 124, 136, 148, 156, 157, 257, 263, 265, 297, 329, 337, 345, 500)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of two clips; nobody changes it."""
    return make(tmp_path_factory.mktemp("check") / "dataset")


@pytest.fixture
def ill(whole, tmp_path) -> Path:
    """A copy to damage."""
    return copy(whole, tmp_path / "ill")


def first(dataset: Path) -> str:
    """The id of a shard."""
    return Index.open(dataset).table["shard"][0].as_py()[7:-4]


def rows_of(dataset: Path, shard_id: str) -> list[dict]:
    return pyarrow.parquet.read_table(dataset / "index" / f"{shard_id}.parquet").to_pylist()


def kinds(findings) -> Counter[str]:
    return Counter(finding.kind for finding in findings)


def repaired(dataset: Path):
    """Repairs; what is left is whole, and a second repair finds nothing to do."""
    done = repair(dataset)
    assert check(dataset) == []
    again = repair(dataset)
    assert (again.findings, again.done, again.lost, again.generation) == ([], [], [], None)
    return done


def test_a_whole_dataset_has_no_findings(whole):
    before = tree(whole)
    seen = []
    assert check(whole, on_progress=seen.append) == check(whole, deep=False) == check(whole, decode=True) == []
    assert [(p.done, p.total, p.findings) for p in seen] == [(10240, 20480, 0), (20480, 20480, 0)]
    assert repair(whole).findings == []
    assert tree(whole) == before


@WEBDATASET
@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_tar_cut_at_every_block(whole, tmp_path, step):
    shard = first(whole)
    data = (whole / "shards" / f"{shard}.tar").read_bytes()
    rows, uids = rows_of(whole, shard), read_all(whole)
    ends = [row["media_offset"] + row["media_size"] for row in rows]
    for cut in range(0, len(data), 512 * step):
        ill = copy(whole, tmp_path / "ill")
        (ill / "shards" / f"{shard}.tar").write_bytes(data[:cut])
        lost = [row["uid"] for row, end in zip(rows, ends, strict=True) if end > cut]
        found = check(ill)
        assert {f.shard for f in found} == {shard}
        assert [f.sample for f in found if f.kind == "cut sample"] == lost
        assert kinds(found) == Counter({"short shard": 1, "cut sample": len(lost)}) - Counter()
        assert kinds(check(ill, deep=False)) == {"short shard": 1}
        done = repaired(ill)
        assert kinds(done.findings) == kinds(found)
        assert [entry["sample"] for entry in done.lost] == lost
        assert read_all(ill) == [uid for uid in uids if uid not in lost]
        if not lost:
            assert tree(ill) == tree(whole)
        elif len(lost) < len(rows):
            assert webdataset_keys(ill / "shards" / f"{shard}.tar") == [r["uid"] for r in rows if r["uid"] not in lost]
            assert len(Index.open(ill, Index.open(whole).digest)) == 4  # the older generation is still there


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_flipped_byte_in_every_part_and_header_field(whole, tmp_path, every):
    shard = first(whole)
    data = (whole / "shards" / f"{shard}.tar").read_bytes()
    flips = []
    for number, s in enumerate(layout(rows_of(whole, shard))):
        places = [s.start + n for n in HEADER] if s.what == "header" else [s.start, (s.start + s.stop) // 2, s.stop - 1]
        flips += [(s, at) for at in (places if every else places[number % 3 :: 9])]
    for stretch, at in flips:
        ill = copy(whole, tmp_path / "ill")
        (ill / "shards" / f"{shard}.tar").write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        (found,) = check(ill)
        assert (found.kind, found.shard) == (f"changed {stretch.what}", shard)
        assert (found.sample, found.part) == (stretch.sample, stretch.part)
        done = repaired(ill)
        if (stretch.what, stretch.part) == ("data", "mp4"):
            assert [(entry["sample"], entry["reason"]) for entry in done.lost] == [(stretch.sample, "changed bytes")]
            assert stretch.sample not in read_all(ill)
            assert len(read_all(ill)) == 3
        else:
            assert done.lost == []
            assert tree(ill) == tree(whole)


def test_the_frames_of_a_damaged_slice_are_named(ill):
    shard = first(ill)
    row = rows_of(ill, shard)[0]
    with (ill / "shards" / f"{shard}.tar").open("r+b") as file:
        file.seek(row["media_offset"] + row["slice_offsets"][1] + 20)
        file.write(b"?")
    assert check(ill)[0].what.endswith("frames 12 to 24")


def test_bytes_too_many(ill, whole):
    with (ill / "shards" / f"{first(ill)}.tar").open("ab") as file:
        file.write(b"more")
    assert kinds(check(ill)) == kinds(check(ill, deep=False)) == {"long shard": 1}
    repaired(ill)
    assert tree(ill) == tree(whole)


def test_a_missing_shard_leaves_its_samples_out_and_a_missing_disk_nothing(ill, whole):
    shard = first(ill)
    uids = [row["uid"] for row in rows_of(ill, shard)]
    (ill / "shards" / f"{shard}.tar").unlink()
    assert [(f.kind, f.shard) for f in check(ill)] == [("missing shard", shard)]
    done = repaired(ill)
    assert [(e["sample"], e["file"], e["reason"]) for e in done.lost] == [
        (uid, f"{n}.mp4", "its shard is missing") for n, uid in enumerate(uids)
    ]
    assert read_all(ill) == [uid for uid in read_all(whole) if uid not in uids]
    assert add(ill, (0, 1)) == shard  # what went can come again
    publish(ill, digest_of(CONFIG))
    assert sorted(read_all(ill)) == sorted(read_all(whole))
    assert check(ill) == []
    for tar in (ill / "shards").iterdir():
        tar.chmod(0o644)
        os.truncate(tar, 300)
    before = tree(ill)
    with pytest.raises(InputError, match=r"shards are damaged; nothing was changed"):
        repair(ill)
    assert tree(ill) == before
    for tar in (ill / "shards").iterdir():
        tar.unlink()
    before = tree(ill)
    with pytest.raises(InputError, match=r"has none of 2\n.*mount the disk"):
        repair(ill)
    assert tree(ill) == before


def changed(value):
    if isinstance(value, str):
        return value + "x"
    return 1.0 if value is None else value[:-1] if isinstance(value, list) else value + 1


@pytest.mark.parametrize("consistent", [False, True])
def test_a_wrong_row_of_every_kind(whole, tmp_path, consistent):
    """Changed on the disk, or wrong from the first, with hashes that fit."""
    shard = first(whole)
    rows = rows_of(whole, shard)
    cases = [(name, [rows[0], {**rows[1], name: changed(rows[1][name])}]) for name in SCHEMA.names]
    cases.append(("uid", [{**rows[0], "uid": rows[1]["uid"]}, {**rows[1], "uid": rows[0]["uid"]}]))
    cases += [("missing row", rows[:1]), ("extra row", [*rows, {**rows[0], "uid": "0" * 32}])]
    for number, (what, bad) in enumerate(cases if consistent else cases[::8]):
        ill = copy(whole, tmp_path / "ill")
        written = index.write_rows(ill, shard, bad)
        if consistent:
            shards.commit(ill, shard, {**shards.commits(ill)[shard], "index": written})
            (ill / "manifest" / "00000001.json").unlink()
            publish(ill, digest_of(CONFIG))
        every = check(ill)
        found = [f for f in every if f.kind != "changed index"]
        if what.endswith(" row"):
            assert kinds(found) == {what: 1}
        else:
            assert {(f.kind, f.part) for f in found} == {("wrong row", what)}
            assert found[-1].sample == rows[1]["uid"]
        assert {f.file for f in every} == {f"index/{shard}.parquet"}
        assert consistent == (len(found) == len(every))
        if not number % 8:
            assert repaired(ill).lost == []
            assert read_all(ill) == read_all(whole)
            assert (tree(ill) == tree(whole)) == (not consistent)


@pytest.mark.parametrize("content", [None, b"", b"PAR1 and more"])
def test_a_lost_index_is_made_again(ill, whole, content):
    file = ill / "index" / f"{first(ill)}.parquet"
    file.unlink() if content is None else file.write_bytes(content)
    kind = "missing index" if content is None else "changed index"
    assert [(f.kind, f.file) for f in check(ill)] == [(kind, f"index/{file.name}")]
    assert kinds(check(ill, deep=False)) == {kind: 1}
    repaired(ill)
    assert tree(ill) == tree(whole)


@pytest.mark.parametrize("what", ["commits", "manifest"])
def test_no_byte_of_a_record_changes_unseen(whole, tmp_path, what):
    ill = copy(whole, tmp_path / "ill")
    file = next((ill / what).iterdir())
    data = file.read_bytes()
    kind = "changed manifest" if what == "manifest" else "changed commit"
    for at in range(0, len(data), 11):
        for new in (data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], data[:at], data[:at] + b" " + data[at:]):
            file.write_bytes(new)
            assert (kind, f"{what}/{file.name}") in [(f.kind, f.file) for f in check(ill, deep=False)]


@pytest.mark.parametrize("content", [None, b"{}", b"["])
def test_a_lost_commit_is_made_again(ill, whole, content):
    shard = first(ill)
    file = ill / "commits" / f"{shard}.json"
    file.unlink() if content is None else file.write_bytes(content)
    assert [(f.kind, f.shard) for f in check(ill)] == [
        ("missing commit" if content is None else "changed commit", shard)
    ]
    assert repaired(ill).lost == []
    assert tree(ill, "commits", "quarantine") == tree(whole, "commits")
    made, was = shards.commits(ill)[shard], shards.commits(whole)[shard]
    assert {k: v for k, v in made.items() if k not in ("inputs", "left_out")} == {
        k: v for k, v in was.items() if k != "inputs"
    }
    if content is not None:
        assert (ill / "quarantine" / "strays" / "commits" / file.name).read_bytes() == content


def test_lost_generations(ill, whole):
    add(ill, (4, 5))
    publish(ill, digest_of(CONFIG))
    three = copy(ill, ill.parent / "three")
    (ill / "manifest" / "00000001.json").write_bytes(b"{}")
    assert [(f.kind, f.file) for f in check(ill)] == [("changed manifest", "manifest/00000001.json")]
    repaired(ill)
    assert tree(ill, "manifest", "quarantine") == tree(three, "manifest")
    assert [p.name for p in (ill / "manifest").iterdir()] == ["00000002.json"]
    ill = copy(three, ill)
    (ill / "manifest" / "00000001.json").unlink()
    assert kinds(check(ill)) == {"missing manifest": 1}
    repaired(ill)
    ill = copy(three, ill)
    (ill / "manifest" / "00000002.json").write_bytes(b"?")
    assert kinds(check(ill)) == {"changed manifest": 1, "unpublished": 1}
    with pytest.raises(InputError, match="data check"):
        Index.open(ill)
    assert repaired(ill).generation == 2
    assert tree(ill, "quarantine") == tree(three)
    for file in (ill / "manifest").iterdir():
        file.unlink()
    assert kinds(check(ill)) == {"missing manifest": 1}
    assert repaired(ill).generation == 1
    assert sorted(read_all(ill)) == sorted(read_all(three))


def test_strays_are_named_and_put_aside(ill, whole):
    names = [
        "shards/.x.tar.tmp",
        "shards/notes.txt",
        f"shards/{'1' * 32}.tar",
        f"index/{first(ill)}-{'2' * 16}.parquet",
    ]
    names += ["commits/list.txt", "manifest/1.json", f"previews/{'3' * 32}-0000.jpg"]
    for name in names:
        shards.write_bytes(ill / name, b"stray")
    shards.write_bytes(ill / "previews" / f"{first(ill)}-0000.jpg", b"ours")
    found = check(ill, deep=False)
    assert sorted((f.kind, f.file) for f in found) == sorted(("stray file", name) for name in names)
    done = repaired(ill)
    assert sorted(file for file, _ in done.done) == sorted(names)
    assert (ill / "previews" / f"{first(ill)}-0000.jpg").exists()
    assert tree(ill / "quarantine" / "strays") == dict.fromkeys(names[1:], b"stray")


def test_the_same_sample_twice(ill):
    add(ill, (1, 4))
    publish(ill, digest_of(CONFIG))
    twice = read_all(ill)
    (found,) = check(ill)
    assert (found.kind, twice.count(found.sample)) == ("same sample", 2)
    assert [entry["sample"] for entry in repaired(ill).lost] == [found.sample]
    assert sorted(read_all(ill)) == sorted(set(twice))


def test_two_accidents_at_once(whole, tmp_path):
    """Without the index, what proves itself by its id is kept; without the commit, the index tells what must be."""
    shard = first(whole)
    data = (whole / "shards" / f"{shard}.tar").read_bytes()
    row = rows_of(whole, shard)[1]
    for gone in ("index", "commits"):
        for at in (row["media_offset"] + 700, row["json_offset"] + 3, len(data) - 1):
            ill = copy(whole, tmp_path / "ill")
            next(p for p in (ill / gone).iterdir() if p.stem == shard).unlink()
            (ill / "shards" / f"{shard}.tar").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            found = kinds(check(ill))
            assert found[f"missing {'index' if gone == 'index' else 'commit'}"] == 1
            lost = [entry["sample"] for entry in repaired(ill).lost]
            expected = at < len(data) - 1 and (gone == "index" or at > row["media_offset"])
            assert lost == ([row["uid"]] if expected else [])
            assert read_all(ill) == [uid for uid in read_all(whole) if uid not in lost]


def test_damage_beside_damage_that_was_left_out(ill):
    """What is left of a repaired shard can be damaged and repaired again."""
    shard = first(ill)
    tar, rows = ill / "shards" / f"{shard}.tar", rows_of(ill, shard)
    for row, kept in ((rows[0], 3), (rows[1], 2)):
        data = bytearray(tar.read_bytes())
        data[row["media_offset"] + 40] ^= 1
        data[row["json_offset"] - 500] ^= 1
        tar.write_bytes(data)
        assert kinds(check(ill)) == {"changed data": 1, "changed header": 1}
        assert [entry["sample"] for entry in repaired(ill).lost] == [row["uid"]]
        assert len(read_all(ill)) == kept
    assert shard not in shards.commits(ill)


@pytest.mark.parametrize(
    ("column", "what"), [("frames", "30 frames, the index says 31"), ("width", "a frame of 16 x 16")]
)
def test_what_does_not_decode_as_stated_is_left_out(tmp_path, monkeypatch, column, what):
    """Wrong from the first, in the shard and in the index alike: only decoding tells."""
    right = datasets._row
    monkeypatch.setattr(datasets, "_row", lambda n: {**right(n), **({column: right(n)[column] + 1} if n == 1 else {})})
    ill = make(tmp_path / "ill")
    assert check(ill) == []
    (found,) = check(ill, decode=True)
    assert (found.kind, found.sample, found.part) == ("undecodable", right(1)["uid"], "mp4")
    assert found.what.startswith(what)
    assert [entry["sample"] for entry in repair(ill, decode=True).lost] == [found.sample]
    assert check(ill, decode=True) == []
    assert len(read_all(ill)) == 3


def test_what_cannot_be_read_is_not_dropped(ill, whole, monkeypatch):
    def fails(*_):
        raise OSError(5, "Input/output error")

    before = tree(ill)
    monkeypatch.setattr("data.integrity.shard_check._check_bytes", fails)
    assert kinds(check(ill)) == {"unreadable": 2}
    assert repair(ill).done == []
    assert tree(ill) == before


def test_what_is_no_dataset_is_refused(tmp_path, whole):
    for place in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match="a dataset is a folder with shards"):
            check(place)
        with pytest.raises(InputError, match="a dataset is a folder with shards"):
            repair(place)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("files", [1, 2])
def test_what_was_lost_comes_again_with_its_source(tmp_path, files):
    """The source is read again, its other clips are found to be there, and none of them is written over."""
    synth(tmp_path / "in", 4, seed=0, size=16)
    shots = np.concatenate([draw(colour, "square", "up", (0, 0, 0, 0), 12, 16) for colour in ("red", "blue")])
    (tmp_path / "in" / "clip-00001.mp4").write_bytes(encode(shots, Fraction(8)))
    out, options = tmp_path / "out", PrepareOptions(workers=0, shard_files=files)
    prepare(tmp_path / "in", out, options)
    before, rows = read_all(out), Index.open(out).table.to_pylist()
    row = next(row for row in rows if row["file"] == "clip-00001.mp4")
    data = bytearray((out / row["shard"]).read_bytes())
    data[row["media_offset"] + 99] ^= 1
    (out / row["shard"]).write_bytes(data)
    assert [entry["sample"] for entry in repaired(out).lost] == [row["uid"]]
    again = prepare(tmp_path / "in", out, options)
    assert (again.kept, again.skipped) == (1, 3)
    assert sorted(read_all(out)) == sorted(before)
    assert check(out) == []
    assert prepare(tmp_path / "in", out, options).kept == 0


def test_a_writer_at_work_is_not_damage(ill):
    with held(ill):
        add(ill, (6, 7))
        shards.write_bytes(ill / "shards" / f"{'0' * 32}.tar", b"about to be committed")
        assert check(ill) == []
    assert kinds(check(ill)) == {"unpublished": 1, "stray file": 1}


def test_latents_images_and_text_alone(tmp_path):
    """Whatever we store is told by its tar alone."""
    moments = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 1, 2, 2)
    parts = {
        "npy": latents_file.encode(moments, "float32")[0],
        "png": image.encode(np.zeros((16, 16, 3), np.uint8)),
        "": b"",
    }
    out = tmp_path / "out"
    rows = []
    for media, data in parts.items():
        digest = digest_bytes(data) if media else ""
        slices = latents_file.slices(data) if media == "npy" else Slices((), (), ())
        tables = {"slice_rows": slices.rows, "slice_offsets": slices.offsets, "slice_hashes": slices.hashes}
        facts = dict.fromkeys(("media_offset", "media_size", "start", "stop", "fps"), 0)
        sizes = {"frames": 1, "height": 16, "width": 16, "media": media, "media_hash": digest, "file": f"{media}.tar"}
        rows.append({**facts, **sizes, **tables, "uid": uid_of(digest, media), "caption": media, "caption_long": ""})
    rows = as_stored(rows)
    samples = [
        Sample(r["uid"], {"json": json_of(r), **({r["media"]: parts[r["media"]]} if r["media"] else {})}) for r in rows
    ]
    written = shards.write_shard(out, "0" * 32, samples)
    for row, places in zip(rows, written.parts, strict=True):
        row["shard"] = written.path
        for suffix, part in places.items():
            which = "json" if suffix == "json" else "media"
            row.update({f"{which}_offset": part.offset, f"{which}_size": part.size, f"{which}_hash": part.hash})
    record = {
        "config": CONFIG,
        "inputs": [{"file": "a"}],
        "source": "1" * 32,
        "index": index.write_rows(out, "0" * 32, rows),
    }
    shards.commit(out, "0" * 32, {**record, "size": written.size, "hash": written.hash})
    publish(out, digest_of(CONFIG))
    assert check(out, decode=True) == []
    whole = tree(out)
    (out / rows[0]["shard"]).write_bytes(bytes([255]) + whole[rows[0]["shard"]][1:])
    (out / "index" / f"{'0' * 32}.parquet").unlink()
    assert kinds(check(out)) == {"missing index": 1, "changed shard": 1, "changed header": 1, "bad sample": 1}
    (out / rows[0]["shard"]).write_bytes(whole[rows[0]["shard"]])
    assert repaired(out).lost == []
    assert tree(out) == whole
    data = bytearray(whole[rows[0]["shard"]])
    data[rows[0]["media_offset"] + rows[0]["slice_offsets"][1]] ^= 1
    data[rows[1]["json_offset"]] ^= 1
    (out / rows[0]["shard"]).write_bytes(data)
    assert [f.sample for f in check(out)] == [rows[0]["uid"], rows[1]["uid"]]
    assert [entry["sample"] for entry in repaired(out).lost] == [rows[0]["uid"]]
    assert len(read_all(out)) == 2
