"""The head of a Ray cluster, as a person names it: its URL, whether it answers, and whether it asks for a token."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from http.client import HTTPException

from launcher.cluster.templates import DASHBOARD
from parallel.errors import InputError
from parallel.parsing import parse_json

ANSWER = 1 << 16  # bytes of an answer of Ray, which is one line
KNOCK_SECONDS = 5.0


def url_of(address: str) -> str:
    """http://HOST:PORT of what a person typed."""
    scheme, there, place = address.rstrip("/").rpartition("://")
    host, _, port = place.rpartition(":") if re.search(r":\w*$", place) else (place, "", str(DASHBOARD))
    scheme = scheme if there else "http"
    if scheme not in ("http", "https") or not host or not port.isdigit():
        rule = f"jobs are submitted to http://HEAD:{DASHBOARD}"
        raise InputError(rule, f"--address {address}", f"--address http://HEAD:{DASHBOARD}")
    return f"{scheme}://{host}:{port}"


def knock(url: str) -> bool:
    """Whether the Ray head there asks for a token.

    Raises:
        InputError: nobody answers within a few seconds, or not as Ray does.
    """
    rule, remedy = (
        "a Ray head answers at --address",
        f"--address http://HEAD:{DASHBOARD}, HEAD where its head runs, with its dashboard: pip install 'ray[default]'",
    )
    try:
        with urllib.request.urlopen(f"{url}/api/version", timeout=KNOCK_SECONDS) as answer:
            found = parse_json(answer.read(ANSWER))
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return True
        raise InputError(rule, f"{url}: HTTP {error.code}", remedy) from None
    except HTTPException:
        raise InputError(rule, f"{url}: something else answers", remedy) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(rule, f"{url}: {reason}", remedy) from None
    if not isinstance(found, dict) or "ray_version" not in found:
        raise InputError(rule, f"{url}: something else answers", remedy)
    return False


def answers(url: str) -> bool:
    """Whether a Ray head answers there, with or without a token."""
    try:
        knock(url)
    except InputError:
        return False
    return True


def is_loopback(url: str) -> bool:
    """Whether it is reached on this machine alone, as through ssh."""
    return url.partition("://")[2].rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]")
