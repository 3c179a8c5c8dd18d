"""Creation and deletion of resources together with their JetStream streams.

A stream exists before the topic that needs it is seen. Deletion is in three steps, each of which can be repeated: the
record is marked, so that edges stop using the resource; its stream is deleted; the record is deleted. A crash in
between is finished by the next start, or by the next call about the resource.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any

from nats.js.errors import BadRequestError

from services.auth.device_store import DeviceStore
from services.auth.domain import limits, records
from services.auth.domain.records import AccessKey, Group, Instance, Profile, Topic
from services.auth.domain.resources import Resources
from services.auth.sealing import Sealer
from services.auth.store import Store
from services.auth.streams import Streams
from services.common import subjects
from services.common.errors import AlreadyExistsError, InUseError, InvalidFieldError, NotFoundError, UnavailableError

logger = logging.getLogger(__name__)

ATTEMPTS = 5
"""How often a start tries to make a stream while NATS is connected and does not manage."""
RETRY_S = 0.5


class Administration:
    """Changes resources, one change at a time. Owned by one event loop.

    Args:
        streams: of JetStream.
        store: where records are kept.
        devices: device credentials, which go with their instance.
        resources: the view that `store` writes.
        sealer: seals the secrets of AccessKeys.
    """

    def __init__(
        self, *, streams: Streams, store: Store, devices: DeviceStore, resources: Resources, sealer: Sealer
    ) -> None:
        self._streams = streams
        self._store = store
        self._devices = devices
        self._resources = resources
        self._sealer = sealer
        # Serialises the calls of this replica; between replicas the store decides who was first.
        self._lock = asyncio.Lock()

    async def create_instance(self, instance_id: str, profile: Profile, *, anonymous: bool) -> Instance:
        """Create an instance and its stream of lifecycle events.

        Raises:
            AlreadyExistsError: there is one with this id.
            UnavailableError: NATS does not answer.
        """
        instance = records.new_instance(instance_id, profile, anonymous=anonymous, create_time_ms=_now_ms())
        async with self._lock:
            existing = self._resources.record(instance.key)
            if isinstance(existing, Instance) and existing.deleting:
                await self._finish_instance(existing)
            elif existing is not None:
                raise _exists(f"instance/{instance_id}")
            await self._streams.ensure_events(instance)
            await self._create(instance, f"instance/{instance_id}")
        return instance

    async def update_instance(self, instance_id: str, changes: Mapping[str, Any]) -> Instance:
        """Change rules of an instance; `changes` holds values of `limits.SETTABLE`.

        Raises:
            NotFoundError: there is none with this id.
            InvalidFieldError: a value is out of its range.
            UnavailableError: NATS does not answer.
        """
        async with self._lock:
            instance = self._resources.instance(instance_id)
            if instance is None:
                raise _missing(f"instance/{instance_id}")
            for name, value in changes.items():
                if fault := limits.fault(name, value, instance):
                    raise InvalidFieldError(f"instance.{name} {fault}", field=f"instance.{name}")
            await self._store.update(instance.key, lambda stored: dataclasses.replace(stored, **changes))
            return self._resources.instance(instance_id) or instance

    async def delete_instance(self, instance_id: str, *, force: bool) -> None:
        """Delete an instance, its stream of events and, with `force`, all it owns.

        Raises:
            NotFoundError: there is none with this id.
            InUseError: it owns something, and `force` is not set.
            UnavailableError: NATS does not answer.
        """
        async with self._lock:
            instance = self._resources.record(f"instance.{subjects.encode_token(instance_id)}")
            if not isinstance(instance, Instance):
                raise _missing(f"instance/{instance_id}")
            is_owner = self._resources.owned_by(instance_id) or self._devices.owns(instance_id)
            if not force and not instance.deleting and is_owner:
                raise InUseError(
                    f"instance {instance_id} still owns keys, groups, topics or devices: delete them, or set `force`",
                    resource=f"instance/{instance_id}",
                )
            await self._finish_instance(instance)

    async def create_access_key(
        self,
        instance_id: str,
        access_key_id: str,
        account_id: str,
        *,
        publish: bool = True,
        subscribe: bool = True,
        topic_filters: tuple[str, ...] = (),
    ) -> AccessKey:
        """Create an AccessKey; its `secret` is in the answer.

        Args:
            instance_id: that it belongs to.
            access_key_id: empty: a random one.
            account_id: that owns it.
            publish: whether its clients may publish.
            subscribe: whether they may subscribe.
            topic_filters: what it is limited to; empty: every parent topic of the account.

        Raises:
            NotFoundError: there is no such instance.
            AlreadyExistsError: there is one with this id.
            UnavailableError: NATS does not answer.
        """
        self._require_instance(instance_id)
        return await self.put_access_key(
            instance_id,
            access_key_id,
            account_id,
            publish=publish,
            subscribe=subscribe,
            topic_filters=topic_filters,
        )

    async def put_access_key(
        self,
        instance_id: str,
        access_key_id: str,
        account_id: str,
        *,
        secret: str | None = None,
        publish: bool = True,
        subscribe: bool = True,
        topic_filters: tuple[str, ...] = (),
    ) -> AccessKey:
        """Create an AccessKey without asking whether its instance exists, for the first start."""
        access_key_id = access_key_id or f"AK{secrets.token_hex(10)}"
        secret = secret or secrets.token_urlsafe(24)
        sealed = self._sealer.seal(secret, instance_id, access_key_id)
        key = AccessKey(
            instance_id=instance_id,
            access_key_id=access_key_id,
            account_id=account_id,
            sealed_secret=sealed,
            publish=publish,
            subscribe=subscribe,
            topic_filters=topic_filters,
            create_time_ms=_now_ms(),
            secret=secret,
        )
        async with self._lock:
            await self._create(key, f"accesskey/{access_key_id}")
        return key

    async def update_access_key(
        self, instance_id: str, access_key_id: str, *, publish: bool, subscribe: bool, topic_filters: tuple[str, ...]
    ) -> AccessKey:
        """Replace the permissions of an AccessKey.

        Raises:
            NotFoundError: there is no such key.
            UnavailableError: NATS does not answer.
        """
        async with self._lock:
            key = self._resources.access_key(instance_id, access_key_id)
            if key is None:
                raise _missing(f"accesskey/{access_key_id}")
            changes: dict[str, Any] = {"publish": publish, "subscribe": subscribe, "topic_filters": topic_filters}
            await self._store.update(key.key, lambda stored: dataclasses.replace(stored, **changes))
            return dataclasses.replace(key, **changes)

    async def delete_access_key(self, instance_id: str, access_key_id: str) -> None:
        """Delete an AccessKey.

        Raises:
            NotFoundError: there is no such key.
            UnavailableError: NATS does not answer.
        """
        async with self._lock:
            key = self._resources.access_key(instance_id, access_key_id)
            if key is None:
                raise _missing(f"accesskey/{access_key_id}")
            await self._store.delete(key.key)

    async def create_group(self, instance_id: str, group_id: str, account_id: str) -> Group:
        """Create a group.

        Raises:
            NotFoundError: there is no such instance.
            AlreadyExistsError: there is one with this id.
            UnavailableError: NATS does not answer.
        """
        self._require_instance(instance_id)
        return await self.put_group(instance_id, group_id, account_id)

    async def put_group(self, instance_id: str, group_id: str, account_id: str) -> Group:
        """Create a group without asking whether its instance exists, for the first start."""
        group = Group(instance_id=instance_id, group_id=group_id, account_id=account_id, create_time_ms=_now_ms())
        instance = self._resources.instance(instance_id)
        async with self._lock:
            # What is left of a group of this name must not come back to life, perhaps for another account.
            is_lmq = instance is not None and instance.profile is Profile.LMQ
            if is_lmq and self._resources.group(instance_id, group_id) is None:
                await self._devices.delete_group(instance_id, group_id)
            await self._create(group, f"group/{group_id}")
        return group

    async def delete_group(self, instance_id: str, group_id: str) -> None:
        """Delete a group and the credentials of its devices.

        Raises:
            NotFoundError: there is no such group.
            UnavailableError: NATS does not answer.
        """
        async with self._lock:
            group = self._resources.group(instance_id, group_id)
            if group is None:
                raise _missing(f"group/{group_id}")
            # First the group, without which no device gets in; a crash leaves credentials that the next
            # group of this name deletes.
            await self._store.delete(group.key)
            await self._devices.delete_group(instance_id, group_id)

    async def create_topic(self, topic: Topic) -> Topic:
        """Create a parent topic and, when it is logged, its stream.

        Raises:
            NotFoundError: there is no such instance.
            AlreadyExistsError: there is one of this name.
            UnavailableError: NATS does not answer.
        """
        self._require_instance(topic.instance_id)
        return await self.put_topic(topic)

    async def put_topic(self, topic: Topic) -> Topic:
        """Create a parent topic without asking whether its instance exists, for the first start."""
        topic = dataclasses.replace(topic, create_time_ms=_now_ms())
        async with self._lock:
            existing = self._resources.record(topic.key)
            if isinstance(existing, Topic) and existing.deleting:
                await self._finish_topic(existing)
            elif existing is not None:
                raise _exists(f"topic/{topic.topic}")
            await self._streams.ensure_log(topic)
            await self._create(topic, f"topic/{topic.topic}")
        return topic

    async def delete_topic(self, instance_id: str, name: str) -> None:
        """Delete a parent topic and its stream with every message.

        Raises:
            NotFoundError: there is no such topic.
            UnavailableError: NATS does not answer.
        """
        key = f"topic.{subjects.encode_token(instance_id)}.{subjects.encode_token(name)}"
        async with self._lock:
            topic = self._resources.record(key)
            if not isinstance(topic, Topic):
                raise _missing(f"topic/{name}")
            await self._finish_topic(topic)

    async def reconcile(self) -> None:
        """Make every stream that a resource needs, and finish deletions that were begun.

        What a connected NATS refuses is logged and left, so that it can't keep all others away.
        """
        for record in self._resources.records():
            if isinstance(record, Instance | Topic):
                await self._reconcile_one(record)

    async def _reconcile_one(self, record: Instance | Topic) -> None:
        refusals = 0
        while True:
            try:
                async with self._lock:
                    await self._bring_into_line(record)
            except UnavailableError as error:
                refusals += self._streams.is_connected
                # A wrong request stays wrong; anything else may pass.
                if isinstance(error.__cause__, BadRequestError) or refusals == ATTEMPTS:
                    logger.exception("resource has no stream", extra={"key": record.key, "cause": str(error)})
                    return
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def _bring_into_line(self, record: Instance | Topic) -> None:
        match record:
            case Instance(deleting=True):
                await self._finish_instance(record)
            case Instance():
                await self._streams.ensure_events(record)
            case Topic(deleting=True):
                await self._finish_topic(record)
            case Topic():
                await self._streams.ensure_log(record)

    async def _finish_instance(self, instance: Instance) -> None:
        if not instance.deleting:
            await self._store.put(dataclasses.replace(instance, deleting=True))
        # Again and again: another replica may have created something before it saw the mark.
        while owned := self._resources.owned_by(instance.instance_id):
            for record in owned:
                if isinstance(record, Topic):
                    await self._finish_topic(record)
                else:
                    await self._store.delete(record.key)
        await self._devices.delete_instance(instance.instance_id)
        await self._streams.delete_of_instance(instance.instance_id)
        await self._store.delete(instance.key)

    async def _finish_topic(self, topic: Topic) -> None:
        if not topic.deleting:
            await self._store.put(dataclasses.replace(topic, deleting=True))
        await self._streams.delete_log(topic)
        await self._store.delete(topic.key)

    async def _create(self, record: records.Record, resource: str) -> None:
        try:
            await self._store.create(record)
        except AlreadyExistsError as error:
            raise _exists(resource) from error

    def _require_instance(self, instance_id: str) -> None:
        if self._resources.instance(instance_id) is None:
            raise _missing(f"instance/{instance_id}")


def _exists(resource: str) -> AlreadyExistsError:
    return AlreadyExistsError(f"{resource} exists already", resource=resource)


def _missing(resource: str) -> NotFoundError:
    return NotFoundError(f"{resource} does not exist", resource=resource)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
