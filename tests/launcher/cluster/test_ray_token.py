"""The token of a Ray cluster: made before Ray makes it, for its owner alone, and whether a cluster asks for it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from launcher.cluster import connection
from launcher.cluster.ray_token import close_token, has_token, open_to_others, own_token
from launcher.doctor import software_checks


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".ray" / "auth_token"


def test_it_is_made_for_its_owner_alone(home: Path) -> None:
    before = os.umask(0)
    try:
        assert own_token({}) == {}
    finally:
        os.umask(before)
    token = home.read_text()
    assert len(bytes.fromhex(token)) == 32
    assert home.stat().st_mode & 0o777 == 0o600
    assert home.parent.stat().st_mode & 0o777 == 0o700
    assert own_token({}) == {}
    assert home.read_text() == token, "the one that is there stays"
    assert close_token({}) == ""


@pytest.mark.parametrize("environment", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "x"}])
def test_none_is_made_where_ray_needs_none(home: Path, environment: dict[str, str]) -> None:
    assert own_token(environment) == {}
    assert not home.exists()


def test_without_a_home_it_is_in_the_environment(home: Path) -> None:
    home.parent.write_text("a file where the folder should be")
    assert len(bytes.fromhex(own_token({})["RAY_AUTH_TOKEN"])) == 32


def test_a_planted_link_is_not_written_through(home: Path, tmp_path: Path) -> None:
    home.parent.mkdir()
    home.symlink_to(tmp_path / "elsewhere")
    own_token({})
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o777])
def test_a_wider_one_is_closed_and_told(home: Path, tmp_path: Path, mode: int) -> None:
    named = tmp_path / "token"
    for path, environment in ((home, {}), (named, {"RAY_AUTH_TOKEN_PATH": str(named)})):
        path.parent.mkdir(exist_ok=True)
        path.write_text("secret")
        path.chmod(mode)
        assert has_token(environment)
        assert open_to_others(environment) == mode
        assert f"{path} (mode {mode:04o}): closed" in close_token(environment)
        assert path.stat().st_mode & 0o077 == 0
        assert (close_token(environment), open_to_others(environment), path.read_text()) == ("", 0, "secret")


def test_what_is_no_file_blocks_nobody(home: Path) -> None:
    assert close_token({}) == ""
    home.parent.mkdir()
    os.mkfifo(home, 0o644)
    assert close_token({}) == ""


@pytest.mark.parametrize(("code", "asks"), [(0, False), (1, True)])
def test_a_stranger_knocks_without_a_token(home: Path, monkeypatch: pytest.MonkeyPatch, code: int, asks: bool) -> None:
    seen: list[dict[str, str]] = []

    def run(command: list[str], env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        seen.append(env)
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setattr(subprocess, "run", run)
    assert connection.asks_for_token("127.0.0.1:1") is asks
    assert "RAY_AUTH_TOKEN" not in seen[0]
    assert seen[0]["RAY_AUTH_MODE"] == "disabled"
    monkeypatch.setattr(software_checks, "head_here", lambda: "127.0.0.1:1")
    (found,) = software_checks.ray_token()
    assert found.status == ("ok" if asks else "problem")
    assert ("asks nobody for a token" in found.found) is not asks


def test_doctor_tells_of_a_token_that_others_can_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software_checks, "head_here", lambda: None)
    (good,) = software_checks.ray_token()
    home.parent.mkdir()
    home.write_text("secret")
    home.chmod(0o644)
    (bad,) = software_checks.ray_token()
    assert (good.status, bad.status, bad.remedy) == ("ok", "problem", f"chmod 600 {home}")
