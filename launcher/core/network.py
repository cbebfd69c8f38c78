"""Network interfaces of this machine."""

from __future__ import annotations

import fcntl
import socket
import struct
from contextlib import suppress

SIOCGIFADDR = 0x8915  # Linux: the address of a network device


def interface_towards(host: str) -> str:
    """The name of the network device by which packets to `host` leave, for GLOO_SOCKET_IFNAME; empty if unknown.

    gloo itself takes the address that this machine's own name stands for, which on many is 127.0.1.1.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with suppress(OSError):  # a device without an address
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
                if socket.inet_ntoa(answer[20:24]) == own:
                    return name
    return ""
