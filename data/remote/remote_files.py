"""Files that lie elsewhere: listed, told apart and fetched through fsspec (http, s3, gs, hf and more).

A remote file is fetched by the worker that converts it, three times at most, and whole or not at all.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

from data.containers.regular_file import open_regular
from data.remote.addresses import RefusedError, split_url
from data.remote.scratch import scratch
from parallel.errors import InputError

STORES = ("http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "sftp", "ssh", "hdfs")
SCHEMES = (*STORES, "file", "local", "memory")
ALIASES = frozenset(["s3a", "gcs", "abfs", "abfss", "ssh", "local", "memory"])
HERE = frozenset(["file", "local"])
TRIES = 3
LARGEST_FILE = 256 << 30  # bytes of a file that is fetched
LARGEST_READ = 1 << 30  # and of one that is read at once: captions
LEFT_FREE = 64 << 20  # bytes of the disk that fetched files leave
PATIENCE_SECONDS, SLOWEST = 60, 4096  # after so long, a file comes at least with so many bytes a second
FIRST_WAIT_SECONDS = 0.25  # before the second try; doubled before each further one
CONNECT_SECONDS, SILENCE_SECONDS = 10, 60
SMALL = 1 << 20  # bytes of a file for which there is always room
CHUNK = 8 << 20  # bytes asked for at a time of a part of a file
PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
    "sftp": "paramiko",
}
LISTED_FLAT = frozenset(["s3", "s3a", "gs", "gcs", "abfs", "az"])  # a store without folders lists all in one go
REFUSALS = frozenset([400, 401, 403, 404, 405, 406, 410, 414, 416, 451])  # of HTTP: asking again does not help
SILENCES = frozenset(["ClientConnectorError", "ServerTimeoutError", "EndpointConnectionError", "ConnectTimeoutError"])
# what a store says of the bytes of a file, the best first
MARKS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "blob_id",
    "LastModified",
    "last_modified",
    "mtime",
    "updated",
    "created",
)


class FetchError(Exception):
    """A remote file could not be fetched; its text is the reason, for people; `answered`: whether its server spoke."""

    def __init__(self, reason: str, answered: bool = True) -> None:
        super().__init__(reason, answered)
        self.answered = answered

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class RemoteFile:
    """A file of a store: `name` relative to the folder that was listed; `mark` tells its versions apart, "" if none."""

    name: str
    url: str
    size: int | None
    mark: str


def is_url(text: str) -> bool:
    """Whether this is a URL and not a local path."""
    scheme, found, _ = text.partition("://")
    return bool(found) and scheme.replace("+", "").replace("-", "").replace(".", "").isalnum()


def beside(url: str, name: str) -> str:
    """The URL of a name that is relative to the folder of `url`; a URL stays itself."""
    return name if is_url(name) else f"{url.rpartition('/')[0]}/{name}"


def suffix_of(url: str) -> str:
    """The suffix of the file that a URL names, in lower case, without its query."""
    return PurePosixPath(split_url(url).path).suffix.lower()


def name_of(url: str) -> str:
    """The last part of a URL's path, which is a name and never a path; "file" if it has none."""
    name = PurePosixPath(unquote(PurePosixPath(split_url(url).path).name)).name
    return "file" if name in ("", "..") else name


def check_scheme(url: str) -> None:
    """Whether the kind of a URL is read here; what else fsspec knows (ftp, github, zip ...) nobody has tried.

    Raises:
        InputError: it is not, or its driver is not installed.
    """
    scheme = url.partition("://")[0].lower()
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES if name not in ALIASES)
        raise InputError("a URL has a scheme that is read here", url, f"give a URL with {known}, or download it first")
    import fsspec

    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        package = PACKAGES.get(scheme)
        remedy = f"pip install {package}" if package else str(error)
        raise InputError(f"{scheme}:// needs its driver", f"{url}: {error}", remedy) from error


def unread(scheme: str) -> str | None:
    """Why URLs of a scheme cannot be read here; None if they can be."""
    try:
        check_scheme(f"{scheme}://")
    except InputError as error:
        return (
            f"{error.rule}, not {scheme}://: {error.remedy}"
            if scheme not in SCHEMES
            else f"{error.rule}: {error.remedy}"
        )
    return None


def filesystem(url: str, any_scheme: bool = False) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it.

    Args:
        url: of a file or a folder.
        any_scheme: take whatever fsspec knows: of places that the user names for our own files, such as checkpoints.

    Raises:
        InputError: its kind is not known, its driver is not installed, or it cannot be reached.
    """
    if not any_scheme:
        check_scheme(url)
    import fsspec

    scheme = url.partition("://")[0].lower()
    try:
        options: dict[str, Any] = {}
        if scheme in ("http", "https"):
            import aiohttp

            from data.remote.web_client import guarded_client

            # aiohttp's own limit of 300 s is for a whole file; packed bytes would not be those of the file
            limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
            options = {
                "client_kwargs": {"timeout": limits, "headers": {"Accept-Encoding": "identity"}},
                "simple_links": False,
                "encoded": True,
                "get_client": guarded_client,
            }
            url = quote(url, safe="%/:=&?~#+!$,;'@()*[]")  # what is not quoted yet; what is may be signed so
        kind = fsspec.get_filesystem_class(scheme)  # url_to_fs would take "a::b" for a file inside of another
        options = {"use_listings_cache": False, **kind._get_kwargs_from_urls(url), **options}
        return kind(**options), str(kind._strip_protocol(url))
    except Exception as error:  # each store has errors of its own
        raise InputError("a store can be opened", f"{url}: {why(error)}", "check the address") from error


def find(url: str, wanted: Callable[[str], bool], problem: Callable[[str, str], None]) -> list[RemoteFile]:
    """The files of a remote folder, to any depth, sorted by name; hidden ones do not count.

    Args:
        url: of a folder; of HTTP, a page that lists files.
        wanted: whether a name counts.
        problem: told (folder, reason) of folders below it that cannot be listed.

    Raises:
        InputError: it cannot be listed.
    """
    store, root = filesystem(url)
    try:
        if url.partition("://")[0].lower() in LISTED_FLAT:
            entries = list(store.find(root, detail=True).values())
        else:
            entries = list(_walk(store, root, problem))
    except Exception as error:  # each store has errors of its own
        remedy = "check the address, and that you may read it"
        raise InputError("a remote folder can be listed", f"{url}: {why(error)}", remedy) from error
    found = []
    http = url.startswith(("http://", "https://"))
    base = store._strip_protocol(root).rstrip("/") + "/"
    for entry in entries:
        name = entry["name"].removeprefix(base)
        name = unquote(split_url(name).path) if http else name
        if wanted(name) and not any(part.startswith(".") for part in name.split("/")):
            mark = next((str(entry[key]) for key in MARKS if entry.get(key)), "")
            address = entry["name"] if http else store.unstrip_protocol(entry["name"])
            found.append(RemoteFile(name, address, entry.get("size"), mark))
    return sorted(found, key=lambda file: file.name)


def _walk(store: Any, root: str, problem: Callable[[str, str], None]) -> Iterator[Mapping[str, Any]]:
    """Entries of files; fsspec's own walk passes over folders that it cannot list."""
    seen, folders = {root.rstrip("/")}, [root]
    while folders:
        folder = folders.pop()
        try:
            entries = store.ls(folder, detail=True)
        except Exception as error:
            if folder == root:
                raise
            problem(folder, why(error))
            continue
        for entry in entries:
            name = entry["name"].rstrip("/")
            if entry["type"] != "directory":
                yield entry
            elif name not in seen:
                seen.add(name)
                folders.append(entry["name"])


def read(url: str) -> bytes:
    """A small remote file, tried several times.

    Raises:
        FetchError: it could not be read.
    """
    with scratch() as folder:
        fetch(url, folder / "file", most=LARGEST_READ)
        return (folder / "file").read_bytes()


def fetch(
    url: str,
    to: Path,
    span: tuple[int, int] | None = None,
    size: int | None = None,
    tries: int = TRIES,
    most: int = LARGEST_FILE,
) -> None:
    """Writes a remote file, or its bytes [start, stop), to a local one; tried several times.

    Args:
        url: of the file.
        to: where.
        span: the bytes to fetch; None for all.
        size: how many there are, if known.
        tries: at most.
        most: bytes that it may have.

    Raises:
        FetchError: it could not be fetched whole, is too large, or comes too slowly.
    """
    store, path = filesystem(url)
    if url.partition("://")[0].lower() in HERE:
        _check_regular(path)
    least = 0 if size is None else size
    _check_room(to, span[1] - span[0] if span else least, most)

    def once() -> None:
        if span is None:
            store.get_file(path, str(to), callback=_metered(to, most))
        else:
            _fetch_part(store, url, path, to, span)
        expected = span[1] - span[0] if span else size
        if expected is not None and to.stat().st_size != expected:
            raise OSError(f"{to.stat().st_size} of {expected} bytes came")

    _tried(once, tries)


def _metered(to: Path, most: int) -> Any:
    """What fsspec tells of each piece that came, and who ends it."""
    from fsspec.callbacks import Callback

    class Meter(Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.began = time.monotonic()

        def set_size(self, size: int | None) -> None:
            super().set_size(size)
            _check_room(to, size or 0, most)

        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            _check_room(to, self.value if not self.size else 0, most, self.value)
            seconds = time.monotonic() - self.began
            if inc and seconds > PATIENCE_SECONDS and self.value < SLOWEST * seconds:
                raise FetchError(f"it comes with fewer than {SLOWEST:,} bytes a second")

    return Meter()


def _check_room(to: Path, size: int, most: int, there: int = 0) -> None:
    if size > most:
        raise FetchError(f"it has more than {most:,} bytes")
    free = shutil.disk_usage(to.parent).free
    if size - there + LEFT_FREE > free and size > SMALL:
        raise FetchError(f"it has {size:,} bytes or more, and {to.parent.parent} has {free:,} free: set TMPDIR")


def _check_regular(path: str) -> None:
    try:
        open_regular(path).close()
    except OSError as error:
        raise FetchError(error.strerror or str(error)) from error


def _fetch_part(store: Any, url: str, path: str, to: Path, span: tuple[int, int]) -> None:
    start, stop = span
    with to.open("wb") as file:
        if url.startswith(("http://", "https://")):  # cat_file would take the whole of a file for a part of it
            with store.open(path, "rb", block_size=CHUNK, cache_type="none", size=stop) as remote:
                remote.seek(start)
                while data := remote.read(min(CHUNK, stop - remote.tell())):
                    file.write(data)
            return
        for at in range(start, stop, CHUNK):
            file.write(store.cat_file(path, start=at, end=min(at + CHUNK, stop)))


def _tried(once: Callable[[], Any], tries: int = TRIES) -> Any:
    for wait in (*(FIRST_WAIT_SECONDS * 2**n for n in range(tries - 1)), None):
        try:
            return once()
        except (InputError, FetchError):
            raise
        except Exception as error:  # each store has errors of its own
            if _is_final(error):
                raise FetchError(why(error)) from error
            if wait is None:
                told = f" ({tries} tries)" if tries > 1 else ""
                raise FetchError(why(error) + told, not _is_silence(error)) from error
        time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _is_final(error: Exception) -> bool:
    """Whether asking again does not help."""
    final = (FileNotFoundError, PermissionError, IsADirectoryError, ValueError)
    if _refusal(error) is not None:
        return True
    return isinstance(error, final) or getattr(error, "status", None) in REFUSALS


def _is_silence(error: Exception) -> bool:
    """Whether a server did not even answer; each store has errors of its own."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, TimeoutError | ConnectionError) or bool(kinds & SILENCES)


def _refusal(error: BaseException | None) -> BaseException | None:
    """Ours of a redirect, in what aiohttp makes of it."""
    inner = getattr(error, "os_error", None) or error
    several = inner.exceptions if isinstance(inner, BaseExceptionGroup) else [inner]
    return next((one for one in several if isinstance(one, RefusedError)), None)


def why(error: Exception) -> str:
    """What went wrong with a store, in a line."""
    if (refusal := _refusal(error)) is not None:
        return str(refusal)
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    status, message = getattr(error, "status", None), getattr(error, "message", None)
    if status and message:
        return f"the server says {status} {message}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__
