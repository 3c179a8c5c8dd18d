"""Shared subscriptions `$share/<name>/<filter>` of one instance: who gets the next message. Pure, hot path.

A member is a positive integer that says where its messages go; what it holds is with `routing`, which gives the numbers
whose bits above `SLOT_SHIFT` are the slot of an edge.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from services.common.trie import Trie

SLOT_SHIFT = 35
"""Bits of a member below those of its edge's slot."""


class Group:
    """One shared subscription, whose members take turns."""

    __slots__ = ("_turn", "instance_id", "members", "number", "share_name", "topic_filter")

    def __init__(self, instance_id: str, share_name: str, topic_filter: str, number: int) -> None:
        self.instance_id = instance_id
        self.share_name = share_name
        self.topic_filter = topic_filter
        self.number = number
        self.members: list[int] = []
        self._turn = -1  # who had the last message

    def next(self, blocked: AbstractSet[int]) -> int:
        """Return the member that gets the next message; 0: there is none.

        Args:
            blocked: slots of edges that should get nothing now, unless all members are there.
        """
        members = self.members
        count = len(members)
        if not count:
            return 0
        turn = first = self._turn + 1 if self._turn + 1 < count else 0
        while members[turn] >> SLOT_SHIFT in blocked:
            turn = turn + 1 if turn + 1 < count else 0
            if turn == first:
                break
        self._turn = turn
        return members[turn]

    def add(self, member: int) -> None:
        """Let a member take part; nothing happens when it does."""
        if member not in self.members:
            self.members.append(member)

    def remove(self, member: int) -> None:
        """Let a member go; nothing happens when it does not take part."""
        if member in self.members:
            index = self.members.index(member)
            del self.members[index]
            if index <= self._turn:
                self._turn -= 1


class SharedGroups:
    """Shared subscriptions of one instance."""

    __slots__ = ("_groups", "_instance_id", "_number", "_numbers", "_trie")

    def __init__(self, instance_id: str) -> None:
        self._instance_id = instance_id
        self._trie = Trie()  # holds their numbers
        self._numbers: dict[int, Group] = {}
        self._groups: dict[tuple[str, str], Group] = {}
        self._number = 0

    @property
    def is_empty(self) -> bool:
        """Whether there is none."""
        return not self._groups

    def get(self, share_name: str, topic_filter: str) -> Group | None:
        """Return a shared subscription that has members."""
        return self._groups.get((share_name, topic_filter))

    def add(self, share_name: str, topic_filter: str, member: int) -> None:
        """Add a member to the shared subscription of a name and a valid topic filter."""
        group = self._groups.get((share_name, topic_filter))
        if group is None:
            self._number += 1
            group = Group(self._instance_id, share_name, topic_filter, self._number)
            self._groups[share_name, topic_filter] = group
            self._numbers[group.number] = group
            self._trie.add(topic_filter, group.number)
        group.add(member)

    def remove(self, share_name: str, topic_filter: str, member: int) -> None:
        """Remove what `add` added."""
        group = self._groups.get((share_name, topic_filter))
        if group is None:
            return
        group.remove(member)
        if not group.members:
            del self._groups[share_name, topic_filter]
            del self._numbers[group.number]
            self._trie.remove(topic_filter, group.number)

    def match(self, topic: str) -> list[Group]:
        """Return those whose filter selects a valid topic name."""
        return [self._numbers[number] for number in self._trie.match(topic)]
