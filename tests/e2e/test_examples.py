"""Every program of `examples/`, run as the README says."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.subjects import log_stream, log_subject
from tests.support import queue as queue_of
from tests.support.clients import Client
from tests.support.mesh import Mesh
from tests.support.tools import need

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

EXAMPLES = Path(__file__).parents[2] / "examples"
NODE = EXAMPLES / "node"
MOST_LINES = 60
TIMEOUT_S = 20.0


class Program:
    """A running example and the lines that it has printed."""

    def __init__(self, mesh: Mesh, *command: str, cwd: Path = EXAMPLES) -> None:
        self._lines: queue.Queue[str] = queue.Queue()
        self.process = subprocess.Popen(
            command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(mesh.credentials))
        self.process.stdin.close()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip())

    def wait_line(self, part: str) -> str:
        """Wait for a line that contains `part`, and return it."""
        while True:
            try:
                line = self._lines.get(timeout=TIMEOUT_S)
            except queue.Empty:
                self.process.kill()
                raise AssertionError(f"no line with {part!r}; standard error:\n{self.process.stderr.read()}") from None  # type: ignore[union-attr]
            if part in line:
                return line

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@contextlib.contextmanager
def running(mesh: Mesh, *command: str, cwd: Path = EXAMPLES) -> Iterator[Program]:
    program = Program(mesh, *command, cwd=cwd)
    try:
        yield program
    finally:
        program.end()


def python(mesh: Mesh, name: str, *arguments: str) -> contextlib.AbstractContextManager[Program]:
    return running(mesh, sys.executable, name, *arguments)


def test_examples_are_short() -> None:
    for path in (*EXAMPLES.glob("*.py"), *NODE.glob("*.mjs")):
        assert len(path.read_text(encoding="utf-8").splitlines()) < MOST_LINES, path


def test_backend_consumer(mesh: Mesh) -> None:
    payload = secrets.token_hex(8)
    with python(mesh, "backend_consumer.py") as program, Client(mesh) as client:
        client.publish_and_wait(f"{mesh.topic}/a/b", payload.encode())
        assert program.wait_line(payload) == f"{client.client_id} {mesh.topic}/a/b qos=1 {payload}"


def test_backend_producer_reaches_subscribers(mesh: Mesh) -> None:
    subtopic = f"/{secrets.token_hex(4)}/x"
    with Client(mesh) as client:
        client.subscribe(f"{mesh.topic}{subtopic}", 1)
        with python(mesh, "backend_producer.py", subtopic, "hello") as program:
            program.wait_line("stored as")
        assert client.wait_messages(1) == [(f"{mesh.topic}{subtopic}", b"hello", 1)]


def test_backend_producer_reaches_one_client(mesh: Mesh) -> None:
    with Client(mesh) as client, Client(mesh) as other:
        other.subscribe(f"{mesh.topic}/#", 1)
        with python(mesh, "backend_producer.py", f"/p2p/{client.client_id}", "for you") as program:
            program.wait_line("stored as")
        assert client.wait_messages(1) == [(f"{mesh.topic}/p2p/{client.client_id}", b"for you", 1)]
        assert other.messages == []


def test_ordered_consumer(mesh: Mesh) -> None:
    topic = f"ord{secrets.token_hex(4)}"
    mesh.weimq("topic", "create", topic, "--ordered")
    with Client(mesh) as client:
        client.publish_and_wait("$SYS/enableOrderMsg", b'{"order":"true"}')
        for n in range(50):
            client.publish(f"{topic}/{n % 3}", b"%d" % n, 1)
        client.publish_and_wait(topic, b"last")
        # A new topic is in the backends' account within a second; the example does not wait for that.
        assert queue_of.read(mesh, log_stream(mesh.instance, topic), log_subject(mesh.instance, topic), 1)
        with python(mesh, "ordered_consumer.py", topic) as program:
            for text in (*map(str, range(50)), "last"):
                assert program.wait_line(client.client_id) == f"{client.client_id} {text}"


def test_presence_consumer(mesh: Mesh) -> None:
    with python(mesh, "presence_consumer.py") as program:
        with Client(mesh) as client:
            assert program.wait_line(client.client_id) == f"{client.client_id} connect -> online"
        assert program.wait_line(client.client_id) == f"{client.client_id} disconnect -> offline"
        assert program.wait_line(client.client_id) == f"{client.client_id} tcpclean -> offline"


def test_node_consumer(mesh: Mesh) -> None:
    node, npm = need("node", "nodejs"), need("npm", "npm")
    lock, stamp = (NODE / "package-lock.json").read_bytes(), NODE / "node_modules" / ".installed"
    if not stamp.exists() or stamp.read_bytes() != lock:
        subprocess.run([npm, "ci"], cwd=NODE, check=True, capture_output=True, timeout=120, env={**os.environ})
        stamp.write_bytes(lock)
    payload = secrets.token_hex(8)
    with running(mesh, node, "consumer.mjs", cwd=NODE) as program, Client(mesh) as client:
        client.publish_and_wait(f"{mesh.topic}/node", payload.encode())
        assert program.wait_line(payload) == f"{client.client_id} {mesh.topic}/node qos=1 {payload}"
