"""Device credentials in memory, a secret for each device, and their stored form. Pure.

There may be hundreds of thousands, so that they are small and found by id and by client id without a search.
"""

from __future__ import annotations

import heapq
import json
import sys
from collections.abc import Iterable, Mapping

VERSION = 1
"""Version of the stored form."""


class BadDeviceError(ValueError):
    """Stored bytes that are no device credential of this version."""


class DeviceCredential:
    """What one device connects with."""

    __slots__ = ("client_id", "create_time_ms", "credential_id", "instance_id", "secret")

    def __init__(
        self, *, instance_id: str, client_id: str, credential_id: str, create_time_ms: int, secret: str | None
    ) -> None:
        self.instance_id = sys.intern(instance_id)  # one text for all of an instance
        self.client_id = client_id
        self.credential_id = credential_id
        """Random, and another after each refresh."""
        self.create_time_ms = create_time_ms
        self.secret = secret
        """None: it could not be decrypted, and the credential is as good as unknown."""


class Devices:
    """All device credentials. Owned by one event loop; only its store changes it."""

    def __init__(self) -> None:
        self._by_id: dict[str, DeviceCredential] = {}
        self._by_client: dict[str, dict[str, DeviceCredential]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def credential(self, credential_id: str) -> DeviceCredential | None:
        """Return the credential of an id."""
        return self._by_id.get(credential_id)

    def of_client(self, instance_id: str, client_id: str) -> DeviceCredential | None:
        """Return the credential of a client."""
        return self._by_client.get(instance_id, {}).get(client_id)

    def of_instance(self, instance_id: str) -> Mapping[str, DeviceCredential]:
        """Return the credentials of an instance, by client id."""
        return self._by_client.get(instance_id, {})

    def page(self, instance_id: str, prefix: str, after: str, size: int) -> list[DeviceCredential]:
        """Return credentials by client id.

        Args:
            instance_id: whose.
            prefix: what their client ids begin with.
            after: client id that they come after.
            size: most credentials returned.
        """
        credentials = self._by_client.get(instance_id, {})
        wanted = (client_id for client_id in credentials if client_id > after and client_id.startswith(prefix))
        return [credentials[client_id] for client_id in heapq.nsmallest(size, wanted)]

    def put(self, credential: DeviceCredential) -> str | None:
        """Add or replace the credential of a client; returns the id that is no longer valid."""
        removed = self.remove(credential.instance_id, credential.client_id)
        self._by_id[credential.credential_id] = credential
        self._by_client.setdefault(credential.instance_id, {})[credential.client_id] = credential
        return None if removed == credential.credential_id else removed

    def remove(self, instance_id: str, client_id: str) -> str | None:
        """Remove the credential of a client; returns its id."""
        credentials = self._by_client.get(instance_id, {})
        credential = credentials.pop(client_id, None)
        if credential is None:
            return None
        if not credentials:
            del self._by_client[instance_id]
        del self._by_id[credential.credential_id]
        return credential.credential_id

    def replace(self, credentials: Iterable[DeviceCredential]) -> list[str]:
        """Make `credentials` the whole content; returns the ids that are no longer valid."""
        before = self._by_id
        self._by_id, self._by_client = {}, {}
        for credential in credentials:
            self.put(credential)
        return [credential_id for credential_id in before if credential_id not in self._by_id]


def encode(*, credential_id: str, sealed_secret: str, create_time_ms: int) -> bytes:
    """Return the stored form of a credential; its key tells instance and client."""
    return json.dumps([VERSION, credential_id, sealed_secret, create_time_ms], separators=(",", ":")).encode()


def decode(stored: bytes) -> tuple[str, str, int]:
    """Return id, sealed secret and time of creation of a stored credential.

    Raises:
        BadDeviceError: it is none.
    """
    try:
        match json.loads(stored):
            case [1, str(credential_id), str(sealed_secret), int(create_time_ms)]:
                return credential_id, sealed_secret, create_time_ms
    except ValueError:
        pass
    raise BadDeviceError(f"no device credential of version {VERSION}")
