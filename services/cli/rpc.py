"""Calls to services: where they are, with which token, and what their failures mean to a user."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message
from grpc import StatusCode, aio

from services.cli.errors import WRONG_USE, CliError
from services.cli.ports import split_address
from services.cli.run_file import read_running
from services.cli.secrets import Bootstrap, DataDir
from services.common import grpc_errors
from services.common.errors import AlreadyExistsError, DomainError, InUseError, InvalidFieldError, NotFoundError
from services.common.grpc_client import channel
from services.common.settings import SHARED_PREFIX, Secret

TIMEOUT_S = 5.0
"""Deadline of every call, in seconds."""

_TOKEN = SHARED_PREFIX + "CLUSTER_TOKEN"

T = TypeVar("T")


class Target:
    """One service of one mesh.

    Args:
        service: `auth` or `status`.
        address: `host:port` given by the user; empty: that of the mesh which runs on the data directory.
        data: the data directory.

    Raises:
        CliError: there is no such mesh, or no token.
    """

    def __init__(self, service: str, address: str, data: Path) -> None:
        self._service = service
        directory = DataDir(data)
        if address:
            try:
                split_address(address)
            except ValueError as error:
                raise CliError(f"--{service}: {error}.", status=WRONG_USE) from error
            self._address = address
            # Not the token of the data directory: it would be shown to whoever listens at that address.
            self._token = _token_of_environment(service)
            return
        self._token = Secret(directory.read_text(directory.cluster_token))
        run = read_running(directory)
        if run is None:
            raise CliError(
                f"No mesh runs on {directory.path}.",
                f"Start it with `weimq up`, or name another mesh with --{service} HOST:PORT.",
            )
        self._address = run.endpoints[service]

    def call(self, work: Callable[[aio.Channel], Awaitable[T]]) -> T:
        """Return what `work` returns, given a channel to the service.

        Raises:
            CliError: the call failed.
        """

        async def run() -> T:
            async with channel(self._address, self._token) as opened:
                return await work(opened)

        try:
            return asyncio.run(run())
        except aio.AioRpcError as error:
            raise self._explain(error) from None

    def request(
        self, stub: Callable[[aio.Channel], Any], method: str, message: Message, *, timeout_s: float = TIMEOUT_S
    ) -> Any:  # noqa: ANN401 - the response type of the method
        """Return the response to one call.

        Args:
            stub: class of the stub.
            method: name of the call.
            message: the request.
            timeout_s: its deadline.

        Raises:
            CliError: the call failed.
        """

        async def work(opened: aio.Channel) -> Message:
            send: Callable[..., Awaitable[Message]] = getattr(stub(opened), method)
            return await send(message, timeout=timeout_s)

        return self.call(work)

    def request_all(self, stub: Callable[[aio.Channel], Any], method: str, message: Any, items: str) -> list[Any]:  # noqa: ANN401 - the request and item types of the method
        """Return the items of all pages of a list.

        Args:
            stub: class of the stub.
            method: name of the call.
            message: the request for the first page.
            items: field of the response.

        Raises:
            CliError: a call failed.
        """

        async def work(opened: aio.Channel) -> list[Any]:
            send = getattr(stub(opened), method)
            found: list[Any] = []
            while True:
                page = await send(message, timeout=TIMEOUT_S)
                found += getattr(page, items)
                message.page_token = page.next_page_token
                if not message.page_token:
                    return found

        return self.call(work)

    def _explain(self, error: aio.AioRpcError) -> CliError:
        where = f"{self._service} at {self._address}"
        domain_error = grpc_errors.from_rpc_error(error)
        code = error.code()
        if code == StatusCode.UNAUTHENTICATED:
            return CliError(f"{where} refuses the cluster token.", f"Set {_TOKEN}_FILE to the token of that mesh.")
        if code == StatusCode.UNAVAILABLE and domain_error is None:
            return CliError(f"{where} does not answer.", "See whether it runs and whether the address is right.")
        if code == StatusCode.UNAVAILABLE:
            return CliError(f"{where} can't answer now: {error.details()}.", "Try again in a moment.")
        if code == StatusCode.DEADLINE_EXCEEDED:
            return CliError(f"{where} did not answer within {TIMEOUT_S:g} s.", "Look into its log.")
        if domain_error is not None:
            return _told(domain_error)
        return CliError(f"{where} failed: {code.name}: {error.details()}.", "Look into its log.")


_LISTED_BY = {kind: f"{kind} list" for kind in ("instance", "accesskey", "group", "topic", "device", "session")}
_LISTED_BY["client"] = "clients"
"""Kind of the resource `kind/name` in an error -> the command that lists those there are."""


def _told(error: DomainError) -> CliError:
    """Return what a service refused, with what to do about it."""
    cause = str(error)
    kind, _, name = error.metadata.get("resource", "").partition("/")
    match error:
        case InvalidFieldError():
            message, _, _ = error.metadata.get("field", "").rpartition(".")
            return CliError(_sentence(cause.removeprefix(f"{message}.")), status=WRONG_USE)
        case NotFoundError() if kind in _LISTED_BY:
            return CliError(_sentence(cause), f"`weimq {_LISTED_BY[kind]}` lists what there is.")
        case AlreadyExistsError() if kind in _LISTED_BY:
            return CliError(_sentence(cause), f"See it with `weimq {kind} show {name}`, or choose another name.")
        case InUseError():
            return CliError(_sentence(cause), "Add --force to delete them with it.")
        case _:
            return CliError(_sentence(cause))


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _token_of_environment(service: str) -> Secret:
    if text := os.environ.get(_TOKEN):
        return Secret(text)
    if path := os.environ.get(f"{_TOKEN}_FILE"):
        try:
            return Secret(Path(path).read_text(encoding="utf-8").strip())
        except OSError as error:
            raise CliError(f"{_TOKEN}_FILE: can't read {path}: {error.strerror}.", status=WRONG_USE) from error
    raise CliError(
        f"--{service} needs the cluster token of that mesh.", f"Set {_TOKEN} or {_TOKEN}_FILE.", status=WRONG_USE
    )


def instance_or_bootstrap(instance: str, data: Path) -> str:
    """Return the instance given by the user, else the one of the first start of the data directory.

    Raises:
        CliError: neither is there.
    """
    return instance or _bootstrap(data, "instance", "--instance ID").instance


def access_key_or_bootstrap(access_key: str, data: Path) -> str:
    """Return the AccessKey given by the user, else the one of the first start of the data directory.

    Raises:
        CliError: neither is there.
    """
    return access_key or _bootstrap(data, "AccessKey", "--access-key ID").access_key


def _bootstrap(data: Path, what: str, option: str) -> Bootstrap:
    directory = DataDir(data)
    if not directory.is_initialized:
        raise CliError(
            f"Which {what}? {directory.path} is not the data directory of a mesh, which would tell.",
            f"Start one with `weimq up`, name its directory with --data DIR, or add {option}.",
            status=WRONG_USE,
        )
    return directory.read_bootstrap()
