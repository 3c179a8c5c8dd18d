"""Which edges take part: opening, resuming and breaking of their links, and the wait after a start.

- An edge whose link broke keeps its interests, and is owed what is meant for it, for a grace time. When that is over,
  when the edge says goodbye, or when another process of that edge opens a link, everything is dropped, and
  publishers no longer wait for it.
- An edge that owes confirmations and gives none for 10 s has its stream ended. When that happens twice in a row,
  it is dropped.
- A session shard (see `services.router.shards`) is owed nothing while it has no stream, nor when it stalls once.
- After its start the router does not route before each edge that the process before it knew has come back and sent
  its interests, or its grace is over: an edge that is late would lose messages whose publishers were told otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import secrets

from services.common import ticks
from services.common.errors import DomainError, NotServingError, StreamContractError, SupersededError
from services.common.link import LinkBrokenError
from services.common.readiness import Readiness
from services.router.edge_link import EdgeLink, Stream
from services.router.ports import Log
from services.router.router import Router
from services.router.shards import Shards
from services.router.store import KnownEdges
from weimq.router.v1 import router_pb2

logger = logging.getLogger(__name__)

DEPENDENCY = "edges"
"""Name under which `Readiness` lists the edges that the router waits for."""

SWEEP_S = 0.1
STALL_S = 10.0
"""How long an edge may owe confirmations without giving one."""
MAX_STALLS = 2
LEAVING_S = 1.0
"""How long a stream stays open after goodbye, for its confirmation."""
MAX_NAME = 128
"""Longest edge id or incarnation, in characters."""


class Members:
    """Edges by id. Owned by one event loop.

    Args:
        router: routes between them.
        shards: places of the session shards, known to the router as well.
        known: remembers them for the next process.
        readiness: kept informed under `edges`.
        edge_grace_s: how long an edge is waited for, in seconds.
        stall_s: how long it may owe confirmations, in seconds.
    """

    def __init__(
        self,
        *,
        router: Router,
        shards: Shards,
        known: KnownEdges,
        readiness: Readiness,
        edge_grace_s: float,
        stall_s: float = STALL_S,
    ) -> None:
        self._router = router
        self._shards = shards
        self._known = known
        self._readiness = readiness
        self._edge_grace_s = edge_grace_s
        self._stall_s = stall_s
        self._edges: dict[str, EdgeLink] = {}
        self._streams: set[Stream] = set()
        self._incarnation = secrets.token_hex(8)
        self._opened = 0
        self._is_closed = False
        self._log: Log | None = None
        self._awaited: dict[str, float] = {}  # edge id to the seconds it has been waited for
        self._is_settled = False

    def await_edges(self, known: dict[str, str], log: Log) -> None:
        """Begin to route to `log` once all `known` edges are back or their grace is over."""
        self._log = log
        self._awaited = dict.fromkeys(known, 0.0)
        logger.info("waiting for edges", extra={"edges": len(known)})
        self._settle()

    def close(self) -> None:
        """End all streams and refuse new ones: the process stops."""
        self._is_closed = True
        for stream in self._streams:
            stream.end(NotServingError("the router is stopping"))

    async def open(self, opening: router_pb2.LinkOpen) -> tuple[EdgeLink, Stream]:
        """Take up the link of an edge or a shard; ends the stream that it had before.

        Raises:
            StreamContractError: `opening` is not acceptable.
            NotServingError: the router is stopping.
        """
        if not 0 < len(opening.edge_id) <= MAX_NAME or not 0 < len(opening.edge_incarnation) <= MAX_NAME:
            raise StreamContractError("an edge has an id and an incarnation of 1 to 128 characters", rule="opening")
        if opening.HasField("shard"):
            return await self._open_shard(opening)
        while True:
            edge = self._edges.get(opening.edge_id)
            if edge is not None and edge.incarnation != opening.edge_incarnation:
                self._drop(edge, SupersededError("another process of the edge came"), is_replaced=True)
                edge = None
            if edge is None or edge.stream is None:
                break
            edge.stream.end(SupersededError("the edge opened another link"))
            await edge.stream.left.wait()
        if self._is_closed:
            raise NotServingError("the router is stopping")
        # A router that routes already, and an edge that was linked before but is not known any more.
        has_missed = edge is None and self._is_settled and bool(opening.router_incarnation)
        if edge is None:
            edge = self._new(opening)
        is_resumed = opening.router_incarnation == edge.router_incarnation
        if is_resumed:
            try:
                edge.resume(opening.received_through)
            except LinkBrokenError as error:
                violation = StreamContractError(str(error), rule="resumption")
                self._drop(edge, violation)
                raise violation from error
        else:
            edge.restart()
            self._router.short_way.leave(edge)
        return edge, self._join(edge, Stream(is_resumed=is_resumed, has_missed=has_missed))

    async def _open_shard(self, opening: router_pb2.LinkOpen) -> tuple[EdgeLink, Stream]:
        index, count = opening.shard.index, opening.shard.count
        if count != self._shards.count or index >= count:
            raise StreamContractError(
                f"session shard {index} of {count} came, this router is told of {self._shards.count}", rule="opening"
            )
        while (before := self._shards.linked(index)) is not None and before.stream is not None:
            before.stream.end(SupersededError("the shard opened another link"))
            await before.stream.left.wait()
        if self._is_closed:
            raise NotServingError("the router is stopping")
        # Always anew: what was owed over the stream before is dropped, and read from the logs.
        shard = self._new(opening, index)
        self._shards.link(shard)
        return shard, self._join(shard, Stream(is_resumed=False, has_missed=False))

    def _join(self, edge: EdgeLink, stream: Stream) -> Stream:
        edge.stream = stream
        self._streams.add(stream)
        self._router.pressure.linked(edge, is_linked=True)
        if not stream.is_resumed and not edge.is_shard:
            self._router.full_logs.tell_all(edge)
        logger.info("edge linked", extra={"edge_id": edge.edge_id, "resumed": stream.is_resumed})
        return stream

    def left(self, edge: EdgeLink, stream: Stream) -> None:
        """Note that a stream is no longer used."""
        self._streams.discard(stream)
        if edge.stream is stream:
            edge.stream = None
        if not edge.is_gone:
            logger.info("edge link broke", extra={"edge_id": edge.edge_id})
            if not edge.is_shard:
                self._router.pressure.linked(edge, is_linked=False)
            elif self._shards.unlink(edge):
                self._router.release(edge)
            else:
                self._router.leave(edge)
        stream.left.set()

    def violated(self, edge: EdgeLink, error: StreamContractError) -> None:
        """Drop an edge that broke the contract: its state can't be relied on. A shard keeps what it had before."""
        if not edge.is_shard:
            self._drop(edge, error)

    async def run(self) -> None:
        """Look after edges that are broken or silent, until cancelled.

        Time is counted in turns of this loop: when the process was stopped for a while, its edges get their time
        after it.
        """
        while True:
            await (asyncio.sleep(SWEEP_S) if self._is_busy else ticks.tick())
            self._sweep(SWEEP_S)

    @property
    def _is_busy(self) -> bool:
        """Whether time matters: an edge is broken or owes something, or somebody is held."""
        edges = (*self._edges.values(), *self._shards.links())
        is_due = any(edge.stream is None or edge.owes for edge in edges)
        return is_due or not self._is_settled or self._router.pressure.is_holding

    def _sweep(self, passed_s: float) -> None:
        for edge in (*self._edges.values(), *self._shards.links()):
            if edge.stream is None:
                edge.broken_s += passed_s
                if edge.broken_s >= self._edge_grace_s:
                    self._drop(edge, NotServingError("the grace of the edge is over"))
            elif edge.owes:
                edge.silent_s += passed_s
                if edge.silent_s >= self._stall_s:
                    edge.silent_s = 0.0
                    edge.stalls += 1
                    logger.warning("edge confirms nothing", extra={"edge_id": edge.edge_id, "stalls": edge.stalls})
                    error = NotServingError("no delivery was confirmed for too long")
                    edge.stream.end(error)
                    if edge.stalls >= MAX_STALLS and not edge.is_shard:
                        self._drop(edge, error)
        if not self._is_settled:
            for edge_id in list(self._awaited):
                if edge_id not in self._edges:
                    self._awaited[edge_id] += passed_s
                    if self._awaited[edge_id] >= self._edge_grace_s:
                        logger.warning("edge did not come back", extra={"edge_id": edge_id})
                        self._known.forget(edge_id)
                        del self._awaited[edge_id]
            self._settle()
        self._router.pressure.relieve()

    def _new(self, opening: router_pb2.LinkOpen, shard_index: int = -1) -> EdgeLink:
        self._opened += 1
        edge = EdgeLink(
            edge_id=opening.edge_id,
            incarnation=opening.edge_incarnation,
            router_incarnation=f"{self._incarnation}-{self._opened}",
            slot=self._router.new_slot(),
            shard_index=shard_index,
            take=self._take,
            confirmed=self._router.on_confirmed,
        )
        self._router.join(edge)
        if not edge.is_shard:
            self._edges[edge.edge_id] = edge
            self._known.note(edge.edge_id, edge.incarnation)
        return edge

    def _take(self, edge: EdgeLink, request: router_pb2.LinkRequest) -> None:
        if edge.is_gone:
            return  # it said goodbye, or its stream is about to end
        self._router.take(edge, request)
        if request.snapshot_complete:
            self._complete(edge)
        if request.goodbye:
            if not edge.is_shard:
                self._drop(edge, None)
            edge.link.confirm(request.frame)
            if edge.stream is not None:
                asyncio.get_running_loop().call_later(LEAVING_S, edge.stream.end)

    def _complete(self, edge: EdgeLink) -> None:
        if not edge.is_shard:
            self._settle()
        elif (before := self._shards.complete(edge)) is not None:
            self._router.leave(before)

    def _drop(self, edge: EdgeLink, error: DomainError | None, *, is_replaced: bool = False) -> None:
        """Drop all of an edge, and end its stream with `error`; None: it said goodbye."""
        if edge.is_gone:
            return
        logger.info("edge gone", extra={"edge_id": edge.edge_id, "reason": str(error or "goodbye")})
        if edge.stream is not None and error is not None:
            edge.stream.end(error)
        del self._edges[edge.edge_id]
        if not is_replaced:
            self._known.forget(edge.edge_id)
            self._awaited.pop(edge.edge_id, None)
        self._router.leave(edge)
        self._settle()

    def _settle(self) -> None:
        if self._is_settled or self._log is None:
            return
        for edge_id in list(self._awaited):
            edge = self._edges.get(edge_id)
            if edge is not None and edge.snapshot is None:
                del self._awaited[edge_id]
        if not self._awaited:
            self._is_settled = True
            self._router.begin(self._log)
            self._readiness.mark(DEPENDENCY, present=True)
            logger.info("routing begins", extra={"edges": len(self._edges)})
