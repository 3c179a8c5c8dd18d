"""What other systems call: their messages are checked by what exists."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from services.common.errors import InvalidFieldError, NotServingError
from services.common.runtime import first_of
from services.router.auth_watch import AuthWatch
from services.router.domain.catalog import Catalog, Publisher, RefusedError
from services.router.domain.columns import P2P
from services.router.publisher import DEFAULT_WAIT_S, MAX_WAIT_S, Call, Checked, ExternalPublisher
from services.router.receipts import Receipts
from weimq.router.v1 import router_pb2

logger = logging.getLogger(__name__)

MAX_UNANSWERED = 16
"""Batches of a stream that are routed and not answered."""


class Calls:
    """The public part of `RouterService`.

    Args:
        watch: knows what exists.
        publisher: publishes.
        receipts: delivers.
    """

    def __init__(self, *, watch: AuthWatch, publisher: ExternalPublisher, receipts: Receipts) -> None:
        self._watch = watch
        self._publisher = publisher
        self._receipts = receipts
        self.not_permitted = 0
        """Messages dropped because their publisher may not publish them any more."""

    async def publish(self, messages: Sequence[router_pb2.PublishedMessage], remaining_s: float | None) -> None:
        """Serve `Publish`: route messages, and wait until those of QoS 1 and 2 are safe.

        Cancelling ends the wait; the messages go their way.

        Args:
            messages: in order.
            remaining_s: until the deadline of the caller; None: it has none.

        Raises:
            InvalidFieldError: a message is not acceptable; none was routed.
            NotServingError: the router is stopping, or does not know yet what exists or its edges; none was routed.
            UnavailableError: NATS or an edge does not answer, or too much waits; to be repeated as a whole.
        """
        self._publisher.validate(messages, field="messages")
        catalog = self._catalog()
        permitted: list[Checked] = []
        for index, message in enumerate(messages):
            try:
                checked = check(message, catalog)
                if message.HasField("publisher"):
                    catalog.judge(_publisher(message), message.instance_id, message.topic)
            except RefusedError as error:
                if not message.HasField("publisher"):
                    raise InvalidFieldError(str(error), field=f"messages[{index}]") from error
                # Neither topic nor payload: they are the client's.
                extra = {"instance": message.instance_id, "error": str(error)}
                logger.info("message not permitted any more", extra=extra)
            else:
                permitted.append(checked)
        if permitted:
            call = self._publisher.begin(permitted)
            await self._publisher.wait(call, DEFAULT_WAIT_S if remaining_s is None else remaining_s)
        self.not_permitted += len(messages) - len(permitted)  # once, however often the call was repeated

    async def deliver(
        self, message: router_pb2.PublishedMessage, remaining_s: float | None
    ) -> router_pb2.DeliveryOutcome.ValueType:
        """Serve `Deliver`; see `Receipts.deliver`.

        Raises:
            InvalidFieldError: the message breaks a rule.
            NotServingError: what exists is not known yet, and what `Receipts.deliver` raises.
            UnavailableError: see there.
        """
        try:
            checked = check(message, self._catalog())
        except RefusedError as error:
            raise InvalidFieldError(str(error), field="message") from error
        self._publisher.validate([message], field="message")
        if not checked.topic_flags & P2P or not message.qos or message.retain:
            raise InvalidFieldError("a P2P message of QoS 1 or 2, not retained", field="message")
        return await self._receipts.deliver(checked, remaining_s)

    async def stream(
        self,
        read: Callable[[], Awaitable[router_pb2.PublishStreamRequest | None]],
        write: Callable[[router_pb2.PublishStreamResponse], Awaitable[None]],
    ) -> None:
        """Serve `PublishStream` until the caller has closed its side and every batch is answered.

        Raises:
            InvalidFieldError: a batch is not acceptable.
            NotServingError: what exists is not known yet, or the router can't take messages.
            UnavailableError: a batch is not safe in time.
        """
        catalog = self._catalog()
        # Full, it makes the reader wait; None: the caller has closed its side.
        routed: asyncio.Queue[tuple[Call | None, router_pb2.PublishStreamResponse] | None]
        routed = asyncio.Queue(MAX_UNANSWERED)

        async def take() -> None:
            while (request := await read()) is not None:
                answer = router_pb2.PublishStreamResponse()
                accepted = []
                for index, message in enumerate(request.messages):
                    try:
                        accepted.append(check(message, self._watch.catalog or catalog))
                    except RefusedError as error:
                        answer.refusals.add(index=index, reason=str(error))
                if accepted or not request.messages:
                    self._publisher.validate([each.message for each in accepted], field="messages")
                call = self._publisher.begin(accepted) if accepted else None
                await routed.put((call, answer))
            await routed.put(None)
            await asyncio.Event().wait()  # `answer` ends

        async def answer() -> None:
            while (entry := await routed.get()) is not None:
                call, response = entry
                if call is not None:
                    await self._publisher.wait(call, MAX_WAIT_S)
                await write(response)

        await first_of(take(), answer())

    def _catalog(self) -> Catalog:
        if self._watch.catalog is None:
            raise NotServingError("what exists is not known yet")
        return self._watch.catalog


def check(message: router_pb2.PublishedMessage, catalog: Catalog) -> Checked:
    """Look up what the topic of a message is.

    Raises:
        RefusedError: the message breaks a rule of its instance.
    """
    return Checked(message, catalog.check(message.instance_id, message.topic, len(message.payload)))


def _publisher(message: router_pb2.PublishedMessage) -> Publisher:
    identity = message.publisher
    return Publisher(
        client_id=message.client_id,
        account_id=identity.account_id,
        access_key_id=identity.access_key_id,
        token_ids=tuple(identity.token_ids),
    )
