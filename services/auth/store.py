"""The KV bucket `resources` and the in-memory view that follows it."""

from __future__ import annotations

import base64
import dataclasses
import logging
from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from nats.aio.client import Client
from typing_extensions import override

from services.auth import metrics
from services.auth.bucket import Bucket
from services.auth.domain import records
from services.auth.domain.records import AccessKey, BadRecordError, Record, TokenKey
from services.auth.domain.resources import ChangeSet, Resources
from services.auth.sealing import Sealer, SealError, token_key_owner

logger = logging.getLogger(__name__)

BUCKET = "resources"


class Store(Bucket[Record]):
    """All resources, stored and in memory. Owned by one event loop.

    Args:
        client: connected to NATS.
        resources: the view, written only by `run`.
        sealer: opens secrets.
        changed: called with what changed for the edges, after the view has changed.
    """

    def __init__(
        self, *, client: Client, resources: Resources, sealer: Sealer, changed: Callable[[ChangeSet], None]
    ) -> None:
        super().__init__(client=client, name=BUCKET)
        self._resources = resources
        self._sealer = sealer
        self._changed = changed

    async def create(self, record: Record) -> None:
        """Store a record that must not exist yet; see `Bucket.create_entry`."""
        await self.create_entry(record.key, records.encode(record))

    async def put(self, record: Record) -> None:
        """Store a record over the one under its key; see `Bucket.put_entry`."""
        await self.put_entry(record.key, records.encode(record))

    async def update(self, key: str, change: Callable[[Record], Record]) -> None:
        """Change a record as it is now, whoever else changes it; see `Bucket.update_entry`."""
        await self.update_entry(key, lambda stored: records.encode(change(records.decode(key, stored))))

    @override
    def replace(self, entries: dict[str, Record]) -> None:
        self._announce(self._resources.replace(entries))

    @override
    def apply(self, key: str, entry: Record | None) -> None:
        self._announce(self._resources.apply(key, entry))

    def _announce(self, changes: ChangeSet) -> None:
        metrics.RESOURCES.set(len(self._resources.records()))
        if changes:
            self._changed(changes)

    @override
    def decoded(self, key: str, stored: bytes) -> Record | None:
        try:
            record = records.decode(key, stored)
        except BadRecordError as error:
            logger.exception("stored resource can't be read", extra={"key": key, "cause": str(error)})
            return None
        try:
            return self._opened(record)
        except SealError as error:
            logger.exception("secret can't be decrypted", extra={"key": key, "cause": str(error)})
            return record

    def _opened(self, record: Record) -> Record:
        match record:
            case AccessKey():
                secret = self._sealer.unseal(record.sealed_secret, record.instance_id, record.access_key_id)
                return dataclasses.replace(record, secret=secret)
            case TokenKey():
                key = self._sealer.unseal(record.sealed_secret, *token_key_owner(record.key_id))
                return dataclasses.replace(record, cipher=AESGCM(base64.b64decode(key)))
        return record
