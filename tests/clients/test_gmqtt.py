"""gmqtt over TCP and TLS.

Its wheel holds a package `tests` besides `gmqtt`, which would hide ours. So it is no dependency of the tests like the
others: the fixture installs it aside and keeps `gmqtt` only.
"""

from __future__ import annotations

import asyncio
import importlib
import secrets
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.mesh import Mesh

# The first test also installs gmqtt.
pytestmark = [pytest.mark.e2e, pytest.mark.asyncio, pytest.mark.timeout(180)]

REQUIREMENTS = Path(__file__).with_name("gmqtt.txt")
TRANSPORTS = ["tcp", "tls"]
TIMEOUT_S = 15.0
INSTALL_S = 100.0
MQTT_3_1_1 = 4


@pytest.fixture(scope="session")
def gmqtt(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The module `gmqtt`."""
    wheel, packages = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("packages")
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet",
            "--no-deps", "--require-hashes", "--requirement", str(REQUIREMENTS), "--target", str(wheel),
        ],
        capture_output=True,
        text=True,
        timeout=INSTALL_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"could not install gmqtt:\n{done.stderr}"
    shutil.move(wheel / "gmqtt", packages)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(packages)
        return importlib.import_module("gmqtt")


class _Client:
    """A gmqtt client with what it received in a queue.

    Attributes:
        client_id: full client id.
        messages: (topic, payload, QoS) of what was received, in order.
    """

    def __init__(self, gmqtt: Any, mesh: Mesh, will: tuple[str, bytes, int] | None) -> None:
        self.client_id = mesh.client_id(secrets.token_hex(4))
        self.messages: asyncio.Queue[tuple[str, bytes, int]] = asyncio.Queue()
        self._granted: asyncio.Queue[tuple[int, ...]] = asyncio.Queue()
        self.gmqtt = gmqtt.Client(self.client_id, will_message=None if will is None else gmqtt.Message(*will))
        self.gmqtt.set_config({"reconnect_retries": 0})
        self.gmqtt.set_auth_credentials(*mesh.login(self.client_id))
        self.gmqtt.on_message = self._on_message
        self.gmqtt.on_subscribe = self._on_subscribe

    def _on_message(self, _client: object, topic: str, payload: bytes, qos: int, _properties: object) -> None:
        self.messages.put_nowait((topic, payload, qos))

    def _on_subscribe(self, _client: object, _mid: int, codes: tuple[int, ...], _properties: object) -> None:
        self._granted.put_nowait(codes)

    async def subscribe(self, topic_filter: str, qos: int) -> tuple[int, ...]:
        """Subscribe and return the codes of SUBACK."""
        self.gmqtt.subscribe(topic_filter, qos)
        return await self._granted.get()

    def publish(self, topic: str, payload: bytes, qos: int) -> None:
        """Send PUBLISH; gmqtt has no way to wait for the answer."""
        self.gmqtt.publish(topic, payload, qos)

    def vanish(self) -> None:
        """Drop the connection without DISCONNECT."""
        self.gmqtt.stop_reconnect()
        self.gmqtt._connection._transport.abort()


@asynccontextmanager
async def _connected(
    gmqtt: Any, mesh: Mesh, transport: str, edge: int, will: tuple[str, bytes, int] | None = None
) -> AsyncIterator[_Client]:
    client = _Client(gmqtt, mesh, will)
    context: ssl.SSLContext | bool = False
    if transport == "tls":
        context = ssl.create_default_context(cafile=mesh.data / "tls" / "certificate.pem")
    await client.gmqtt.connect("127.0.0.1", mesh.mqtt_port(edge, transport), ssl=context, version=MQTT_3_1_1)
    try:
        yield client
    finally:
        await client.gmqtt.disconnect()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_messages_of_each_qos_cross_edges(gmqtt: Any, mesh: Mesh, transport: str) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    async with (
        asyncio.timeout(TIMEOUT_S),
        _connected(gmqtt, mesh, transport, 1) as subscriber,
        _connected(gmqtt, mesh, transport, 0) as publisher,
    ):
        assert await subscriber.subscribe(f"{topic}/#", 2) == (2,)
        for qos in (0, 1, 2):
            payload = secrets.token_bytes(30_000)
            publisher.publish(f"{topic}/{qos}", payload, qos)
            assert await subscriber.messages.get() == (f"{topic}/{qos}", payload, qos)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_burst_arrives_in_order(gmqtt: Any, mesh: Mesh, transport: str) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    async with (
        asyncio.timeout(TIMEOUT_S),
        _connected(gmqtt, mesh, transport, 1) as subscriber,
        _connected(gmqtt, mesh, transport, 0) as publisher,
    ):
        await subscriber.subscribe(topic, 1)
        for n in range(50):
            publisher.publish(topic, b"%d" % n, 1)
        received = [await subscriber.messages.get() for _ in range(50)]
    assert received == [(topic, b"%d" % n, 1) for n in range(50)]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_peers_talk_without_subscription(gmqtt: Any, mesh: Mesh, transport: str) -> None:
    async with (
        asyncio.timeout(TIMEOUT_S),
        _connected(gmqtt, mesh, transport, 0) as one,
        _connected(gmqtt, mesh, transport, 1) as other,
    ):
        for sender, receiver in ((one, other), (other, one)):
            sender.publish(f"{mesh.topic}/p2p/{receiver.client_id}", b"hello", 1)
            topic, payload, qos = await receiver.messages.get()
            assert (payload, qos) == (b"hello", 1)
            assert topic.startswith(f"{mesh.topic}/p2p/")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("orderly", [True, False])
async def test_the_will_is_sent_only_when_the_client_vanishes(
    gmqtt: Any, mesh: Mesh, transport: str, orderly: bool
) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    async with asyncio.timeout(TIMEOUT_S), _connected(gmqtt, mesh, transport, 1) as watcher:
        await watcher.subscribe(topic, 1)
        async with _connected(gmqtt, mesh, transport, 0, (topic, b"gone", 1)) as client:
            client.publish(topic, b"here", 1)
            assert await watcher.messages.get() == (topic, b"here", 1)
            if not orderly:
                client.vanish()
                assert await watcher.messages.get() == (topic, b"gone", 1)
        watcher.publish(topic, b"end", 1)
        assert await watcher.messages.get() == (topic, b"end", 1)
