"""How much JetStream may store, and how NATS gets going again after its disk was full; part of `weimq backend follow`.

By itself nats-server takes three quarters of what is free when it starts as its limit, and counts what it has stored
already against it: started again on a disk half full of its own messages, it refuses every further one. And once a
write has failed, that stream takes nothing until the next start. So the limit is what the disk has room for, a reserve
below its end: at the limit JetStream refuses messages, and takes them again by itself when there is room. It rises with
the room there is; lowering it takes a start of NATS, so when others fill the disk a write fails, and NATS is restarted
as soon as there is room. Should a write fail again soon after that, it is something else than room that is missing, and
the next restart waits, longer each time.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nats.aio.client import Client

from services.cli import run_file
from services.cli.secrets import DataDir

logger = logging.getLogger(__name__)

LOOK_S = 5.0
"""How often `Storage.look` asks NATS."""
MOST_RESERVE = 256 << 20
LEAST_LIMIT = 1 << 20
REQUEST_S = 5.0
FIRST_PAUSE_S = 15.0
LAST_PAUSE_S = 3_600.0
"""How long after a restart of NATS the next one waits: twice as long each time, unless all was well in between."""
_WRITE_ERROR = "write error"
"""Part of what NATS's health says about a stream that takes nothing any more."""


def reserve(total: int) -> int:
    """Return the bytes of a disk that JetStream leaves free: a twentieth, 256 MiB at most."""
    return min(MOST_RESERVE, total // 20)


def limit(stored: int, total: int, free: int) -> int:
    """Return how many bytes JetStream may store, of which it has stored some."""
    return max(LEAST_LIMIT, stored + free - reserve(total))


def limit_at_start(store: Path) -> int | None:
    """Return the limit for a server that does not run yet; None: its disk can't be seen from here."""
    try:
        stored = sum(path.stat().st_blocks * 512 for path in store.rglob("*") if path.is_file())
        disk = shutil.disk_usage(store)
    except OSError:
        return None
    return limit(stored, disk.total, disk.free)


class Storage:
    """Looks after the disk of one NATS server.

    Args:
        directory: of the mesh.
        store: JetStream's directory.
        limit_bytes: what the server was told at its start; None: nothing.
        monotonic_s: tells the time.
    """

    def __init__(
        self,
        directory: DataDir,
        store: Path,
        limit_bytes: int | None,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic_s = monotonic_s
        self._directory = directory
        self._store = store
        self.limit_bytes = limit_bytes
        """What the server should be told."""
        self._is_short = False
        self._is_broken = False
        self._restart_at = -math.inf  # the earliest time of the next one
        self._pause_s = FIRST_PAUSE_S

    async def look(self, client: Client) -> None:
        """Take a look at disk and server; a new `limit_bytes` is for the caller to tell.

        Args:
            client: connected as the system user.

        Raises:
            nats.errors.Error: NATS does not answer.
        """
        try:
            disk = shutil.disk_usage(self._store)
        except OSError:
            return  # in a container that does not see it
        kept = reserve(disk.total)
        server = await _ask(client, "JSZ")
        new = limit(int(server.get("storage", 0)), disk.total, disk.free)
        told = max(self.limit_bytes or 0, int(server.get("config", {}).get("max_storage", 0)))
        if new > told + kept // 4:  # a server that runs refuses a configuration with a lower limit
            self.limit_bytes = new
        is_short = disk.free <= kept * 5 // 4
        if is_short != self._is_short:
            self._is_short = is_short
            extra = {"directory": str(self._store), "free_bytes": disk.free, "reserve_bytes": kept}
            if is_short:
                logger.warning("the disk of NATS is full, publishers wait until there is room", extra=extra)
            else:
                logger.info("the disk of NATS has room again", extra=extra)
        fault = str((await _ask(client, "HEALTHZ")).get("error", ""))
        if _WRITE_ERROR not in fault:
            self._is_broken = False
        elif disk.free > kept:
            self._restart(fault)

    def _restart(self, fault: str) -> None:
        run = run_file.read_running(self._directory)
        pid = run.pids.get("nats") if run is not None else None
        now = self._monotonic_s()
        if pid and now >= self._restart_at:
            logger.warning("a write of NATS had failed and there is room now: it is restarted", extra={"error": fault})
            was_well = now > self._restart_at + self._pause_s
            self._pause_s = FIRST_PAUSE_S if was_well else min(2 * self._pause_s, LAST_PAUSE_S)
            self._restart_at = now + self._pause_s
            try:
                os.kill(pid, signal.SIGTERM)  # `weimq up` starts it again
            except ProcessLookupError:
                pid = None  # it was started again while the disk had no room to say so
        if not pid and not self._is_broken:
            self._is_broken = True
            logger.warning("a write of NATS had failed: restart it now that there is room", extra={"error": fault})


async def _ask(client: Client, what: str) -> dict[str, Any]:
    server_id = client._server_info["server_id"]  # noqa: SLF001 - nats-py has no other door to it
    answer = await client.request(f"$SYS.REQ.SERVER.{server_id}.{what}", b"", timeout=REQUEST_S)
    data: dict[str, Any] = json.loads(answer.data).get("data") or {}
    return data
