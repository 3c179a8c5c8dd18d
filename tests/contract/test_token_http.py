"""The token HTTP API (product.md section 2.3): every call in every form, every code."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from services.auth import app, token_http
from services.auth.domain import tokens
from services.common.settings import SettingsError
from services.common.signature import sign, string_to_sign
from tests.support.auth import AuthService, in_time, running_auth, settings
from tests.support.nats import NatsServer, running_server, unique
from tests.unit.edge.transports.certificates import Authority
from weimq.auth.v1 import auth_pb2, resource_pb2, token_pb2

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

FORMS = ("GET", "urlencoded", "multipart")


@pytest.fixture(scope="module")
def nats_of_module() -> Iterator[str]:
    """Give this module its own server: the buckets have one name only."""
    with running_server() as server:
        yield server.url


class Caller:
    """An application server with an AccessKey."""

    def __init__(self, service: AuthService, instance_id: str, access_key_id: str, secret: str) -> None:
        self.service = service
        self.instance_id = instance_id
        self.access_key_id = access_key_id
        self.secret = secret
        self.url = f"http://127.0.0.1:{service.http_port}"

    def applying(self, **changes: str) -> dict[str, str]:
        """Return the signed parameters of apply."""
        values = {
            "actions": "R,W",
            "resources": "TopicA/+,TopicB/#",
            "expireTime": str(round(time.time() * 1_000) + 3_600_000),
            "serviceName": "mq",
            "instanceId": self.instance_id,
        } | changes
        signed = {name: values[name] for name in ("actions", "expireTime", "instanceId", "resources", "serviceName")}
        return {
            "proxyType": "MQTT",
            "accessKey": self.access_key_id,
            "signature": sign(self.secret, string_to_sign(signed)),
        } | values

    def about(self, token: str) -> dict[str, str]:
        """Return the signed parameters of revoke and query."""
        signature = sign(self.secret, string_to_sign({"token": token}))
        return {"token": token, "accessKey": self.access_key_id, "signature": signature}

    async def call(self, path: str, parameters: dict[str, str], form: str = "GET") -> dict[str, object]:
        """Return the body of an answer, which must be HTTP 200."""
        async with httpx.AsyncClient(base_url=self.url, timeout=30) as client:
            if form == "GET":
                answer = await client.get(f"/token/{path}", params=parameters)
            elif form == "urlencoded":
                answer = await client.post(f"/token/{path}", data=parameters)
            else:
                fields = {name: (None, value.encode()) for name, value in parameters.items()}
                answer = await client.post(f"/token/{path}", files=fields)
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "no-store"
        body = answer.json()
        assert isinstance(body, dict)
        assert set(body) - {"tokenData"} == {"success", "message", "code"}
        assert body["success"] is (body["code"] == 200)
        return body

    async def code(self, path: str, parameters: dict[str, str], form: str = "GET") -> object:
        """Return the code of an answer."""
        return (await self.call(path, parameters, form))["code"]

    async def token(self, **changes: str) -> str:
        """Apply for a token."""
        return str((await self.call("apply", self.applying(**changes)))["tokenData"])


async def make_caller(service: AuthService) -> Caller:
    name = unique("inst-")
    await service.create_instance(name)
    return Caller(service, name, *(await service.create_key(name)))


@pytest_asyncio.fixture
async def caller(nats_of_module: str) -> AsyncGenerator[Caller]:
    async with running_auth(nats_of_module) as service:
        yield await make_caller(service)


@pytest.mark.parametrize("form", FORMS)
async def test_a_token_is_applied_for_queried_and_revoked(caller: Caller, form: str) -> None:
    answer = await caller.call("apply", caller.applying(), form)
    assert (answer["code"], answer["success"]) == (200, True)
    token = str(answer["tokenData"])
    queried = await caller.service.tokens.QueryToken(token_pb2.QueryTokenRequest(token=token))
    assert (queried.code, queried.actions, list(queried.resources)) == (
        0,
        auth_pb2.TOKEN_TYPE_READ_WRITE,
        ["TopicA/+", "TopicB/#"],
    )
    assert await caller.call("query", caller.about(token), form) == {"success": True, "message": "ok", "code": 200}
    assert await caller.code("revoke", caller.about(token), form) == 200
    assert await caller.code("query", caller.about(token), form) == 3
    assert await caller.code("revoke", caller.about(token), form) == 3


async def test_an_expiry_more_than_30_days_ahead_is_cut(caller: Caller) -> None:
    now_ms = round(time.time() * 1_000)
    token = await caller.token(expireTime=str(now_ms + 100 * 86_400_000))
    queried = await caller.service.tokens.QueryToken(token_pb2.QueryTokenRequest(token=token))
    assert abs(queried.expire_time_ms - now_ms - 30 * 86_400_000) < 60_000


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "changes",
    [
        {"expireTime": "1555329600000"},
        {"expireTime": "never"},
        {"actions": "X"},
        {"resources": ""},
        {"resources": ",".join(["TopicA"] * 101)},
        {"resources": "TopicA/#/x"},
        {"proxyType": "HTTP"},
        {"serviceName": "other"},
    ],
)
async def test_400_bad_parameters_of_apply(caller: Caller, changes: dict[str, str], form: str) -> None:
    answer = await caller.call("apply", caller.applying(**changes), form)
    assert (answer["code"], "tokenData" in answer) == (400, False)


@pytest.mark.parametrize("path", ["apply", "revoke", "query"])
@pytest.mark.parametrize("form", FORMS)
async def test_400_without_parameters(caller: Caller, path: str, form: str) -> None:
    assert await caller.code(path, {"unknown": "x"}, form) == 400


async def test_407_bad_signatures(caller: Caller) -> None:
    token = await caller.token()
    stranger = Caller(caller.service, caller.instance_id, caller.access_key_id, "guess")
    unknown = Caller(caller.service, caller.instance_id, "AKguess", caller.secret)
    nowhere = Caller(caller.service, "nowhere", caller.access_key_id, caller.secret)
    answers = [await who.call("apply", who.applying()) for who in (stranger, unknown, nowhere)]
    answers += [await who.call(path, who.about(token)) for who in (stranger, unknown) for path in ("revoke", "query")]
    # Nobody learns whether the id, the instance or the secret is wrong.
    assert {tuple(answer.items()) for answer in answers} == {
        (("success", False), ("message", "the signature is wrong"), ("code", 407))
    }
    changed = caller.applying() | {"resources": "TopicC"}
    assert await caller.code("apply", changed) == 407
    assert await caller.code("query", caller.about(token)) == 200


async def test_who_guesses_signatures_is_not_checked_for_a_while(nats_of_module: str) -> None:
    async with running_auth(nats_of_module, free_failures=2) as service:
        known, caller = await make_caller(service), await make_caller(service)
        token = await known.token()
        stranger = Caller(service, caller.instance_id, caller.access_key_id, "guess")
        for _ in range(3):
            assert await stranger.code("apply", stranger.applying()) == 407
        assert await caller.code("apply", caller.applying()) == 407
        # Who is known from this address goes on, with all calls.
        assert await known.code("query", known.about(token)) == 200

        async def admitted() -> bool:
            return await caller.code("apply", caller.applying()) == 200

        await in_time(admitted, "the address is checked again")


async def test_who_guesses_can_not_claim_another_address(nats_of_module: str) -> None:
    async with running_auth(nats_of_module, free_failures=2) as service:
        caller = await make_caller(service)
        async with httpx.AsyncClient(base_url=caller.url, timeout=30) as client:
            for number in range(3):
                guess = Caller(service, caller.instance_id, f"unknown{number}", "guess").applying()
                headers = {"X-Forwarded-For": f"192.0.2.{number}"}
                assert (await client.get("/token/apply", params=guess, headers=headers)).json()["code"] == 407
        assert await caller.code("apply", caller.applying()) == 407


async def test_1_forged_tokens_and_tokens_of_another_key(caller: Caller) -> None:
    other = Caller(caller.service, caller.instance_id, *(await caller.service.create_key(caller.instance_id)))
    token = await caller.token()
    for path in ("revoke", "query"):
        assert await caller.code(path, caller.about("forged")) == 1
        assert await caller.code(path, caller.about(token[:-8] + "AAAAAAAA")) == 1
        assert await other.code(path, other.about(token)) == 1
    assert await caller.code("query", caller.about(token)) == 200


async def test_2_expired_tokens(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MIN_LIFETIME_MS", -10_000)
    token = await caller.token(expireTime=str(round(time.time() * 1_000) - 1))
    assert await caller.code("query", caller.about(token)) == 2
    assert await caller.code("revoke", caller.about(token)) == 2


async def test_409_could_not_issue(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "sealing_key", lambda *_: None)
    assert await caller.code("apply", caller.applying()) == 409


async def test_409_for_more_than_the_key_may_do(caller: Caller) -> None:
    await caller.service.resources.UpdateAccessKey(
        resource_pb2.UpdateAccessKeyRequest(
            instance_id=caller.instance_id,
            access_key_id=caller.access_key_id,
            permission=resource_pb2.ACCESS_KEY_PERMISSION_SUBSCRIBE,
        )
    )
    assert await caller.code("apply", caller.applying()) == 409
    assert await caller.code("apply", caller.applying(actions="R")) == 200


async def test_410_could_not_revoke(nats_server: NatsServer) -> None:
    async with running_auth(nats_server.url) as service:
        caller = await make_caller(service)
        token = await caller.token()
        await asyncio.to_thread(nats_server.kill)

        async def refused() -> bool:
            return await caller.code("revoke", caller.about(token)) == 410

        await in_time(refused, "revocation is refused while NATS is away")
        assert await caller.code("query", caller.about(token)) == 200


async def test_bodies_are_bounded_in_size_fields_and_time(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    async with httpx.AsyncClient(base_url=caller.url, timeout=30) as client:
        path = "/token/query"
        assert (await client.post(path, data={"token": "x" * token_http.MAX_BODY_BYTES})).status_code == 413
        files = {"token": (None, b"x" * token_http.MAX_BODY_BYTES)}
        assert (await client.post(path, files=files)).status_code == 413
        many = {f"field{number}": "x" for number in range(token_http.MAX_FIELDS + 1)}
        multipart = {name: (None, value.encode()) for name, value in many.items()}
        hostile = [
            await client.post(path, data=many),
            await client.post(path, files=multipart),
            await client.post(path, files={"token": ("file.txt", b"a file")}),
            await client.post(path, json={"token": "x"}),
            await client.post(path, content=b"token=%ff", headers={"content-type": token_http._FORM}),
            await client.post(path, content=b"\xff", headers={"content-type": token_http._FORM}),
            await client.post(path, content=b"--x", headers={"content-type": "multipart/form-data; boundary=x"}),
            await client.post(path, content=b"--x", headers={"content-type": "multipart/form-data"}),
            *[
                await client.post(
                    path,
                    content=b"".join(
                        b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n+2AA-\r\n' % name
                        for name in (b"token", b"accessKey", b"signature")
                    )
                    + b"--x--\r\n",
                    headers={"content-type": f"multipart/form-data; boundary=x; charset={charset}"},
                )
                for charset in ("utf-7", "punycode")  # no text; decoded in a time that grows as its square
            ],
            await client.post(path, content=b"token=x"),
        ]
        assert [(answer.status_code, answer.json()["code"]) for answer in hostile] == [(200, 400)] * len(hostile)
    monkeypatch.setattr(token_http, "BODY_S", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", caller.service.http_port)
    writer.write(
        b"POST /token/query HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        b"Content-Length: 10\r\n\r\n"
    )
    assert b" 408 " in await reader.readline()
    writer.close()


async def test_the_same_over_https(nats_of_module: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("localhost")
    chosen = dataclasses.replace(
        settings(nats_of_module),
        https_listen="127.0.0.1:0",
        https_certificate_file=certificate,
        https_key_file=key,
    )
    trusted = ssl.create_default_context(cafile=str(authority.path))
    async with app.running(chosen, asyncio.Event()) as ports, httpx.AsyncClient(verify=trusted, timeout=30) as client:
        answer = await client.get(f"https://localhost:{ports.https}/token/query")
        assert (answer.status_code, answer.json()["code"]) == (200, 400)


@pytest.mark.parametrize("file", ["", "none.pem", "empty.pem"])
async def test_https_without_usable_files_is_a_wrong_setting(tmp_path: Path, file: str) -> None:
    (tmp_path / "empty.pem").touch()
    path = tmp_path / file if file else None
    chosen = dataclasses.replace(
        settings("nats://127.0.0.1:1"), https_listen="127.0.0.1:0", https_certificate_file=path, https_key_file=path
    )
    with pytest.raises(SettingsError, match="AUTH_HTTPS_CERTIFICATE_FILE"):
        await app.serve(chosen, asyncio.Event())


async def test_other_methods_and_paths(caller: Caller) -> None:
    async with httpx.AsyncClient(base_url=caller.url, timeout=30) as client:
        assert (await client.put("/token/apply")).status_code == 405
        assert (await client.get("/token")).status_code == 404


async def test_the_openapi_document_describes_every_call(caller: Caller) -> None:
    async with httpx.AsyncClient(base_url=caller.url, timeout=30) as client:
        document = (await client.get("/openapi.json")).json()
        assert (await client.get("/docs")).status_code == 200
    assert set(document["paths"]) == {"/token/apply", "/token/revoke", "/token/query"}
    for described in document["paths"].values():
        in_query = {parameter["name"] for parameter in described["get"]["parameters"]}
        forms = described["post"]["requestBody"]["content"]
        assert set(forms) == {"application/x-www-form-urlencoded", "multipart/form-data"}
        for form in forms.values():
            assert set(form["schema"]["properties"]) == in_query
            assert set(form["schema"]["required"]) == in_query
    assert "tokenData" in document["components"]["schemas"]["TokenAnswer"]["properties"]


async def test_no_token_or_signature_is_logged(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    token = await caller.token()
    for path in ("query", "revoke"):
        await caller.call(path, caller.about(token), "urlencoded")
    told = "\n".join(str(record.__dict__) for record in caplog.records if record.name.startswith("services"))
    for secret in (token, caller.secret, caller.about(token)["signature"]):
        assert secret not in told
