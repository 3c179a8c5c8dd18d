"""Deliveries under way to one client, by their packet identifiers.

Nearly all are acknowledged in the order of sending. Those are kept as runs: entries with identifiers that follow one
another. Anything else - a token, an answer before its turn - turns what is under way into entries of a dictionary, one
for each delivery, and new ones join them there until it is empty. There never are both. What waits for PUBCOMP is kept
in the same way, apart.
"""

from __future__ import annotations

from typing import TypeAlias

from services.edge.mqtt.errors import LocalUseError
from services.edge.mqtt.outbound import OutboundMessage
from services.edge.mqtt.packets import PublishRun

MAX_IDENTIFIER = 65_535

Delivery: TypeAlias = tuple[OutboundMessage, int, object]
"""Message, QoS and token. The token is the driver's, handed back by `Acknowledged`."""

EXPECTED = 0
"""In the place of the QoS of a delivery: its message, and so its QoS, has yet to come again."""

_NO_MESSAGE = OutboundMessage(b"", b"", retain=False)


class SentRun:
    """Deliveries of one QoS without a token: one message, or those of a `PublishRun`; once released, none."""

    __slots__ = ("_source", "first", "next", "qos", "stop")

    def __init__(self, first: int, count: int, source: OutboundMessage | PublishRun, qos: int) -> None:
        self._source = source
        self.qos = qos
        self.first = first
        """Packet identifier of the first message."""
        self.next = first
        """Of the first that was not answered."""
        self.stop = first + count
        """After the last one."""

    def unacknowledged(self) -> list[tuple[int, Delivery]]:
        """Return identifier and delivery of each message that the client has yet to acknowledge."""
        source = self._source
        messages = source.messages() if isinstance(source, PublishRun) else [source]
        return [(number, (messages[number - self.first], self.qos, None)) for number in range(self.next, self.stop)]


def _take_oldest(runs: list[SentRun], qos: int, packet_identifier: int, count: int) -> int:
    """Remove up to `count` deliveries of a QoS from the front, if they begin with an identifier; return how many."""
    ended = 0
    first = packet_identifier
    stop = first + count
    while ended < len(runs) and first < stop:
        run = runs[ended]
        if run.next != first or run.qos != qos:
            break
        if run.stop > stop:
            run.next = first = stop
        else:
            first = run.stop
            ended += 1
    if ended:
        del runs[:ended]
    return first - packet_identifier


class SentWindow:
    """Deliveries of QoS 1 and 2 that the client has not completed, at most `limit`."""

    __slots__ = (
        "_free_stop",
        "_in_runs",
        "_last_identifier",
        "_released",
        "_released_runs",
        "_runs",
        "_unacknowledged",
        "limit",
    )

    def __init__(self, limit: int) -> None:
        if not 1 <= limit <= MAX_IDENTIFIER:
            raise LocalUseError(f"a window of {limit} does not fit the packet identifiers")
        self.limit = limit
        self._last_identifier = 0
        # Identifiers after the last one and before this are free: found once, none of them is given out meanwhile.
        self._free_stop = MAX_IDENTIFIER + 1
        # In the order of sending, and in that of their PUBREC.
        self._runs: list[SentRun] = []
        self._released_runs: list[SentRun] = []
        self._in_runs = 0  # deliveries in both
        # Dictionaries keep insertion order, which is the order of sending.
        self._unacknowledged: dict[int, Delivery] = {}
        self._released: dict[int, object] = {}

    def __len__(self) -> int:
        return self._in_runs + len(self._unacknowledged) + len(self._released)

    @property
    def last_identifier(self) -> int:
        """Packet identifier of the latest delivery; with a full window it moves only when the client acknowledges."""
        return self._last_identifier

    @property
    def has_room(self) -> bool:
        """Whether one more delivery may be under way."""
        return self._in_runs + len(self._unacknowledged) + len(self._released) < self.limit

    def add(self, message: OutboundMessage, qos: int, token: object) -> int:
        """Note a delivery and return its packet identifier, which no other one under way has.

        A message that is kept elsewhere has a number as its token, and by it the same identifier whenever it can. So it
        comes again under that one though the process that sent it was killed, and a client that keeps the identifier of
        a delivery of QoS 2 meets no other message under it [MQTT-4.3.3-2].

        Raises:
            LocalUseError: the window is full.
        """
        if not self.has_room:
            raise LocalUseError("the window is full")
        if isinstance(token, int):
            # The session shard computes it, too: `presumed_identifiers` in services/session/domain/identifiers.py.
            self._last_identifier = token % MAX_IDENTIFIER
            self._free_stop = 0
            self._split()
        # Found, since fewer identifiers are in use than there are. [MQTT-2.3.1-4]
        identifier = self._take(1)
        if token is None and not self._unacknowledged:
            self._runs.append(SentRun(identifier, 1, message, qos))
            self._in_runs += 1
        else:
            self._split()
            self._unacknowledged[identifier] = (message, qos, token)
        return identifier

    def add_run(self, messages: PublishRun) -> int:
        """Note the delivery of messages of QoS 1 or 2 that are sent together.

        Returns:
            The packet identifier of the first; the others have the next ones. 0: they can't be sent together, since the
            window has less room, other deliveries are under way, or no such identifiers are free.
        """
        count = messages.count
        if self._unacknowledged or self._in_runs + len(self._released) + count > self.limit:
            return 0
        first = self._take(count)
        if first:
            self._runs.append(SentRun(first, count, messages, messages.qos))
            self._in_runs += count
        return first

    def _take(self, count: int) -> int:
        """Take so many identifiers that follow one another and return the first of them; 0: there are none."""
        first = self._last_identifier + 1
        if first + count > self._free_stop:
            first = self._find_free(count)
            if not first:
                return 0
        self._last_identifier = first + count - 1
        return first

    def _find_free(self, count: int) -> int:
        following = self._last_identifier + 1
        if (
            count == 1
            and not self._runs
            and not self._released_runs
            and following <= MAX_IDENTIFIER
            and following not in self._unacknowledged
            and following not in self._released
        ):
            return following
        used = sorted(
            [(number, number + 1) for number in (*self._unacknowledged, *self._released)]
            + [(run.next, run.stop) for run in (*self._runs, *self._released_runs)]
        )
        used.append((MAX_IDENTIFIER + 1, MAX_IDENTIFIER + 1))
        for first in (self._last_identifier + 1, 1):
            free = first
            for start, stop in used:
                if start - free >= count:
                    self._free_stop = start
                    return free
                free = max(free, stop)
        return 0

    def _split(self) -> None:
        """Keep each delivery by itself."""
        if self._in_runs:
            for run in self._runs:
                self._unacknowledged.update(run.unacknowledged())
            for run in self._released_runs:
                for identifier in range(run.next, run.stop):
                    self._released[identifier] = None
            self._runs.clear()
            self._released_runs.clear()
            self._in_runs = 0

    def complete_in_order(self, packet_identifier: int, count: int) -> int:
        """Take PUBACK packets for an identifier and those that follow it.

        Returns:
            How many were for the oldest deliveries, none of which has a token; `complete_qos1` takes the others.
        """
        completed = _take_oldest(self._runs, 1, packet_identifier, count)
        self._in_runs -= completed
        return completed

    def release_in_order(self, packet_identifier: int, count: int) -> int:
        """Take PUBREC packets for an identifier and those that follow it.

        Returns:
            How many were for the oldest deliveries, none of which has a token; `release` takes the others.
        """
        released = _take_oldest(self._runs, 2, packet_identifier, count)
        if released:
            runs = self._released_runs
            if self._released:
                self._in_runs -= released
                for identifier in range(packet_identifier, packet_identifier + released):
                    self._released[identifier] = None
            elif runs and runs[-1].stop == packet_identifier:
                runs[-1].stop += released
            else:
                runs.append(SentRun(packet_identifier, released, _NO_MESSAGE, 2))
        return released

    def complete_released_in_order(self, packet_identifier: int, count: int) -> int:
        """Take PUBCOMP packets for an identifier and those that follow it.

        Returns:
            How many were for those released first, none of which has a token; `complete_qos2` takes the others.
        """
        completed = _take_oldest(self._released_runs, 2, packet_identifier, count)
        self._in_runs -= completed
        return completed

    def expect(self, packet_identifier: int, token: object) -> None:
        """Keep an identifier for the message that was sent under it on an earlier connection.

        The client may complete it before the message comes again: it had it.
        """
        self._split()
        self._free_stop = 0
        self._unacknowledged[packet_identifier] = (_NO_MESSAGE, EXPECTED, token)

    def fulfil(self, packet_identifier: int, message: OutboundMessage, qos: int, token: object) -> bool:
        """Take the message that an identifier is kept for; say whether it is to be sent again."""
        delivery = self._unacknowledged.get(packet_identifier)
        if delivery is None or delivery[1] != EXPECTED or delivery[2] != token:
            return False
        self._unacknowledged[packet_identifier] = (message, qos, token)
        return True

    def abandon(self, packet_identifier: int, qos: int, token: object) -> bool:
        """Give an identifier up that is kept for a message which will not come; say whether PUBREL is due.

        At QoS 2 the client may have the message and would take another one under its identifier for a repeat, so the
        identifier is free when the client has released it.
        """
        delivery = self._unacknowledged.get(packet_identifier)
        if delivery is None or delivery[1] != EXPECTED or delivery[2] != token:
            return False
        del self._unacknowledged[packet_identifier]
        if qos == 2:  # noqa: PLR2004 - QoS 2
            self._split()
            self._released[packet_identifier] = token
            return True
        return False

    def expect_completion(self, packet_identifier: int, token: object) -> None:
        """Note a delivery whose PUBREC came on an earlier connection."""
        self._split()
        self._free_stop = 0
        self._released[packet_identifier] = token

    def complete_qos1(self, packet_identifier: int) -> Delivery | None:
        """Take PUBACK; return the delivery it ends, None if there is none."""
        self._split()
        delivery = self._unacknowledged.get(packet_identifier)
        if delivery is None or delivery[1] == 2:  # noqa: PLR2004 - QoS 2
            return None
        del self._unacknowledged[packet_identifier]
        return delivery

    def release(self, packet_identifier: int) -> bool:
        """Take PUBREC; say whether it belongs to a delivery of QoS 2."""
        self._split()
        delivery = self._unacknowledged.get(packet_identifier)
        if delivery is None or delivery[1] == 1:
            return packet_identifier in self._released
        del self._unacknowledged[packet_identifier]
        self._released[packet_identifier] = delivery[2]
        return True

    def is_under_way(self, packet_identifier: int) -> bool:
        """Say whether the client has yet to complete a delivery with this identifier."""
        self._split()
        return packet_identifier in self._unacknowledged or packet_identifier in self._released

    def is_released(self, packet_identifier: int) -> bool:
        """Say whether PUBCOMP is what this identifier waits for."""
        self._split()
        return packet_identifier in self._released

    def complete_qos2(self, packet_identifier: int) -> object:
        """Take PUBCOMP for an identifier that `is_released`; return its token."""
        return self._released.pop(packet_identifier)

    def unacknowledged(self) -> list[tuple[int, Delivery]]:
        """Return identifier and delivery of what is to be sent again, oldest first."""
        self._split()
        return list(self._unacknowledged.items())

    def released(self) -> list[tuple[int, object]]:
        """Return identifier and token of what waits for PUBCOMP, in the order of their PUBREC."""
        self._split()
        return list(self._released.items())
