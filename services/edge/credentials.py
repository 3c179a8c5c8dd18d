"""By what credentials each connection is here: its permissions, and the rules of token mode (product.md section 2.2).

One timer looks after all tokens. Owned by one event loop.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable

from services.edge import reasons
from services.edge import roster as rights
from services.edge.commands import Body, CommandError
from services.edge.policies import Policies
from services.edge.policy import Grant, Permissions
from services.edge.ports import Access, Client, TokenChecker
from services.edge.roster import Roster
from services.edge.tokens import EXPIRED, FORGED, REVOKED, TYPES, Fault, Token, TokenGrant, TokenSet

logger = logging.getLogger(__name__)

EXPIRE_NOTICE = "$SYS/tokenExpireNotice"
INVALID_NOTICE = "$SYS/tokenInvalidNotice"

MAX_TOKEN_CHARACTERS = 32_768
"""Longest token that auth is asked about; one with 100 resources is shorter."""
MAX_UPLOADS = 3
"""Uploads of one client that may wait for auth: one for each type."""


class _TokenMode:
    """A connection in token mode."""

    __slots__ = ("access_key_id", "grant", "is_held", "tokens", "uploads")

    def __init__(self, grant: Grant, access_key_id: str) -> None:
        self.tokens = TokenSet()
        self.grant = TokenGrant(grant, self.tokens)
        self.access_key_id = access_key_id
        self.is_held = True
        """Whether it gets no messages of its session yet: no token lets it read."""
        self.uploads = 0


class Credentials:
    """The credentials of all connections of an edge."""

    def __init__(
        self,
        *,
        roster: Roster,
        policies: Policies,
        checker: TokenChecker,
        release: Callable[[Client], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Start without connections.

        Args:
            roster: gets what each connection depends on.
            policies: asked for revoked tokens.
            checker: asked about uploaded tokens.
            release: called when a connection that was held may have its messages.
            clock: seconds since 1970; tokens expire by it.
        """
        self._roster = roster
        self._policies = policies
        self._checker = checker
        self._release = release
        self._clock = clock
        self._modes: dict[Client, _TokenMode] = {}

    def enter(self, client: Client, access: Access) -> Permissions:
        """Note a connection whose credentials hold, and return what it may do; `leave` must follow."""
        grant = access.grant
        self._roster.add(client, grant)
        if not grant.instance.is_standard:
            self._roster.add(client, rights.group_right(grant.instance.instance_id, client.client_id))
        if access.device_credential_id:
            self._roster.add(client, rights.device_right(access.device_credential_id))
        if access.tokens is None:
            return grant
        mode = self._modes[client] = _TokenMode(grant, access.access_key_id)
        for token in access.tokens:
            self._put(client, mode, token)
        mode.is_held = not mode.tokens
        return mode.grant

    def is_held(self, client: Client) -> bool:
        """Return whether a connection gets no messages of its session until it has uploaded a token."""
        mode = self._modes.get(client)
        return mode is not None and mode.is_held

    def may_read(self, client: Client) -> bool:
        """Return whether a connection can be judged for what it reads: in token mode, it has a token for that."""
        mode = self._modes.get(client)
        return mode is None or mode.tokens.may_read

    def leave(self, client: Client) -> None:
        """Forget a connection that is gone; one that never entered is no fault."""
        self._roster.remove(client)
        mode = self._modes.pop(client, None)
        if mode is not None:
            mode.grant.close()

    # --- what ends a connection ----------------------------------------------------------------

    def deny(self, client: Client, needed: str, topic_filter: str) -> None:
        """Close a connection for a topic that it may not use; `needed` is `READ` or `WRITE`."""
        mode = self._modes.get(client)
        self._close(client, mode.grant.fault(needed, topic_filter) if mode is not None else None)

    def withdraw(self, client: Client, code: int, token_id: str) -> None:
        """Close a connection that lost its right; see `ports.Client.on_withdrawn`."""
        mode = self._modes.get(client)
        if mode is None:
            self._close(client, None)
            return
        if token_id:
            token_type = mode.tokens.type_of(token_id)
            if token_type is None:
                return  # it was replaced meanwhile
        else:
            token_type = mode.tokens.any_type()
        mode.tokens.clear()  # the will of the client is not published any more
        mode.grant.refresh()
        self._close(client, Fault(code, token_type))

    def sweep(self) -> None:
        """Announce tokens that expire soon, and close connections whose tokens have expired."""
        now_ms = self._clock() * 1000
        for client, mode in list(self._modes.items()):
            if now_ms < mode.tokens.due_ms:
                continue
            announced, fault = mode.tokens.take_due(now_ms)
            for token in announced:
                client.notify(EXPIRE_NOTICE, _json({"expireTime": token.expire_time_ms, "type": token.type}))
            if fault is not None:
                mode.tokens.clear()
                mode.grant.refresh()
                self._close(client, fault)

    @staticmethod
    def _close(client: Client, fault: Fault | None) -> None:
        if fault is not None:
            logger.info("token invalid", extra={"client_id": client.client_id, "code": fault.code, "type": fault.type})
            client.notify(INVALID_NOTICE, _json({"code": fault.code, "type": fault.type}))
        client.close(reasons.NOT_AUTHORIZED)

    # --- uploads -------------------------------------------------------------------------------

    def upload(self, client: Client, body: Body, done: Callable[[], None]) -> None:
        """Take `$SYS/uploadToken`; a `commands.Handler`."""
        mode = self._modes.get(client)
        token, token_type = body.get("token"), body.get("type")
        if mode is None:
            raise CommandError("not in token mode")
        if not isinstance(token, str) or not token or token_type not in TYPES:
            raise CommandError("needs a token and its type")
        if mode.uploads >= MAX_UPLOADS:
            raise CommandError("more tokens at once than there are types")
        if len(token) > MAX_TOKEN_CHARACTERS or not token.isascii():
            self._close(client, Fault(FORGED, str(token_type)))
            return
        mode.uploads += 1

        def answer(code: int, checked: Token | None) -> None:
            mode.uploads -= 1
            if self._modes.get(client) is mode:
                self._on_checked(client, mode, Fault(code, str(token_type)), checked, done)

        self._checker.check_token(client, mode.access_key_id, str(token_type), token, answer)

    def _on_checked(
        self, client: Client, mode: _TokenMode, fault: Fault, token: Token | None, done: Callable[[], None]
    ) -> None:
        if token is None:
            self._close(client, fault)
        elif token.token_id in self._policies.revoked_tokens:
            self._close(client, Fault(REVOKED, token.type))
        elif token.expire_time_ms <= self._clock() * 1000:
            self._close(client, Fault(EXPIRED, token.type))
        else:
            self._put(client, mode, token)
            client.on_permissions_changed()
            done()
            if mode.is_held and mode.tokens.may_read:
                mode.is_held = False
                self._release(client)

    def _put(self, client: Client, mode: _TokenMode, token: Token) -> None:
        replaced = mode.tokens.put(token)
        if replaced is not None and mode.tokens.type_of(replaced.token_id) is None:
            self._roster.discard(client, rights.token_right(replaced.token_id))
        self._roster.add(client, rights.token_right(token.token_id))


def _json(fields: dict[str, int | str]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()
