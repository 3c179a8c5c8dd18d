"""Which session shard keeps a client, and which router a topic. Pure; equal in every process for ever.

Clients are spread over the shards by CRC-32, since Python's own hash differs from process to process. Parent topics are
spread over `ROUTER_SLOTS` slots, and the slots over the routers, by the hash of NATS's subject mapping `partition`, so
that the stream of inbound messages can sort them by router.
"""

from __future__ import annotations

import functools
from zlib import crc32

from services.common.subjects import encode_token

ROUTER_SLOTS = 64
"""Slots of parent topics, and so the most routers."""

_FNV_OFFSET = 0x811C9DC5
_FNV_PRIME = 0x01000193
_MAX_REMEMBERED = 65_536
_MAX_REMEMBERED_CHARACTERS = 128


def shard_of(instance_id: str, client_id: str, count: int) -> int:
    """Return the index of the session shard of a client, from 0 to `count` - 1; `count` is positive."""
    return crc32(f"{instance_id}/{client_id}".encode()) % count if count > 1 else 0


def router_of(instance_id: str, parent_topic: str, count: int) -> int:
    """Return the index of the router of a parent topic (first level), from 0 to `count` - 1.

    `count` is 1 to `ROUTER_SLOTS`.
    """
    return router_slot(instance_id, parent_topic) % count


def router_slot(instance_id: str, parent_topic: str) -> int:
    """Return the slot of a parent topic: what NATS's `partition(64, instance token, topic token)` says."""
    if len(parent_topic) > _MAX_REMEMBERED_CHARACTERS:
        return _slot(instance_id, parent_topic)
    return _remembered_slot(instance_id, parent_topic)


def _slot(instance_id: str, parent_topic: str) -> int:
    value = _FNV_OFFSET  # FNV-1a of 32 bits
    for byte in f"{encode_token(instance_id)}{encode_token(parent_topic)}".encode():
        value = ((value ^ byte) * _FNV_PRIME) & 0xFFFFFFFF
    return value % ROUTER_SLOTS


_remembered_slot = functools.lru_cache(maxsize=_MAX_REMEMBERED)(_slot)
