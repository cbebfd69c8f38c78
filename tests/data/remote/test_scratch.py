"""The name of the temporary folder can be guessed: what others put there is neither used, followed nor deleted."""

import os
import tempfile
from pathlib import Path

import pytest

from data.prepare import pipeline
from data.remote import remote_files
from data.remote.scratch import scratch, sweep
from launcher.cluster import connection
from parallel.errors import InputError
from tests.support.films import moving, write

RULE = "this user's alone"


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    """Where our folder goes, in a temporary folder of the test's own; nothing is there yet."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)  # what it remembers
    return tmp_path / "tmp" / f"longreel-{os.getuid()}"


@pytest.fixture
def victim(tmp_path) -> Path:
    """Somebody's folder, with what must not be lost."""
    folder = tmp_path / "victim"
    (folder / "thesis").mkdir(parents=True, mode=0o700)
    (folder / "thesis" / "chapter.txt").write_text("years of work")
    folder.chmod(0o700)
    return folder


def refused() -> None:
    with pytest.raises(InputError, match=RULE):
        sweep()
    with pytest.raises(InputError, match=RULE), scratch():
        pass


def test_a_planted_link_is_refused_and_nothing_behind_it_is_deleted(base, victim):
    base.symlink_to(victim)
    refused()
    base.unlink()
    base.symlink_to(base.parent / "nowhere")
    refused()
    assert not (base.parent / "nowhere").exists()
    assert (victim / "thesis" / "chapter.txt").exists()


def test_links_inside_are_not_followed(base, victim):
    base.mkdir(mode=0o700)
    (base / "in").symlink_to(victim)
    (base / "left").mkdir()
    (base / "left" / "deep").symlink_to(victim / "thesis")
    sweep()
    assert not (base / "left").exists()  # as of a killed process
    assert (victim / "thesis" / "chapter.txt").exists()


def test_a_folder_that_others_may_open_is_refused(base):
    base.mkdir()
    base.chmod(0o777)
    refused()
    base.chmod(0o700)
    with scratch() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_somebody_else_is_refused(base, monkeypatch):
    base.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    refused()


@pytest.mark.parametrize("inside", [False, True])
def test_a_pipe_does_not_block(base, inside):
    if not inside:
        os.mkfifo(base)
        refused()
        return
    base.mkdir(mode=0o700)
    os.mkfifo(base / "pipe")
    (base / "file").touch()
    sweep()
    with scratch() as folder:
        assert folder.is_dir()
    assert sorted(os.listdir(base)) == ["file", "pipe"]


def test_the_remedy_works(base, tmp_path, victim, monkeypatch):
    base.symlink_to(victim)
    with pytest.raises(InputError) as refusal:
        sweep()
    assert f"rm -r {base}" in refusal.value.remedy
    assert os.system(f"rm -r {base}") == 0
    with scratch() as folder:
        assert folder.parent == base
    assert (victim / "thesis" / "chapter.txt").exists()


def test_prepare_refuses_before_it_decodes(base, victim, tmp_path):
    base.symlink_to(victim)
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.mp4", moving(12, 32, 48))
    (tmp_path / "in" / "a.txt").write_text("a")
    with pytest.raises(InputError, match=RULE):
        pipeline.prepare(tmp_path / "in", tmp_path / "out")
    assert (victim / "thesis" / "chapter.txt").exists()


NAMES = {
    "http://h/a%2F..%2F..%2Fetc%2Fpasswd": "passwd",
    "http://h/%2Fetc%2Fpasswd": "passwd",
    "http://h/%2e%2e": "file",
    "http://h/": "file",
    "http://h/a%20b.csv?x=/y": "a b.csv",
}


@pytest.mark.parametrize(("url", "name"), NAMES.items())
def test_a_name_behind_a_url_is_no_path(url, name):
    assert remote_files.name_of(url) == name


def test_the_address_of_a_cluster_is_not_taken_from_another_user(tmp_path, monkeypatch):
    said = tmp_path / "ray_current_cluster"
    said.write_text("10.0.0.1:6379")
    monkeypatch.setattr(connection, "HERE_FILE", str(said))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert connection.resolved("auto") == "10.0.0.1:6379"
    link = tmp_path / "link"
    link.symlink_to(said)
    monkeypatch.setattr(connection, "HERE_FILE", str(link))
    with pytest.raises(InputError, match="no Ray node runs"):
        connection.resolved("auto")
    if os.getuid():
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    else:
        os.chown(said, 1, 1)
    monkeypatch.setattr(connection, "HERE_FILE", str(said))
    with pytest.raises(InputError, match=r"you or root"):
        connection.resolved("auto")
