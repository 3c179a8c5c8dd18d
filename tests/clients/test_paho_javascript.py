"""The Eclipse Paho JavaScript client in headless Chromium, over WebSocket and secure WebSocket."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import queue
import secrets
import signal
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typing_extensions import override

from tests.support.mesh import Mesh
from tests.support.tools import need

# The first test also installs what npm brings.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

PAGE = Path(__file__).parent / "browser" / "page.html"
TRANSPORTS = ["ws", "wss"]
REPORT_S = 40.0
STOP_S = 10.0
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-crash-reporter",
]  # fmt: skip


class _Site(ThreadingHTTPServer):
    """Serves the page, the client's file and the job, and takes the report."""

    daemon_threads = True

    def __init__(self, client: bytes, job: dict[str, Any]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        page = ("text/html", PAGE.read_bytes())
        self.files = {
            "/": page,
            "/publisher": page,
            "/paho-mqtt.js": ("text/javascript", client),
            "/job": ("application/json", json.dumps(job).encode()),
        }
        self.reports: queue.Queue[dict[str, Any]] = queue.Queue()


class _Handler(BaseHTTPRequestHandler):
    server: _Site  # type: ignore[mutable-override]  # only _Site makes these

    def do_GET(self) -> None:
        kind, body = self.server.files.get(self.path, ("text/plain", b""))
        self._answer(200 if body else 404, kind, body)

    def do_POST(self) -> None:
        self.server.reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(200, "text/plain", b"")

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @override
    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@contextlib.contextmanager
def _serving(site: _Site) -> Iterator[str]:
    """Serve and return the page's address."""
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{site.server_port}/"
    finally:
        site.shutdown()
        site.server_close()
        thread.join(STOP_S)


@contextlib.contextmanager
def _chromium(url: str, profile: Path, certificate: Path) -> Iterator[Path]:
    """Run Chromium with the page and return the file of what it prints."""
    public_key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    info = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    trusted = base64.b64encode(hashlib.sha256(info).digest()).decode()
    log = profile / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                need("chromium", "chromium"), *FLAGS, f"--user-data-dir={profile}",
                f"--ignore-certificate-errors-spki-list={trusted}", url,
            ],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(profile)},
            start_new_session=True,
        )  # fmt: skip
    try:
        yield log
    finally:
        # Its processes are one group: killing the first alone would leave the others.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_S)


@pytest.fixture
def client_file(node_modules: Path) -> bytes:
    """The client as npm brings it."""
    need("chromium", "chromium")
    return (node_modules / "paho-mqtt" / "paho-mqtt.js").read_bytes()


def _run(mesh: Mesh, client_file: bytes, profile: Path, job: dict[str, Any]) -> dict[str, Any]:
    site = _Site(client_file, job)
    with _serving(site) as url, _chromium(url, profile, mesh.data / "tls" / "certificate.pem") as log:
        try:
            report = site.reports.get(timeout=REPORT_S)
        except queue.Empty:
            pytest.fail(f"no report of the page; Chromium printed:\n{log.read_text(errors='replace')[-3000:]}")
    assert "error" not in report, report
    return report


def _client(mesh: Mesh, transport: str, edge: int, **options: Any) -> dict[str, Any]:
    client_id = mesh.client_id(secrets.token_hex(2))
    user, password = mesh.login(client_id)
    return {
        "host": "127.0.0.1",
        "port": mesh.mqtt_port(edge, transport),
        "tls": transport == "wss",
        "version": 4,
        "clientId": client_id,
        "userName": user,
        "password": password,
        **options,
    }


def _message(topic: str, payload: str, qos: int) -> dict[str, object]:
    return {"topic": topic, "payload": payload, "qos": qos}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("version", [4, 3])
def test_messages_of_each_qos_cross_edges(
    mesh: Mesh, client_file: bytes, tmp_path: Path, transport: str, version: int
) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    messages = [_message(f"{topic}/{qos}", secrets.token_hex(15_000), qos) for qos in (0, 1, 2)]
    report = _run(
        mesh,
        client_file,
        tmp_path,
        {
            "subscriber": _client(mesh, transport, 1, version=version),
            "publisher": _client(mesh, transport, 0, version=version),
            "filter": f"{topic}/#",
            "messages": messages,
            "vanish": False,
            "count": len(messages),
        },
    )
    assert report["granted"] == [2]
    # Of different QoS the order is not the standard's concern.
    assert sorted(report["received"], key=lambda message: message["topic"]) == messages


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_peers_talk_without_subscription(mesh: Mesh, client_file: bytes, tmp_path: Path, transport: str) -> None:
    receiver = _client(mesh, transport, 1)
    report = _run(
        mesh,
        client_file,
        tmp_path,
        {
            "subscriber": receiver,
            "publisher": _client(mesh, transport, 0),
            "filter": f"{mesh.topic}/{secrets.token_hex(4)}",
            "messages": [_message(f"{mesh.topic}/p2p/{receiver['clientId']}", "hello", 1)],
            "vanish": False,
            "count": 1,
        },
    )
    (message,) = report["received"]
    assert message["payload"] == "hello"
    assert message["qos"] == 1
    assert message["topic"].startswith(f"{mesh.topic}/p2p/")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_will_is_sent_when_the_page_is_closed(
    mesh: Mesh, client_file: bytes, tmp_path: Path, transport: str
) -> None:
    topic = f"{mesh.topic}/{secrets.token_hex(4)}"
    report = _run(
        mesh,
        client_file,
        tmp_path,
        {
            "subscriber": _client(mesh, transport, 1),
            "publisher": _client(mesh, transport, 0, will=_message(topic, "gone", 1)),
            "filter": topic,
            "messages": [_message(topic, "here", 1)],
            "vanish": True,
            "count": 2,
        },
    )
    assert report["received"] == [_message(topic, "here", 1), _message(topic, "gone", 1)]
