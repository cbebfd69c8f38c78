"""Remote files come whole or not at all, and what a killed process fetched does not stay."""

import multiprocessing
import os
import time

import pytest

from data.remote import remote_files
from data.remote.remote_files import FetchError, fetch, read
from data.remote.scratch import scratch, sweep
from parallel.errors import InputError
from tests.support import stores
from tests.support.jobs import hold_scratch
from tests.support.stores import served


@pytest.fixture(autouse=True)
def short_waits(tmp_path, monkeypatch):
    stores.quick(tmp_path, monkeypatch)


@pytest.mark.parametrize("faults", [[], [503], ["cut", 500], [429, "cut"]])
def test_a_file_is_tried_three_times(tmp_path, faults):
    data = os.urandom(100_000)
    (tmp_path / "a b.mp4").write_bytes(data)
    with served(tmp_path) as server:
        server.faults = {"/a b.mp4": list(faults)}
        fetch(f"{server.url}/a%20b.mp4", tmp_path / "got", size=len(data))
        assert (tmp_path / "got").read_bytes() == data
        assert server.asked["/a b.mp4"] == len(faults) + 1


@pytest.mark.parametrize(
    ("fault", "asked", "reason"),
    [
        (404, 1, "there is no such file"),
        (403, 1, "the server says 403 Forbidden"),
        (500, 3, r"the server says 500 Internal Server Error \(3 tries\)"),
        ("cut", 3, r"\(3 tries\)"),
    ],
)
def test_what_cannot_be_fetched_has_a_reason(tmp_path, fault, asked, reason):
    (tmp_path / "a.mp4").write_bytes(b"x" * 1000)
    with served(tmp_path) as server:
        server.faults = {"/a.mp4": [fault] * 9}
        with pytest.raises(FetchError, match=reason):
            fetch(f"{server.url}/a.mp4", tmp_path / "got")
        assert server.asked["/a.mp4"] == asked


def test_a_server_that_is_not_there(tmp_path):
    with pytest.raises(FetchError, match=r"Cannot connect.*\(3 tries\)"):
        fetch("http://127.0.0.1:9/a.mp4", tmp_path / "got")


def test_a_file_that_is_not_as_long_as_listed(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x" * 1000)
    with served(tmp_path) as server, pytest.raises(FetchError, match="1000 of 1001 bytes came"):
        fetch(f"{server.url}/a.mp4", tmp_path / "got", size=1001)


@pytest.mark.parametrize("size", [1, 1000, (16 << 20) + 5])
def test_a_part_of_a_file(tmp_path, size):
    data = os.urandom(size + 20)
    (tmp_path / "a.tar").write_bytes(data)
    with served(tmp_path) as server:
        fetch(f"{server.url}/a.tar", tmp_path / "got", (10, 10 + size))
        assert (tmp_path / "got").read_bytes() == data[10:-10]
    with served(tmp_path, parts=False) as server, pytest.raises(FetchError, match="range requests"):
        fetch(f"{server.url}/a.tar", tmp_path / "got", (10, 10 + size))


def test_small_files_and_urls():
    with pytest.raises(InputError, match="pip install s3fs"):
        read("s3://bucket/captions.json")
    assert remote_files.suffix_of("https://h/a%20b.MP4?sig=x.png") == ".mp4"
    assert remote_files.name_of("https://h/deep/a%20b.MP4?sig=x.png") == "a b.MP4"
    assert [remote_files.is_url(text) for text in ("s3://b", "http://h", "/a/b", "a.mp4", "c:d", "a b://c")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_scratch_goes_whatever_happens(tmp_path):
    with scratch() as folder:
        (folder / "file.mp4").write_bytes(b"x")
        with scratch() as other:
            assert other != folder
        sweep()
        assert (folder / "file.mp4").exists()
        assert not other.exists()
    assert not folder.exists()
    process = multiprocessing.get_context("spawn").Process(target=hold_scratch)
    process.start()
    base = folder.parent
    deadline = time.monotonic() + 120
    while not list(base.glob("*/file")) and time.monotonic() < deadline:
        time.sleep(0.01)
    sweep()
    (left,) = base.iterdir()  # held by the other process
    process.kill()
    process.join()
    assert (left / "file").exists()
    sweep()
    assert list(base.iterdir()) == []
