"""Makes guessing slow: who fails too often is not even checked for a while, and for longer each time. Pure.

Failures count for the address they come from and for the key they try. A client that got in before from the same
address is always checked, so that a neighbour, or a stranger who knows its key's id, can't lock it out. Ids that exist
and ids that do not are treated alike.
"""

from __future__ import annotations

import dataclasses
import ipaddress

FIRST_BLOCK_S = 1.0
LONGEST_BLOCK_S = 60.0
"""Each failure after a block doubles the next one, up to this."""
FORGOTTEN_S = 600.0
"""Failures are forgotten when none came for so long."""
MAX_NAMES = 65_536
"""Addresses, and keys, that are remembered; the one that failed longest ago is forgotten for another."""
MAX_CHARACTERS = 256
"""Of a key that is remembered; a longer one is none that exists, and counts for its address only."""
MAX_GOOD = 65_536
"""Clients that got in last and are remembered as good; up to as many before them are, too."""
_IPV6_PREFIX = 64
"""What a subscriber usually has for himself; its addresses count as one."""


@dataclasses.dataclass(slots=True)
class _Record:
    failures: int
    failed_at: float
    blocked_until: float


class Backoff:
    """Failures by name. Owned by one event loop.

    Args:
        free: failures that cost nothing; 0: none ever does.
    """

    def __init__(self, free: int) -> None:
        self._free = free
        self._records: dict[str, _Record] = {}

    def __len__(self) -> int:
        return len(self._records)

    def is_blocked(self, name: str, now: float) -> bool:
        """Say whether a name has to wait."""
        record = self._records.get(name)
        return record is not None and now < record.blocked_until

    def failed(self, name: str, now: float) -> bool:
        """Count a failure; returns whether it begins a block. `now` is in seconds and never goes back."""
        if not self._free or not name:
            return False
        record = self._records.pop(name, None)
        if record is None or now - record.failed_at > FORGOTTEN_S:
            record = _Record(0, now, now)
        record.failures += 1
        record.failed_at = now
        over = record.failures - self._free
        if over > 0:
            # Not a power of a number that grows without end.
            record.blocked_until = now + min(LONGEST_BLOCK_S, FIRST_BLOCK_S * 2 ** min(over - 1, 16))
        if len(self._records) >= MAX_NAMES:
            del self._records[next(iter(self._records))]
        self._records[name] = record
        return over > 0


class Attempt:
    """Who tries what; empty texts count for nothing.

    Args:
        address: host, as `host_of` returns it.
        key: what is tried, such as a user name.
        client_id: of the client.
    """

    __slots__ = ("address", "client_id", "key")

    def __init__(self, address: str = "", key: str = "", client_id: str = "") -> None:
        self.address = address
        self.key = key
        self.client_id = client_id

    def mark(self) -> int:
        """Return what tells it from others, and shows nothing of it."""
        return hash((self.address, self.key, self.client_id))


class Guard:
    """Decides who is checked at all. Owned by one event loop.

    Args:
        free_per_address: failures of an address that cost nothing; 0: no bound.
        free_per_key: failures of a key that cost nothing; 0: no bound.
    """

    def __init__(self, *, free_per_address: int, free_per_key: int) -> None:
        self._addresses = Backoff(free_per_address)
        self._keys = Backoff(free_per_key)
        self._good: set[int] = set()
        self._good_before: set[int] = set()

    def admits(self, attempt: Attempt, now: float) -> bool:
        """Say whether an attempt is to be checked; one that is not is refused like a wrong one."""
        if not (self._addresses.is_blocked(attempt.address, now) or self._keys.is_blocked(_bounded(attempt.key), now)):
            return True
        mark = attempt.mark()
        return mark in self._good or mark in self._good_before

    def failed(self, attempt: Attempt, now: float) -> bool:
        """Count a guess; returns whether it begins a block."""
        by_address = self._addresses.failed(attempt.address, now)
        return self._keys.failed(_bounded(attempt.key), now) or by_address

    def succeeded(self, attempt: Attempt) -> None:
        """Remember a client that proved who it is."""
        # Two sets in turn: to find the oldest entry of one dictionary, again and again, takes longer than all the rest.
        mark = attempt.mark()
        if mark in self._good:
            return
        if len(self._good) >= MAX_GOOD:
            self._good, self._good_before = set(), self._good
        self._good.add(mark)


def host_of(address: str) -> str:
    """Return the host of `host:port` (IPv6 in brackets or not), of IPv6 addresses the network of 64 bits."""
    host = address.rpartition(":")[0].strip("[]") or address
    if ":" not in host:
        return host
    try:
        return str(ipaddress.ip_network((host.partition("%")[0], _IPV6_PREFIX), strict=False).network_address)
    except ValueError:
        return host


def _bounded(key: str) -> str:
    return key if len(key) <= MAX_CHARACTERS else ""
