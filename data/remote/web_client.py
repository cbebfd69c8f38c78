"""A web client that goes where `addresses.py` lets it: each connection is checked after its name became an address."""

from __future__ import annotations

import socket
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from yarl import URL

from data.remote.addresses import RefusedError, is_internal, may_follow

MOST_PAGE = 64 << 20  # bytes of a page that lists files


@dataclass
class _Request:
    """One request and its redirects; `own` are internal addresses of the machine that was named."""

    host: str
    own: set[str] = field(default_factory=set)
    redirected: bool = False


_REQUEST: ContextVar[_Request | None] = ContextVar("request", default=None)


class _Page(aiohttp.ClientResponse):
    """A response whose text is not without end."""

    async def text(self, encoding: str | None = None, errors: str = "replace") -> str:
        """Of a page, whole."""
        parts, size = [], 0
        async for part in self.content.iter_chunked(1 << 16):
            parts.append(part)
            size += len(part)
            if size > MOST_PAGE:
                self.close()
                raise RefusedError(f"its list of files is longer than {MOST_PAGE >> 20} MiB")
        return b"".join(parts).decode(encoding or self.charset or "utf-8", errors)


async def guarded_client(**settings: Any) -> aiohttp.ClientSession:
    """A session of aiohttp that follows redirects as `may_follow` says."""
    named: dict[str, set[str]] = {}  # hosts that were asked for by name: internal addresses of theirs

    def connect(info: Any) -> socket.socket:
        address, request = str(info[4][0]), _REQUEST.get()
        if request is not None and request.redirected:
            if not may_follow(address, request.own):
                raise RefusedError(f"{request.host} leads to {address}, an internal address: name it yourself")
        elif request is not None and is_internal(address):
            named.setdefault(request.host, set()).add(address)
        return socket.socket(info[0], info[1], info[2])

    async def began(_: Any, __: Any, asked: aiohttp.TraceRequestStartParams) -> None:
        _REQUEST.set(_Request(asked.url.host or ""))

    async def redirected(_: Any, __: Any, told: aiohttp.TraceRequestRedirectParams) -> None:
        request = _REQUEST.get()
        place = told.response.headers.get("Location") or told.response.headers.get("URI") or ""
        assert request is not None, "a request began before it was redirected"
        request.redirected, request.own = True, named.get(request.host, set())
        host = told.response.url.join(URL(place)).host or ""
        for address in named.get(host, set()):  # a connection to it may be open still
            if not may_follow(address, request.own):
                raise RefusedError(f"{request.host} leads to {address}, an internal address: name it yourself")

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(began)
    trace.on_request_redirect.append(redirected)
    connector = aiohttp.TCPConnector(socket_factory=connect)
    return aiohttp.ClientSession(connector=connector, trace_configs=[trace], response_class=_Page, **settings)
