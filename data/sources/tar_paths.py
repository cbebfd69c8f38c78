"""Where tars come from: folders, files, patterns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from braceexpand import braceexpand

from data.containers.regular_file import open_regular
from parallel.errors import InputError

COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True, order=True)
class Tar:
    """A file to import; `name` is how reports and the index call it."""

    name: str
    path: Path


def find_tars(sources: Sequence[str], leave_out: Path) -> list[Tar]:
    """Every tar of the sources, each once, in the order of the sources and in each by name; none in `leave_out`.

    Raises:
        InputError: a source does not exist, or there is no tar in it.
    """
    found: dict[Path, Tar] = {}
    for source in sources:
        here = list(_tars_of(source))
        if not here:
            raise InputError("a source has tars", f"{source}: none ends in .tar", "give a folder, a tar or a pattern")
        for tar in here:
            if not tar.path.resolve().is_relative_to(leave_out.resolve()):
                found.setdefault(tar.path.resolve(), tar)
    if not found:
        raise InputError("a source is not the dataset itself", ", ".join(sources), "give another --out")
    return list(found.values())


def _tars_of(source: str) -> Iterator[Tar]:
    path = Path(source)
    if path.is_dir():
        names = (p for p in path.rglob("*") if p.name.lower().endswith(SUFFIXES) and not p.name.startswith("."))
        yield from sorted(Tar(p.relative_to(path).as_posix(), p) for p in names if p.is_file())
    elif path.exists():
        yield Tar(path.name, path)
    else:
        several = list(braceexpand(source)) if "{" in source else [source]
        matches = [name for one in several for name in (sorted(glob(one, recursive=True)) or [one])]
        if matches == [source]:
            raise InputError("a source exists", f"{source}: no such file", "check the path or the pattern")
        for name in matches:
            yield from _tars_of(name)


def why_not(path: Path) -> str | None:
    """Why a file cannot be imported at all."""
    with open_regular(path) as file:
        head = file.read(8)
    if not head:
        return "empty file"
    how = next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), None)
    return f"compressed with {how}: samples are read by their offsets, which needs a plain tar" if how else None
