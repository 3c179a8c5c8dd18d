"""The edge's end of the link with the session service: connections up, decisions down."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Iterable, Sequence

from grpc import aio

from services.common.grpc_client import call_metadata
from services.common.link import Link
from services.common.linking import Opened, keep_linked
from services.common.readiness import Readiness
from services.common.settings import Secret
from services.edge import session_codec as codec
from services.edge.acknowledgements import Acknowledgements
from services.edge.changes import Changes
from services.edge.hub import Hub
from services.edge.inquiries import Inquiries
from services.edge.mqtt.inflight import Identifiers
from services.edge.mqtt.packets import Will
from services.edge.openings import Opening, WillOf
from services.edge.policy import Instance, TopicRule
from services.edge.ports import Client, KeptMessages, Publisher, StoredSession
from weimq.session.v1 import session_pb2, session_pb2_grpc

logger = logging.getLogger(__name__)

FRAME_BYTES = 1 << 20
"""Size of the closings of a frame above which further ones go into the next."""
MAX_FRAME_ITEMS = 1000
"""Openings and closings in one frame."""


class SessionLink:
    """Tells the session service of every connection; owned by one event loop.

    A closing stays here until the session service confirmed it, so none is lost when that service restarts.
    """

    def __init__(
        self,
        *,
        channel: aio.Channel,
        token: Secret,
        hub: Hub,
        readiness: Readiness,
        edge_id: str,
        edge_incarnation: str,
        name: str = "session",
    ) -> None:
        """Make the end of a link; `run` keeps it up.

        Args:
            channel: to the session shard.
            token: of the cluster.
            hub: holds the connections.
            readiness: told, by `name`, whether the link is up.
            edge_id: name of this edge.
            edge_incarnation: of this process.
            name: of the shard, in logs and for `readiness`.
        """
        self._stub = session_pb2_grpc.SessionServiceStub(channel)
        self._metadata = call_metadata(token)
        self._hub = hub
        self._name = name
        self._readiness = readiness
        self._edge_id = edge_id
        self._edge_incarnation = edge_incarnation
        self._peer_incarnation = ""
        self._established: dict[str, Opening] = {}
        self._waiting: dict[str, Opening] = {}
        self._closings: dict[str, Opening] = {}
        self._sent_closings: list[tuple[int, list[str]]] = []
        self._to_open: list[Opening] = []
        self._to_close: list[str] = []
        self._to_release: list[str] = []
        self._changes = Changes()
        self._acknowledgements = Acknowledgements()
        self._pulls: list[session_pb2.OfflinePull] = []
        self._probes: list[session_pb2.ProbeResult] = []
        self._inquiries = Inquiries(hub, asyncio.get_running_loop())
        self._answers: list[session_pb2.InquiryAnswer] = []
        self._snapshot_complete = False
        self._goodbye = False
        self.link: Link[session_pb2.LinkRequest, session_pb2.LinkResponse] = Link(
            build=self._build, bare=session_pb2.LinkRequest, take=self._take, confirmed=self._on_confirmed
        )

    async def run(self) -> None:
        """Keep the link up until cancelled."""
        await keep_linked(
            name=self._name,
            link=self.link,
            readiness=self._readiness,
            open_stream=lambda: self._stub.Link(metadata=self._metadata, wait_for_ready=True),
            greeting=self._greeting,
            opened=self._on_opened,
        )

    # --- the port ------------------------------------------------------------------------------

    def open(
        self,
        client: Client,
        *,
        instance: Instance,
        clean_session: bool,
        is_held: bool,
        will: Will | None,
        will_rule: TopicRule | None,
        publisher: Publisher | None,
    ) -> None:
        """Ask for a client to be let in; see `ports.Sessions`."""
        is_told = will is not None and will_rule is not None
        told = WillOf(will, publisher) if is_told and will is not None and publisher is not None else None
        opening = Opening(client, instance, told, clean_session=clean_session, is_held=is_held)
        self._waiting[client.channel_id] = opening
        self._to_open.append(opening)
        self.link.wake()

    def release(self, client: Client) -> None:
        """Let a client have its messages; see `ports.Sessions`."""
        opening = self._established.get(client.channel_id)
        if opening is not None and opening.is_held:
            opening.is_held = False  # what a session service that starts anew is told
            self._to_release.append(client.channel_id)
            self.link.wake()

    def change_subscriptions(
        self, client: Client, added: Sequence[tuple[str, int]], removed: Sequence[str], done: Callable[[], None]
    ) -> None:
        """Store a change of a session; see `ports.Sessions`."""
        self._changes.add(client.channel_id, added, removed, done)
        self.link.wake()

    def acknowledge(self, messages: KeptMessages, delivery_id: int, outcome: int) -> None:
        """Note that a delivery is completed; see `ports.Sessions`."""
        self._acknowledgements.add(messages, delivery_id, outcome)
        self.link.wake()

    def pull(self, client: Client, max_messages: int, *, descending: bool) -> None:
        """Ask for offline messages; see `ports.Sessions`."""
        pull = session_pb2.OfflinePull(channel_id=client.channel_id, max_messages=max_messages, descending=descending)
        self._pulls.append(pull)
        self.link.wake()

    def close(self, client: Client, reason: int, identifiers: Identifiers | None = None) -> None:
        """Note that a connection is gone; see `ports.Sessions`."""
        self._changes.forget(client.channel_id)
        opening = self._established.pop(client.channel_id, None) or self._waiting.pop(client.channel_id, None)
        if opening is None:
            return
        opening.reason = reason
        opening.identifiers = identifiers
        self._closings[client.channel_id] = opening
        self._to_close.append(client.channel_id)
        self.link.wake()

    def say_goodbye(self) -> None:
        """Tell the session service that this edge ends for good, after all that is to be sent."""
        self._goodbye = True
        self.link.wake()

    @property
    def is_idle(self) -> bool:
        """Whether everything was sent and confirmed."""
        return not (self._has_unsent or self._closings or self._goodbye or self.link.has_unconfirmed)

    @property
    def _has_unsent(self) -> bool:
        return bool(
            self._to_open
            or self._to_close
            or self._to_release
            or self._probes
            or self._answers
            or self._pulls
            or self._acknowledgements.has_unsent
            or self._changes.has_unsent
        )

    # --- the link ------------------------------------------------------------------------------

    def _greeting(self) -> session_pb2.LinkRequest:
        return session_pb2.LinkRequest(
            open=session_pb2.LinkOpen(
                edge_id=self._edge_id,
                edge_incarnation=self._edge_incarnation,
                session_incarnation=self._peer_incarnation,
                received_through=self.link.confirmed_through,
            )
        )

    def _on_opened(self, first: session_pb2.LinkResponse) -> Opened:
        opened = first.opened
        self._peer_incarnation = opened.session_incarnation
        if not opened.resumed:
            self._to_open = list(self._established.values())
            self._to_open += self._waiting.values()
            self._to_close = list(self._closings)
            self._sent_closings.clear()
            self._to_release.clear()
            self._changes.start_anew()
            self._acknowledgements.start_anew()
            self._pulls.clear()
            self._probes.clear()
            self._answers.clear()  # whoever asked has been told that we did not answer
            self._snapshot_complete = False
        return Opened(resumed=opened.resumed, received_through=opened.received_through)

    def _build(self) -> session_pb2.LinkRequest | None:
        if self._snapshot_complete and not self._has_unsent:
            if not self._goodbye:
                return None
            self._goodbye = False
            return session_pb2.LinkRequest(goodbye=True)
        frame = session_pb2.LinkRequest()
        if self._probes:
            frame.probe_results.extend(self._probes)
            self._probes.clear()
        frame.released_channel_ids.extend(self._to_release)
        self._to_release.clear()
        if self._answers:
            frame.inquiry_answers.append(self._answers.pop(0))  # one in a frame: some are large
        openings = frame.openings
        for opening in self._to_open[:MAX_FRAME_ITEMS]:
            opening.write_opening(openings.add())
        del self._to_open[:MAX_FRAME_ITEMS]
        # Nothing of a connection overtakes its opening, and its closing overtakes nothing.
        if not self._to_open:
            self._add_requests(frame)
            if not (self._changes.has_unsent or self._acknowledgements.has_unsent):
                self._add_closings(frame)
        return frame

    def _add_requests(self, frame: session_pb2.LinkRequest) -> None:
        frame.subscription_changes.extend(self._changes.take(MAX_FRAME_ITEMS))
        if self._acknowledgements.has_unsent:
            self._acknowledgements.write_to(frame.acknowledgements, self.link.next_frame)
        if self._pulls:
            frame.offline_pulls.extend(self._pulls)
            self._pulls.clear()

    def _add_closings(self, frame: session_pb2.LinkRequest) -> None:
        channels: list[str] = []
        closings = frame.closings
        size = 0
        for channel_id in self._to_close[:MAX_FRAME_ITEMS]:
            closing = closings.add()
            self._closings[channel_id].write_closing(closing)
            channels.append(channel_id)
            size += closing.ByteSize()
            if size >= FRAME_BYTES:
                break
        del self._to_close[: len(channels)]
        if channels:
            self._sent_closings.append((self.link.next_frame, channels))
        if not self._to_close and not self._snapshot_complete:
            self._snapshot_complete = frame.snapshot_complete = True

    def _on_confirmed(self, through: int) -> None:
        self._acknowledgements.confirm(through)
        done = 0
        for number, channels in self._sent_closings:
            if number > through:
                break
            done += 1
            for channel_id in channels:
                self._closings.pop(channel_id, None)
        del self._sent_closings[:done]

    def _take(self, frame: session_pb2.LinkResponse) -> None:
        by_channel = self._hub.by_channel
        for channel_id, time_ms in zip(frame.admitted_channel_ids, frame.admitted_times_ms, strict=True):
            self._decide(channel_id, time_ms, codec.NO_SESSION)
        for decision in frame.decisions:
            is_accepted = decision.admission == session_pb2.ADMISSION_ACCEPTED
            session = codec.stored_session(decision) if is_accepted else None
            self._decide(decision.channel_id, decision.connect_time_ms, session)
        for stored in frame.stored_changes:
            self._changes.stored(stored.channel_id, stored.number)
        if frame.HasField("deliveries"):
            codec.hand_over(frame.deliveries, by_channel)
        self._probe(frame.probe_channel_ids)
        for inquiry in frame.inquiries:
            self._inquiries.answer(inquiry, self._on_answer)
        for channel_id in frame.evicted_channel_ids:
            client = by_channel.get(channel_id)
            if client is not None:
                client.evict()
        self.link.confirm(frame.frame, lazily=True)

    def _decide(self, channel_id: str, connect_time_ms: int, session: StoredSession | None) -> None:
        """Take the answer to an opening; None: its client is not let in."""
        opening = self._waiting.pop(channel_id, None)
        client = self._hub.by_channel.get(channel_id)
        if opening is None or client is None:
            return  # closed meanwhile; the closing is on its way
        if session is not None:
            opening.connect_time_ms = max(1, connect_time_ms)
            self._established[channel_id] = opening
        client.on_admitted(session)

    def _probe(self, channel_ids: Iterable[str]) -> None:
        for channel_id in channel_ids:
            client = self._hub.by_channel.get(channel_id)
            if client is None:
                self._on_probed(channel_id, False)  # noqa: FBT003 - the shape of a callback
            else:
                client.probe(functools.partial(self._on_probed, channel_id))

    def _on_answer(self, answer: session_pb2.InquiryAnswer) -> None:
        self._answers.append(answer)
        self.link.wake()

    def _on_probed(self, channel_id: str, alive: bool) -> None:  # noqa: FBT001 - the shape of a callback
        self._probes.append(session_pb2.ProbeResult(channel_id=channel_id, alive=alive))
        self.link.wake()
