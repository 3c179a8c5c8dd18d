"""The KV bucket `device_credentials`: one entry for each device, under `<instance>.<client id>`, its secret sealed."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence

from nats.aio.client import Client
from typing_extensions import override

from services.auth import metrics
from services.auth.bucket import Bucket
from services.auth.domain import devices, names
from services.auth.domain.devices import BadDeviceError, DeviceCredential, Devices
from services.auth.domain.resources import ChangeSet
from services.auth.sealing import Sealer, SealError
from services.common.errors import NotFoundError
from services.common.subjects import decode_token, encode_token

logger = logging.getLogger(__name__)

BUCKET = "device_credentials"


class DeviceStore(Bucket[DeviceCredential]):
    """All device credentials, stored and in memory. Owned by one event loop.

    Args:
        client: connected to NATS.
        view: the view, written only by `run`.
        sealer: seals and opens secrets.
        changed: called with what the edges must be told, after the view has changed.
    """

    def __init__(self, *, client: Client, view: Devices, sealer: Sealer, changed: Callable[[ChangeSet], None]) -> None:
        super().__init__(client=client, name=BUCKET)
        self._view = view
        self._sealer = sealer
        self._changed = changed

    async def register(self, instance_id: str, client_ids: Sequence[str]) -> list[tuple[DeviceCredential, bool]]:
        """Make a credential for each client that has none.

        Returns:
            For each client, in order, its credential and whether it is new; only new ones come with their secret.

        Raises:
            UnavailableError: NATS does not answer; some may be stored.
        """
        made = [self._make(instance_id, client_id) for client_id in client_ids]
        are_new = await self.create_entries((_key(instance_id, one.client_id), self._sealed(one), None) for one in made)
        results = []
        for credential, is_new in zip(made, are_new, strict=True):
            existing = self._view.of_client(instance_id, credential.client_id)
            if not is_new and existing is not None:
                credential = existing  # noqa: PLW2901 - the one that counts
            results.append((credential, is_new))
        return results

    async def refresh(self, instance_id: str, client_id: str) -> DeviceCredential:
        """Replace the credential of a client by a new one.

        Raises:
            NotFoundError: it has none.
            UnavailableError: NATS does not answer.
        """
        made = self._make(instance_id, client_id)
        try:
            await self.update_entry(_key(instance_id, client_id), lambda _: self._sealed(made))
        except NotFoundError as error:
            raise missing(client_id) from error
        return made

    async def revoke(self, instance_id: str, client_id: str) -> None:
        """Delete the credential of a client.

        Raises:
            NotFoundError: it has none.
            UnavailableError: NATS does not answer.
        """
        if self._view.of_client(instance_id, client_id) is None:
            raise missing(client_id)
        await self.delete(_key(instance_id, client_id))

    def owns(self, instance_id: str) -> bool:
        """Say whether an instance has device credentials."""
        return bool(self._view.of_instance(instance_id))

    async def delete_instance(self, instance_id: str) -> None:
        """Delete every credential of an instance. Idempotent.

        Raises:
            UnavailableError: NATS does not answer; some may be deleted.
        """
        # Again and again: another replica may have registered more before it saw the mark of the instance.
        while client_ids := list(self._view.of_instance(instance_id)):
            await self.delete_entries(_key(instance_id, client_id) for client_id in client_ids)

    async def delete_group(self, instance_id: str, group_id: str) -> None:
        """Delete every credential of a group's devices. Idempotent.

        Raises:
            UnavailableError: NATS does not answer; some may be deleted.
        """
        of_group = [
            client_id for client_id in self._view.of_instance(instance_id) if names.group_of(client_id) == group_id
        ]
        await self.delete_entries(_key(instance_id, client_id) for client_id in of_group)

    def _make(self, instance_id: str, client_id: str) -> DeviceCredential:
        return DeviceCredential(
            instance_id=instance_id,
            client_id=client_id,
            credential_id=f"DC{secrets.token_hex(12)}",
            create_time_ms=time.time_ns() // 1_000_000,
            secret=secrets.token_urlsafe(24),
        )

    def _sealed(self, credential: DeviceCredential) -> bytes:
        sealed = self._sealer.seal(credential.secret or "", *_owner(credential.instance_id, credential.credential_id))
        return devices.encode(
            credential_id=credential.credential_id, sealed_secret=sealed, create_time_ms=credential.create_time_ms
        )

    @override
    def decoded(self, key: str, stored: bytes) -> DeviceCredential | None:
        try:
            instance_id, client_id = _names(key)
            credential_id, sealed, create_time_ms = devices.decode(stored)
        except (ValueError, BadDeviceError) as error:
            logger.exception("stored device credential can't be read", extra={"key": key, "cause": str(error)})
            return None
        try:
            secret = self._sealer.unseal(sealed, *_owner(instance_id, credential_id))
        except SealError as error:
            logger.exception("secret can't be decrypted", extra={"key": key, "cause": str(error)})
            secret = None
        return DeviceCredential(
            instance_id=instance_id,
            client_id=client_id,
            credential_id=credential_id,
            create_time_ms=create_time_ms,
            secret=secret,
        )

    @override
    def replace(self, entries: dict[str, DeviceCredential]) -> None:
        self._tell(self._view.replace(entries.values()))

    @override
    def apply(self, key: str, entry: DeviceCredential | None) -> None:
        removed = self._view.put(entry) if entry is not None else self._view.remove(*_names(key))
        self._tell([] if removed is None else [removed])

    def _tell(self, removed: list[str]) -> None:
        metrics.DEVICES.set(len(self._view))
        if removed:
            self._changed(ChangeSet(removed_device_ids=removed))


def missing(client_id: str) -> NotFoundError:
    """Return the error for a client without a credential."""
    return NotFoundError("the client has no device credential", resource=f"device/{client_id}")


def _key(instance_id: str, client_id: str) -> str:
    return f"{encode_token(instance_id)}.{encode_token(client_id)}"


def _names(key: str) -> tuple[str, str]:
    instance_id, _, client_id = key.partition(".")
    return decode_token(instance_id), decode_token(client_id)


def _owner(instance_id: str, credential_id: str) -> tuple[str, ...]:
    # Three parts, so that it is no AccessKey's.
    return instance_id, "device", credential_id
