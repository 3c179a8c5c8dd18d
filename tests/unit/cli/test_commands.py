"""Commands as a user calls them: against real gRPC servers with fake servicers, and where nothing runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.testing
from grpc import aio
from typing_extensions import override

from services.cli.__main__ import main
from services.cli.app import app
from services.cli.errors import CliError
from services.cli.options import parse_duration
from services.cli.run_file import Run, locked
from services.cli.secrets import DataDir
from services.common.errors import AlreadyExistsError, InvalidFieldError, NotFoundError, NotServingError
from services.common.grpc_server import serving
from services.common.readiness import Readiness
from services.common.settings import Secret
from services.common.signature import sign
from weimq.auth.v1 import auth_pb2, resource_pb2, resource_pb2_grpc
from weimq.status.v1 import status_pb2, status_pb2_grpc


class FakeResources(resource_pb2_grpc.ResourceServiceServicer):
    """Keeps topics and instances in lists."""

    def __init__(self) -> None:
        self.topics: list[resource_pb2.Topic] = []
        self.instances: list[resource_pb2.Instance] = []

    @override
    async def CreateInstance(
        self, request: resource_pb2.CreateInstanceRequest, context: object
    ) -> resource_pb2.CreateInstanceResponse:
        self.instances.append(request.instance)
        return resource_pb2.CreateInstanceResponse(instance=request.instance)

    @override
    async def ListInstances(
        self, request: resource_pb2.ListInstancesRequest, context: object
    ) -> resource_pb2.ListInstancesResponse:
        return resource_pb2.ListInstancesResponse(instances=self.instances)

    @override
    async def CreateTopic(
        self, request: resource_pb2.CreateTopicRequest, context: object
    ) -> resource_pb2.CreateTopicResponse:
        if len(request.topic.topic) < 3:
            raise InvalidFieldError("topic.topic must have 3 to 64 characters", field="topic.topic")
        if request.topic.topic in [topic.topic for topic in self.topics]:
            raise AlreadyExistsError("topic/demo exists already", resource="topic/demo")
        self.topics.append(request.topic)
        return resource_pb2.CreateTopicResponse(topic=request.topic)

    @override
    async def ListTopics(
        self, request: resource_pb2.ListTopicsRequest, context: object
    ) -> resource_pb2.ListTopicsResponse:
        if request.instance_id == "starting":
            raise NotServingError("resources are not loaded yet")
        return resource_pb2.ListTopicsResponse(
            topics=[topic for topic in self.topics if topic.instance_id == request.instance_id]
        )

    @override
    async def DeleteTopic(
        self, request: resource_pb2.DeleteTopicRequest, context: object
    ) -> resource_pb2.DeleteTopicResponse:
        raise NotFoundError("there is no topic/none", resource="topic/none")

    @override
    async def CreateAccessKey(
        self, request: resource_pb2.CreateAccessKeyRequest, context: object
    ) -> resource_pb2.CreateAccessKeyResponse:
        key = resource_pb2.AccessKey(
            access_key_id="AK1", account_id=request.account_id, instance_id=request.instance_id
        )
        return resource_pb2.CreateAccessKeyResponse(access_key=key, secret="only once")


def _connection() -> status_pb2.ClientConnection:
    return status_pb2.ClientConnection(
        channel_id="c" * 32, address="10.0.0.1:5", connect_time_ms=1_700_000_000_123, edge_id="edge-0"
    )


class FakeStatus(status_pb2_grpc.StatusServiceServicer):
    """Knows one client."""

    @override
    async def DescribeClient(
        self, request: status_pb2.DescribeClientRequest, context: object
    ) -> status_pb2.DescribeClientResponse:
        if request.client_id != "GID_demo@@@1":
            return status_pb2.DescribeClientResponse(online=-1 if request.client_id == "unknown" else 0)
        connection = _connection()
        connection.subscriptions.add(topic_filter="demo/#", qos=1)
        session = status_pb2.ClientSession(persistent=True, offline_message_count=4)
        session.subscriptions.add(topic_filter="demo/#", qos=1)
        return status_pb2.DescribeClientResponse(online=1, connections=[connection], session=session)

    @override
    async def ListGroupClients(
        self, request: status_pb2.ListGroupClientsRequest, context: object
    ) -> status_pb2.ListGroupClientsResponse:
        if request.page_token or request.group_id != "GID_demo":
            return status_pb2.ListGroupClientsResponse(online_count=1)
        client = status_pb2.ClientStatus(client_id="GID_demo@@@1", online=1, connections=[_connection()])
        return status_pb2.ListGroupClientsResponse(clients=[client], online_count=1, next_page_token="more")

    @override
    async def ListSubscribers(
        self, request: status_pb2.ListSubscribersRequest, context: object
    ) -> status_pb2.ListSubscribersResponse:
        subscriber = status_pb2.Subscriber(client_id="GID_demo@@@1", edge_id="edge-0")
        subscriber.subscriptions.add(topic_filter="demo/#", qos=1)
        is_last = bool(request.page_token)
        return status_pb2.ListSubscribersResponse(
            subscribers=[] if is_last or request.topic != "demo/x" else [subscriber],
            next_page_token="" if is_last else "more",
        )

    @override
    async def ListSessions(
        self, request: status_pb2.ListSessionsRequest, context: object
    ) -> status_pb2.ListSessionsResponse:
        summary = status_pb2.SessionSummary(
            client_id=f"GID_demo@@@{request.page_token or 1}", persistent=True, offline_message_count=4
        )
        return status_pb2.ListSessionsResponse(sessions=[summary], next_page_token="" if request.page_token else "2")

    @override
    async def DeleteSession(
        self, request: status_pb2.DeleteSessionRequest, context: object
    ) -> status_pb2.DeleteSessionResponse:
        if request.client_id != "GID_demo@@@1":
            raise NotFoundError("there is no session", resource="session")
        return status_pb2.DeleteSessionResponse(dropped_message_count=4)

    @override
    async def WatchGroup(
        self, request: status_pb2.WatchGroupRequest, context: object
    ) -> AsyncIterator[status_pb2.WatchGroupResponse]:
        change = status_pb2.PresenceChange(
            client_id="GID_demo@@@1", connection=_connection(), connected=True, time_ms=5
        )
        yield status_pb2.WatchGroupResponse(changes=[change], snapshot_complete=True)

    @override
    async def CloseConnections(
        self, request: status_pb2.CloseConnectionsRequest, context: object
    ) -> status_pb2.CloseConnectionsResponse:
        return status_pb2.CloseConnectionsResponse(connection_count=1)


@dataclass
class FakeMesh:
    """A data directory on which a mesh seems to run."""

    data: DataDir
    auth: str
    status: str
    resources: FakeResources

    def weimq(self, *args: str) -> str:
        """Return what a command prints that must succeed."""
        return run(*args, "--data", str(self.data.path))

    def json(self, *args: str) -> Any:
        """Return the JSON that a command prints."""
        return json.loads(self.weimq(*args, "--json"))


def run(*args: str) -> str:
    """Return what a command prints; raise what it raises."""
    result = typer.testing.CliRunner().invoke(app, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def failure(*args: str) -> CliError:
    """Return the failure of a command that must fail."""
    with pytest.raises(CliError) as caught:
        run(*args)
    return caught.value


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WEIMQ_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[FakeMesh]:
    data = DataDir(tmp_path / "data")
    data.initialize()
    token = Secret(data.read_text(data.cluster_token))
    resources = FakeResources()  # type: ignore[abstract]  # the other calls are not made

    def register(server: aio.Server) -> list[str]:
        resource_pb2_grpc.add_ResourceServiceServicer_to_server(resources, server)
        status_pb2_grpc.add_StatusServiceServicer_to_server(FakeStatus(), server)  # type: ignore[abstract]  # the other calls are not made
        return []

    @contextlib.asynccontextmanager
    async def served() -> AsyncGenerator[int]:
        async with serving(
            listen=["127.0.0.1:0"], token=token, readiness=Readiness(), register=register, drain_s=0
        ) as ports:
            yield ports[0]

    # The commands run a loop of their own, so the servers have theirs in a thread.
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    context = served()
    try:
        address = f"127.0.0.1:{asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(20)}"
        with locked(data):
            Run(supervisor_pid=1, sockets="/none", endpoints={"auth": address, "status": address}).write(data)
            yield FakeMesh(data=data, auth=address, status=address, resources=resources)
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_topic_is_created_with_what_was_asked(mesh: FakeMesh) -> None:
    made = mesh.json("topic", "create", "sensors", "--no-log", "--ordered", "--retention", "12h", "--instance", "other")
    assert made == {
        "topic": "sensors",
        "instance_id": "other",
        "account_id": "default",
        "logged": False,
        "ordered": True,
        "retention_s": 43_200,
        "create_time_ms": 0,
    }
    assert mesh.json("topic", "list", "--instance", "other") == [made]
    assert mesh.json("topic", "show", "sensors", "--instance", "other") == made


def test_bootstrap_instance_is_the_default(mesh: FakeMesh) -> None:
    assert mesh.json("topic", "create", "sensors")["instance_id"] == "mqtt-demo"
    assert [topic["retention_s"] for topic in mesh.json("topic", "list")] == [3 * 86_400]


def test_standard_instance_with_anonymous_clients(mesh: FakeMesh) -> None:
    mesh.weimq("instance", "create", "plain", "--profile", "standard", "--anonymous")
    assert mesh.resources.instances[0].profile == auth_pb2.PROFILE_STANDARD
    (listed,) = mesh.json("instance", "list")
    assert (listed["instance_id"], listed["profile"], listed["anonymous"]) == ("plain", "standard", True)
    # The table shows what tells instances apart; `show` shows their limits.
    assert mesh.weimq("instance", "list").splitlines()[0].split() == [
        "INSTANCE",
        "ID",
        "PROFILE",
        "ANONYMOUS",
        "CREATE",
        "TIME",
    ]
    assert "max publish rate" in mesh.weimq("instance", "show", "plain")


def test_tables_for_people(mesh: FakeMesh) -> None:
    mesh.resources.instances.append(resource_pb2.Instance(instance_id="mqtt-demo"))
    assert mesh.weimq("topic", "list") == "There are no topics.\n"
    mesh.weimq("topic", "create", "sensors")
    heading, row = mesh.weimq("topic", "list").splitlines()
    assert heading.split()[:2] == ["TOPIC", "INSTANCE"]
    assert row.split()[:6] == ["sensors", "mqtt-demo", "default", "yes", "no", "3d"]


def test_secret_of_a_new_access_key_is_printed(mesh: FakeMesh) -> None:
    assert "only once" in mesh.weimq("accesskey", "create", "AK1")
    assert mesh.json("accesskey", "create")["secret"] == "only once"


def test_errors_of_services_are_sentences(mesh: FakeMesh) -> None:
    data = ["--data", str(mesh.data.path)]
    mesh.weimq("topic", "create", "demo")
    exists = failure("topic", "create", "demo", *data)
    assert exists.cause == "topic/demo exists already."
    assert "weimq topic show demo" in exists.cure
    missing = failure("topic", "delete", "none", *data)
    assert missing.cause == "there is no topic/none."
    assert "weimq topic list" in missing.cure
    wrong = failure("topic", "create", "ab", *data)
    assert (wrong.cause, wrong.status) == ("topic must have 3 to 64 characters.", 2)
    assert failure("topic", "show", "none", *data).cause == "There is no Topic none."
    assert "can't answer now" in failure("topic", "list", "--instance", "starting", *data).cause


def test_client_that_is_online(mesh: FakeMesh) -> None:
    shown = mesh.weimq("status", "GID_demo@@@1")
    assert shown.startswith("GID_demo@@@1: online\n")
    assert "10.0.0.1:5  2023-11-14 22:13:20 UTC  edge-0" in shown
    assert mesh.json("status", "GID_demo@@@1") == {
        "online": 1,
        "connections": [
            {
                "channel_id": "c" * 32,
                "address": "10.0.0.1:5",
                "connect_time_ms": 1_700_000_000_123,
                "edge_id": "edge-0",
                "subscriptions": [{"topic_filter": "demo/#", "qos": 1}],
            }
        ],
        "session": {
            "persistent": True,
            "subscriptions": [{"topic_filter": "demo/#", "qos": 1}],
            "offline_message_count": 4,
            "inflight_message_count": 0,
            "disconnect_time_ms": 0,
        },
    }
    assert "persistent session: 4 message(s) wait for it\nsubscriptions: demo/# (QoS 1)\n" in shown


def test_clients_of_a_group(mesh: FakeMesh) -> None:
    assert "GID_demo@@@1  " in mesh.weimq("clients", "GID_demo")
    assert [client["client_id"] for client in mesh.json("clients", "GID_demo")] == ["GID_demo@@@1"]
    assert mesh.weimq("clients", "GID_none") == "No client of GID_none is online.\n"


def test_subscribers_of_a_topic(mesh: FakeMesh) -> None:
    assert "GID_demo@@@1  edge-0   demo/# (QoS 1)" in mesh.weimq("clients", "--topic", "demo/x")
    assert mesh.json("clients", "--topic", "demo/y") == []
    with pytest.raises(CliError):
        mesh.weimq("clients", "GID_demo", "--topic", "demo/x")


def test_presence_of_a_group_is_watched(mesh: FakeMesh) -> None:
    [line] = mesh.weimq("clients", "GID_demo", "--watch").splitlines()
    assert json.loads(line)["client_id"] == "GID_demo@@@1"


def test_client_that_is_not(mesh: FakeMesh) -> None:
    assert mesh.weimq("status", "GID_demo@@@2") == "GID_demo@@@2: offline\n"
    assert "try again" in mesh.weimq("status", "unknown")
    assert mesh.json("status", "unknown") == {"online": -1, "connections": [], "session": None}


def test_kick_tells_how_many(mesh: FakeMesh) -> None:
    assert mesh.weimq("kick", "GID_demo@@@1") == "GID_demo@@@1: 1 connection(s) closed\n"
    assert mesh.json("kick", "GID_demo@@@1") == {"connection_count": 1}


def test_sessions_are_listed_shown_and_deleted(mesh: FakeMesh) -> None:
    address = ["--data", str(mesh.data.path)]
    assert [each["client_id"] for each in mesh.json("session", "list")] == ["GID_demo@@@1", "GID_demo@@@2"]
    assert mesh.json("session", "show", "GID_demo@@@1")["offline_message_count"] == 4
    assert "demo/# (1)" in mesh.weimq("session", "show", "GID_demo@@@1")
    assert "no session" in failure("session", "show", "GID_demo@@@2", *address).cause
    assert mesh.weimq("session", "delete", "GID_demo@@@1") == "GID_demo@@@1: deleted, 4 message(s) dropped\n"
    assert "no session" in failure("session", "delete", "GID_demo@@@2", *address).cause


def test_mesh_elsewhere_needs_its_token(mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    address = ["--auth", mesh.auth, "--instance", "x", "--data", str(tmp_path / "none")]
    assert failure("topic", "list", *address).status == 2
    monkeypatch.setenv("WEIMQ_CLUSTER_TOKEN", "wrong, but long enough")
    assert "refuses the cluster token" in failure("topic", "list", *address).cause
    monkeypatch.delenv("WEIMQ_CLUSTER_TOKEN")
    monkeypatch.setenv("WEIMQ_CLUSTER_TOKEN_FILE", str(mesh.data.cluster_token))
    assert failure("topic", "list", *address).cause == "There is no instance x."
    mesh.resources.instances.append(resource_pb2.Instance(instance_id="x"))
    assert run("topic", "list", *address) == "There are no topics.\n"
    assert "offline" in run("status", "c", "--status", mesh.status, "--instance", "x")
    monkeypatch.setenv("WEIMQ_CLUSTER_TOKEN_FILE", str(tmp_path / "none"))
    assert "can't read" in failure("topic", "list", *address).cause


def _commands(command: Any, *path: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield " ".join(path), command
        return
    for name, each in command.commands.items():
        yield from _commands(each, *path, name)


_ALL = dict(_commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", _ALL)
def test_help_of_each_command_ends_with_an_example_that_can_be_typed(name: str) -> None:
    program, *words = shlex.split((_ALL[name].epilog or "").removeprefix("Example: "))
    arguments = words[len(name.split()) :]
    assert [program, *words] == ["weimq", *name.split(), *arguments]
    _ALL[name].make_context(name, arguments)


def test_a_backend_of_an_instance_that_does_not_exist_is_refused(mesh: FakeMesh) -> None:
    refused = failure("backend", "create", "billing", "--instance", "nosuch", "--data", str(mesh.data.path))
    assert refused.cause == "There is no instance nosuch."
    assert [backend.name for backend in mesh.data.read_backends()] == ["backend"]


def test_ctrl_c_while_the_program_loads_shows_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("services.cli.app.app", interrupted)
    for name in ("grpc_proxy", "http_proxy", "https_proxy"):  # which main() takes out of the environment
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130


def test_service_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIMQ_CLUSTER_TOKEN", "0123456789abcdef")
    cause = failure("topic", "list", "--auth", "127.0.0.1:1", "--instance", "x").cause
    assert cause == "auth at 127.0.0.1:1 does not answer."
    assert failure("topic", "list", "--auth", "nonsense", "--instance", "x").status == 2


def test_nothing_runs_and_nothing_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ["--data", str(tmp_path / "none")]
    for command in (
        ["credentials"],
        ["sign", "c"],
        ["topic", "list", "--instance", "x"],
        ["status", "c", "--instance", "x"],
    ):
        assert "not the data directory" in failure(*command, *missing).cause
    monkeypatch.setenv("WEIMQ_CLUSTER_TOKEN", "0123456789abcdef")
    assert "Which instance?" in failure("topic", "list", *missing, "--auth", "127.0.0.1:1").cause
    data = DataDir(tmp_path / "data")
    data.initialize()
    assert "No mesh runs" in failure("topic", "list", "--data", str(data.path)).cause


def test_init_makes_what_credentials_and_sign_need(tmp_path: Path) -> None:
    data = tmp_path / "data"
    options = ["--nats-listen", "0.0.0.0:4222", "--nats-address", "nats:4222", "--nats-store", "/jetstream"]
    for _ in range(2):
        run("init", "--data", str(data), *options)
    config = (data / "nats.conf").read_text()
    assert 'listen: "0.0.0.0:4222"' in config
    assert '"store_dir": "/jetstream"' in config
    assert not (data / "nats").exists()
    made = json.loads(run("credentials", "--data", str(data), "--json"))
    assert list(made) == ["instance", "access_key", "secret", "group", "topic", "nats_url"]
    assert made["nats_url"].startswith("nats://backend:")
    assert made["nats_url"].endswith("@nats:4222")
    signed = json.loads(run("sign", "GID_demo@@@1", "--data", str(data), "--json"))
    assert "accesskey create --instance other" in failure("sign", "c", "--instance", "other", "--data", str(data)).cure
    assert signed == {
        "client_id": "GID_demo@@@1",
        "username": f"Signature|{made['access_key']}|mqtt-demo",
        "password": sign(made["secret"], "GID_demo@@@1"),
    }


def test_init_refuses_a_wrong_address(tmp_path: Path) -> None:
    assert failure("init", "--data", str(tmp_path), "--nats-listen", "4222").status == 2


def test_sign_with_another_key_needs_no_data_directory(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("XXXXX\n")
    options = ["--access-key", "AK", "--secret-file", str(secret), "--instance", "i", "--data", str(tmp_path / "none")]
    shown = run("sign", "GID_Test@@@0001", *options)
    assert "vI009IZJZVGRwBwZvnbwjfuXxVM=" in shown
    assert "mosquitto_pub -h 127.0.0.1 -p 1883 -i GID_Test@@@0001 -u 'Signature|AK|i' -P" in shown
    assert failure("sign", "c", "--access-key", "AK").status == 2


@pytest.mark.parametrize(
    ("text", "seconds"), [("3d", 259_200), ("12h", 43_200), ("30m", 1800), ("90s", 90), ("90", 90)], ids=str
)
def test_duration(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0d", "-1d", "1w", "d", "1.5h", "1 d"], ids=repr)
def test_wrong_duration_is_wrong_use(text: str) -> None:
    with pytest.raises(CliError) as caught:
        parse_duration(text)
    assert caught.value.status == 2
