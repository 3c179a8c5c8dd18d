"""Runs of messages on their way to a log: written, sent and reported as one thing unless something fails."""

from __future__ import annotations


class Part:
    """Token of one message of a run, when it is reported by itself."""

    __slots__ = ("offset", "token")

    def __init__(self, token: object, offset: int) -> None:
        self.token = token  # of the run
        self.offset = offset  # how many messages of the run come before it
