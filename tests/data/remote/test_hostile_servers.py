"""A server sends us nowhere inside, nothing without end, and a table no scheme that nobody has tried."""

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fsspec.implementations.http import HTTPFileSystem

from data.remote import addresses, remote_files, web_client
from data.remote.addresses import is_internal, leads_inside, may_follow
from data.remote.remote_files import FetchError, fetch
from data.sources.files import BAD_ROW, SourceFile, Unusable
from data.sources.find_files import find
from parallel.errors import InputError
from tests.support import stores

INTERNAL = (
    "127.0.0.1",
    "127.8.8.8",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
)
INTERNAL_6 = (
    "::1",
    "::",
    "fe80::1%eth0",
    "fd00::1",
    "::ffff:127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "ff02::1",
)
PUBLIC = ("8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808")


@pytest.fixture(autouse=True)
def short_waits(tmp_path, monkeypatch):
    stores.quick(tmp_path, monkeypatch)
    addresses._addresses.cache_clear()
    HTTPFileSystem.clear_instance_cache()  # which know addresses by now


class Handler(BaseHTTPRequestHandler):
    """/to/URL leads there; /endless never ends; else a few bytes."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(302 if self.path.startswith("/to/") else 200)
        if self.path.startswith("/to/"):
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path.startswith("/endless"):
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" * (1 << 16))
            except OSError:
                self.close_connection = True
        else:
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"secret")

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def servers() -> Iterator[list[tuple[int, list[str]]]]:
    """(port, paths that were asked for) of two servers on this machine."""
    found, running = [], []
    for _ in range(2):
        asked: list[str] = []
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"asked": asked}))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        running.append((server, thread))
        found.append((server.server_address[1], asked))
    yield found
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def outside(monkeypatch) -> None:
    """127.0.0.1 stands for a public machine; all others are what they are."""
    real = is_internal
    monkeypatch.setattr(web_client, "is_internal", lambda address: address != "127.0.0.1" and real(address))
    monkeypatch.setattr(addresses, "is_internal", lambda address: address != "127.0.0.1" and real(address))


def test_addresses():
    assert [a for a in (*INTERNAL, *INTERNAL_6) if not is_internal(a)] == []
    assert [a for a in PUBLIC if is_internal(a)] == []
    assert may_follow("8.8.8.8", set())
    assert not may_follow("10.0.0.1", set())
    assert not may_follow("10.0.0.1", {"10.0.0.2", "127.0.0.1"})
    assert may_follow("10.0.0.1", {"10.0.0.1"})
    assert may_follow("::1", {"127.0.0.1"})  # the same machine


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.2:{port}/x", "http://[::1]:{port}/x", "http://0x7f.2:{port}/x", "http://inside.test:{port}/x"],
)
def test_a_public_server_does_not_lead_inside(servers, outside, tmp_path, monkeypatch, target):
    """By address, in another spelling of it, and by a name, which is looked at after DNS."""
    real = socket.getaddrinfo

    def resolve(host, port, *more, **settings):
        return real("127.0.0.2" if host == "inside.test" else host, port, *more, **settings)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    (port, _), (other, asked) = servers
    with pytest.raises(FetchError):
        fetch(f"http://127.0.0.1:{port}/to/{target.format(port=other)}", tmp_path / "got")
    assert asked == []
    assert not (tmp_path / "got").exists() or (tmp_path / "got").read_bytes() != b"secret"


def test_the_reason_is_told_and_it_is_asked_once(servers, outside, tmp_path):
    (port, asked), (other, _) = servers
    with pytest.raises(FetchError, match=r"127.0.0.1 leads to 127.0.0.2, an internal address: name it yourself"):
        fetch(f"http://127.0.0.1:{port}/to/http://127.0.0.2:{other}/x", tmp_path / "got")
    assert len(asked) == 1


def test_an_open_connection_to_a_machine_inside_is_not_used(servers, outside, tmp_path, monkeypatch):
    """One that the user named himself before; a redirect from elsewhere may not go through it."""
    (port, _), (other, asked) = servers
    if socket.gethostbyname("localhost") != "127.0.0.1":
        pytest.skip("localhost is no IPv4 name here")

    async def both() -> None:
        session = await web_client.guarded_client()
        async with session:
            real = web_client.is_internal
            monkeypatch.setattr(web_client, "is_internal", lambda _: True)
            async with session.get(f"http://localhost:{other}/mine") as answer:
                assert await answer.read() == b"secret"
            monkeypatch.setattr(web_client, "is_internal", real)
            monkeypatch.setattr(web_client, "may_follow", lambda address, own: address in own)
            with pytest.raises(addresses.RefusedError, match="name it yourself"):
                await session.get(f"http://127.0.0.1:{port}/to/http://localhost:{other}/theirs")

    asyncio.run(both())
    assert asked == ["/mine"]


def test_a_server_that_the_user_names_may_lead_to_its_own_machine(servers, tmp_path):
    (port, _), (other, asked) = servers
    fetch(f"http://127.0.0.1:{port}/to/http://localhost:{other}/x", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == b"secret"
    assert asked == ["/x"]


def test_downloads_have_an_end(servers, tmp_path, monkeypatch):
    (port, _), _ = servers
    with pytest.raises(FetchError, match="more than 1,000,000 bytes"):
        fetch(f"http://127.0.0.1:{port}/endless", tmp_path / "got", most=1_000_000, tries=1)
    assert (tmp_path / "got").stat().st_size < 50_000_000
    monkeypatch.setattr(remote_files, "LARGEST_READ", 5)
    with pytest.raises(FetchError, match="more than 5 bytes"):
        remote_files.read(f"http://127.0.0.1:{port}/x")
    monkeypatch.setattr(web_client, "MOST_PAGE", 1 << 20)
    with pytest.raises(InputError, match="its list of files is longer than 1 MiB"):
        list(find(f"http://127.0.0.1:{port}/endless/", need_captions=False))


def test_a_download_leaves_room_on_the_disk(servers, tmp_path, monkeypatch):
    (port, _), _ = servers
    monkeypatch.setattr(remote_files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100 << 20}))
    with pytest.raises(FetchError, match=r"104,857,600 free: set TMPDIR"):
        fetch(f"http://127.0.0.1:{port}/x", tmp_path / "got", size=200 << 20)
    fetch(f"http://127.0.0.1:{port}/x", tmp_path / "got", size=6)


def test_a_download_that_drips_is_ended(servers, tmp_path, monkeypatch):
    (port, _), _ = servers
    monkeypatch.setattr(remote_files, "PATIENCE_SECONDS", -1)
    monkeypatch.setattr(remote_files, "SLOWEST", 1 << 60)
    with pytest.raises(FetchError, match="bytes a second"):
        fetch(f"http://127.0.0.1:{port}/x", tmp_path / "got")


SCHEMES = (
    "ftp://h/a.mp4",
    "webhdfs://h:1/a.mp4",
    "github://o:r@main/a.mp4",
    "zip://a.mp4",
    "data:x://a.mp4",
    "dask://a.mp4",
)


@pytest.mark.parametrize(
    "url", [*SCHEMES, "git://r:a.mp4", "jupyter://h/a.mp4", "reference://a.mp4", "blockcache://a.mp4"]
)
def test_a_scheme_that_nobody_tried_is_refused_by_name(tmp_path, url):
    if remote_files.is_url(url):
        with pytest.raises(InputError, match="a URL has a scheme that is read here"):
            find(url)
    (tmp_path / "t.csv").write_text(f"path,caption\n{url},words\n")
    assert [one for one in find(str(tmp_path / "t.csv")) if not isinstance(one, Unusable)] == []


@pytest.mark.parametrize("scheme", ["ftp", "webhdfs", "ZIP"])
def test_a_row_of_another_scheme_costs_itself_alone(tmp_path, scheme):
    (tmp_path / "b.mp4").write_bytes(b"video")
    (tmp_path / "t.csv").write_text(f"path,caption\n{scheme}://h/a.mp4,words\nb.mp4,words\n")
    found = {one.name: one for one in find(str(tmp_path / "t.csv"))}
    assert not isinstance(found["b.mp4"], Unusable)
    bad = found[f"{scheme}://h/a.mp4"]
    assert bad.kind == BAD_ROW
    assert bad.reason.startswith(f"a URL has a scheme that is read here, not {scheme.lower()}://: give a URL with http")
    assert bad.reason.endswith("(t.csv, line 2)")


def test_a_row_whose_driver_is_missing_says_which_to_install(tmp_path, monkeypatch):
    def missing(scheme):
        raise ImportError(f"no driver of {scheme}")

    monkeypatch.setattr("fsspec.get_filesystem_class", missing)
    assert remote_files.unread("s3") == "s3:// needs its driver: pip install s3fs"


@pytest.mark.parametrize("url", ["http://[x/a.mp4", "http://h:port/a.mp4", "http:///a.mp4", "http://h/a::b.mp4"])
def test_no_address_ends_the_job(tmp_path, url):
    (tmp_path / "t.csv").write_text(f'path,caption\n"{url}",words\n')
    found = list(find(str(tmp_path / "t.csv")))
    assert len(found) == 1
    for one in found:
        if isinstance(one, SourceFile):
            with pytest.raises((FetchError, InputError)):
                fetch(one.place.where, tmp_path / "got", tries=1)


def test_a_list_from_elsewhere_names_nothing_of_ours(tmp_path, monkeypatch):
    known = {"films.test": "8.8.8.8", "cdn.test": "1.1.1.1", "inside.test": "10.0.0.1", "nas.test": "192.168.0.2"}
    monkeypatch.setattr(addresses, "_addresses", lambda host: (known.get(host, host),))
    table = "https://films.test/t.csv"
    for inside in (
        "http://inside.test/a.mp4",
        "http://169.254.169.254/keys",
        "http://[::1]/a.mp4",
        "file:///etc/passwd",
    ):
        assert leads_inside(table, inside)
    for other in ("https://cdn.test/a.mp4", "https://films.test/a.mp4", "s3://bucket/a.mp4"):
        assert not leads_inside(table, other)
    assert not leads_inside("http://nas.test/t.csv", "http://inside.test/a.mp4")  # the user's own network


def test_a_pipe_behind_a_file_url_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(FetchError, match="a pipe or a device"):
        fetch(f"file://{tmp_path}/a.mp4", tmp_path / "got")
    (tmp_path / "b 100%.mp4").write_bytes(b"x")
    fetch(f"file://{tmp_path}/b 100%.mp4", tmp_path / "got")
    assert Path(tmp_path / "got").read_bytes() == b"x"
