"""A shard is there whole or not at all, its bytes depend on its samples alone, and any WebDataset reader reads it."""

import json
import tarfile

import pytest
import webdataset

from data.containers.byte_ranges import digest_bytes
from data.dataset import manifest
from data.dataset.lock import held
from data.dataset.manifest import Manifest
from data.dataset.shards import (
    Sample,
    commit,
    commits,
    digest_file,
    digest_of,
    free_id,
    quarantine,
    read_json,
    sweep,
    write_bytes,
    write_shard,
)
from parallel.errors import InputError

SAMPLES = [
    Sample(f"{i:032x}", {"mp4": bytes([i]) * (700 * i + 1), "json": f'{{"i": {i}}}'.encode()}) for i in (9, 3, 5)
]


def test_parts_are_where_the_shard_says(tmp_path):
    shard = write_shard(tmp_path, "aa", SAMPLES)
    data = (tmp_path / shard.path).read_bytes()
    assert (shard.path, shard.size, shard.hash) == ("shards/aa.tar", len(data), digest_bytes(data))
    for sample, parts in zip(SAMPLES, shard.parts, strict=True):
        assert {s: data[p.offset : p.offset + p.size] for s, p in parts.items()} == sample.parts
        assert {s: p.hash for s, p in parts.items()} == {s: digest_bytes(d) for s, d in sample.parts.items()}


def test_bytes_depend_on_the_samples_alone(tmp_path):
    for name in ("a", "b"):
        write_shard(tmp_path / name, "aa", iter(SAMPLES))
    a, b = (tmp_path / name / "shards" / "aa.tar" for name in ("a", "b"))
    assert a.read_bytes() == b.read_bytes()
    with tarfile.open(a) as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uname, m.gname, m.uid, m.gid, m.mode) for m in members} == {
        (0, "longreel", "longreel", 0, 0, 0o444)
    }
    assert [m.name for m in members] == [f"{s.uid}.{suffix}" for s in SAMPLES for suffix in ("json", "mp4")]


# WebDataset leaves its files to the garbage collector
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_it(tmp_path):
    shard = write_shard(tmp_path, "aa", SAMPLES)
    found = list(webdataset.WebDataset(str(tmp_path / shard.path), shardshuffle=False))
    assert [(s["__key__"], s["mp4"], s["json"]) for s in found] == [
        (s.uid, s.parts["mp4"], s.parts["json"]) for s in SAMPLES
    ]


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def failing():
        yield SAMPLES[0]
        raise RuntimeError("the disk is on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        write_shard(tmp_path, "aa", failing())
    assert list((tmp_path / "shards").iterdir()) == []
    assert write_shard(tmp_path, "aa", []) is None
    assert list((tmp_path / "shards").iterdir()) == []


def test_sweep_removes_what_no_record_names(tmp_path):
    write_shard(tmp_path, "real", SAMPLES)
    write_shard(tmp_path, "orphan", SAMPLES)
    commit(tmp_path, "real", {"inputs": []})
    halves = ("shards/.half.tar.tmp", "commits/.x.json.tmp", "manifest/.1.json.tmp", "previews/.real-0001.jpg.tmp")
    for name in (*halves, "index/orphan.parquet", "previews/orphan-0000.jpg", "previews/real-0000.jpg"):
        write_bytes(tmp_path / name, b"half")
    write_bytes(tmp_path / "index" / "real-repaired.parquet", b"rows")
    write_bytes(tmp_path / "index" / "older.parquet", b"rows that only an older generation names")
    manifest.append(tmp_path, Manifest(1, 0, ("older",), (("index/older.parquet", "", 1),), "", ""))
    assert sweep(tmp_path) == sorted((*halves, "index/orphan.parquet", "previews/orphan-0000.jpg", "shards/orphan.tar"))
    assert sweep(tmp_path) == []
    assert [p.name for p in (tmp_path / "shards").iterdir()] == ["real.tar"]
    assert sorted(p.name for p in (tmp_path / "index").iterdir()) == ["older.parquet", "real-repaired.parquet"]
    assert [p.name for p in (tmp_path / "previews").iterdir()] == ["real-0000.jpg"]
    assert commits(tmp_path) == {"real": {"inputs": []}}
    write_bytes(tmp_path / "shards" / "lost.tar", b"")
    manifest.path_of(tmp_path, 1).write_bytes(b"{}")
    with pytest.raises(InputError, match="its seal does not fit"):  # what it named may be what is about to go
        sweep(tmp_path)
    assert (tmp_path / "shards" / "lost.tar").exists()


def test_a_committed_shard_is_never_written_over(tmp_path):
    shard = write_shard(tmp_path, "aa", SAMPLES)
    before = (tmp_path / shard.path).read_bytes()
    assert write_shard(tmp_path, "aa", SAMPLES[:1]).size < len(before)  # not committed: a rerun
    write_shard(tmp_path, "aa", SAMPLES)
    commit(tmp_path, "aa", {})
    with pytest.raises(InputError, match="does not change once it is committed"):
        write_shard(tmp_path, "aa", SAMPLES[:1])
    assert [p.read_bytes() for p in (tmp_path / "shards").iterdir()] == [before]
    assert write_shard(tmp_path, "aa", []) is None
    other = free_id(tmp_path, "aa")
    assert other != "aa"
    commit(tmp_path, other, {})
    assert len({"aa", other, free_id(tmp_path, "aa"), free_id(tmp_path, "bb")}) == 4
    assert free_id(tmp_path, "bb") == "bb"


def test_a_record_that_was_changed_is_refused(tmp_path):
    commit(tmp_path, "aa", {"inputs": [1, 2.5, None, "é"], "index": ("path", 3)})
    assert commits(tmp_path)["aa"] == {"inputs": [1, 2.5, None, "é"], "index": ["path", 3]}
    file = tmp_path / "commits" / "aa.json"
    file.write_text(file.read_text().replace("2.5", "2.6"))
    with pytest.raises(InputError, match=r"aa\.json: its seal does not fit\n.*data check .* --repair"):
        commits(tmp_path)


def test_records_hold_any_name(tmp_path):
    """Names of files need not be UTF-8."""
    commit(tmp_path, "aa", {"inputs": [{"file": "not\udcff utf-8"}]})
    assert commits(tmp_path) == {"aa": {"inputs": [{"file": "not\udcff utf-8"}]}}
    quarantine(tmp_path, [{"file": "not\udcff utf-8"}])
    quarantine(tmp_path, [])
    (listed,) = (tmp_path / "quarantine").iterdir()
    assert json.loads(listed.read_text()) == {"file": "not\udcff utf-8"}


def test_one_writer_at_a_time(tmp_path):
    with held(tmp_path / "new"), pytest.raises(InputError, match="is in use"), held(tmp_path / "new"):
        pass
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path / "new"):
        write_bytes(tmp_path / "new" / "shards" / "a.tar", b"")
        (tmp_path / "new" / "index").mkdir()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["shards"]


def test_the_next_generation(tmp_path):
    def record(file: str) -> dict:
        return {"inputs": [{"file": file}] if file else []}

    parent = Manifest(1, 0, ("b", "a"), (), "", "")
    commits = {"a": record("1"), "b": record("2"), "c": record("4"), "d": record("3"), "e": record("")}
    assert manifest.order(parent, commits) == ["b", "a", "e", "d", "c"]
    assert manifest.order(None, commits) == ["e", "a", "b", "d", "c"]
    del commits["b"]
    with pytest.raises(InputError, match=r"commits/b\.json is missing"):
        manifest.order(parent, commits)
    assert manifest.order(parent, commits, {"b"}) == ["a", "e", "d", "c"]


def test_digests(tmp_path):
    assert digest_of(1, "a") == digest_of(1, "a") != digest_of("1a")
    for content in (b"", b"x" * 100_000):
        (tmp_path / "f").write_bytes(content)
        assert digest_file(tmp_path / "f") == digest_bytes(content)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff"])
def test_a_broken_record_is_named(tmp_path, content):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(InputError, match=r"r\.json"):
        read_json(tmp_path / "r.json")
    with pytest.raises(InputError, match=r"absent\.json"):
        read_json(tmp_path / "absent.json")
