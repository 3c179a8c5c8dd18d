"""What a user of the command line is told when a command can't do its work."""

from __future__ import annotations

FAILED = 1
"""Exit status: the command was understood but could not be carried out."""
WRONG_USE = 2
"""Exit status: an option, argument or configuration is wrong."""


class CliError(Exception):
    """A failure with its cause and its cure, shown without a traceback.

    Attributes:
        cause: what is wrong, one sentence or several lines.
        cure: what to do about it; empty when the cause says it.
        status: exit status of the command.
    """

    def __init__(self, cause: str, cure: str = "", *, status: int = FAILED) -> None:
        super().__init__(cause)
        self.cause = cause
        self.cure = cure
        self.status = status
