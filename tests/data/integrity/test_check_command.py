"""`longreel data check` and `longreel data import`: tables, JSON and exit codes say what was found and done."""

from __future__ import annotations

import json
from pathlib import Path

from data.dataset.index import Index
from tests.promises.test_wrong_input import longreel, refused
from tests.support.datasets import clip, copy, make, tar_of, tree


def test_check_and_repair(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole")
    assert "every byte is as it was written: 2 shards, 20 KiB" in longreel("data", "check", whole, code=0)
    assert "no bytes compared: 2 shards" in longreel("data", "check", whole, "--quick", code=0)
    assert json.loads(longreel("data", "check", whole, "--json", "--decode", code=0)) == {"findings": [], "left": []}
    ill = copy(whole, tmp_path / "ill")
    row = Index.open(ill).table.to_pylist()[0]
    tar = ill / row["shard"]
    data = bytearray(tar.read_bytes())
    data[row["media_offset"] + 5] ^= 1
    tar.write_bytes(data)
    before = tree(ill)
    assert "no bytes compared" in longreel("data", "check", ill, "--quick", code=0)
    flat = " ".join(longreel("data", "check", ill, code=1).split())
    assert "1 changed data" in flat
    assert "changed data: --repair leaves the sample out; or restore the shard from a copy" in flat
    assert "is not whole: 2 shards" in flat
    said = json.loads(longreel("data", "check", ill, "--json", code=1))
    (found,) = said["findings"]
    assert said["left"] == said["findings"]
    assert (found["kind"], found["shard"], found["sample"], found["part"]) == (
        "changed data",
        tar.stem,
        row["uid"],
        "mp4",
    )
    assert tree(ill) == before
    twin = copy(ill, tmp_path / "twin")
    flat = " ".join(longreel("data", "check", ill, "--repair", code=0).split())
    assert "left out, changed bytes: 1" in flat
    assert "generation 2 is what runs that begin now train on" in flat
    said = json.loads(longreel("data", "check", twin, "--repair", "--json", code=0))
    assert said["left"] == []
    assert [entry["sample"] for entry in said["repaired"]["lost"]] == [row["uid"]]
    assert said["repaired"]["generation"] == 2
    assert tree(twin) == tree(ill)


def test_import(tmp_path: Path) -> None:
    members = [("a.mp4", clip(0)), ("a.txt", b"one"), ("b.mp4", b"no video"), ("b.txt", b"two"), ("b.npy", b"?")]
    (tmp_path / "in.tar").write_bytes(tar_of(members))
    flat = " ".join(longreel("data", "import", tmp_path / "in.tar", "--out", tmp_path / "out", code=0).split())
    assert "tars found 1" in flat
    assert "shards 1 1 linked, 0 copied" in flat
    assert "videos 1 30 frames" in flat
    assert "parts without a use, passed over: 1 npy" in flat
    assert "in.tar/b" in flat
    said = json.loads(longreel("data", "import", tmp_path / "in.tar", "--out", tmp_path / "out", "--json", code=0))
    assert (said["tars"], said["skipped"], said["kept"]) == (1, 1, 0)
    assert said["rejected"] == [["in.tar/b", "no video but text"]]


def test_wrong_requests(tmp_path: Path) -> None:
    refused("data", "check", tmp_path / "absent", value="no such folder", remedy="--out of a prepare")
    refused("data", "check", tmp_path, "--quick", "--repair", value="--quick --repair", remedy="leave out --quick")
    refused(
        "data", "import", tmp_path / "*.tar", "--out", tmp_path / "out", value="no such file", remedy="check the path"
    )
    assert list(tmp_path.iterdir()) == []
