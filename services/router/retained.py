"""Retained messages of all instances: in memory for queries, and in JetStream for the next process.

A message is kept at the moment it is routed, so a subscription that comes too late for the live message finds
it here. The copy in JetStream is written at that moment as well: both change in the order of the routing, also when a
message of QoS 0 overtakes one that waits for its log. A subscriber sees that order, but for messages of QoS 0 that wait
for their turn on the link of its edge (`services/common/qos0_window.py`). The stream of an instance is made when it is
first needed; until then, and whenever it is missing, the writes wait in their lanes.

A deletion is an empty message with a time to live. It takes the place of the message of its subject, since a subject
has one, keeps its order with what is written to that topic later, and goes away by itself.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from services.common import subjects
from services.common.errors import UnavailableError
from services.common.jetstream import stream_names
from services.common.log_wire import header_lines
from services.common.topics import InvalidTopicError, validate_topic_name
from services.router.domain.outbox import Receipt
from services.router.domain.retained import RetainedMessage, RetainedTopic, RetainedTopics
from services.router.ports import Log
from services.router.retained_stream import read_stream, stream_config
from services.router.streams import StreamMaker

logger = logging.getLogger(__name__)

DEPENDENCY = "retained"
"""Name under which `Readiness` lists that the retained messages are read."""

DELETION_TTL = "60s"
"""How long a deletion stays in the stream; longer than anything that is written before it may be on its way."""
RETRY_S = 0.5
WARN_S = 60.0
"""Shortest time between two warnings about quotas."""

_QOS_TEXT = ("0", "1", "2")


class RetainedWrite:
    """A change on its way to JetStream; token of the log writer."""

    __slots__ = ("client_id", "instance_id", "message", "receipt", "topic")

    def __init__(
        self, instance_id: str, topic: str, message: RetainedMessage | None, client_id: str, receipt: Receipt | None
    ) -> None:
        self.instance_id = instance_id
        self.topic = topic
        self.message = message  # None: a deletion
        self.client_id = client_id
        self.receipt = receipt


class Retained:
    """Retained messages by instance. Owned by one event loop.

    Args:
        max_messages: of an instance.
        max_bytes: of an instance.
    """

    def __init__(self, *, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._instances: dict[str, RetainedTopics] = {}
        self._streams = StreamMaker(stream_config)
        self._log: Log | None = None
        self._warned = -WARN_S
        self.over_quota_messages = 0
        """Messages that were not retained because their instance has its quota."""

    @property
    def messages(self) -> int:
        """Retained messages of all instances."""
        return sum(topics.messages for topics in self._instances.values())

    def begin(self, log: Log) -> None:
        """Write to `log` from now on; it reports to `stored` and `failed`."""
        self._log = log

    def keep(
        self, instance_id: str, topic: str, payload: bytes, qos: int, client_id: str, receipt: Receipt | None
    ) -> None:
        """Make a message the retained one of its topic; an empty payload deletes it.

        Args:
            instance_id: of the topic.
            topic: valid topic name.
            payload: of the message.
            qos: of the publication.
            client_id: of the publisher.
            receipt: settled when JetStream has the change, or when there is none; None at QoS 0.
        """
        topics = self._topics(instance_id)
        message: RetainedMessage | None = None
        if payload:
            message = RetainedMessage(payload, qos)
            is_changed = topics.put(topic, message)
            if not is_changed:
                self._over_quota(instance_id)
        else:  # [MQTT-3.3.1-10], [MQTT-3.3.1-11]
            # While changes are on their way, an earlier deletion may be among them: wait for it by writing another.
            is_changed = topics.remove(topic) or self._streams.pending(instance_id) > 0
        if is_changed:
            self._write(RetainedWrite(instance_id, topic, message, client_id, receipt))
        elif receipt is not None:
            receipt.settle()

    def match(self, instance_id: str, topic_filter: str) -> tuple[list[RetainedTopic], int]:
        """Return the topics with a message that a valid filter selects, and how many levels were looked at."""
        topics = self._instances.get(instance_id)
        return topics.match(topic_filter) if topics is not None else ([], 1)

    def stored(self, write: RetainedWrite) -> None:
        """Note that JetStream has a change."""
        self._streams.done(write.instance_id)
        if write.receipt is not None:
            write.receipt.settle()

    def failed(self, write: RetainedWrite) -> None:
        """Forget a message that JetStream can never store, and the one before it as well."""
        self._streams.done(write.instance_id)
        topics = self._topics(write.instance_id)
        if write.message is not None and topics.get(write.topic) is write.message:
            topics.remove(write.topic)
            self._write(RetainedWrite(write.instance_id, write.topic, None, write.client_id, write.receipt))
        elif write.receipt is not None:
            write.receipt.settle()

    async def run(self, js: JetStreamContext, log: Log) -> None:
        """Make the streams that are needed, until cancelled."""
        await self._streams.run(js, log)

    async def load(self, client: Client, serves: Callable[[str, str], bool]) -> None:
        """Read what earlier processes stored, trying until NATS answers.

        Args:
            client: connected to NATS.
            serves: says whether this router has the topic of an instance; others have the rest of the messages.
        """
        began = time.monotonic()
        names: list[str] | None = None
        while names is None or names:
            try:
                if names is None:
                    found = await stream_names(client, f"{subjects.RETAINED}.>")
                    names = [name for name in found if name.startswith(subjects.RETAINED_STREAM)]
                while names:
                    await read_stream(client, names[-1], functools.partial(self._load_message, serves))
                    names.pop()
            except (nats.errors.Error, UnavailableError, TimeoutError, OSError) as error:
                logger.warning("can't read the retained messages, trying on", extra={"error": repr(error)})
                await asyncio.sleep(RETRY_S)
        seconds = round(time.monotonic() - began, 3)
        logger.info("retained messages read", extra={"messages": self.messages, "seconds": seconds})

    def _load_message(self, serves: Callable[[str, str], bool], message: Msg) -> None:
        try:
            topic_header = (message.headers or {}).get(subjects.TOPIC_HEADER)
            instance_id, topic = subjects.retained_topic(message.subject, topic_header)
            validate_topic_name(topic)
        except (InvalidTopicError, ValueError):
            logger.warning("not the subject of a retained message", extra={"subject": message.subject})
            return
        self._streams.exists(instance_id)
        if not serves(instance_id, topic):
            return
        topics = self._topics(instance_id)
        if not message.data:
            topics.remove(topic)
            return
        qos_text = (message.headers or {}).get("qoslevel", "0")
        qos = int(qos_text) if qos_text in _QOS_TEXT else 0
        topics.put(topic, RetainedMessage(message.data, qos), is_stored=True)

    def _topics(self, instance_id: str) -> RetainedTopics:
        topics = self._instances.get(instance_id)
        if topics is None:
            topics = self._instances[instance_id] = RetainedTopics(self._max_messages, self._max_bytes)
        return topics

    def _write(self, write: RetainedWrite) -> None:
        log = self._log
        assert log is not None  # noqa: S101 - for the type checker: nothing is routed before `begin`
        # No message id: what is sent again after a break has to replace what was written meanwhile, since that is
        # the order in which subscribers see it. As a duplicate it would be dropped.
        headers = {"clientId": write.client_id}
        payload = b""
        if write.message is not None:
            payload = write.message.payload
            headers["qoslevel"] = _QOS_TEXT[write.message.qos]
        else:
            headers["Nats-TTL"] = DELETION_TTL
        subject = subjects.retained_subject(write.instance_id, write.topic)
        if subjects.needs_topic_header(subject):
            headers[subjects.TOPIC_HEADER] = subjects.encode_topic(write.topic)
        self._streams.write(log, write.instance_id, subject, payload, "", header_lines(headers), write, False)  # noqa: FBT003 - hot path

    def _over_quota(self, instance_id: str) -> None:
        self.over_quota_messages += 1
        now = time.monotonic()
        if now - self._warned >= WARN_S:
            self._warned = now
            logger.warning(
                "instance has its quota of retained messages",
                extra={"instance_id": instance_id, "over_quota_messages": self.over_quota_messages},
            )
