"""By what right each connection is here, so that those which lose it are found at once. Owned by one event loop.

A right is the `Grant` of the connection, or what the functions below return.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Hashable

from services.edge.policy import GROUP_SEPARATOR
from services.edge.ports import Client


class Roster:
    """Connections by grant, group, token and device credential."""

    def __init__(self) -> None:
        self._by_right: defaultdict[Hashable, set[Client]] = defaultdict(set)
        self._rights: dict[Client, list[Hashable]] = {}

    def add(self, client: Client, *rights: Hashable) -> None:
        """Note rights of a connection; `remove` must follow."""
        held = self._rights.setdefault(client, [])
        for right in rights:
            if right not in held:
                held.append(right)
                self._by_right[right].add(client)

    def discard(self, client: Client, right: Hashable) -> None:
        """Note that a connection does not depend on a right any more."""
        rights = self._rights.get(client)
        if rights is not None and right in rights:
            rights.remove(right)
            self._drop(client, right)

    def remove(self, client: Client) -> None:
        """Forget a connection that is gone; one that was never noted is no fault."""
        for right in self._rights.pop(client, ()):
            self._drop(client, right)

    def holders(self, right: Hashable) -> list[Client]:
        """Return the connections that depend on a right."""
        return list(self._by_right.get(right, ()))

    def everybody(self) -> list[Client]:
        """Return all connections."""
        return list(self._rights)

    def device_credentials(self) -> list[str]:
        """Return the ids of device credentials in use."""
        return [right[1] for right in self._by_right if isinstance(right, tuple) and right[0] == _DEVICE]

    def _drop(self, client: Client, right: Hashable) -> None:
        holders = self._by_right[right]
        holders.discard(client)
        if not holders:
            del self._by_right[right]


_DEVICE = "device"


def group_right(instance_id: str, client_id: str) -> Hashable:
    """Return the right of a group; `client_id` may be the Group ID alone."""
    return _group_right(instance_id, client_id.partition(GROUP_SEPARATOR)[0])


def _tagged(instance_id: str, group_id: str) -> Hashable:
    return ("group", instance_id, group_id)


_group_right = functools.lru_cache(maxsize=4_096)(_tagged)  # one object for all connections of a group


def token_right(token_id: str) -> Hashable:
    """Return the right of a token."""
    return ("token", token_id)


def device_right(credential_id: str) -> Hashable:
    """Return the right of a device credential."""
    return (_DEVICE, credential_id)
