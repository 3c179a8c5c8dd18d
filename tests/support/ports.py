"""Ports for servers of a test that must be known before they listen, or be had again after a restart."""

from __future__ import annotations

import contextlib
import os
import random
import socket

_FIRST, _LAST = 12_000, 20_000
"""Below those that the system gives to outgoing connections: there another connection may take a port, and one that
waits for a server on its own machine can even be connected to itself."""


def worker() -> int:
    """Return the number of this process among those of pytest-xdist that run the tests together; 0 when it is alone."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def workers() -> int:
    """Return how many processes run the tests together."""
    return int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback address on which nobody listens; other workers are given other ones.

    Raises:
        AssertionError: there are too few.
    """
    found: list[int] = []
    ports = range(_FIRST, _LAST)[worker() :: workers()]
    for port in random.sample(ports, len(ports)):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")
