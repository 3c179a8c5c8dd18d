"""Topic filters of one instance as a trie, MQTT 3.1.1 section 4.7. Pure, hot path."""

from __future__ import annotations


class _Node:
    """One level of the filters that begin alike."""

    __slots__ = ("children", "plus", "rest", "values")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}  # by literal level
        self.plus: _Node | None = None  # the level `+`
        self.values: dict[int, None] = {}  # of filters that end here, in the order of adding
        self.rest: dict[int, None] = {}  # of filters that go on with `#`


class Trie:
    """Values by topic filter. A value is a positive integer; each filter has each value once."""

    __slots__ = ("_root",)

    def __init__(self) -> None:
        self._root = _Node()

    def add(self, topic_filter: str, value: int) -> None:
        """Add a value to a valid filter; nothing happens when the filter has it."""
        node = self._root
        for level in topic_filter.split("/"):
            if level == "#":  # always the last level [MQTT-4.7.1-2]
                node.rest[value] = None
                return
            child = node.plus if level == "+" else node.children.get(level)
            if child is None:
                child = _Node()
                if level == "+":
                    node.plus = child
                else:
                    node.children[level] = child
            node = child
        node.values[value] = None

    def remove(self, topic_filter: str, value: int) -> None:
        """Remove a value from a filter; nothing happens when the filter does not have it."""
        node = self._root
        path: list[tuple[_Node, str]] = []
        values = node.values
        for level in topic_filter.split("/"):
            if level == "#":
                values = node.rest
                break
            child = node.plus if level == "+" else node.children.get(level)
            if child is None:
                return
            path.append((node, level))
            node = child
            values = node.values
        if value not in values:
            return
        del values[value]
        while path and not (node.children or node.plus or node.values or node.rest):
            node, level = path.pop()
            if level == "+":
                node.plus = None
            else:
                del node.children[level]

    @property
    def is_empty(self) -> bool:
        """Whether there is no filter."""
        root = self._root
        return not (root.children or root.plus or root.values or root.rest)

    def match(self, topic: str) -> list[int]:
        """Return the values of all filters that select a valid topic name, one for each filter."""
        found: list[int] = []
        nodes = [self._root]
        # [MQTT-4.7.2-1] a leading wildcard never selects the server's own topics.
        may_be_wildcard = not topic.startswith("$")
        for level in topic.split("/"):
            following: list[_Node] = []
            for node in nodes:
                if may_be_wildcard:
                    found.extend(node.rest)
                    if node.plus is not None:
                        following.append(node.plus)
                child = node.children.get(level)
                if child is not None:
                    following.append(child)
            if not following:
                return found
            nodes = following
            may_be_wildcard = True
        for node in nodes:
            found.extend(node.values)
            found.extend(node.rest)  # `#` also selects the parent level
        return found
