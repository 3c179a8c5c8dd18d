"""Ports for servers of a test that must be known before they listen, or be had again after a restart."""

from __future__ import annotations

import contextlib
import random
import socket

_PORTS = range(12_000, 20_000)
"""Below those that the system gives to outgoing connections: there another connection may take a port, and one that
waits for a server on its own machine can even be connected to itself."""


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback address on which nobody listens.

    Raises:
        AssertionError: there are too few.
    """
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")
