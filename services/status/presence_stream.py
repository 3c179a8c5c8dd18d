"""The presence of a group over HTTP: one line of JSON for each message of `StatusService.WatchGroup`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from google.protobuf.message import Message
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from services.common.errors import DomainError
from services.common.runtime import first_of

MEDIA_TYPE = "application/x-ndjson"
LONGEST_S = 3_600.0
"""Seconds after which the stream ends, since who may see it was checked at its beginning."""
SIGN_OF_LIFE_S = 15.0
"""Seconds between two empty lines, so that proxies keep the connection."""

Give: TypeAlias = Callable[[Message], Coroutine[object, object, None]]


class PresenceStream(Response):
    """Writes what `watch` gives until it fails, the caller goes, or the time is over.

    A failure before anything was written is raised, for the answer that other calls give; one after it is the last
    line, with `message`.

    Args:
        watch: gives messages to what it is called with.
        to_json: returns the fields of a message.
    """

    media_type: str | None = MEDIA_TYPE

    def __init__(
        self, watch: Callable[[Give], Coroutine[object, object, None]], to_json: Callable[[Message], dict[str, Any]]
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._watch = watch
        self._to_json = to_json
        self._is_begun = False

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def give(message: Message) -> None:
            await self._write(send, self._to_json(message))

        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LONGEST_S):
                    await first_of(self._watch(give), self._live(send), _gone(receive))
        except DomainError as error:
            if not self._is_begun:
                raise
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SIGN_OF_LIFE_S):
                    await self._write(send, {"message": str(error)})
        with contextlib.suppress(TimeoutError):  # else a caller that does not read would hold it for ever
            async with asyncio.timeout(SIGN_OF_LIFE_S):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send, values: dict[str, Any] | None) -> None:
        if not self._is_begun:
            self._is_begun = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        text = "" if values is None else json.dumps(values, ensure_ascii=False)
        await send({"type": "http.response.body", "body": f"{text}\n".encode(), "more_body": True})

    async def _live(self, send: Send) -> None:
        while True:
            await asyncio.sleep(SIGN_OF_LIFE_S)
            await self._write(send, None)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
