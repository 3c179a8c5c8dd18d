"""Rules of every name of product.md section 1.

Each function returns what is wrong with a name, as text for an operator that repeats nothing of the name, or None.
"""

from __future__ import annotations

import re

_CREATED = re.compile(r"[A-Za-z0-9_-]+\Z")
_MIN_CREATED = 3
_MIN_GROUP = 7
_MAX = 64
_GROUP_PREFIXES = ("GID_", "GID-")

SEPARATOR = "@@@"
"""Stands between the group and the device in a client id."""


def instance_id_fault(name: str) -> str | None:
    """Check an instance id: 3 to 64 letters, digits, `-`, `_`."""
    return _created_fault(name, _MIN_CREATED)


def access_key_id_fault(name: str) -> str | None:
    """Check an AccessKey id: 3 to 64 letters, digits, `-`, `_`."""
    return _created_fault(name, _MIN_CREATED)


def account_id_fault(name: str) -> str | None:
    """Check an account id: 1 to 64 letters, digits, `-`, `_`."""
    return _created_fault(name, 1)


def topic_fault(name: str) -> str | None:
    """Check a parent topic: 3 to 64 letters, digits, `-`, `_`."""
    return _created_fault(name, _MIN_CREATED)


def group_id_fault(name: str) -> str | None:
    """Check a Group ID: `GID_` or `GID-` first, 7 to 64 letters, digits, `-`, `_`."""
    if not name.startswith(_GROUP_PREFIXES):
        return "must start with GID_ or GID-"
    return _created_fault(name, _MIN_GROUP)


def client_id_fault(client_id: str) -> str | None:
    """Check a client id by the rules of an `lmq` instance: `<GroupID>@@@<DeviceID>`, at most 64 characters."""
    if len(client_id) > _MAX:
        return f"must have at most {_MAX} characters"
    group_id, separator, device_id = client_id.partition(SEPARATOR)
    if not separator or not device_id:
        return "must be <GroupID>@@@<DeviceID>"
    if fault := group_id_fault(group_id):
        return f"its group {fault}"
    if not device_id.isprintable():
        return "must be printable"
    # They would change the meaning of the client's P2P topic `<parent>/p2p/<client id>`.
    if "+" in device_id or "#" in device_id or "/" in device_id:
        return "must not hold +, # or /"
    return None


def group_of(client_id: str) -> str:
    """Return the Group ID of a client id, or an empty text when it has none."""
    group_id, separator, _ = client_id.partition(SEPARATOR)
    return group_id if separator else ""


def _created_fault(name: str, minimum: int) -> str | None:
    if not minimum <= len(name) <= _MAX:
        return f"must have {minimum} to {_MAX} characters"
    if not _CREATED.match(name):
        return "must hold only letters, digits, - and _"
    return None
