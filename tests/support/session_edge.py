"""An edge for tests of persistent sessions: keeps the contract of the link, with clients that tests drive."""

from __future__ import annotations

import secrets
from collections import defaultdict

from grpc import aio

from services.common.grpc_client import call_metadata
from services.common.link import Link, LinkBrokenError
from services.common.settings import Secret
from weimq.session.v1 import session_pb2 as pb
from weimq.session.v1 import session_pb2_grpc

RULES = pb.SessionRules(
    batch_messages=30,
    batch_interval_ms=5_000,
    acknowledgement_timeout_ms=5_000,
    offline_retention_ms=3 * 86_400_000,
    max_offline_messages=1_000_000,
)


def decisions_of(response: pb.LinkResponse) -> list[pb.Decision]:
    """Return all decisions of a frame, those in columns as messages."""
    admitted = zip(response.admitted_channel_ids, response.admitted_times_ms, strict=True)
    return [
        *response.decisions,
        *(
            pb.Decision(channel_id=channel_id, admission=pb.ADMISSION_ACCEPTED, connect_time_ms=time_ms)
            for channel_id, time_ms in admitted
        ),
    ]


class Delivery:
    """A message that the edge got for a client."""

    def __init__(
        self, channel_id: str, delivery_id: int, topic: str, payload: bytes, flags: int, identifier: int
    ) -> None:
        self.channel_id = channel_id
        self.delivery_id = delivery_id
        self.topic = topic
        self.payload = payload
        self.qos = flags & 3
        self.dup = bool(flags & 8)
        self.packet_identifier = identifier


class SessionEdge:
    """Connections of persistent and other clients at one session shard."""

    def __init__(self, channel: aio.Channel, token: Secret, instance_id: str, edge_id: str = "edge-1") -> None:
        self._edge_id = edge_id
        self._stub = session_pb2_grpc.SessionServiceStub(channel)
        self._token = token
        self._instance_id = instance_id
        self._incarnation = secrets.token_hex(4)
        self._session_incarnation = ""
        self._requests: list[pb.LinkRequest] = []
        self._sent: list[tuple[int, pb.LinkRequest]] = []  # with closings or acknowledgements, not confirmed
        self.openings: dict[str, pb.Opening] = {}
        self.decisions: dict[str, pb.Decision] = {}
        self.stored: set[tuple[str, int]] = set()
        self.deliveries: list[Delivery] = []
        self.acknowledges = True
        self.links = 0
        self._changes: defaultdict[str, int] = defaultdict(int)
        self._under_way: set[tuple[str, int]] = set()
        self._link: Link[pb.LinkRequest, pb.LinkResponse] = Link(
            build=self._build, bare=pb.LinkRequest, take=self._take, confirmed=self._confirmed
        )

    def connect(
        self,
        client_id: str,
        *,
        clean_session: bool = False,
        rules: pb.SessionRules | None = None,
        is_held: bool = False,
    ) -> str:
        """Ask for a connection to be let in; returns its channel id."""
        connection = pb.Connection(
            channel_id=secrets.token_hex(16),
            instance_id=self._instance_id,
            client_id=client_id,
            address="192.0.2.1:1000",
        )
        opening = pb.Opening(
            connection=connection, clean_session=clean_session, takeover=True, rules=rules or RULES, is_held=is_held
        )
        self.openings[connection.channel_id] = opening
        self._send(pb.LinkRequest(openings=[opening]))
        return connection.channel_id

    def disconnect(self, channel_id: str, inflight: pb.InflightState | None = None) -> None:
        opening = self.openings.pop(channel_id)
        closing = pb.Closing(connection=opening.connection, reason=pb.CLOSE_REASON_CONNECTION_LOST, inflight=inflight)
        self._send(pb.LinkRequest(closings=[closing]))

    def subscribe(self, channel_id: str, topic_filter: str, qos: int = 1) -> tuple[str, int]:
        """Add a subscription; what it returns is in `stored` when it is."""
        return self._change(
            channel_id, pb.SubscriptionChange(added=[pb.Subscription(topic_filter=topic_filter, qos=qos)])
        )

    def unsubscribe(self, channel_id: str, topic_filter: str) -> tuple[str, int]:
        return self._change(channel_id, pb.SubscriptionChange(removed_topic_filters=[topic_filter]))

    def pull(self, channel_id: str, count: int, *, descending: bool) -> None:
        pull = pb.OfflinePull(channel_id=channel_id, max_messages=count, descending=descending)
        self._send(pb.LinkRequest(offline_pulls=[pull]))

    def release(self, channel_id: str) -> None:
        self._send(pb.LinkRequest(released_channel_ids=[channel_id]))

    def acknowledge(self, delivery: Delivery, outcome: int = 0) -> None:
        self._under_way.discard((delivery.channel_id, delivery.delivery_id))
        done = pb.Acknowledgements(
            channel_ids=[delivery.channel_id],
            channel_indexes=[0],
            delivery_ids=[delivery.delivery_id],
            outcomes=bytes((outcome,)),
        )
        self._send(pb.LinkRequest(acknowledgements=done))

    def payloads(self, channel_id: str) -> list[bytes]:
        return [each.payload for each in self.deliveries if each.channel_id == channel_id]

    def is_accepted(self, channel_id: str) -> bool:
        return channel_id in self.decisions

    @property
    def is_confirmed(self) -> bool:
        return not (self._requests or self._link.has_unconfirmed)

    async def run(self) -> None:
        """Keep the link, until cancelled."""
        while True:
            call = self._stub.Link(metadata=call_metadata(self._token), wait_for_ready=True)
            try:
                await self._exchange(call)
            except (LinkBrokenError, aio.AioRpcError):
                pass
            finally:
                call.cancel()

    async def _exchange(self, call: aio.StreamStreamCall[pb.LinkRequest, pb.LinkResponse]) -> None:
        opening = pb.LinkOpen(
            edge_id=self._edge_id,
            edge_incarnation=self._incarnation,
            session_incarnation=self._session_incarnation,
            received_through=self._link.received_through,
        )
        await call.write(pb.LinkRequest(open=opening))
        first = await call.read()
        if not isinstance(first, pb.LinkResponse):
            raise LinkBrokenError("not opened")
        self._session_incarnation = first.opened.session_incarnation
        if first.opened.resumed:
            self._link.resume(first.opened.received_through)
        else:
            self._start_anew()

        async def read() -> pb.LinkResponse | None:
            message = await call.read()
            return message if isinstance(message, pb.LinkResponse) else None

        self.links += 1
        await self._link.exchange(read, call.write)

    def _start_anew(self) -> None:
        requests = [*(request for _, request in self._sent), *self._requests]
        again = [each for each in requests if not (each.openings or each.snapshot_complete)]
        self._link.reset()
        self._sent.clear()
        openings = pb.LinkRequest(openings=list(self.openings.values()))
        self._requests = [openings, *again, pb.LinkRequest(snapshot_complete=True)]

    def _change(self, channel_id: str, change: pb.SubscriptionChange) -> tuple[str, int]:
        self._changes[channel_id] += 1
        change.channel_id = channel_id
        change.number = self._changes[channel_id]
        self._send(pb.LinkRequest(subscription_changes=[change]))
        return channel_id, change.number

    def _send(self, request: pb.LinkRequest) -> None:
        self._requests.append(request)
        self._link.wake()

    def _build(self) -> pb.LinkRequest | None:
        if not self._requests:
            return None
        request = self._requests.pop(0)
        self._sent.append((self._link.next_frame, request))
        return request

    def _confirmed(self, through: int) -> None:
        self._sent = [each for each in self._sent if each[0] > through]

    def _take(self, response: pb.LinkResponse) -> None:
        for decision in decisions_of(response):
            self.decisions[decision.channel_id] = decision
            if decision.channel_id in self.openings and decision.admission == pb.ADMISSION_ACCEPTED:
                opening = self.openings[decision.channel_id]
                opening.established = True
                opening.connection.connect_time_ms = decision.connect_time_ms
        for change in response.stored_changes:
            self.stored.add((change.channel_id, change.number))
        for channel_id in response.evicted_channel_ids:
            if channel_id in self.openings:
                self.disconnect(channel_id)
        self._take_deliveries(response.deliveries)
        self._link.confirm(response.frame)

    def _take_deliveries(self, batch: pb.Deliveries) -> None:
        for n, delivery_id in enumerate(batch.delivery_ids):
            channel_id = batch.channel_ids[batch.channel_indexes[n]]
            message = batch.message_indexes[n]
            key = (channel_id, delivery_id)
            if key in self._under_way or channel_id not in self.openings:
                continue  # a repeat after a restart, or too late
            topic = batch.topics[batch.topic_indexes[message]]
            delivery = Delivery(
                channel_id, delivery_id, topic, batch.payloads[message], batch.flags[n], batch.packet_identifiers[n]
            )
            self._under_way.add(key)
            self.deliveries.append(delivery)
            if self.acknowledges:
                self.acknowledge(delivery)
