"""`kill -9` at every file operation of a writer: readers see whole generations or none, and a rerun ends the same."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data.dataset.index import Index
from data.dataset.publish import publish
from data.integrity.check import check
from data.integrity.repair import repair
from data.prepare.import_webdataset import ImportOptions, import_tars
from data.prepare.pipeline import PrepareOptions, prepare
from data.synthetic.shapes import synth
from parallel.errors import InputError
from tests.support.datasets import add, clip, copy, make, read_all, tar_of, tree, webdataset_keys
from tests.support.kills import Death, Helper

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
ALL = pytest.param(1, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def helper() -> Iterator[Helper]:
    with Helper() as found:
        yield found


def prepare_all(source: str, out: Path) -> None:
    prepare(source, out, PrepareOptions(workers=0, shard_files=2))


def import_all(source: str, out: Path) -> None:
    import_tars([source], out, ImportOptions(workers=0))


@dataclass(frozen=True)
class Whole:
    """What work gives that nobody kills, step by step.

    Attributes:
        folders: the dataset after each step, after none the first.
        deaths: what each step did.
    """

    work: Callable[..., Any]
    sources: tuple[str, ...]
    folders: tuple[Path, ...]
    deaths: tuple[Death, ...]


def undisturbed(helper: Helper, folder: Path, work: Callable[..., Any], *sources: str) -> Whole:
    helper.warm(work, sources[-1], folder / "warm")
    folders, deaths = [folder / "nothing"], []
    for number, source in enumerate(sources):
        folders.append(folder / f"whole{number}")
        if folders[-2].exists():
            copy(folders[-2], folders[-1])
        deaths.append(helper.run(work, source, folders[-1]))
        assert not deaths[-1].killed
    return Whole(work, sources, tuple(folders), tuple(deaths))


def look(out: Path, whole: Whole, step: int) -> int:
    """What readers find while a step is under way: the generation before it, or the one after it; how many steps."""
    before, after = whole.folders[step : step + 2]
    files = tree(after)
    for name, data in tree(out).items() if out.exists() else ():
        assert Path(name).name.startswith(".") or data == files[name], f"{name} is not whole"
    for commit in (out / "commits").glob("[!.]*.json"):
        assert webdataset_keys(out / "shards" / f"{commit.stem}.tar")
    published = len(list((out / "manifest").glob("[!.]*.json")))
    if published:
        assert read_all(out) == read_all(before if published == step else after)
    else:
        with pytest.raises(InputError):
            Index.open(out)
    if step:
        assert read_all(out, Index.open(before).digest) == read_all(before)
    return published


def kill_everywhere(helper: Helper, whole: Whole, every: int) -> None:
    out = whole.folders[0].with_name("out")
    for step, (source, death) in enumerate(zip(whole.sources, whole.deaths, strict=True)):
        seen = []
        for at, torn in death.points()[step::every]:
            shutil.rmtree(out, ignore_errors=True)
            if step:
                copy(whole.folders[step], out)
            assert helper.run(whole.work, source, out, at=at, torn=torn).killed
            seen.append(look(out, whole, step))
            assert not helper.run(whole.work, source, out).killed
            assert tree(out) == tree(whole.folders[step + 1]), f"after a kill at {death.operations[at]}"
        assert seen == sorted(seen)
        assert set(seen) <= {step, step + 1}


@pytest.mark.parametrize("every", [9, ALL])
def test_prepare(helper, tmp_path, every):
    synth(tmp_path / "all", 8, seed=0, size=16)
    shutil.copytree(
        tmp_path / "all", tmp_path / "some", ignore=lambda _, names: [n for n in names if "0000" in n and n[9] > "3"]
    )
    whole = undisturbed(helper, tmp_path, prepare_all, str(tmp_path / "some"), str(tmp_path / "all"))
    assert [len(read_all(folder)) for folder in whole.folders[1:]] == [4, 8]
    assert len(list((whole.folders[2] / "shards").iterdir())) == 4
    assert {p.name for p in whole.folders[2].iterdir()} == {"shards", "index", "commits", "manifest", "previews"}
    kill_everywhere(helper, whole, every)


@pytest.mark.parametrize("every", [11, ALL])
def test_import(helper, tmp_path, every):
    for name, numbers in (("some", (0, 1)), ("all", (0, 1, 2))):
        (tmp_path / name).mkdir()
        for n in numbers:
            members = [
                (f"{n}.mp4", clip(n)),
                (f"{n}.txt", b"%d" % n),
                (f"{n}b.txt", b"words %d" % n),
                ("c.mp4", b"?"),
                ("c.txt", b""),
            ]
            (tmp_path / name / f"{n}.tar").write_bytes(tar_of(members))
    before = tree(tmp_path)
    whole = undisturbed(helper, tmp_path, import_all, str(tmp_path / "some"), str(tmp_path / "all"))
    assert [len(read_all(folder)) for folder in whole.folders[1:]] == [4, 6]
    kill_everywhere(helper, whole, every)
    assert {name: data for name, data in tree(tmp_path).items() if name in before} == before


def test_every_name_is_given_to_what_is_on_the_disk(helper, tmp_path):
    """What a power cut takes is what was not flushed: a file is, before its name; a name is, before the next file."""
    synth(tmp_path / "all", 4, seed=0, size=16)
    operations = helper.run(prepare_all, str(tmp_path / "all"), tmp_path / "out").operations
    inside = [(name, *where) for name, *where in operations if where[0].startswith(str(tmp_path / "out"))]
    renames = [n for n, (name, *_) in enumerate(inside) if name in ("replace", "rename")]
    assert len(renames) == 2 * 4 + 1
    for n in renames:
        _, temporary, path = inside[n]
        written = [
            m for m, (name, *where) in enumerate(inside[:n]) if where[0] == temporary and name in ("open", "write")
        ]
        assert inside[written[-1] + 1 : n] == [("fsync", temporary)]
        assert inside[n + 1] == ("fsync", str(Path(path).parent))
    made = [n for n, (name, *_) in enumerate(inside) if name == "mkdir"]
    assert len(made) == 6
    for n in made[1:]:
        assert inside[n + 1] == ("fsync", str(Path(inside[n][1]).parent))


def ruined(dataset: Path) -> None:
    """Accidents of every kind at once."""
    one, two, three, four = sorted((dataset / "shards").glob("*.tar"))
    one.write_bytes(one.read_bytes()[:5000])
    two.write_bytes(b"?" + two.read_bytes()[1:])
    three.unlink()
    (dataset / "index" / f"{four.stem}.parquet").unlink()
    (dataset / "commits" / f"{four.stem}.json").write_bytes(b"{}")
    (dataset / "manifest" / "00000001.json").write_bytes(b"{}")
    (dataset / "shards" / "notes.txt").write_bytes(b"notes")


@pytest.mark.parametrize("every", [11, ALL])
def test_repair(helper, tmp_path, every):
    """An older generation can be read all along, where its index is there; what is lost is listed at any time."""
    ill = make(tmp_path / "ill", [(0, 1), (2, 3), (4, 5)])
    add(ill, (6, 7))
    publish(ill, "config")
    before = set(read_all(ill))
    ruined(ill)
    whole = copy(ill, tmp_path / "whole")
    helper.warm(repair, copy(ill, tmp_path / "warm"))
    death = helper.run(repair, whole)
    assert check(whole) == []
    uids = read_all(whole)
    assert len(uids) == 5
    out = tmp_path / "out"
    for at, torn in death.points()[::every]:
        copy(ill, out)
        assert helper.run(repair, out, at=at, torn=torn).killed
        if (out / "manifest" / "00000003.json").exists():
            assert read_all(out) == uids
        assert not helper.run(repair, out).killed
        assert check(out) == []
        assert read_all(out) == uids
        assert tree(out, "quarantine") == tree(whole, "quarantine"), f"after a kill at {death.operations[at]}"
        listed = b"".join(data for name, data in tree(out / "quarantine").items() if name.endswith(".jsonl"))
        assert all(uid.encode() in listed for uid in before - set(uids))


def test_readers_of_the_older_generation_while_more_is_written(tmp_path):
    synth(tmp_path / "all", 8, seed=0, size=16)
    out, options = tmp_path / "out", PrepareOptions(workers=0, shard_files=2, limit=4)
    prepare(tmp_path / "all", out, options)
    older, uids = Index.open(out), read_all(out)
    looks = []

    def reads(_: Any) -> None:
        assert Index.open(out).digest == older.digest
        looks.append(read_all(out) == uids)

    prepare(tmp_path / "all", out, PrepareOptions(workers=0, shard_files=2), reads)
    assert looks == [True] * len(looks)
    assert len(looks) >= 4
    assert len(read_all(out)) == 8
    assert read_all(out, older.digest) == uids
