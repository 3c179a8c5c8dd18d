"""Parameters of signed HTTP calls (product.md sections 2.3 and 4): each exactly once, within its length. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class BadParameterError(ValueError):
    """A parameter is missing, given twice, too long, or not what it must be."""


def single_values(parameters: Iterable[tuple[str, str]], max_characters: Mapping[str, int]) -> dict[str, str]:
    """Return the value of each required parameter; unknown ones are ignored.

    Args:
        parameters: decoded names and values, in any order.
        max_characters: the required parameters and their greatest lengths.

    Raises:
        BadParameterError: one is missing, empty, given twice or too long.
    """
    values: dict[str, str] = {}
    for name, value in parameters:
        if name not in max_characters:
            continue
        # Which of two is signed, and which is asked about, must not be a matter of taste.
        if name in values:
            raise BadParameterError(f"parameter {name} is given twice")
        if len(value) > max_characters[name]:
            raise BadParameterError(f"parameter {name} is too long")
        values[name] = value
    for name in max_characters:
        if not values.get(name):
            raise BadParameterError(f"parameter {name} is missing")
    return values


def given_signature(value: str) -> str:
    """Return a signature as it was sent.

    A `+` that the caller left unescaped in the query arrives as a space, which Base64 does not have.
    """
    return value.replace(" ", "+")
