"""Which session shard keeps a client, and which router a topic. Pure; equal in every process for ever.

Clients are spread over the shards, parent topics over the routers; by CRC-32, since Python's own hash differs from
process to process.
"""

from __future__ import annotations

from zlib import crc32


def shard_of(instance_id: str, client_id: str, count: int) -> int:
    """Return the index of the session shard of a client, from 0 to `count` - 1; `count` is positive."""
    return crc32(f"{instance_id}/{client_id}".encode()) % count


def router_of(instance_id: str, parent_topic: str, count: int) -> int:
    """Return the index of the router of a parent topic (first level), from 0 to `count` - 1; `count` is positive."""
    return crc32(f"{instance_id}/{parent_topic}".encode()) % count
