"""What the log writer holds for each stream, its *lane*: messages in flight, those waiting, where the stream ends.

A message that JetStream fails while it stores those behind it (a change of leader, a stream that was full or missing)
is stored after them, except in an *ordered* lane. There each message that is sent behind others in flight says which
one it follows (`Nats-Expected-Last-Msg-Id`), and JetStream refuses it when that one is not the last of the stream;
the lane is then sent back like after any other failure. The first in flight has no predecessor that could be missing.
This needs one writer for the stream. It was chosen over one message in flight at a time, some 2,000 messages/s. In a
cluster there is no other way: a message that does not meet that header ends the stream on all servers until they are
restarted (nats-server 2.15), and `Nats-Expected-Last-Sequence` does not hold when leaders change. A broken connection
alone is no danger: what was stored is a prefix of what was sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from services.common.log_wire import command

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
"""Bounds of the pause after a failure; it doubles from one to the other."""

MAX_NAMES = 65_536
"""Subjects whose lane is remembered, and lanes whose end is; beyond, all are forgotten and found anew."""
DOUBTFUL_MESSAGES = 1_024
"""Messages that go without a group after the acknowledgement of one did not fit."""
MAX_CONTROL_LINE = 4_096
"""The server's bound of the line with subject and sizes (`max_control_line`); it hangs up on a longer one."""
SIZES = 20
"""Most characters of the number of a message, or of the two sizes, with what separates them."""
EXPECTATION_BYTES = 256
"""Room for the header that an ordered message may get when it is sent; message ids have up to 128 characters."""
FULL_BYTES = 4 << 20
"""Bytes of a lane that are not reported, above which it is full."""
FULL_AWAY_BYTES = 256 << 10
"""The same while there is no connection: all lanes grow then."""
EASED_BYTES = 2 << 20
"""Bytes below which it is full no more, once something was stored."""
WAITING = 0
"""`Message.sequence` of a message without an answer."""
REFUSED = -1
"""`Message.sequence` of one that can never be stored."""

CRLF = b"\r\n"
"""End of a line and of a payload."""


class Message:
    """A message that was written and not reported yet, or a run of them (`log_runs.RunMessage`)."""

    __slots__ = (
        "block",
        "count",
        "failure",
        "head",
        "is_duplicate",
        "is_found",
        "is_indexed",
        "is_old",
        "lane",
        "may_repeat",
        "message_id",
        "number",
        "payload",
        "payload_bytes",
        "sequence",
        "size",
        "token",
    )

    def __init__(
        self,
        lane: Lane,
        number: int,
        message_id: str,
        head: bytes,
        block: bytes,
        payload: bytes,
        token: object,
        may_repeat: bool,  # noqa: FBT001 - hot path
        is_found: bool,  # noqa: FBT001
        is_indexed: bool,  # noqa: FBT001
    ) -> None:
        self.lane = lane
        self.may_repeat = may_repeat  # the stream may have it: from another process, an earlier call or attempt
        self.is_old = may_repeat  # so it was from the start: from another process, or an earlier call
        self.is_found = is_found  # then it is looked for in the stream
        self.is_indexed = is_indexed  # JetStream knows its id, and drops repeats
        self.message_id = message_id
        self.number = number
        self.head = head  # of the control line
        self.block = block  # of headers
        self.payload = payload
        self.payload_bytes = len(payload)
        self.token = token
        self.count = 1
        self.size = len(head) + len(block) + len(payload)
        self.sequence = WAITING
        self.is_duplicate = False
        self.failure = ""

    def add_commands(self, reply: bytes, follows: str, is_ordered: bool, parts: list[bytes]) -> None:  # noqa: ARG002, FBT001 - of runs; hot path
        """Add what publishes the message; see `log_wire.command`."""
        parts.append(command(self.head, reply, self.block, len(self.payload), follows))
        parts.append(self.payload)
        parts.append(CRLF)

    def split(self) -> list[Message]:
        """Return the messages that this is."""
        return [self]

    def ids_of_all(self) -> list[str]:
        """Return the ids of the messages that this is."""
        return [self.message_id]


class Group:
    """Messages in flight that follow one another, of which only the last one is acknowledged; `count` of them."""

    __slots__ = ("count", "is_end", "last")

    def __init__(self, last: Message, count: int, *, is_end: bool) -> None:
        self.last = last
        self.count = count
        self.is_end = is_end  # its acknowledgement tells where the stream ends: all are sent for the first time


class Lane:
    """The messages of one stream, in the order of writing: those in flight, then those waiting to be sent."""

    __slots__ = (
        "asks_before",
        "begin",
        "end",
        "fence",
        "flight",
        "groups",
        "is_clustered",
        "is_full",
        "is_ordered",
        "is_ours",
        "is_probing",
        "is_queued",
        "is_reading",
        "lone",
        "name",
        "pause_s",
        "progress",
        "reserve",
        "retry_at",
        "sent",
        "size",
        "stream",
        "waiting",
    )

    def __init__(
        self, name: str, *, is_ordered: bool, is_clustered: bool, is_ours: bool, end: int, stream: str, begin: int
    ) -> None:
        self.name = name
        self.asks_before = False  # something that waits may be from the process before
        self.begin = begin  # sequence of the first message of this process; 0: not known
        self.stream = stream  # where repeats are looked for; empty: nowhere
        self.fence = 0  # number of what asks where the stream ends, before repeats are looked for; 0: nothing
        self.is_reading = False  # repeats are looked for
        self.is_ordered = is_ordered
        self.is_clustered = is_clustered
        self.is_ours = is_ours  # nobody else writes to its stream
        self.end = end  # of the stream, when the last message that was reported had been stored; 0: not known
        self.lone = 0 if end else 1  # how many messages go without a group before the next one may
        self.groups: deque[Group] = deque()  # the messages in flight once more
        self.reserve = EXPECTATION_BYTES if is_ordered else 0
        self.sent = (
            ""  # id of the last one in flight that was sent and not answered before; empty: none, or it has none
        )
        self.flight: deque[Message] = deque()
        self.waiting: deque[Message] = deque()
        self.size = 0  # bytes that are not reported
        self.is_full = False  # see `Fullness`
        self.is_queued = False  # has its place in the writer's queue of lanes to send
        self.is_probing = False  # after a failure: one message at a time until one is acknowledged
        self.pause_s = FIRST_PAUSE_S
        self.retry_at = 0.0
        self.progress = 0.0  # when the oldest message in flight became the oldest, monotonic seconds

    def check(self, message: Message, inbox_size: int, max_payload: int) -> None:
        """Refuse a message that the server can't take."""
        size = len(message.block) + message.payload_bytes
        if len(message.head) + inbox_size + SIZES * 2 > MAX_CONTROL_LINE:
            message.sequence = REFUSED
            message.failure = f"the command up to its sizes has {len(message.head)} characters"
        elif size + self.reserve > max_payload:
            message.sequence = REFUSED
            message.failure = f"headers and payload have {size} bytes"

    def is_held(self) -> bool:
        """Return whether what waits has to wait for the answer to what is in flight."""
        if self.fence or self.is_reading:
            return True
        if not self.flight:
            return False
        if self.is_probing or (self.is_ordered and self.is_clustered):
            return True
        return len(self.waiting) > 0 and self.must_find(self.waiting[0])

    def finds(self) -> bool:
        """Return whether repeats of messages that want it are looked for, so that JetStream need not know their ids."""
        return self.stream != "" and not self.is_clustered

    def must_find(self, message: Message) -> bool:
        """Return whether a message has to be looked for before it is sent."""
        return message.may_repeat and message.is_found and message.sequence == WAITING and self.finds()

    def wanted(self) -> set[str]:
        """Return the ids of the messages that wait and have to be looked for.

        Not of those behind another copy of theirs: that has to be sent and answered first.
        """
        ids: set[str] = set()
        copies: set[str] = set()
        for message in self.waiting:
            if message.sequence != WAITING:
                continue
            if self.must_find(message) and message.message_id not in copies:
                ids.add(message.message_id)
            copies.update(message.ids_of_all())
        return ids

    def found(self, wanted: set[str], sequences: dict[str, int]) -> None:
        """Note which of the messages that wait are in the stream, by their ids; `wanted` were looked for."""
        self.asks_before = False
        for message in self.waiting:
            if message.sequence != WAITING or not (message.may_repeat and message.is_found):
                continue
            if message.message_id in wanted:
                wanted.discard(message.message_id)  # a second copy waits for the first one
                message.sequence = sequences.get(message.message_id, WAITING)
                message.is_duplicate = message.sequence != WAITING
                message.may_repeat = False
            elif message.is_old:
                self.asks_before = True

    def send(self, group: list[Message], inbox: bytes, parts: list[bytes]) -> None:
        """Add the commands that publish a group of messages, of which the last one is to be acknowledged."""
        last = group[-1]
        reply = b"%b%d " % (inbox, last.number)
        count = 0
        for message in group:
            count += message.count
            message.add_commands(reply if message is last else b"", self.sent, self.is_ordered, parts)
            if self.is_ordered:
                self.sent = message.message_id
        self.groups.append(Group(last, count, is_end=self.lone == 0))

    def may_send_whole(self, message: Message) -> bool:
        """Return whether what is sent next need not be split into its messages."""
        return message.count == 1 or (self.may_group(message) and not (self.is_ordered and self.is_clustered))

    def fits(self, group: Group) -> bool:
        """Return whether an acknowledgement proves that the whole group was stored, now and one after the other.

        So it is when the stream has grown by all of it, since nobody else writes there. Should somebody do all the
        same (the process before this one, whose last messages are late), the stream grows by more, never by as much:
        what JetStream drops because it has it already is in no group, see `Message.may_repeat`.
        """
        if group.count == 1:
            return True
        last = group.last
        return self.end > 0 and last.sequence == self.end + group.count and not last.is_duplicate

    def may_group(self, message: Message) -> bool:
        """Return whether a message may go in a group: it is sent for the first time, and was by nobody else before."""
        is_new = self.lone == 0 and not message.may_repeat and message.message_id != ""
        return is_new and self.is_ours and not self.is_probing

    def note_end(self, group: Group) -> None:
        """Note where the stream ends now that a group was answered."""
        last = group.last
        if last.sequence == REFUSED:
            return
        if not group.is_end:
            self.end = 0
        elif not last.is_duplicate:  # else nothing was added
            self.end = last.sequence

    def take_back(self) -> None:
        """Move what is in flight, and split, back in front of what waits; it will be sent without groups."""
        self.lone += len(self.flight) + 1  # the first that is sent for the first time shows where the stream ends
        self.end = 0
        self.fence = 0
        self.groups.clear()
        self.waiting.extendleft(reversed(self.flight))
        self.flight.clear()
        self.is_probing = True


class Fullness:
    """Tells which lanes are full: whoever writes to them should wait, and others need not.

    Args:
        told: called with the name of a lane, and whether it is full, when that changes.
    """

    def __init__(self, told: Callable[[str, bool], None]) -> None:
        self._told = told

    def grew(self, lane: Lane, size: int, *, is_connected: bool) -> None:
        """Note that a message of so many bytes was written."""
        lane.size += size
        if not lane.is_full and lane.size > (FULL_BYTES if is_connected else FULL_AWAY_BYTES):
            lane.is_full = True
            self._told(lane.name, True)  # noqa: FBT003 - the shape of a callback

    def shrank(self, lane: Lane, size: int) -> None:
        """Note that a message of so many bytes was reported."""
        lane.size -= size
        if lane.is_full and lane.size <= EASED_BYTES:
            lane.is_full = False
            self._told(lane.name, False)  # noqa: FBT003 - as above


class Lanes:
    """The lanes with messages, by name, and what is remembered of the others.

    Args:
        tokens: how many leading tokens of a subject name its lane.
        is_ordered: asked whenever a lane begins, by its name.
        is_ours: likewise; whether nobody else writes to its stream.
        stream_of: likewise; see `Lane.stream`.
        is_clustered: whether JetStream is a cluster of servers.
    """

    def __init__(
        self,
        tokens: int,
        is_ordered: Callable[[str], bool] | None,
        is_ours: Callable[[str], bool] | None,
        stream_of: Callable[[str], str] | None,
        *,
        is_clustered: bool,
    ) -> None:
        self._tokens = tokens
        self._is_ordered = is_ordered
        self._is_ours = is_ours
        self._stream_of = stream_of
        self._subjects: dict[str, tuple[str, bytes]] = {}
        self._ends: dict[str, int] = {}  # see `Lane.end`
        self._begins: dict[str, int] = {}  # see `Lane.begin`
        self.is_clustered = is_clustered
        """Whether JetStream is a cluster of servers."""
        self.used: dict[str, Lane] = {}
        """Those with messages."""

    def subject(self, subject: str) -> tuple[str, bytes]:
        """Return the name of the lane of a subject, and the head of a command that publishes to it."""
        found = self._subjects.get(subject)
        if found is None:
            if len(self._subjects) >= MAX_NAMES:
                self._subjects.clear()
            name = ".".join(subject.split(".", self._tokens)[: self._tokens])
            found = self._subjects[subject] = (name, f"HPUB {subject} ".encode())
        return found

    def lane(self, name: str) -> Lane:
        """Return a lane, a new one when it has no messages."""
        lane = self.used.get(name)
        if lane is None:
            is_ours = self._is_ours is not None and self._is_ours(name)
            lane = self.used[name] = Lane(
                name,
                is_ordered=self._is_ordered is not None and self._is_ordered(name),
                is_clustered=self.is_clustered,
                is_ours=is_ours,
                end=self._ends.pop(name, 0),
                begin=self._begins.get(name, 0),
                stream=self._stream_of(name) if is_ours and self._stream_of is not None else "",
            )
        return lane

    def begin(self, lane: Lane, sequence: int) -> None:
        """Note the first message that this process stored in a lane."""
        lane.begin = sequence
        if len(self._begins) >= MAX_NAMES:
            self._begins.clear()
        self._begins[lane.name] = sequence

    def finish(self, lane: Lane) -> None:
        """Forget a lane without messages, but for the end of its stream."""
        del self.used[lane.name]
        if lane.is_ours and lane.end and not lane.lone:
            if len(self._ends) >= MAX_NAMES:
                self._ends.clear()
            self._ends[lane.name] = lane.end
