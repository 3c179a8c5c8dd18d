"""`weimq instance|accesskey|token|device` as a user calls them, against a real auth service and real NATS."""

from __future__ import annotations

import asyncio
import csv
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.testing

from services.auth import bucket
from services.auth.domain import limits
from services.cli import device_import, tokens
from services.cli.app import app
from services.cli.errors import WRONG_USE, CliError
from services.common.signature import sign
from tests.support.auth import TOKEN, AuthService, running_auth
from tests.support.nats import running_server, unique
from weimq.auth.v1 import auth_pb2

pytestmark = pytest.mark.timeout(60)


class Shell:
    """Runs commands against the service; a command has a loop of its own, so the service has its in a thread."""

    def __init__(self, service: AuthService, loop: asyncio.AbstractEventLoop) -> None:
        self._service = service
        self._loop = loop

    def run(self, *args: str, stdin: str | None = None) -> str:
        """Return what a command prints that must succeed."""
        command = [*args, "--auth", self._service.address]
        result = typer.testing.CliRunner().invoke(app, command, catch_exceptions=False, input=stdin)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *args: str) -> Any:
        """Return the JSON that a command prints."""
        return json.loads(self.run(*args, "--json"))

    def failure(self, *args: str) -> CliError:
        """Return the failure of a command that must fail."""
        with pytest.raises(CliError) as caught:
            self.run(*args)
        return caught.value

    def connect(self, client_id: str, user_name: str, password: str) -> int:
        """Return the outcome of a connection attempt."""
        attempt = auth_pb2.ConnectAttempt(client_id=client_id, user_name=user_name, password=password.encode())
        call = self._service.auth.Authenticate(auth_pb2.AuthenticateRequest(attempts=[attempt]))

        async def result() -> int:
            return (await call).results[0].outcome

        return asyncio.run_coroutine_threadsafe(result(), self._loop).result(20)


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[AuthService, asyncio.AbstractEventLoop]]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        with running_server() as server:
            context = running_auth(server.url)
            running = asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(20)
            yield running, loop
            asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def shell(service: tuple[AuthService, asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("WEIMQ_CLUSTER_TOKEN", TOKEN.reveal())
    return Shell(*service)


@pytest.fixture
def instance(shell: Shell) -> str:
    """Return an instance with the group GID_demo and the AccessKey AKdemo."""
    name = unique("inst-")
    shell.run("instance", "create", name)
    shell.run("group", "create", "GID_demo", "--instance", name)
    shell.run("accesskey", "create", "AKdemo", "--instance", name)
    return name


def test_limits_of_an_instance_are_set_one_by_one(shell: Shell, instance: str) -> None:
    before = shell.json("instance", "show", instance)
    assert (before["max_subscriptions"], before["takeover"]) == (30, False)
    changed = shell.json("instance", "set", instance, "--max-subscriptions", "50", "--takeover")
    assert changed == before | {"max_subscriptions": 50, "takeover": True}
    assert shell.json("instance", "set", instance, "--no-takeover") == before | {"max_subscriptions": 50}
    shown = shell.run("instance", "set", instance, "--offline-retention-ms", "86400000")
    assert "offline retention" in shown
    assert "1d\n" in shown


def test_every_limit_has_an_option() -> None:
    command = ["instance", "set", "--help"]
    help_text = typer.testing.CliRunner().invoke(app, command, env={"COLUMNS": "200"}).output
    for name in limits.SETTABLE:
        assert f"--{name.replace('_', '-')}" in help_text


def test_what_an_instance_can_not_be_set_to(shell: Shell, instance: str) -> None:
    assert shell.failure("instance", "set", instance).status == WRONG_USE
    assert "must be 1 to" in shell.failure("instance", "set", instance, "--max-subscriptions", "0").cause
    assert shell.failure("instance", "set", instance, "--max-subscriptions", str(1 << 40)).status == WRONG_USE
    assert "PROFILE_STANDARD" in shell.failure("instance", "set", instance, "--anonymous").cause


def test_permissions_of_a_key(shell: Shell, instance: str) -> None:
    of_instance = ("--instance", instance)
    made = shell.json(
        "accesskey",
        "create",
        "AKone",
        "--permission",
        "publish",
        "--topic-filter",
        "a/#",
        "--topic-filter",
        "b",
        *of_instance,
    )
    assert (made["permission"], made["topic_filters"]) == ("publish", ["a/#", "b"])
    assert made["secret"]
    row = next(line for line in shell.run("accesskey", "list", *of_instance).splitlines() if line.startswith("AKone"))
    assert "publish" in row
    assert "a/# b" in row
    changed = shell.json("accesskey", "set", "AKone", "--permission", "subscribe", *of_instance)
    assert (changed["permission"], changed["topic_filters"]) == ("subscribe", [])
    assert shell.json("accesskey", "show", "AKone", *of_instance) == changed
    assert shell.failure("accesskey", "set", "AKnone", *of_instance).cause == "accesskey/AKnone does not exist."


def test_a_token_from_apply_to_revoke(shell: Shell, instance: str, tmp_path: Path) -> None:
    key = ("--access-key", "AKdemo", "--instance", instance)
    made = shell.json("token", "apply", "demo/#", "demo/p2p/#", "--actions", "R", "--lifetime", "10m", *key)
    assert made["username"] == f"Token|AKdemo|{instance}"
    assert made["password"] == f"R|{made['token']}"
    assert shell.connect("GID_demo@@@1", made["username"], made["password"]) == auth_pb2.CONNECT_OUTCOME_ACCEPTED

    asked = shell.json("token", "query", made["token"])
    assert (asked["worth"], asked["actions"], asked["resources"]) == ("valid", "read", ["demo/#", "demo/p2p/#"])
    assert asked["token_id"] == made["token_id"]
    assert shell.run("token", "query", "forged").split() == ["worth", "forged"]

    other = shell.json("token", "apply", "demo", *key)["token"]
    file = tmp_path / "tokens"
    file.write_text(f"{made['token']}\n")
    assert shell.json("token", "revoke", other, "--file", str(file)) == {"revoked": 2, "forged": 0, "expired": 0}
    assert shell.json("token", "query", "--file", str(file))["worth"] == "revoked"
    assert shell.connect("GID_demo@@@1", made["username"], made["password"]) == auth_pb2.CONNECT_OUTCOME_BAD_CREDENTIALS
    assert shell.run("token", "revoke", "--file", "-", stdin=f"{other}\n").split() == [
        "revoked", "1", "forged", "0", "expired", "0",
    ]  # fmt: skip


def test_tokens_are_revoked_in_batches(shell: Shell, instance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "BATCH", 2)
    key = ("--access-key", "AKdemo", "--instance", instance)
    made = [shell.json("token", "apply", "demo", *key)["token"] for _ in range(3)]
    assert shell.json("token", "revoke", *made)["revoked"] == 3


def test_what_a_token_command_refuses(shell: Shell, instance: str, tmp_path: Path) -> None:
    assert shell.failure("token", "revoke").status == WRONG_USE
    assert shell.failure("token", "query").status == WRONG_USE
    assert shell.failure("token", "revoke", "--file", str(tmp_path / "none")).status == WRONG_USE
    assert "1 of 1 are no tokens" in shell.failure("token", "revoke", "forged").cause
    key = ("--access-key", "AKdemo", "--instance", instance)
    assert "more than 60 s" in shell.failure("token", "apply", "demo", "--lifetime", "30s", *key).cause
    assert shell.failure("token", "apply", "demo", "--lifetime", "soon", *key).status == WRONG_USE
    nothing = ("--instance", instance, "--data", str(tmp_path / "none"))
    assert "Which AccessKey?" in shell.failure("token", "apply", "demo", *nothing).cause


def test_the_token_key_is_rotated(shell: Shell, instance: str) -> None:
    token = shell.json("token", "apply", "demo", "--access-key", "AKdemo", "--instance", instance)["token"]
    rotated = shell.json("token", "rotate-key")
    assert rotated["token_key"] == rotated["token_keys"][-1]
    assert "created" in shell.run("token", "rotate-key")
    assert shell.json("token", "query", token)["worth"] == "valid"


def test_a_device_from_register_to_revoke(shell: Shell, instance: str) -> None:
    device = ("GID_demo@@@1", "--instance", instance)
    made = shell.json("device", "register", *device)
    assert made["username"] == f"DeviceCredential|{made['device_credential_id']}|{instance}"
    assert made["password"] == sign(made["secret"], "GID_demo@@@1")
    assert shell.connect("GID_demo@@@1", made["username"], made["password"]) == auth_pb2.CONNECT_OUTCOME_ACCEPTED
    again = shell.failure("device", "register", *device)
    assert (again.cause, "refresh" in again.cure) == ("GID_demo@@@1: has a credential already.", True)
    assert "group does not exist" in shell.failure("device", "register", "GID_none@@@1", "--instance", instance).cause

    refreshed = shell.json("device", "refresh", *device)
    assert refreshed["device_credential_id"] != made["device_credential_id"]
    assert shell.connect("GID_demo@@@1", made["username"], made["password"]) != auth_pb2.CONNECT_OUTCOME_ACCEPTED
    shown = shell.json("device", "show", *device)
    assert shown["device_credential_id"] == refreshed["device_credential_id"]
    assert "secret" not in shown
    assert shell.json("device", "list", "--instance", instance) == [shown]
    assert shell.json("device", "revoke", *device) == {"deleted": "GID_demo@@@1"}
    assert shell.run("device", "list", "--instance", instance) == "There are no device credentials.\n"
    assert "no device credential" in shell.failure("device", "show", *device).cause


def test_devices_are_imported_from_a_file(
    shell: Shell, instance: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "VISIBLE_S", 40.0)  # others may take the CPU meanwhile
    shell.run("device", "register", "GID_demo@@@7", "--instance", instance)
    source = tmp_path / "devices.csv"
    rows = [f"model,GID_demo@@@{number}" for number in range(2_500)] + ["model,GID_none@@@1", "model,odd"]
    source.write_text("model,client_id\n" + "\n".join(rows) + "\n", encoding="utf-8")
    output = tmp_path / "devices.credentials.csv"
    failure = shell.failure("device", "import", str(source), "--instance", instance)
    assert (failure.cause, str(output) in failure.cure) == ("2 client ids were rejected.", True)
    assert output.stat().st_mode & 0o777 == 0o600
    with output.open(newline="") as file:
        written = {row["client_id"]: row for row in csv.DictReader(file)}
    assert len(written) == 2_502
    assert (written["GID_demo@@@7"]["outcome"], written["GID_demo@@@7"]["secret"]) == ("has a credential already", "")
    assert written["odd"]["outcome"] == "the client id breaks the rules of the instance"
    last = written["GID_demo@@@2499"]
    password = sign(last["secret"], "GID_demo@@@2499")
    assert shell.connect("GID_demo@@@2499", last["username"], password) == auth_pb2.CONNECT_OUTCOME_ACCEPTED
    assert len(shell.json("device", "list", "--limit", "1200", "--instance", instance)) == 1_200
    assert "There are more; the instance has 2500." in shell.run("device", "list", "--instance", instance)


def test_an_import_refreshes_what_exists_when_told(shell: Shell, instance: str, tmp_path: Path) -> None:
    first = shell.json("device", "register", "GID_demo@@@1", "--instance", instance)
    source = tmp_path / "devices.csv"
    source.write_text("GID_demo@@@1\n\nGID_demo@@@2\nGID_demo@@@1\n", encoding="utf-8")
    output = tmp_path / "out"
    options = ["--output", str(output), "--refresh-existing", "--instance", instance]
    assert shell.json("device", "import", str(source), *options) == {
        "output": str(output),
        "registered": 1,
        "refreshed": 1,
        "existing": 0,
        "rejected": 0,
    }
    with output.open(newline="") as file:
        written = {row["client_id"]: row for row in csv.DictReader(file)}
    refreshed = written["GID_demo@@@1"]
    assert refreshed["device_credential_id"] != first["device_credential_id"]
    password = sign(refreshed["secret"], "GID_demo@@@1")
    assert shell.connect("GID_demo@@@1", refreshed["username"], password) == auth_pb2.CONNECT_OUTCOME_ACCEPTED


def test_files_that_can_not_be_imported(shell: Shell, instance: str, tmp_path: Path) -> None:
    source, output = tmp_path / "devices.csv", tmp_path / "out"
    options = ["--output", str(output), "--instance", instance]
    assert "Can't read" in shell.failure("device", "import", str(source), *options).cause
    for content in (b"model,client_id\nx\n", b"a\n ,x\n", b"\xff\xfe"):
        source.write_bytes(content)
        assert shell.failure("device", "import", str(source), *options).status == WRONG_USE
        assert not output.exists()
    source.write_text("GID_demo@@@1\n")
    output.write_text("secrets of before")
    assert "exists already" in shell.failure("device", "import", str(source), *options).cause
    assert output.read_text() == "secrets of before"


def test_a_failed_import_tells_what_is_done(
    shell: Shell, instance: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_import, "BATCH", 1_001)  # more than auth takes, so that the call fails
    source = tmp_path / "devices.csv"
    source.write_text("".join(f"GID_demo@@@{number}\n" for number in range(1_500)))
    failure = shell.failure("device", "import", str(source), "--instance", instance)
    assert " of 1500 devices are done." in failure.cause
