"""The token that a Ray cluster asks for: made before Ray makes it, and kept from everybody else on this machine.

    RAY_AUTH_TOKEN        the token itself
    RAY_AUTH_TOKEN_PATH   its file
    ~/.ray/auth_token     its file where neither is set

Whoever reads the token can run code as its owner. Ray itself writes the file with the permissions that the umask
leaves, mostly 0644; here it is made with 0600, and a wider one that is ours is closed. The price is one `stat` a
connection.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

TOKEN_FILE = "~/.ray/auth_token"
OTHERS = stat.S_IRWXG | stat.S_IRWXO
OPEN_CLUSTER = "whoever reaches it can run code there"
MAKE = "(umask 077; ray get-auth-token --generate > /dev/null)"
START_HEAD = f"{MAKE} && RAY_AUTH_MODE=token ray start --head --port=6379"
ASK_FOR_IT = f"""on every node: ray stop; on the first: {START_HEAD}
    copy ~/.ray/auth_token to the others and to where you submit from, mode 0600, and there:
    RAY_AUTH_MODE=token ray start --address=HEAD:6379"""


def token_file(environment: Mapping[str, str]) -> Path:
    """Where the token lies."""
    return Path(environment.get("RAY_AUTH_TOKEN_PATH") or TOKEN_FILE).expanduser()


def has_token(environment: Mapping[str, str]) -> bool:
    """Whether there is one to show."""
    named = environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or token_file({}).exists()


def own_token(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment, so that an embedded Ray asks for a token that nobody else reads.

    The file is made if it is not there; where the home folder cannot be written, the token is in the environment alone,
    which only this user can read. Empty if Ray has its token already, or was told to ask for none.
    """
    if environment.get("RAY_AUTH_MODE", "token").lower() != "token" or has_token(environment):
        return {}
    token, path = secrets.token_hex(32), token_file({})
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError:
        return {} if has_token(environment) else {"RAY_AUTH_TOKEN": token}  # another run may have made it meanwhile
    with os.fdopen(file, "w") as opened:
        opened.write(token)
    return {}


def open_to_others(environment: Mapping[str, str]) -> int:
    """The mode of the token's file if others than its owner can read or write it, else 0."""
    try:
        mode = stat.S_IMODE(token_file(environment).stat().st_mode)
    except OSError:
        return 0
    return mode if mode & OTHERS else 0


def close_token(environment: Mapping[str, str]) -> str:
    """Take the token's file from others who can read or write it; says so in a line, empty if there was nothing to do.

    A file of somebody else, such as a mounted secret, is left as it is and told.
    """
    path = token_file(environment)
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ""  # none, or none for us: Ray says which
    try:
        found = os.fstat(file)
        mode = stat.S_IMODE(found.st_mode)
        if not stat.S_ISREG(found.st_mode) or not mode & OTHERS:
            return ""
        told = f"others on this machine can read the token in {path} (mode {mode:04o})"
        if found.st_uid != os.geteuid():
            return f"{told}: it is not ours to close"
        os.fchmod(file, mode & ~OTHERS)
        return f"{told}: closed. If one of them may have read it, remove it and start Ray again"
    finally:
        os.close(file)
