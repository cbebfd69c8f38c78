"""Which machines a server may send us to: anybody's, or its own.

    http://films.org/a.mp4 --302--> http://169.254.169.254/keys        refused: an internal address, and not its own
    http://films.org/a.mp4 --302--> https://cdn.net/a.mp4              public
    http://localhost:8000/a.mp4 --302--> http://localhost:9000/b.mp4   its own machine, which the user named

What a user names may be anywhere. Where a redirect leads is looked at when the connection is made, after names became
addresses, so no name hides one.
"""

from __future__ import annotations

import ipaddress
import socket
from functools import lru_cache
from urllib.parse import SplitResult, urlsplit

NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address in its last 32 bits


class RefusedError(OSError):
    """A redirect led where it must not; its text is the reason, for people."""


def split_url(url: str) -> SplitResult:
    """As `urlsplit`, of any text: what is no address has no host, and its path is what stands behind the scheme."""
    try:
        return urlsplit(url)
    except ValueError:  # whoever connects to it is told
        scheme, _, rest = url.partition("://")
        return SplitResult(scheme.lower(), "", rest.partition("?")[0], "", "")


def is_internal(address: str) -> bool:
    """Whether an IP address is of this machine or of a network of somebody's own (RFC 6890), or of no host at all."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if inner is None and found in NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_internal(str(inner))
    return not found.is_global or found.is_multicast


def may_follow(address: str, own: set[str]) -> bool:
    """Whether a redirect may lead to an address, from a machine with these internal addresses."""
    if not is_internal(address) or address in own:
        return True
    loops = [ipaddress.ip_address(one.partition("%")[0]).is_loopback for one in (address, *own)]
    return loops[0] and any(loops[1:])


@lru_cache(maxsize=4096)
def _addresses(host: str) -> tuple[str, ...]:
    try:
        return tuple({str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})
    except (OSError, UnicodeError):
        return ()  # whoever connects to it is told


def leads_inside(origin: str, url: str) -> bool:
    """Whether a list behind a public URL names this machine or a network of its reader's own."""
    there, here, scheme = split_url(url).hostname, split_url(origin).hostname, split_url(url).scheme
    if scheme in ("file", "local"):
        return True
    if not there or not here or there == here or scheme not in ("http", "https"):
        return False
    named = _addresses(here)
    return not any(map(is_internal, named)) and any(map(is_internal, _addresses(there)))
