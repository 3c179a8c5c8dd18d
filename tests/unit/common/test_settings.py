"""Settings come from the environment, with every fault reported."""

from __future__ import annotations

import base64
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from services.auth.settings import AuthSettings
from services.cli import mesh
from services.cli.ports import plan_ports
from services.cli.secrets import DataDir
from services.common.settings import NOT_OF_SERVICES, CommonSettings, Secret, SettingsError, load, setting
from services.edge.settings import EdgeSettings
from services.router.settings import RouterSettings
from services.session.settings import SessionSettings
from services.status.settings import StatusSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShopSettings(CommonSettings):
    """Settings of a service that does not exist."""

    name: str = setting(text="Name.")
    port: int = setting(80, text="Port.", minimum=1, maximum=65535)
    ratio: float = setting(0.5, text="Ratio.")
    is_open: bool = setting(False, text="Open.")
    listen: tuple[str, ...] = setting(("a",), text="Addresses.")
    key: Secret | None = setting(None, text="Key.")


REQUIRED = {"WEIMQ_CLUSTER_TOKEN": "0123456789abcdef", "SHOP_NAME": "corner"}


def test_values_have_the_type_of_their_field() -> None:
    loaded = load(
        ShopSettings,
        {**REQUIRED, "SHOP_PORT": "81", "SHOP_RATIO": "2", "SHOP_IS_OPEN": "yes", "SHOP_LISTEN": "x:1, unix:/y"},
    )
    assert (loaded.name, loaded.port, loaded.ratio, loaded.is_open) == ("corner", 81, 2.0, True)
    assert loaded.listen == ("x:1", "unix:/y")
    assert loaded.cluster_token.reveal() == "0123456789abcdef"
    assert loaded.key is None


def test_secrets_come_from_files_and_are_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("a secret of the right length\n")
    loaded = load(ShopSettings, {"SHOP_NAME": "x", "WEIMQ_CLUSTER_TOKEN_FILE": str(path), "SHOP_KEY": "hidden"})
    assert loaded.cluster_token.reveal() == "a secret of the right length"
    assert loaded.key is not None
    assert loaded.key.reveal() == "hidden"
    assert "secret of" not in repr(loaded)
    assert "hidden" not in repr(loaded)


def test_all_faults_are_reported_together() -> None:
    with pytest.raises(SettingsError) as caught:
        load(
            ShopSettings,
            {
                "WEIMQ_CLUSTER_TOKEN": "short",
                "WEIMQ_LOG_LEVEL": "LOUD",
                "SHOP_PORT": "0",
                "SHOP_RATIO": "much",
                "SHOP_IS_OPEN": "perhaps",
                "SHOP_KEY_FILE": "/nonexistent/file",
                "SHOP_PROT": "81",
                "OTHER": "ignored",
            },
        )
    named = {fault.split(":")[0].split(" ")[0] for fault in caught.value.faults}
    assert named == {
        "WEIMQ_CLUSTER_TOKEN", "WEIMQ_LOG_LEVEL", "SHOP_NAME", "SHOP_PORT", "SHOP_RATIO", "SHOP_IS_OPEN",
        "SHOP_KEY_FILE", "SHOP_PROT",
    }  # fmt: skip
    assert "short" not in str(caught.value)


SERVICES: tuple[type[CommonSettings], ...] = (
    AuthSettings,
    RouterSettings,
    SessionSettings,
    StatusSettings,
    EdgeSettings,
)
KEY = base64.b64encode(bytes(32)).decode()
GOOD = {
    "WEIMQ_CLUSTER_TOKEN": "0123456789abcdef",
    "AUTH_NATS_URL": "nats://weimq:pass@127.0.0.1:4222",
    "AUTH_MASTER_KEY": KEY,
    "ROUTER_NATS_URL": "nats://a:1,tls://b",
    "SESSION_NATS_URL": "nats://[::1]:4222",
    "EDGE_ID": "edge-0",
}
"""What the services require."""


def faults(form: type[CommonSettings], **changed: str) -> list[str]:
    try:
        load(form, {**GOOD, **changed})
    except SettingsError as error:
        return error.faults
    return []


LISTENS = (
    "foo",
    "host:",
    ":80",
    "host:99999",
    "host:-1",
    "host:\u0663",
    "::1:80",
    "[::1:80",
    "[x]:80",
    "a b:80",
    "a:80,b:81",
)
GRPC_LISTENS = ("", " , ", "foo", "127.0.0.1:1,foo", "h:99999", "unix:relative", "unix:/", "unix:/" + "x" * 107)
PEERS = (
    "",
    "foo",
    "host:0",
    "host:65536",
    "dns:///host",
    "dns://1.1.1.1/host:80",
    "http://host:80",
    "unix:x",
    "a:1,b:2",
)
PEER_LISTS = (*(peer for peer in PEERS if "," not in peer), ",", "a:1,b", "a:1,a:1")
NATS_URLS = (
    "", "foo://x", "x:4222", "nats://", "nats://user:hidden@", "nats://h:0", "nats://h:99999", "nats://u:hid/den@h:1",
    "nats://a:1, nats://b:1", "nats://a:1,", "nats://a:1,ws://b:1", "nats://a\n:1",
)  # fmt: skip
KEYS = ("", "xx", KEY[:-4], KEY + KEY, KEY + "\n", "é" * 44)
TOKENS = ("", "short", "0123456789abcdé", "0123456789abcdefé", "0123456789\nabcdef", " 0123456789abcdef", "x" * 1025)
WRONG: tuple[tuple[type[CommonSettings], str, tuple[str, ...]], ...] = (
    (AuthSettings, "AUTH_NATS_URL", NATS_URLS),
    (RouterSettings, "ROUTER_NATS_URL", NATS_URLS),
    (SessionSettings, "SESSION_NATS_URL", NATS_URLS),
    (AuthSettings, "AUTH_GRPC_LISTEN", GRPC_LISTENS),
    (RouterSettings, "ROUTER_GRPC_LISTEN", GRPC_LISTENS),
    (SessionSettings, "SESSION_GRPC_LISTEN", GRPC_LISTENS),
    (StatusSettings, "STATUS_GRPC_LISTEN", GRPC_LISTENS),
    (EdgeSettings, "EDGE_GRPC_LISTEN", GRPC_LISTENS),
    (AuthSettings, "AUTH_HTTP_LISTEN", ("", *LISTENS)),
    (StatusSettings, "STATUS_HTTP_LISTEN", ("", "unix:/x", *LISTENS)),
    (EdgeSettings, "EDGE_TCP_LISTEN", LISTENS),
    (EdgeSettings, "EDGE_TLS_LISTEN", LISTENS),
    (EdgeSettings, "EDGE_WS_LISTEN", LISTENS),
    (EdgeSettings, "EDGE_WSS_LISTEN", LISTENS),
    (EdgeSettings, "EDGE_FLASH_POLICY_LISTEN", LISTENS),
    (SessionSettings, "SESSION_ROUTER", PEER_LISTS),
    (StatusSettings, "STATUS_AUTH", PEERS),
    (StatusSettings, "STATUS_SESSION", PEER_LISTS),
    (EdgeSettings, "EDGE_AUTH", PEERS),
    (EdgeSettings, "EDGE_SESSION", PEER_LISTS),
    (EdgeSettings, "EDGE_ROUTER", PEER_LISTS),
    (EdgeSettings, "EDGE_ID", ("", "a/b", "a b", "é", "a\n", "x" * 129)),
    (EdgeSettings, "EDGE_TLS_CLIENT_CERTIFICATES", ("", "maybe")),
    (EdgeSettings, "EDGE_CONNECT_TIMEOUT_S", ("nan", "inf", "-inf", "1e999", "much")),
    (EdgeSettings, "EDGE_MAX_INFLIGHT", ("nan", "1.5", "9" * 400)),
    (RouterSettings, "ROUTER_EDGE_GRACE_S", ("nan", "inf")),
    (AuthSettings, "AUTH_MASTER_KEY", KEYS),
    (AuthSettings, "AUTH_BOOTSTRAP_FILE", ("",)),
    *((form, "WEIMQ_CLUSTER_TOKEN", TOKENS) for form in SERVICES),
    *((form, "WEIMQ_LOG_LEVEL", ("", "LOUD")) for form in SERVICES),
    *((form, "WEIMQ_DRAIN_S", ("nan", "inf", "-1")) for form in SERVICES),
    *((form, "WEIMQ_DRAINS", ("5",)) for form in SERVICES),
)


@pytest.mark.parametrize(("form", "name", "values"), WRONG, ids=[f"{form.__name__}-{name}" for form, name, _ in WRONG])
def test_value_that_can_never_work_is_a_fault_of_its_variable(
    form: type[CommonSettings], name: str, values: tuple[str, ...]
) -> None:
    for value in values:
        found = faults(form, **{name: value})
        assert len(found) == 1, value
        assert found[0].startswith(name), value
        assert "hid" not in found[0]


@pytest.mark.parametrize("form", SERVICES)
def test_defaults_pass_their_own_checks(form: type[CommonSettings]) -> None:
    assert faults(form) == []
    for field in dataclasses.fields(form):
        if field.metadata["check"] and field.default is not dataclasses.MISSING:
            field.metadata["check"](field.default)


@pytest.mark.parametrize(
    ("form", "name", "value"),
    [
        (AuthSettings, "AUTH_GRPC_LISTEN", "0.0.0.0:0, unix:/tmp/auth.sock,[::]:65535,my_host.example:1"),
        (StatusSettings, "STATUS_AUTH", "dns:///auth.weimq.svc:7001"),
        (StatusSettings, "STATUS_SESSION", "unix:/run/session.sock"),
        (EdgeSettings, "EDGE_AUTH", "[fe80::1%eth0]:7001"),
        (EdgeSettings, "EDGE_TCP_LISTEN", ""),
        (EdgeSettings, "EDGE_TLS_LISTEN", "[::]:8883"),
        (EdgeSettings, "EDGE_ID", "x" * 128),
        (EdgeSettings, "WEIMQ_CLUSTER_TOKEN", "a token with spaces ~!"),
        *((EdgeSettings, name, "any") for name in sorted(NOT_OF_SERVICES)),
    ],
)
def test_value_that_may_work_is_taken(form: type[CommonSettings], name: str, value: str) -> None:
    assert faults(form, **{name: value}) == []


def test_services_take_what_weimq_up_gives_them(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    data.initialize()
    data.nats_url.write_text("nats://weimq:x@127.0.0.1:4222\n")
    planned = mesh.plan(
        data=data,
        ports=plan_ports(20000, 2),
        sockets=Path("/tmp/weimq"),
        nats_server="/bin/nats-server",
        default_instance="one",
    )
    forms = {form.__name__.removesuffix("Settings").lower(): form for form in SERVICES}
    loaded = {
        process.name: load(forms[process.name.split("-")[0]], process.environ)
        for process in planned.processes
        if process.name not in {"backends", "nats"}
    }
    assert loaded.keys() == {"auth", "session", "router", "status", "edge-0", "edge-1"}


def test_secret_file_that_is_not_text_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"\xff" * 32)
    with pytest.raises(SettingsError) as caught:
        load(ShopSettings, {**REQUIRED, "SHOP_KEY_FILE": str(path)})
    assert caught.value.faults == [f"SHOP_KEY_FILE: {path} is not text in UTF-8"]


@pytest.mark.parametrize(
    ("service", "wrong"),
    [
        ("auth", {"AUTH_MASTER_KEY": "xx", "AUTH_HTTP_LISTEN": "abc"}),
        ("router", {"ROUTER_NATS_URL": "foo://x", "ROUTER_GRPC_LISTEN": ""}),
        ("session", {"SESSION_NATS_URL": "", "WEIMQ_DRAINS": "5"}),
        ("status", {"STATUS_HTTP_LISTEN": "abc", "STATUS_AUTH": "abc"}),
        ("edge", {"EDGE_ID": "a/b", "EDGE_TCP_LISTEN": "foo"}),
    ],
)
def test_wrong_settings_end_the_start_with_status_78(service: str, wrong: dict[str, str]) -> None:
    given = {name: value for name, value in GOOD.items() if name.startswith((service.upper(), "WEIMQ_"))}
    ended = subprocess.run(
        [sys.executable, "-m", f"services.{service}"],
        env={"PYTHONPATH": ":".join(sys.path), **given, **wrong},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 78, ended.stderr
    for name in wrong:
        assert name in ended.stderr
