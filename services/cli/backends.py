"""`weimq backend create|list|show|delete`: NATS users of backend applications; `follow` keeps NATS up to date."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import secrets
import signal
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated

import nats
import nats.errors
import typer
from grpc import aio
from nats.aio.client import Client

from services.cli import nats_config, nats_storage
from services.cli.backend_topics import TopicWatch
from services.cli.errors import WRONG_USE, CliError
from services.cli.kinds import check_instance
from services.cli.options import DEFAULT_DATA, AuthOption, DataOption, InstanceOption, JsonOption, example
from services.cli.output import Record, print_json, print_record, print_table
from services.cli.rpc import Target, instance_or_bootstrap
from services.cli.secrets import Backend, DataDir, write_private
from services.common import logging as json_logging
from services.common import ticks
from services.common.runtime import first_of

logger = logging.getLogger(__name__)

LOOK_S = 0.5
"""How often `follow` looks for changes."""
READY_S = 10.0
"""How long `create` waits until NATS lets the new user in."""

backend_app = typer.Typer(name="backend", help="NATS users of backend applications.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="3 to 64 letters, digits, `-` and `_`.")]
_NAME = re.compile(r"[A-Za-z0-9_-]{3,64}")


@backend_app.command("create", epilog=example("backend create billing"))
def create_backend(
    name: NameArgument,
    instance: InstanceOption = "",
    data: DataOption = DEFAULT_DATA,
    auth: AuthOption = "",
    as_json: JsonOption = False,
) -> None:
    """Create a user that publishes to and consumes from one instance."""
    directory = DataDir(data)
    instance = instance_or_bootstrap(instance, data)
    if not _NAME.fullmatch(name):
        raise CliError(f"{name} is no name: 3 to 64 letters, digits, `-` and `_`.", status=WRONG_USE)
    backends = directory.read_backends()
    if any((backend.instance, backend.name) == (instance, name) for backend in backends):
        raise CliError(
            f"Backend {name} of instance {instance} exists already.", f"`weimq backend show {name}` tells its URL."
        )
    check_instance(Target("auth", auth, data), instance)
    made = Backend(instance=instance, name=name, user=f"{instance}.{name}", password=secrets.token_hex(24))
    directory.write_backends([*backends[1:], made])
    if not asyncio.run(_is_let_in(nats_config.backend_url(directory, made))):
        raise CliError(
            f"Backend {name} is made, but NATS does not let it in yet.", "See whether `weimq backend follow` runs."
        )
    (print_json if as_json else print_record)(_record(directory, made))


@backend_app.command("list", epilog=example("backend list"))
def list_backends(data: DataOption = DEFAULT_DATA, as_json: JsonOption = False) -> None:
    """List the users of all instances, without passwords."""
    records: list[Record] = [
        {"instance": backend.instance, "name": backend.name, "user": backend.user}
        for backend in DataDir(data).read_backends()
    ]
    if as_json:
        print_json(records)
    else:
        print_table(records, nothing="There are no backends.")


@backend_app.command("show", epilog=example("backend show billing"))
def show_backend(
    name: NameArgument, instance: InstanceOption = "", data: DataOption = DEFAULT_DATA, as_json: JsonOption = False
) -> None:
    """Show the URL that a backend connects with; it holds the password."""
    directory = DataDir(data)
    found = _find(directory.read_backends(), instance_or_bootstrap(instance, data), name)
    (print_json if as_json else print_record)(_record(directory, found))


@backend_app.command("delete", epilog=example("backend delete billing"))
def delete_backend(
    name: NameArgument, instance: InstanceOption = "", data: DataOption = DEFAULT_DATA, as_json: JsonOption = False
) -> None:
    """Delete a user; its connections are closed."""
    directory = DataDir(data)
    backends = directory.read_backends()
    found = _find(backends, instance_or_bootstrap(instance, data), name)
    if found is backends[0]:
        raise CliError("The backend of the first start can't be deleted.")
    directory.write_backends([backend for backend in backends[1:] if backend is not found])
    if as_json:
        print_json({"deleted": name})
    else:
        typer.echo(f"Backend {name} deleted")


@backend_app.command("follow", epilog=example("backend follow"))
def follow(data: DataOption = DEFAULT_DATA, auth: AuthOption = "") -> None:
    """Keep NATS's accounts up to date with backends and topics; `weimq up` runs it."""
    json_logging.configure("backends", "INFO")
    logger.info("service starting")  # so that `weimq up` does not wait for what it may say about settings
    signal.signal(signal.SIGTERM, lambda *_: _stop())
    with contextlib.suppress(KeyboardInterrupt):
        _follow(DataDir(data), auth)


def _stop() -> None:
    raise KeyboardInterrupt


def _follow(directory: DataDir, auth: str) -> None:
    follower = _Follower(directory)
    problem = ""
    while True:
        try:
            Target("auth", auth, directory.path).call(follower.run)  # over one channel, for as long as it lasts
        except CliError as error:
            if str(error) != problem:
                problem = str(error)
                logger.warning("auth does not tell the topics", extra={"error": problem})
        asyncio.run(follower.apply())  # with the topics that are known; backends may have changed
        time.sleep(LOOK_S)


class _Follower:
    """What `follow` knows, and has told NATS."""

    def __init__(self, directory: DataDir) -> None:
        self._directory = directory
        self._topics = directory.read_backend_topics()
        self._storage = nats_config.storage(directory)
        self._look_at = 0.0  # by the monotonic clock
        self._problem = ""
        self._applied = ""  # at the start too: an earlier process may have ended between writing and reloading
        self._basis: object = None  # what it was made of, besides the topics: to see that this is the same takes less

    async def run(self, channel: aio.Channel) -> None:
        """Follow the topics until auth does not answer."""
        watch = TopicWatch()
        await first_of(watch.run(channel), self._keep(watch))

    async def _keep(self, watch: TopicWatch) -> None:
        await watch.changed.wait()
        while True:
            if watch.changed.is_set():
                watch.changed.clear()
                self._topics = {instance: sorted(topics) for instance, topics in watch.logged.items()}
                self._basis = None
            await self.apply()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(ticks.next_tick(LOOK_S)):
                    await watch.changed.wait()

    async def apply(self) -> None:
        """Have NATS take what has changed; what fails is tried again by the next call."""
        try:
            if self._storage is not None and time.monotonic() >= self._look_at:
                async with _connected(nats_config.system_urls(self._directory)[0]) as client:
                    await self._storage.look(client)
                self._look_at = time.monotonic() + nats_storage.LOOK_S
            limit = self._storage.limit_bytes if self._storage is not None else None
            basis = limit, *nats_config.stamps(self._directory)
            if basis == self._basis:
                return
            instances = sorted({backend.instance for backend in self._directory.read_backends()})
            topics = {each: self._topics[each] for each in instances if each in self._topics}
            text = nats_config.config_text(self._directory, topics, limit)
            if text != self._applied:
                write_private(self._directory.backend_topics, json.dumps(topics))
                await _reload(self._directory, text)
                self._applied = text
                logger.info("configuration of NATS changed", extra={"instances": len(topics)})
            self._basis = basis
        except (CliError, OSError, nats.errors.Error, TimeoutError) as error:
            self._basis = None
            if str(error) != self._problem:  # it is tried twice a second
                self._problem = str(error)
                logger.warning("can't look after NATS, trying on", extra={"error": self._problem})
        else:
            self._problem = ""


async def _reload(directory: DataDir, text: str) -> None:
    """Write NATS's configuration and have every node take it; one that is away fails it, after the others have."""
    write_private(directory.nats_conf, text)
    missing: OSError | nats.errors.Error | TimeoutError | None = None
    for url in nats_config.system_urls(directory):
        try:
            async with _connected(url) as client:
                await _reload_node(client)
        except (OSError, nats.errors.Error, TimeoutError) as error:
            missing = error
    if missing is not None:
        raise missing


async def _reload_node(client: Client) -> None:
    server_id = client._server_info["server_id"]  # noqa: SLF001 - nats-py has no other door to it
    for _ in range(2):  # nats-server 2.15 lets what a new account imports work from the second time on
        answer = await client.request(f"$SYS.REQ.SERVER.{server_id}.RELOAD", b"", timeout=5)
        if error := json.loads(answer.data).get("error"):
            raise CliError(f"NATS refuses its configuration: {error}.")


@contextlib.asynccontextmanager
async def _connected(url: str) -> AsyncGenerator[Client]:
    client: Client = await nats.connect(url, allow_reconnect=False, connect_timeout=2, error_cb=_ignore)
    try:
        yield client
    finally:
        await client.close()


async def _ignore(_error: Exception) -> None:
    pass


async def _is_let_in(url: str) -> bool:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            async with _connected(url):
                return True
        await asyncio.sleep(0.1)
    return False


def _find(backends: Sequence[Backend], instance: str, name: str) -> Backend:
    for backend in backends:
        if (backend.instance, backend.name) == (instance, name):
            return backend
    raise CliError(
        f"There is no backend {name} of instance {instance}.", "`weimq backend list` shows those that exist."
    )


def _record(directory: DataDir, backend: Backend) -> Record:
    return {
        "instance": backend.instance,
        "name": backend.name,
        "user": backend.user,
        "nats_url": nats_config.backend_url(directory, backend),
    }
