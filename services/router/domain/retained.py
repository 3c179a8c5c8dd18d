"""Retained messages of one instance by topic, MQTT 3.1.1 section 3.3.1.3. Pure."""

from __future__ import annotations

LEVEL_BYTES = 256
"""What a level of a topic takes in memory beside its text, at the most."""


class RetainedMessage:
    """What is kept of the last message with the retain flag."""

    __slots__ = ("payload", "qos")

    def __init__(self, payload: bytes, qos: int) -> None:
        self.payload = payload
        self.qos = qos


class RetainedTopic:
    """One level of the topics that begin alike, and the message of the topic that ends here."""

    __slots__ = ("children", "message", "topic")

    def __init__(self) -> None:
        self.children: dict[str, RetainedTopic] = {}
        self.topic = ""  # known once it had a message
        self.message: RetainedMessage | None = None


class RetainedTopics:
    """Retained messages within a quota.

    Args:
        max_messages: beyond, a topic that has no message gets none; one that has a message gets its next.
        max_bytes: of topics and payloads; beyond, likewise.
    """

    __slots__ = ("_max_bytes", "_max_messages", "_root", "messages", "size")

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._root = RetainedTopic()
        self.messages = 0
        """Topics with a message."""
        self.size = 0
        """Bytes they take."""

    def get(self, topic: str) -> RetainedMessage | None:
        """Return the message of a topic."""
        node = self._root
        for level in topic.split("/"):
            child = node.children.get(level)
            if child is None:
                return None
            node = child
        return node.message

    def put(self, topic: str, message: RetainedMessage, *, is_stored: bool = False) -> bool:
        """Keep the message of a topic in place of the one before; say whether the quota allows it.

        Args:
            topic: valid topic name.
            message: of it.
            is_stored: it was allowed before, whatever the quota is now.
        """
        before = self.get(topic)
        if before is not None:
            self.size -= _size(topic, before)
        elif not is_stored and not self._has_room(_size(topic, message)):
            return False
        else:
            self.messages += 1
        self.size += _size(topic, message)
        node = self._root
        for level in topic.split("/"):
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = RetainedTopic()
            node = child
        node.topic = topic
        node.message = message
        return True

    def _has_room(self, size: int) -> bool:
        return self.messages < self._max_messages and self.size + size <= self._max_bytes

    def remove(self, topic: str) -> bool:
        """Forget the message of a topic; say whether it had one."""
        node = self._root
        path: list[tuple[RetainedTopic, str]] = []
        for level in topic.split("/"):
            child = node.children.get(level)
            if child is None:
                return False
            path.append((node, level))
            node = child
        if node.message is None:
            return False
        self.size -= _size(topic, node.message)
        self.messages -= 1
        node.message = None
        while path and not node.children:
            node, level = path.pop()
            del node.children[level]
            if node.message is not None:
                break
        return True

    def match(self, topic_filter: str) -> tuple[list[RetainedTopic], int]:
        """Return the topics with a message that a valid filter selects, and how many levels were looked at."""
        nodes = [self._root]
        visited = 1
        # [MQTT-4.7.2-1] a leading wildcard never selects the server's own topics.
        is_first = True
        for level in topic_filter.split("/"):
            following: list[RetainedTopic] = []
            if level == "#":  # the last level; selects the parent level as well
                while nodes:
                    node = nodes.pop()
                    following.append(node)
                    for name, child in node.children.items():
                        if not is_first or not name.startswith("$"):
                            nodes.append(child)
                    is_first = False
                nodes = following
                visited += len(following)
                break
            for node in nodes:
                if level == "+":
                    for name, child in node.children.items():
                        if not is_first or not name.startswith("$"):
                            following.append(child)
                elif level in node.children:
                    following.append(node.children[level])
            visited += len(nodes) + len(following)
            nodes = following
            is_first = False
            if not nodes:
                break
        return [node for node in nodes if node.message is not None], visited


def _size(topic: str, message: RetainedMessage) -> int:
    return len(message.payload) + len(topic) + LEVEL_BYTES * (topic.count("/") + 1)
