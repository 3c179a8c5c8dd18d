"""Topic names and topic filters by MQTT 3.1.1 section 4.7.

Pure functions on `str`. `matches` is the plain reading of the standard, level by level; the router
matches with a trie and is tested against this one.
"""

from __future__ import annotations

MAX_TOPIC_BYTES = 65_535
"""Longest topic name or filter in UTF-8 bytes: its length is a 16-bit field. [MQTT-4.7.3-3]"""

SHARE_PREFIX = "$share/"
"""Begins the filter of a shared subscription: `$share/<share name>/<topic filter>` (MQTT 5 section 4.8.2)."""


class InvalidTopicError(ValueError):
    """A topic name or topic filter that the standard does not allow."""

    def __init__(self, requirement: str, message: str) -> None:
        super().__init__(f"{message} [{requirement}]")
        self.requirement = requirement
        """Normative tag of the broken statement, such as `MQTT-4.7.3-1`."""
        self.message = message


def split(topic: str) -> list[str]:
    """Return the levels of a topic name or filter; levels may be empty."""
    return topic.split("/")


def _validate_text(topic: str) -> None:
    if not topic:
        raise InvalidTopicError("MQTT-4.7.3-1", "a topic has at least one character")
    if "\0" in topic:
        raise InvalidTopicError("MQTT-4.7.3-2", "a topic holds no U+0000")
    if topic.isascii():
        size = len(topic)
    else:
        try:
            size = len(topic.encode())
        except UnicodeEncodeError as error:
            raise InvalidTopicError("MQTT-1.5.3-1", "a topic holds no surrogates") from error
    if size > MAX_TOPIC_BYTES:
        raise InvalidTopicError("MQTT-4.7.3-3", f"a topic has at most {MAX_TOPIC_BYTES} bytes")


def validate_topic_name(topic: str) -> None:
    """Accept a topic that a message can be published to.

    Raises:
        InvalidTopicError: it is empty, too long, or holds a wildcard, U+0000 or a surrogate.
    """
    _validate_text(topic)
    if "+" in topic or "#" in topic:
        raise InvalidTopicError("MQTT-3.3.2-2", "a topic name holds no wildcard")


def validate_topic_filter(topic_filter: str) -> None:
    """Accept a topic filter that a client can subscribe to.

    Raises:
        InvalidTopicError: a wildcard is misplaced, or the text is no topic at all.
    """
    _validate_text(topic_filter)
    if "#" in topic_filter and (
        topic_filter.index("#") != len(topic_filter) - 1 or (len(topic_filter) > 1 and topic_filter[-2] != "/")
    ):
        raise InvalidTopicError("MQTT-4.7.1-2", "# is the whole last level of a filter")
    if "+" in topic_filter:
        for level in topic_filter.split("/"):
            if "+" in level and level != "+":
                raise InvalidTopicError("MQTT-4.7.1-3", "+ is a whole level of a filter")


def split_share(topic_filter: str) -> tuple[str, str]:
    """Return (share name, topic filter) of `$share/<name>/<topic filter>`; the name is empty for any other filter."""
    if topic_filter.startswith(SHARE_PREFIX):
        name, slash, rest = topic_filter[len(SHARE_PREFIX) :].partition("/")
        if name and slash and rest and "+" not in name and "#" not in name:
            return name, rest
    return "", topic_filter


def matches(topic_filter: str, topic: str) -> bool:
    """Say whether a valid filter selects a valid topic name."""
    # [MQTT-4.7.2-1] a leading wildcard never selects the server's own topics.
    if topic.startswith("$") and topic_filter.startswith(("+", "#")):
        return False
    filter_levels = topic_filter.split("/")
    topic_levels = topic.split("/")
    for index, level in enumerate(filter_levels):
        if level == "#":
            return True  # also the parent level itself: `a/#` selects `a`
        if index == len(topic_levels):
            return False
        if level not in ("+", topic_levels[index]):
            return False
    return len(filter_levels) == len(topic_levels)


def covers(outer: str, inner: str) -> bool:
    """Say whether a valid filter selects every topic that another filter, or a topic name, selects."""
    # [MQTT-4.7.2-1] a leading wildcard never selects the server's own topics.
    if inner.startswith("$") and outer.startswith(("+", "#")):
        return False
    inner_levels = inner.split("/")
    outer_levels = outer.split("/")
    if outer_levels == ["+", "#"]:
        return True  # every topic has a first level, so this is `#`
    for index, level in enumerate(outer_levels):
        if level == "#":
            return True  # also the parent level itself
        if index == len(inner_levels) or inner_levels[index] == "#":
            return False
        if level not in ("+", inner_levels[index]):
            return False
    return len(outer_levels) == len(inner_levels)
