"""Subscriptions of persistent sessions in the KV bucket `sessions`: the truth about who is to get what.

The key is `<instance>.<client>` in escaped form, or `<instance>.=<SHA-256>` for a client id that is too long for a
subject of NATS. The value is JSON: client id, subscriptions, and the rules of the session. Writes are pipelined and in
order; one that is not acknowledged is sent again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext

from services.common import jetstream, subjects
from services.common.errors import UnavailableError
from services.common.log_reader import LogReader, StoredMessage
from services.common.log_writer import LogWriter
from services.session.domain.interests import pack_subscription, qos_of, since_ms_of
from services.session.domain.rules import Rules
from services.session.domain.shard import Store

logger = logging.getLogger(__name__)

BUCKET = "sessions"
STREAM = subjects.SESSIONS_STREAM
MAX_MARKERS = 100_000
"""Deletions that one start of a shard clears away."""
MAX_KEY = 1_000
"""Longest key with the client id in it, in characters."""
_OPERATION = "KV-Operation"

Done = Callable[[str, int, bool], None]
"""Called with channel id, number, and whether it was stored."""


class StoredSession(NamedTuple):
    """What the bucket has of a session."""

    instance_id: str
    client_id: str
    subscriptions: dict[str, int]
    """Packed, by topic filter."""
    rules: Rules


class Stored(NamedTuple):
    """The token of a write that is to be answered."""

    channel_id: str
    number: int
    done: Done


def key_of(instance_id: str, client_id: str) -> str:
    """Return the key of a session."""
    instance, client = subjects.encode_token(instance_id), subjects.encode_token(client_id)
    if len(client) > MAX_KEY:
        client = f"={hashlib.sha256(client_id.encode()).hexdigest()}"
    return f"{instance}.{client}"


def write(writer: LogWriter, store: Store, done: Done) -> None:
    """Have the subscriptions of a session stored, or deleted; `done` is called when the store answers a change."""
    headers: dict[str, str] = {}
    if store.subscriptions is None:
        payload = b""
        headers[_OPERATION] = "DEL"
    else:
        subscriptions = [[name, qos_of(value), since_ms_of(value)] for name, value in store.subscriptions.items()]
        value = {"c": store.client_id, "s": subscriptions, "r": dataclasses.astuple(store.rules)}
        payload = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    token = Stored(store.channel_id, store.number, done) if store.number else None
    writer.write(f"$KV.{BUCKET}.{key_of(store.instance_id, store.client_id)}", payload, headers, token)


class Writes:
    """Writes subscriptions in order; those that follow a checkpoint wait for it, and so do later ones of the client.

    So the losses of a session that is deleted are stored before the bucket forgets it.
    """

    def __init__(self) -> None:
        self.writer: LogWriter | None = None
        """Set at the start, before the first `write`."""
        self._waiting: dict[tuple[str, str], list[tuple[Store, Done]]] = {}  # by instance and client

    def write(self, store: Store, done: Done) -> None:
        """Have the subscriptions of a session stored, or deleted; see `write`."""
        key = (store.instance_id, store.client_id)
        if store.has_losses or key in self._waiting:
            self._waiting.setdefault(key, []).append((store, done))
        else:
            self._write(store, done)

    def waiting(self) -> dict[tuple[str, str], int]:
        """Return for whom how many wait now, for `release` when a checkpoint that begins now is stored."""
        return {key: len(stores) for key, stores in self._waiting.items()}

    def release(self, waiting: dict[tuple[str, str], int]) -> None:
        """Write what waited when a checkpoint began that is stored now."""
        for key, count in waiting.items():
            stores = self._waiting.pop(key)
            for each in stores[:count]:
                self._write(*each)
            if stores[count:]:
                self._waiting[key] = stores[count:]

    def _write(self, store: Store, done: Done) -> None:
        if self.writer is None:
            raise AssertionError("nothing is written before the start")
        write(self.writer, store, done)


def parse(message: StoredMessage) -> StoredSession | None:
    """Return the session that a message of the bucket tells of; None: it was deleted.

    Raises:
        ValueError: the message is not understood.
    """
    if message.headers.get(_OPERATION):
        return None
    instance_id = _instance_of(message)
    try:
        value = json.loads(message.payload)
        subscriptions = {name: pack_subscription(qos, since_ms) for name, qos, since_ms in value["s"]}
        return StoredSession(instance_id, value["c"], subscriptions, Rules(*value["r"]))
    except (LookupError, TypeError) as error:
        raise ValueError(f"not a session: {error!r}") from error


def _instance_of(message: StoredMessage) -> str:
    return subjects.decode_token(message.subject.split(".")[2])


async def last_sequence(js: JetStreamContext) -> int:
    """Return how far the bucket goes; made when it does not exist.

    Raises:
        UnavailableError: NATS does not answer.
    """
    await jetstream.ensure_bucket(js, BUCKET)
    try:
        return (await js.stream_info(STREAM)).state.last_seq
    except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
        raise UnavailableError(f"{STREAM}: {error!r}", dependency=jetstream.DEPENDENCY) from error


async def read_all(
    reader: LogReader, through: int, markers: list[tuple[str, int]]
) -> AsyncIterator[list[StoredSession]]:
    """Yield every session of the bucket, of all shards.

    Args:
        reader: reads streams.
        through: how far the bucket is read.
        markers: gets subject and sequence of the messages that tell of deletions.

    Raises:
        UnavailableError: NATS does not answer.
    """
    after = 0
    while after < through:
        messages = await reader.read(STREAM, after)
        if not messages:
            return  # the last ones were replaced since
        after = messages[-1].sequence
        sessions = []
        for message in messages:
            try:
                session = parse(message)
            except ValueError as error:
                logger.warning("session not understood", extra={"key": message.subject, "error": str(error)})
                continue
            if session is not None:
                sessions.append(session)
            elif len(markers) < MAX_MARKERS and message.subject != subjects.sessions_mark(_instance_of(message)):
                markers.append((message.subject, message.sequence))
        yield sessions


async def clear(js: JetStreamContext, markers: list[tuple[str, int]]) -> None:
    """Delete messages that tell of deletions: nobody needs them once every shard has started after them.

    Through a sequence, so that a session which was made again meanwhile stays.
    """
    for subject, sequence in markers:
        try:
            await js.purge_stream(STREAM, seq=sequence + 1, subject=subject)
        except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
            logger.warning("deletions of sessions not cleared away", extra={"error": repr(error)})
            return  # the next start does it
    markers.clear()
