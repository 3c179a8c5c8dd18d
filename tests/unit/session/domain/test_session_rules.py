"""The rules of product.md 3.1 to 3.3, cell by cell, on a shard alone."""

from __future__ import annotations

import pytest

from services.session.domain.losses import EXPIRED, NOT_PERMITTED, OVER_LIMIT, SESSION_EXPIRED
from services.session.domain.outbox import DUP, MAX_FETCHING, OUTBOX_BYTES, Outbox
from services.session.domain.pump import MAX_INFLIGHT
from services.session.domain.receipts import Outcome
from services.session.domain.rules import Rules
from services.session.domain.sessions import WAITS_COMPLETION, Carried, Channel
from services.session.domain.shard import MAX_RECENT, Attached, Shard
from tests.unit.session.domain.simulated import Message

LMQ = Rules()
STANDARD = Rules(keeps_qos2=True, strict_order=True, batch_messages=0)
LOG = "MQ_i_a"


class Desk:
    """A shard with one log and one edge."""

    def __init__(self) -> None:
        self.shard = Shard(count=1, locate=self.locate, is_ours=lambda _instance, _client: True)
        self.outbox: Outbox[Channel] = Outbox("edge", lambda: None)
        self.log = self.shard.logs.open(LOG, "i")
        self.now_ms = 1_700_000_000_000
        self.sequence = 0
        self.clean: dict[str, str] = {}

    def locate(self, _instance: str, client_id: str) -> tuple[str, Outbox[Channel], bool] | None:
        channel_id = self.clean.get(client_id)
        return (channel_id, self.outbox, False) if channel_id else None

    def attach(
        self, channel_id: str, rules: Rules = LMQ, *, client: str = "c", clean: bool = False, is_held: bool = False
    ) -> Attached:
        if clean:
            self.clean[client] = channel_id
        attached = self.shard.attach("i", client, channel_id, self.outbox, rules, clean_session=clean, is_held=is_held)
        self.shard.flush(self.now_ms)
        return attached

    def subscribe(self, channel_id: str, number: int, topic_filter: str = "a/#", qos: int = 1) -> None:
        self.shard.change(channel_id, number, [(topic_filter, qos)], [], self.now_ms)

    def publish(self, qos: int = 1, count: int = 1, size: int = 0) -> None:
        for _ in range(count):
            self.sequence += 1
            targets = self.shard.interests.match("i", "a/b")
            if targets:
                self.shard.fanout.deliver(self.log, self.sequence, "a/b", bytes(size), qos, targets, self.now_ms)
        self.shard.flush(self.now_ms)

    def fetch(self) -> None:
        while self.shard.pump.fetching.wanted:
            wanted, self.shard.pump.fetching.wanted = self.shard.pump.fetching.wanted, []
            for delivery_id in wanted:
                self.shard.pump.fetched(delivery_id, "a/b", b"", self.now_ms)
            self.shard.flush(self.now_ms)

    def received(self) -> list[tuple[int, int]]:
        """Return sequence and QoS of what the edge got since the last call."""
        self.fetch()
        found = []
        while (batch := self.outbox.take()) is not None:
            found += [(each & 0xFFFF, flags & 3) for each, flags in zip(batch.delivery_ids, batch.flags, strict=True)]
        self.shard.flush(self.now_ms)
        return found

    def acknowledge(self, channel_id: str, *sequences: int, completed: bool = True) -> None:
        for sequence in sequences:
            self.shard.pump.acknowledge(channel_id, self.log.index << 42 | sequence, completed=completed)
        self.shard.flush(self.now_ms)

    def detach(self, channel_id: str, carried: Carried | None = None) -> None:
        self.clean = {client: each for client, each in self.clean.items() if each != channel_id}
        self.shard.detach(channel_id, carried, self.now_ms)
        self.shard.flush(self.now_ms)

    def later(self, milliseconds: int) -> None:
        self.now_ms += milliseconds
        self.shard.expire(self.now_ms)
        self.shard.flush(self.now_ms)

    @property
    def reasons(self) -> list[str]:
        return [each.reason for each in self.shard.pump.dropped]


def sequences(received: list[tuple[int, int]]) -> list[int]:
    return [sequence for sequence, _ in received]


@pytest.mark.parametrize(
    ("rules", "subscribed", "published", "expected"),
    [
        (LMQ, 0, 1, None),
        (LMQ, 1, 0, None),
        (LMQ, 1, 1, 1),
        (LMQ, 1, 2, 1),  # the lower of the two
        (LMQ, 2, 1, None),  # a subscription of QoS 2 is never persistent
        (LMQ, 2, 2, None),
        (STANDARD, 0, 2, None),
        (STANDARD, 1, 2, 1),
        (STANDARD, 2, 1, 1),
        (STANDARD, 2, 2, 2),
    ],
)
def test_what_is_kept_by_qos(rules: Rules, subscribed: int, published: int, expected: int | None) -> None:
    desk = Desk()
    desk.attach("1", rules)
    desk.subscribe("1", 1, qos=subscribed)
    desk.detach("1")
    if published:
        desk.publish(published)  # QoS 0 does not come to a shard
    attached = desk.attach("2", rules)
    assert attached.session_present
    assert list(attached.subscriptions) == ["a/#"]  # all of them are remembered
    assert desk.received() == ([] if expected is None else [(1, expected)])


def test_a_message_for_many_sessions_is_offered_in_portions_and_what_follows_waits() -> None:
    desk = Desk()
    fanout = desk.shard.fanout
    fanout.portion = 2
    for number in range(5):
        desk.attach(f"{number}", client=f"c{number}")
        desk.subscribe(f"{number}", 1)
    [target] = desk.shard.interests.match("i", "a/b")

    def deliver(sequence: int) -> None:
        fanout.deliver(desk.log, sequence, "a/b", b"", 1, [target], desk.now_ms)

    deliver(1)
    assert fanout.is_midway
    fanout.postpone(lambda: deliver(3))
    fanout.postpone(lambda: deliver(2), is_next=True)
    gone = desk.shard.roster.find("i", "c4")
    assert gone is not None
    desk.shard.forget(gone)
    portions = [sequences(desk.received())]
    while fanout.is_busy:
        fanout.go_on()
        desk.shard.flush(desk.now_ms)
        portions.append(sequences(desk.received()))
    assert max(map(len, portions)) == fanout.portion
    assert [sequence for portion in portions for sequence in portion] == [1] * 4 + [2] * 4 + [3] * 4


def test_a_shared_subscription_is_remembered_and_no_target_of_the_shard() -> None:
    desk = Desk()
    desk.attach("1")
    desk.subscribe("1", 1, "$share/group/a/#")
    assert desk.shard.interests.take_changes() == ([], [])
    desk.detach("1")
    assert list(desk.attach("2").subscriptions) == ["$share/group/a/#"]


def test_a_client_with_overlapping_subscriptions_gets_a_message_once_at_the_highest_qos() -> None:
    desk = Desk()
    desk.attach("1", STANDARD)
    desk.subscribe("1", 1, "a/b", 1)
    desk.subscribe("1", 2, "a/#", 2)
    desk.publish(2)
    assert desk.received() == [(1, 2)]


def test_clean_session_discards_and_flips_are_counted() -> None:
    desk = Desk()
    desk.attach("1")
    desk.subscribe("1", 1)
    desk.publish()
    desk.detach("1")
    assert not desk.attach("2", clean=True).session_present
    assert desk.shard.flips == 1
    assert not desk.shard.roster.sessions
    assert not desk.shard.interests.by_target
    desk.detach("2")
    assert not desk.attach("3").session_present
    assert desk.shard.flips == 2
    assert desk.shard.flipped == [("i", "c", True), ("i", "c", False)]
    assert desk.shard.stores[-2].subscriptions is None


def test_of_clients_with_clean_sessions_the_latest_are_remembered() -> None:
    desk = Desk()
    for number in range(2 * MAX_RECENT + 1):
        desk.shard.attach("i", f"c{number}", "1", desk.outbox, None, clean_session=True, is_held=False)
    desk.attach("2", client="c0")  # too long ago
    assert desk.shard.flips == 0
    for flips, number in enumerate((MAX_RECENT, 2 * MAX_RECENT), start=1):
        desk.attach("3", client=f"c{number}")
        assert desk.shard.flips == flips
    desk.attach("4", client=f"c{MAX_RECENT}")  # it has changed before
    assert desk.shard.flips == 2


def test_kept_p2p_outlives_a_clean_session() -> None:
    desk = Desk()
    desk.attach("1")
    desk.subscribe("1", 1)
    desk.detach("1")
    desk.publish()
    desk.shard.fanout.deliver_p2p(desk.log, 9, "c", "a/p2p/c", b"", desk.now_ms)
    desk.attach("2", clean=True)
    assert sequences(desk.received()) == [9]
    desk.detach("2")
    desk.attach("3", clean=True)
    assert sequences(desk.received()) == [9], "it was not acknowledged"
    desk.acknowledge("3", 9)
    desk.detach("3")
    assert not desk.shard.roster.sessions


def test_kept_p2p_finds_a_clean_client_that_is_online() -> None:
    desk = Desk()
    desk.attach("1", clean=True)
    desk.shard.fanout.deliver_p2p(desk.log, 1, "c", "a/p2p/c", b"", desk.now_ms)
    assert sequences(desk.received()) == [1]


def test_kept_p2p_reports_what_became_of_it() -> None:
    desk = Desk()
    outcomes: dict[int, list[Outcome]] = {}

    def deliver(sequence: int) -> None:
        outcomes[sequence] = []
        report = outcomes[sequence].append
        desk.shard.fanout.deliver_p2p(desk.log, sequence, "c", "a/p2p/c", b"", desk.now_ms, report)

    deliver(1)
    assert outcomes[1] == [Outcome.KEPT], "nobody is there"
    desk.attach("1", clean=True)
    deliver(2)
    deliver(3)
    assert sorted(sequences(desk.received())) == [1, 2, 3]
    assert outcomes[2] == outcomes[3] == []
    desk.acknowledge("1", 2)
    desk.detach("1")
    assert outcomes == {1: [Outcome.KEPT], 2: [Outcome.ACKNOWLEDGED], 3: [Outcome.KEPT]}
    desk.attach("2", clean=True)
    desk.acknowledge("2", 3)
    assert outcomes[3] == [Outcome.KEPT], "reported once"


def test_a_message_that_was_read_tells_whether_it_is_kept() -> None:
    desk = Desk()
    for sequence, (topic, qos, is_kept) in enumerate(
        [("a/p2p/c", 1, True), ("a/p2p/c", 1, False), ("a/p2p/c", 2, False), ("a/p2p/c", 0, False), ("a/b", 1, False)],
        1,
    ):
        message = Message(topic, qos, desk.now_ms, is_kept=is_kept)
        desk.shard.fanout.read(desk.log, sequence, message, b"", desk.now_ms, desk.now_ms)
    [session] = desk.shard.roster.sessions.values()
    assert session.offline_count == 1


def test_without_p2p_a_topic_of_that_form_is_like_any_other() -> None:
    desk = Desk()
    desk.attach("1", STANDARD)
    desk.subscribe("1", 1)
    message = Message("a/p2p/c", 1, desk.now_ms)
    message.p2p = ""
    desk.shard.fanout.read(desk.log, 1, message, b"", desk.now_ms, desk.now_ms)
    assert desk.received() == [(1, 1)]


def test_thirty_come_at_once_and_thirty_every_five_seconds() -> None:
    desk = Desk()
    desk.attach("1")
    desk.subscribe("1", 1)
    desk.detach("1")
    desk.publish(count=70)
    desk.attach("2")
    assert sequences(desk.received()) == list(range(1, 31))
    desk.acknowledge("2", *range(1, 31))
    desk.later(4_900)
    assert desk.received() == []
    desk.publish()
    assert sequences(desk.received()) == [71], "live messages go beside the backlog"
    desk.later(200)
    assert sequences(desk.received()) == list(range(31, 61))
    desk.later(5_000)
    assert sequences(desk.received()) == list(range(61, 71))


def test_a_client_has_so_many_under_way_and_the_rest_stays_positions() -> None:
    desk = Desk()
    desk.attach("1")
    desk.subscribe("1", 1)
    desk.publish(count=MAX_INFLIGHT + 10)
    assert len(desk.received()) == MAX_INFLIGHT
    [session] = desk.shard.roster.sessions.values()
    assert session.offline_count == 10
    desk.acknowledge("1", 1, 2, 3)
    assert sequences(desk.received()) == [MAX_INFLIGHT + n for n in (1, 2, 3)], "as acknowledgements come, unpaced"


def test_bytes_under_way_are_bounded_too() -> None:
    desk = Desk()
    desk.attach("1")
    desk.subscribe("1", 1)
    desk.publish(count=10, size=1 << 20)
    assert len(desk.received()) == 4


def test_an_edge_without_room_gets_nothing_and_goes_on_when_it_has() -> None:
    desk = Desk()
    for n in range(20):
        desk.attach(str(n), client=f"c{n}")
        desk.subscribe(str(n), 1, f"a/{n}")
    for n in range(20):
        for _ in range(5):
            desk.sequence += 1
            targets = desk.shard.interests.match("i", f"a/{n}")
            desk.shard.fanout.deliver(desk.log, desk.sequence, f"a/{n}", bytes(1 << 20), 1, targets, desk.now_ms)
    desk.shard.flush(desk.now_ms)
    assert desk.outbox.size < OUTBOX_BYTES + (2 << 20)
    got: list[int] = []
    while received := desk.received():
        got += sequences(received)
        for n in range(20):
            desk.acknowledge(str(n), *received and sequences(received))
    assert sorted(got) == list(range(1, 101))


@pytest.mark.parametrize("takes_over", [False, True])
def test_what_a_killed_edge_had_under_way_comes_again_under_the_same_identifiers(takes_over: bool) -> None:
    desk = Desk()
    desk.attach("1", STANDARD)
    desk.subscribe("1", 1, qos=2)
    desk.publish(qos=2, count=3)
    desk.received()
    desk.acknowledge("1", 1)
    log = desk.log.index << 42
    expected = [(log | n, (log | n) % 65_535 + 1, 0) for n in (2, 3)]
    if not takes_over:
        desk.detach("1")
    attached = desk.attach("2", STANDARD)
    assert attached.carried is not None
    assert (attached.carried.deliveries, attached.carried.received) == (expected, [])
    desk.fetch()
    batch = desk.outbox.take()
    assert batch is not None
    assert list(zip(batch.delivery_ids, batch.packet_identifiers, strict=True)) == [each[:2] for each in expected]
    assert all(flags & DUP for flags in batch.flags)


def test_an_edge_that_tells_that_nothing_is_in_use_is_believed() -> None:
    desk = Desk()
    desk.attach("1", STANDARD)
    desk.subscribe("1", 1, qos=2)
    desk.publish(qos=2)
    desk.received()
    desk.detach("1", Carried([], []))
    assert desk.attach("2", STANDARD).carried is None


@pytest.mark.parametrize("rules", [LMQ, STANDARD])
def test_of_very_many_that_come_at_once_each_gets_its_first_message_before_the_others_their_rest(rules: Rules) -> None:
    desk = Desk()
    clients = 400
    for n in range(clients):
        desk.attach(str(n), rules, client=f"c{n}")
        desk.subscribe(str(n), 1, f"a/{n}")
        desk.detach(str(n))
    owner: dict[int, int] = {}
    for _ in range(30):
        for n in range(clients):
            desk.sequence += 1
            owner[desk.sequence] = n
            targets = desk.shard.interests.match("i", f"a/{n}")
            desk.shard.fanout.deliver(desk.log, desk.sequence, f"a/{n}", b"", 1, targets, desk.now_ms)
    for n in range(clients):
        desk.attach(str(n), rules, client=f"c{n}")
    assert desk.outbox.fetching < MAX_FETCHING + MAX_INFLIGHT
    order: list[int] = []
    while wanted := desk.shard.pump.fetching.wanted:
        desk.shard.pump.fetching.wanted = []
        order += [owner[each & 0xFFFF] for each in wanted]
        for delivery_id in wanted:
            desk.shard.pump.fetched(delivery_id, "a/b", b"", desk.now_ms)
        desk.shard.flush(desk.now_ms)
    last_first = max(order.index(n) for n in range(clients))
    assert last_first < MAX_FETCHING + MAX_INFLIGHT + clients
    assert len(order) == clients * 30, "a batch for each"


def test_no_acknowledgement_makes_a_delivery_late() -> None:
    desk = Desk()
    desk.attach("1")
    desk.subscribe("1", 1)
    desk.publish()
    desk.received()
    [session] = desk.shard.roster.sessions.values()
    desk.shard.pump.note_late(desk.now_ms + 4_000)
    assert (session.offline_count, session.inflight_count) == (0, 1)
    desk.shard.pump.note_late(desk.now_ms + 5_001)
    assert (session.offline_count, session.inflight_count) == (1, 0)
    assert desk.shard.pump.late == 1
    desk.acknowledge("1", 1)
    assert session.offline_count == 0


def test_active_pull_in_both_orders_thirty_at_most_five_a_second() -> None:
    desk = Desk()
    desk.attach("1")
    desk.subscribe("1", 1)
    desk.detach("1")
    desk.publish(count=200)
    desk.attach("2")
    desk.acknowledge("2", *sequences(desk.received()))
    pull = desk.shard.pump.pull
    pull("2", 3, desk.now_ms, descending=True)
    assert sequences(desk.received()) == [200, 199, 198]
    pull("2", 2, desk.now_ms, descending=False)
    assert sequences(desk.received()) == [31, 32]
    pull("2", 1_000, desk.now_ms, descending=False)
    assert len(desk.received()) == 30
    for _ in range(5):
        pull("2", 1, desk.now_ms, descending=False)
    assert len(desk.received()) == 2, "three of the second are used up"
    desk.now_ms += 1_001
    pull("2", 1, desk.now_ms, descending=False)
    assert len(desk.received()) == 1


def test_a_held_connection_gets_nothing_and_may_not_pull() -> None:
    desk = Desk()
    desk.attach("1")
    desk.subscribe("1", 1)
    desk.detach("1")
    desk.publish()
    desk.attach("2", is_held=True)
    desk.publish()
    desk.shard.pump.pull("2", 5, desk.now_ms, descending=False)
    assert desk.received() == []
    desk.shard.release("2")
    desk.shard.flush(desk.now_ms)
    assert sequences(desk.received()) == [1, 2]


def test_a_message_that_may_not_be_had_any_more_is_dropped_and_announced() -> None:
    desk = Desk()
    desk.attach("1")
    desk.subscribe("1", 1)
    desk.publish()
    desk.received()
    desk.acknowledge("1", 1, completed=False)
    assert desk.reasons == [NOT_PERMITTED]


def test_the_oldest_of_an_instance_go_first() -> None:
    rules = Rules(max_offline_messages=6)
    desk = Desk()
    for client in ("x", "y"):
        desk.attach(client, rules, client=client)
        desk.subscribe(client, 1)
        desk.detach(client)
    for _ in range(5):
        desk.publish()
        desk.later(1_000)
    assert desk.reasons == [OVER_LIMIT] * 4
    assert [each.delivery_id & 0xFFFF for each in desk.shard.pump.dropped] == [1, 1, 2, 2]
    assert desk.shard.roster.instances["i"].count == 6


def test_messages_are_kept_for_three_days() -> None:
    desk = Desk()
    desk.attach("1")
    desk.subscribe("1", 1)
    desk.detach("1")
    desk.publish()
    desk.later(2 * 86_400_000)
    desk.publish()
    for _ in range(3):
        desk.later(86_400_000)
    assert desk.reasons == [EXPIRED]
    desk.attach("2")
    assert sequences(desk.received()) == [2]


def test_a_session_expires_when_nobody_comes_back() -> None:
    rules = Rules(session_expiry_ms=60_000)
    desk = Desk()
    desk.attach("1", rules)
    desk.subscribe("1", 1)
    desk.later(120_000)  # it has a connection
    desk.detach("1")
    desk.publish()
    desk.later(59_000)
    desk.later(1)
    assert desk.shard.roster.sessions
    desk.later(12_000)
    assert not desk.shard.roster.sessions
    assert desk.reasons == [SESSION_EXPIRED]
    assert not desk.attach("2", rules).session_present


def test_a_change_that_was_taken_is_answered_and_changes_nothing() -> None:
    desk = Desk()
    desk.attach("1")
    desk.subscribe("1", 1, "a/b")
    desk.subscribe("1", 2, "a/c")
    desk.shard.change("1", 1, [], ["a/b", "a/c"], desk.now_ms)
    assert [each.number for each in desk.shard.stores] == [0, 1, 2, 1]
    assert desk.attach("2").subscriptions.keys() == {"a/b", "a/c"}


def test_a_takeover_moves_what_is_under_way() -> None:
    desk = Desk()
    desk.attach("1")
    desk.subscribe("1", 1)
    desk.publish(count=2)
    desk.received()
    desk.attach("2")
    desk.detach("1", Carried([(1, 1, 0)], []))  # comes late and changes nothing
    assert sequences(desk.received()) == [1, 2]


def test_qos_2_that_was_received_is_completed_and_not_sent_again() -> None:
    desk = Desk()
    desk.attach("1", STANDARD)
    desk.subscribe("1", 1, qos=2)
    desk.publish(2, count=2)
    desk.received()
    ids = [desk.log.index << 42 | sequence for sequence in (1, 2)]
    desk.detach("1", Carried([(ids[0], 5, 1), (ids[1], 6, 0)], [3]))
    attached = desk.attach("2", STANDARD)
    assert attached.carried is not None
    assert attached.carried.received == [3]
    assert sequences(desk.received()) == [2]
    desk.acknowledge("2", 1, 2)
    assert desk.shard.roster.instances["i"].count == 0


def test_identifiers_of_messages_that_are_gone_do_not_come_back() -> None:
    desk = Desk()
    desk.attach("1")
    desk.subscribe("1", 1)
    desk.publish(count=2)
    desk.received()
    ids = [desk.log.index << 42 | sequence for sequence in (1, 2)]
    desk.later(86_400_000)
    desk.detach("1", Carried([(ids[0], 5, 0), (ids[1], 6, 0)], []))
    desk.publish()
    desk.later(2 * 86_400_000 + 2_000)
    assert desk.reasons == [EXPIRED] * 2
    # At the edge they would take room in the window of the client for ever: nothing is to come for them.
    assert not desk.attach("2").carried
    assert sequences(desk.received()) == [3]


def test_an_identifier_of_qos_2_stays_in_use_when_its_message_is_gone() -> None:
    """The client may have the message, and would take another one under its identifier for a repeat."""
    desk = Desk()
    desk.shard.pump.end_rebuilding()
    desk.attach("1", STANDARD)
    desk.subscribe("1", 1, qos=2)
    desk.publish(2, count=2)
    desk.received()
    ids = [desk.log.index << 42 | sequence for sequence in (1, 2)]
    desk.detach("1", Carried([(ids[0], 5, 0), (ids[1], 6, 0)], []))
    desk.later(3 * 86_400_000 + 2_000)
    assert desk.reasons == [EXPIRED] * 2
    carried = desk.attach("2", STANDARD).carried
    assert carried is not None
    assert carried.deliveries == [(ids[0], 5, WAITS_COMPLETION), (ids[1], 6, WAITS_COMPLETION)]


@pytest.mark.parametrize("qos", [1, 2])
def test_an_edge_hears_that_a_message_it_keeps_an_identifier_for_is_gone(qos: int) -> None:
    desk = Desk()
    desk.shard.pump.end_rebuilding()
    desk.attach("1", STANDARD)
    desk.subscribe("1", 1, qos=2)
    desk.publish(qos)
    desk.received()
    delivery_id = desk.log.index << 42 | 1
    desk.detach("1", Carried([(delivery_id, 5, 0)], []))
    desk.attach("2", STANDARD)
    assert desk.shard.pump.fetching.wanted == [delivery_id]
    desk.shard.pump.fetched(delivery_id, "", b"", desk.now_ms)
    batch = desk.outbox.take()
    assert batch is not None
    assert (list(batch.topic_index), batch.delivery_ids, batch.packet_identifiers) == ([""], [delivery_id], [5])
    assert batch.flags == bytes((qos,))


def test_identifiers_wait_for_messages_that_have_yet_to_be_read_again() -> None:
    desk = Desk()
    desk.attach("1", STANDARD)
    desk.subscribe("1", 1, qos=2)
    desk.detach("1")
    delivery_id = desk.log.index << 42 | 7
    desk.shard.note_ended("i", "c", Carried([(delivery_id, 5, 0)], [9]), desk.now_ms)
    carried = desk.attach("2", STANDARD).carried
    assert carried is not None
    assert carried.deliveries == [(delivery_id, 5, 0)]
    assert not desk.received()
    desk.shard.logs.begin_reading(desk.log)
    message = Message("a/b", 2, desk.now_ms)
    desk.shard.fanout.read(desk.log, 7, message, b"", desk.now_ms, desk.now_ms)
    desk.shard.flush(desk.now_ms)
    batch = desk.outbox.take()
    assert batch is not None
    assert (batch.delivery_ids, batch.packet_identifiers, bytes(batch.flags)) == ([delivery_id], [5], bytes((2 | DUP,)))


def test_a_fetch_that_ends_after_its_connection_changes_nothing() -> None:
    desk = Desk()
    desk.attach("1")
    desk.subscribe("1", 1)
    desk.detach("1")
    desk.publish()
    desk.attach("2")  # has the message fetched
    desk.detach("2")
    for delivery_id in desk.shard.pump.fetching.wanted:
        desk.shard.pump.fetched(delivery_id, "", b"", desk.now_ms)  # the log does not have it
    assert desk.outbox.fetching == 0
    assert desk.shard.roster.instances["i"].count == 1  # it is in the queue, and counted
    assert desk.reasons == []


def test_what_is_known_of_the_oldest_stays_bounded() -> None:
    rules = Rules(max_offline_messages=100)
    desk = Desk()
    desk.attach("away", rules, client="away")
    desk.subscribe("away", 1, "a/b")
    desk.detach("away")
    desk.publish(count=101)
    desk.attach("here", rules, client="here")
    desk.subscribe("here", 1, "a/c")
    instance = desk.shard.roster.instances["i"]
    assert instance.heap is not None
    targets = desk.shard.interests.match("i", "a/c")
    for _ in range(5_000):  # live ones, of which none waits
        desk.sequence += 1
        desk.shard.fanout.deliver(desk.log, desk.sequence, "a/c", b"", 1, targets, desk.now_ms)
        desk.shard.flush(desk.now_ms)
        desk.received()
        desk.acknowledge("here", desk.sequence)
    assert len(instance.heap or ()) < 3_000


def test_a_receiver_without_a_session_is_forgotten_with_its_last_message() -> None:
    desk = Desk()
    desk.shard.fanout.deliver_p2p(desk.log, 1, "never seen", "a/p2p/never seen", b"", desk.now_ms)
    assert desk.shard.roster.sessions
    desk.later(3 * 86_400_000 + 2_000)
    assert desk.reasons == [EXPIRED]
    desk.later(20_000)
    desk.later(20_000)
    assert not desk.shard.roster.sessions


def test_a_log_that_is_made_anew_shares_no_delivery_with_the_old_one() -> None:
    desk = Desk()
    desk.attach("1")
    desk.subscribe("1", 1)
    desk.publish()
    batch = desk.outbox.take()
    assert batch is not None
    [old] = batch.delivery_ids  # under way, so its edge would take it for a repeat
    desk.shard.logs.begin_anew(desk.log, "later", desk.shard.roster.sessions)
    desk.sequence = 0
    desk.publish()
    batch = desk.outbox.take()
    assert batch is not None
    [new] = batch.delivery_ids
    assert new != old
    assert desk.shard.logs.of(old) is None
    assert desk.shard.logs.of(new) is desk.log
    desk.acknowledge("1", 1)
    desk.shard.pump.acknowledge("1", old, completed=True)
    assert desk.shard.roster.instances["i"].count == 0
    checkpoint = desk.shard.pump.changes.take()
    assert checkpoint.removed_logs == [old >> 42]
    assert [row.index for row in checkpoint.logs] == [desk.log.index]
    assert not {position for _, position in checkpoint.positions if checkpoint.positions[_, position] >= 0}
