"""Messages that come from no edge: wills of clients whose edge died, and those of other systems."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator, Sequence

from services.common.errors import InvalidFieldError, NotServingError, UnavailableError
from services.common.jetstream import DEPENDENCY as NATS
from services.common.topics import InvalidTopicError, validate_topic_name
from services.router import members
from services.router.domain.columns import CLEAN_SESSION, LOGGED, REPEATED, RETAIN, Columns, ColumnsBuilder
from services.router.router import Router
from weimq.router.v1 import router_pb2

MAX_MESSAGES = 1_000
MAX_NAME = 128
"""Longest message id and instance id, in characters."""
MAX_CLIENT_ID = 65_535
"""Longest client id of MQTT, in bytes."""
MAX_QOS = 2
DEFAULT_WAIT_S = 10.0
"""How long a call without a deadline waits."""
MAX_WAIT_S = 60.0
ANSWER_S = 0.5
"""Part of the deadline kept for the answer, at most a fifth of it: the caller is to learn why it failed."""


class Checked:
    """A valid message, and what its topic is."""

    __slots__ = ("message", "topic_flags")

    def __init__(self, message: router_pb2.PublishedMessage, topic_flags: int) -> None:
        self.message = message
        self.topic_flags = topic_flags
        """Flags of `services.router.domain.columns`."""


class Call:
    """A call that waits for its messages of QoS 1 and 2."""

    __slots__ = ("done", "waiting")

    def __init__(self) -> None:
        self.waiting: set[int] = set()
        self.done = asyncio.Event()


class ExternalPublisher:
    """Publishes for the callers of `Publish`; to the router a source like an edge. Owned by one event loop.

    Args:
        router: routes the messages.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._calls: dict[int, Call] = {}  # by sequence
        self._sequence = 0
        self._is_closed = False
        self.origin = ""
        self.wants_receipts = False
        self.incarnation = f"router-{secrets.token_hex(8)}"
        """Origin of the messages of QoS 2, with a sequence that rises over all calls."""
        self.is_held = False
        """Whether the router can take no more; calls are refused meanwhile."""

    def validate(self, messages: Sequence[router_pb2.PublishedMessage], *, field: str) -> None:
        """Refuse messages that are not acceptable.

        Raises:
            InvalidFieldError: it names `field`.
        """
        _validate(messages, self._router.serves, field)

    def begin(self, messages: Sequence[Checked]) -> Call:
        """Route messages, whose call can then be waited for.

        Raises:
            NotServingError: the router is stopping, or does not know its edges yet; none was routed.
            UnavailableError: NATS does not answer, or too much waits; none was routed.
        """
        if self._is_closed:
            raise NotServingError("the router is stopping")
        if not self._router.is_begun:
            raise NotServingError("the router waits for its edges")
        if self.is_held:
            raise UnavailableError("too much waits to be stored or confirmed", dependency=NATS)
        if not self._router.can_store and any(_needs_nats(each) for each in messages):
            raise UnavailableError("NATS does not answer", dependency=NATS)
        full = self._router.full_logs
        if full.logs and any(each.qos and full.has(each.instance_id, each.topic) for each in _of(messages)):
            raise UnavailableError("too much waits to be stored in the log of a topic", dependency=NATS)
        return self._route(messages)

    def acknowledge(self, sequence: int) -> None:
        """Note that a message is safe."""
        call = self._calls.pop(sequence, None)
        if call is not None:  # else its call is over
            call.waiting.discard(sequence)
            if not call.waiting:
                call.done.set()

    def sent(self, sequence: int, ways: int, *, is_kept: bool) -> None:
        """Nothing: there are no receipts; see `ports.Source`."""

    def release(self) -> None:
        """Take calls again."""
        self.is_held = False

    def close(self) -> None:
        """Refuse further calls: the process stops."""
        self._is_closed = True

    def _route(self, messages: Sequence[Checked]) -> Call:
        call = Call()
        message_ids: dict[int, str] = {}
        for message in _of(messages):
            self._sequence += 1
            message_ids[self._sequence] = message.message_id
            if message.qos:
                call.waiting.add(self._sequence)
                self._calls[self._sequence] = call
        self._router.publish(self, columns_of(messages, list(message_ids)), message_ids=message_ids)
        return call

    async def wait(self, call: Call, remaining_s: float) -> None:
        """Wait until the messages of a call are safe; cancelling ends the wait.

        Raises:
            UnavailableError: they are not in time.
        """
        if not call.waiting:
            return
        wait_s = min(remaining_s - min(ANSWER_S, remaining_s / 5), MAX_WAIT_S)
        try:
            async with asyncio.timeout(wait_s):
                await call.done.wait()
        except TimeoutError as error:
            dependency = members.DEPENDENCY if self._router.can_store else NATS
            raise UnavailableError(
                "not all messages are stored and confirmed in time", dependency=dependency
            ) from error
        finally:
            for sequence in call.waiting:
                self._calls.pop(sequence, None)


def _validate(messages: Sequence[router_pb2.PublishedMessage], serves: Callable[[str, str], bool], field: str) -> None:
    if not 0 < len(messages) <= MAX_MESSAGES:
        raise InvalidFieldError(f"1 to {MAX_MESSAGES} messages", field=field)
    message_ids: set[str] = set()
    for index, message in enumerate(messages):
        path = f"{field}[{index}]" if field == "messages" else field
        if not 0 < len(message.instance_id) <= MAX_NAME:
            raise InvalidFieldError(f"required, up to {MAX_NAME} characters", field=f"{path}.instance_id")
        try:
            validate_topic_name(message.topic)
        except InvalidTopicError as error:
            raise InvalidFieldError(str(error), field=f"{path}.topic") from error
        if not serves(message.instance_id, message.topic):
            raise InvalidFieldError("another router has this topic", field=f"{path}.topic")
        if not 0 <= message.qos <= MAX_QOS:
            raise InvalidFieldError("0, 1 or 2", field=f"{path}.qos")
        if len(message.client_id.encode()) > MAX_CLIENT_ID:
            raise InvalidFieldError(f"up to {MAX_CLIENT_ID} bytes", field=f"{path}.client_id")
        message_id = message.message_id
        if not 0 < len(message_id) <= MAX_NAME or not message_id.isascii() or not message_id.isprintable():
            raise InvalidFieldError(
                f"required, up to {MAX_NAME} printable ASCII characters", field=f"{path}.message_id"
            )
        if message_id in message_ids:
            raise InvalidFieldError("another message of the call has it", field=f"{path}.message_id")
        message_ids.add(message_id)


def _needs_nats(checked: Checked) -> bool:
    message = checked.message
    return message.qos > 0 and (message.retain or checked.topic_flags & LOGGED != 0)


def _of(messages: Sequence[Checked]) -> Iterator[router_pb2.PublishedMessage]:
    return (each.message for each in messages)


def columns_of(messages: Sequence[Checked], sequences: list[int]) -> Columns:
    """Return messages in columns."""
    builder = ColumnsBuilder()
    for checked, sequence in zip(messages, sequences, strict=True):
        message = checked.message
        builder.add(
            instance_id=message.instance_id,
            topic=message.topic,
            topic_flags=checked.topic_flags,
            client_id=message.client_id,
            sequence=sequence,
            payload=message.payload,
            flags=message.qos
            | REPEATED  # callers may repeat a call, also one to the process before this one
            | (RETAIN if message.retain else 0)
            | (CLEAN_SESSION if message.clean_session else 0),
        )
    return builder.build()
