"""What a connection needs from the services, so that it can be driven without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from mypy_extensions import mypyc_attr

from services.edge.mqtt.inflight import Identifiers
from services.edge.mqtt.outbound import OutboundMessage
from services.edge.mqtt.packets import Connect, Publish, PublishRun, Will
from services.edge.policy import Grant, Instance, TopicRule
from services.edge.tokens import READ, Token


class Access:
    """What credentials turned out to be worth."""

    __slots__ = ("access_key_id", "device_credential_id", "grant", "tokens")

    def __init__(
        self,
        *,
        grant: Grant,
        access_key_id: str = "",
        tokens: Sequence[Token] | None = None,
        device_credential_id: str = "",
    ) -> None:
        self.grant = grant
        self.access_key_id = access_key_id
        """Empty: the client has none."""
        self.tokens = tokens
        """None: the client is not in token mode."""
        self.device_credential_id = device_credential_id
        """Empty: the client has none."""

    def publisher(self, topic: str) -> Publisher:
        """Return by what the client may publish to `topic`."""
        tokens = [token for token in self.tokens or () if token.type != READ and token.coverage.covers(topic)]
        return Publisher(self.grant.account_id, self.access_key_id, [token.token_id for token in tokens])


class Publisher(NamedTuple):
    """By what a client may publish its will, for the router to judge it should this edge be lost."""

    account_id: str
    """Empty: anonymous."""
    access_key_id: str
    """Empty: the client has none."""
    token_ids: list[str]
    """Of the tokens that let it, in token mode."""


class StoredSession:
    """What the session service keeps for a client that it lets in."""

    __slots__ = ("identifiers", "is_present", "subscriptions")

    def __init__(
        self, *, is_present: bool, subscriptions: Sequence[tuple[str, int]] = (), identifiers: Identifiers | None = None
    ) -> None:
        self.is_present = is_present
        """Whether CONNACK says that there was a session."""
        self.subscriptions = subscriptions
        """Topic filters with their granted QoS."""
        self.identifiers = identifiers
        """Packet identifiers in use, with delivery ids as tokens; None: there are none."""


@mypyc_attr(allow_interpreted_subclasses=True)  # fakes in tests
class Client:
    """A connection, as the adapters see it. No method may raise."""

    channel_id: str
    client_id: str
    instance_id: str
    address: str

    def on_authenticated(self, access: Access | None, return_code: int, reason: str) -> None:
        """Auth answered: what the client may do, or the CONNACK return code of the refusal."""
        raise NotImplementedError

    def on_withdrawn(self, code: int, token_id: str = "") -> None:
        """Close the connection, which has lost its right to be here.

        Args:
            code: that of `$SYS/tokenInvalidNotice`, which it gets in token mode.
            token_id: it is that token that is lost; nothing happens if the connection does not use it any more.
        """
        raise NotImplementedError

    def on_permissions_changed(self) -> None:
        """Drop the subscriptions that are not allowed any more."""
        raise NotImplementedError

    def on_admitted(self, session: StoredSession | None) -> None:
        """The session service answered: what it keeps for the client; None: another connection has the client id."""
        raise NotImplementedError

    def may_receive(self, topic: str) -> bool:
        """Return whether the client may have a message that was published to `topic`, now."""
        raise NotImplementedError

    def on_published(self, packet_identifier: int, qos: int) -> None:
        """The mesh has taken over a message of QoS 1 or 2."""
        raise NotImplementedError

    def on_run_published(self, run: PublishRun) -> None:
        """The mesh has taken over messages of QoS 1 or 2."""
        for packet_identifier in run.identifiers or ():
            self.on_published(packet_identifier, run.qos)

    def notify(self, topic: str, payload: bytes) -> None:
        """Send the client a message of the server, at QoS 0; no subscription is needed."""
        raise NotImplementedError

    def close(self, reason: int) -> None:
        """End the connection; `reason` is a `weimq.session.v1.CloseReason`."""
        raise NotImplementedError

    def wait_for_answers(self) -> None:
        """Read no more until all that the client published is taken over: a log that it publishes to is full."""
        raise NotImplementedError

    def wait_for_room(self) -> None:
        """Read no more until `have_room` was called as often: too many messages of QoS 0 wait for a router."""
        raise NotImplementedError

    def have_room(self) -> None:
        """Go on after `wait_for_room`."""
        raise NotImplementedError

    def evict(self) -> None:
        """Close the connection: the session service wants it."""
        raise NotImplementedError

    def probe(self, answer: Callable[[bool], None]) -> None:
        """Find out whether the peer still answers, call `answer` with that, and close the connection if not."""
        raise NotImplementedError


class Authenticator(Protocol):
    """Checks credentials."""

    def authenticate(self, client: Client, connect: Connect) -> None:
        """Have `client.on_authenticated` called, within a deadline."""


class TokenChecker(Protocol):
    """Checks tokens of clients that are connected."""

    def check_token(
        self,
        client: Client,
        access_key_id: str,
        token_type: str,
        token: str,
        answer: Callable[[int, Token | None], None],
    ) -> None:
        """Have `answer` called with 0 and the token, or with the code of `$SYS/tokenInvalidNotice` and None.

        While auth is away the question waits for it.
        """


class KeptMessages:
    """Deliveries of the session shard to one connection, as the adapter sees them. No method may raise."""

    channel_id: str

    def on_stored(self, delivery_id: int) -> None:
        """The shard has stored the acknowledgement of a delivery."""
        raise NotImplementedError


class Sessions(Protocol):
    """The session shard of a client: knows who is connected where, and keeps persistent sessions."""

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
        """Have `client.on_admitted` called; `close` must follow unless it was refused.

        With `is_held` the client gets no messages until `release` is called.
        """

    def release(self, client: Client) -> None:
        """Let a client that was opened with `is_held` have its messages: its tokens are in force."""

    def change_subscriptions(
        self, client: Client, added: Sequence[tuple[str, int]], removed: Sequence[str], done: Callable[[], None]
    ) -> None:
        """Store a change of a session; call `done` once it is stored and known to the routers.

        It is not called for a connection that has ended.
        """

    def acknowledge(self, messages: KeptMessages, delivery_id: int, outcome: int) -> None:
        """Note that a delivery is completed; `messages.on_stored` follows. `outcome`: see `Acknowledgements`."""

    def pull(self, client: Client, max_messages: int, *, descending: bool) -> None:
        """Have up to `max_messages` offline messages sent now."""

    def close(self, client: Client, reason: int, identifiers: Identifiers | None = None) -> None:
        """Note that the connection is gone.

        Args:
            client: whose.
            reason: a `weimq.session.v1.CloseReason`.
            identifiers: packet identifiers in use, for the next connection of a persistent session.
        """


class SessionShards(Protocol):
    """All session shards."""

    def of(self, instance_id: str, client_id: str) -> Sessions:
        """Return the shard of a client."""


class Interest:
    """What this edge wants of the routers under an id: a topic filter, or the P2P messages of a client."""

    __slots__ = ("client_id", "instance_id", "share_name", "skips_acknowledged", "target_id", "topic_filter")

    def __init__(
        self,
        *,
        target_id: int,
        instance_id: str,
        topic_filter: str = "",
        client_id: str = "",
        share_name: str = "",
        skips_acknowledged: bool = False,
    ) -> None:
        self.target_id = target_id
        self.instance_id = instance_id
        self.topic_filter = topic_filter
        """Empty for a client's own target."""
        self.client_id = client_id
        """Empty for a topic filter."""
        self.share_name = share_name
        """Of a shared subscription, in which the target is one member; else empty."""
        self.skips_acknowledged = skips_acknowledged
        """Whether messages published at QoS 1 and 2 come another way: from the session shard."""


class Router(Protocol):
    """Carries messages to the other edges and back."""

    @property
    def is_congested(self) -> bool:
        """Whether all publishers must pause; `Hub.resume_publishers` is called when it is over."""

    def add_target(self, target: Interest) -> None:
        """Have what the target stands for delivered to it."""

    def remove_target(self, target_id: int) -> None:
        """Have no more delivered to the target."""

    def give_back(self, target: Interest, messages: list[tuple[OutboundMessage, int]]) -> None:
        """Have messages, each with the QoS of its publication, go to another member of the shared subscription."""

    def query_retained(self, query: Interest) -> int:
        """Have the retained messages that match delivered to the target `query`.

        Returns:
            How often `Hub.end_query` is called for it: once by each router that has some of them.
        """

    def notify(self, done: Callable[[], None]) -> None:
        """Call `done` once the routers have every target added before."""

    def publish(self, client: Client, rule: TopicRule, publication: Publish, clean_session: bool) -> None:  # noqa: FBT001 - hot path
        """Take a message over; at QoS 1 and 2 `client.on_published` follows."""

    def publish_run(self, client: Client, rule: TopicRule, run: PublishRun, clean_session: bool) -> None:  # noqa: FBT001 - hot path
        """Take messages over; at QoS 1 and 2 `client.on_published` follows for each, or `on_run_published`."""
