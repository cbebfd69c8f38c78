"""A shard is there whole or not at all, its bytes depend on its samples alone, and any WebDataset reader reads it."""

import tarfile

import pytest
import webdataset

from data.shards import (
    Sample,
    commit,
    commits,
    digest_bytes,
    digest_file,
    digest_of,
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


def test_sweep_removes_what_no_commit_names(tmp_path):
    write_shard(tmp_path, "real", SAMPLES)
    write_shard(tmp_path, "orphan", SAMPLES)
    commit(tmp_path, "real", {"inputs": []})
    for name in ("shards/.half.tar.tmp", "index/orphan.parquet", "commits/.x.json.tmp", "manifest/.1.json.tmp"):
        write_bytes(tmp_path / name, b"half")
    assert sweep(tmp_path) == [
        "commits/.x.json.tmp",
        "index/orphan.parquet",
        "manifest/.1.json.tmp",
        "shards/.half.tar.tmp",
        "shards/orphan.tar",
    ]
    assert sweep(tmp_path) == []
    assert [p.name for p in (tmp_path / "shards").iterdir()] == ["real.tar"]
    assert commits(tmp_path) == {"real": {"inputs": []}}


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
