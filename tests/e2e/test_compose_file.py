"""compose.yaml and deploy/Dockerfile, checked without a container engine: settings, ports, privileges, order.

The file is read as text with the few rules that it keeps itself to, since no YAML parser is among our dependencies.
"""

from __future__ import annotations

import http.server
import importlib
import re
import subprocess
import threading
from pathlib import Path

import pytest
from typing_extensions import override

from services.cli.config_file import SERVICES
from services.cli.secrets import DataDir
from services.common.settings import load
from tests.support.tools import need

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "compose.yaml").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")


def section(text: str, name: str, indent: int) -> str:
    """Return the lines under `name:`, those that are indented further."""
    pad = " " * indent
    match = re.search(rf"^{pad}{re.escape(name)}:.*\n((?:{pad} +.*\n|\s*\n)*)", text, re.MULTILINE)
    assert match, f"{name} is missing"
    return match[1]


def block(service: str) -> str:
    """Return what compose.yaml says about a service, the shared part included."""
    own = section(section(COMPOSE, "services", 0), service, 2)
    return own + (section(COMPOSE, "x-service", 0) if "<<: *service" in own else "")


def environment(service: str) -> dict[str, str]:
    pairs = re.compile(r"^ +([A-Z][A-Z_]+): *(.*?) *(?:#.*)?$", re.MULTILINE)
    shared, own = section(COMPOSE, "x-environment", 0), section(block(service), "environment", 4)
    return {name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for name, value in pairs.findall(shared + own)}


@pytest.mark.parametrize("service", SERVICES)
def test_service_accepts_its_environment(service: str, tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    data.initialize()
    data.nats_url.write_text("nats://weimq:x@nats:4222")
    form = getattr(importlib.import_module(f"services.{service}.settings"), f"{service.capitalize()}Settings")
    environ = {name: value.replace("/weimq/", f"{tmp_path}/") for name, value in environment(service).items()}
    settings = load(form, environ)
    assert settings.cluster_token


@pytest.mark.parametrize("service", SERVICES)
def test_service_runs_with_least_privilege_and_is_restarted(service: str) -> None:
    text = block(service)
    for line in (
        "read_only: true",
        "cap_drop: [ALL]",
        "no-new-privileges:true",
        "restart: unless-stopped",
        "secrets:/weimq:ro",
        f"command: [python, -m, services.{service}]",
    ):
        assert line in text
    for line in ("privileged:", "cap_add", "user: root", "docker.sock"):
        assert line not in text


@pytest.mark.parametrize("service", SERVICES)
def test_health_is_asked_where_the_service_listens(service: str) -> None:
    settings = environment(service)
    if match := re.search(r'services\.common\.healthcheck, "127\.0\.0\.1:(\d+)"', block(service)):
        assert settings["EDGE_GRPC_LISTEN"].endswith(f":{match[1]}")
    else:
        assert "healthcheck: *health" in block(service)
        assert settings[f"{service.upper()}_HTTP_LISTEN"].endswith(":" + settings["READY_PORT"].strip('"'))


@pytest.mark.parametrize(("status", "is_healthy"), [(200, True), (503, False), (None, False)], ids=str)
def test_the_check_by_a_shell_tells_ready_from_not(status: int | None, is_healthy: bool) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if status and self.path == "/readyz" else 404)
            self.end_headers()

        @override
        def log_message(self, *_args: object, **_named: object) -> None:
            pass

    command = re.search(r"^    - (exec .*)$", section(COMPOSE, "x-health", 0), re.MULTILINE)
    assert command
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_port
        if status is None:
            server.server_close()
        else:
            threading.Thread(target=server.handle_request, daemon=True).start()
        done = subprocess.run(
            [need("bash", "bash"), "-c", command[1].replace("$$", "$")],
            env={"READY_PORT": str(port)},
            check=False,
            timeout=30,
            capture_output=True,
        )
    assert (done.returncode == 0) is is_healthy


@pytest.mark.parametrize(
    ("service", "needs"),
    [
        ("nats", {"init": "service_completed_successfully"}),
        ("auth", {"init": "service_completed_successfully", "nats": "service_started"}),
        ("session", {"init": "service_completed_successfully", "nats": "service_started"}),
        ("router", {"init": "service_completed_successfully", "nats": "service_started"}),
        ("status", {"auth": "service_healthy", "session": "service_healthy"}),
        ("edge", {"auth": "service_healthy", "session": "service_healthy", "router": "service_healthy"}),
    ],
    ids=str,
)
def test_start_order_is_conditioned(service: str, needs: dict[str, str]) -> None:
    found = re.findall(r"^ +(\w+): \{condition: (\w+)\}", section(block(service), "depends_on", 4), re.MULTILINE)
    assert dict(found) == needs


def test_only_edge_status_and_token_ports_are_published_on_loopback_by_default() -> None:
    published = re.findall(r'"\$\{WEIMQ_BIND:-127\.0\.0\.1\}:(\d+):(\d+)"', COMPOSE)
    assert sorted(int(port) for port, _ in published) == [1883, 8080, 8081, 8083, 8084, 8883]
    assert all(outside == inside for outside, inside in published)
    assert COMPOSE.count("ports:") == 3


def test_nats_keeps_its_data_and_is_as_restricted_as_the_services() -> None:
    text = block("nats")
    for line in ("image: nats:2.12-alpine", "jetstream:/jetstream", "read_only: true", "cap_drop: [ALL]", "[mesh]"):
        assert line in text
    assert "internal: true" in section(COMPOSE, "networks", 0)


def test_no_secret_is_written_down() -> None:
    assert not re.search(r"(password|secret|token|key)\w*: *[\"']?[0-9a-z]{12,}", COMPOSE + DOCKERFILE, re.IGNORECASE)


def test_image_runs_as_a_user_of_its_own_and_needs_no_buildkit() -> None:
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.MULTILINE)
    assert DOCKERFILE.count("pip install --require-hashes -r ") == 3  # build, compile, runtime
    assert "pip install -r" not in DOCKERFILE
    stages = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert stages == ["python:3.13", "python:3.13-slim"]
    for syntax in ("--mount", "<<", "# syntax", "--link", "--chmod"):
        assert syntax not in DOCKERFILE


def test_everything_the_image_copies_reaches_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        for path in line.split():
            assert (ROOT / path).exists()
            assert f"!{path.partition('/')[0]}" in ignored
