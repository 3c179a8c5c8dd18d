"""`weimq.auth.v1.TokenService`, and tokens at `AuthService`: every call, every status, over real gRPC and real NATS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator

import nats
import pytest
import pytest_asyncio
from grpc import StatusCode, aio

from services.auth import bucket, revocation_store
from services.auth.domain import tokens
from services.auth.domain.tokens import MAX_LIFETIME_MS
from services.common import errors
from tests.support.auth import AuthService, in_time, refused, running_auth
from tests.support.nats import NatsServer, running_server, unique
from weimq.auth.v1 import auth_pb2, resource_pb2, token_pb2

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

READ, WRITE, BOTH = auth_pb2.TOKEN_TYPE_READ, auth_pb2.TOKEN_TYPE_WRITE, auth_pb2.TOKEN_TYPE_READ_WRITE


@pytest.fixture(scope="module")
def nats_of_module() -> Iterator[str]:
    """Give this module its own server: the buckets have one name only."""
    with running_server() as server:
        yield server.url


@pytest_asyncio.fixture
async def service(nats_of_module: str) -> AsyncGenerator[AuthService]:
    async with running_auth(nats_of_module) as running:
        yield running


@pytest_asyncio.fixture
async def key(service: AuthService) -> tuple[str, str]:
    """Return an instance with the group GID_mine, and its AccessKey."""
    name = unique("inst-")
    await service.create_instance(name)
    await service.create_group(name, "GID_mine")
    access_key_id, _ = await service.create_key(name)
    return name, access_key_id


async def codes(
    service: AuthService, key: tuple[str, str], *given: str, wanted: auth_pb2.TokenType.ValueType = BOTH
) -> list[int]:
    """Return the codes of tokens that a client brings."""
    checks = [
        auth_pb2.TokenCheck(instance_id=key[0], access_key_id=key[1], type=wanted, token=text, client_id="GID_mine@@@1")
        for text in given
    ]
    return [r.code for r in (await service.auth.CheckTokens(auth_pb2.CheckTokensRequest(tokens=checks))).results]


async def revoke(service: AuthService, *given: str) -> list[int]:
    return list((await service.tokens.RevokeTokens(token_pb2.RevokeTokensRequest(tokens=given))).codes)


async def test_an_issued_token_says_what_it_grants(service: AuthService, key: tuple[str, str]) -> None:
    issued = await service.apply_token(*key, "demo/+", "demo/p2p/#", actions=READ)
    queried = await service.tokens.QueryToken(token_pb2.QueryTokenRequest(token=issued.token))
    assert queried == token_pb2.QueryTokenResponse(
        code=0,
        token_id=issued.token_id,
        instance_id=key[0],
        access_key_id=key[1],
        actions=READ,
        resources=["demo/+", "demo/p2p/#"],
        expire_time_ms=issued.expire_time_ms,
    )
    request = auth_pb2.CheckTokensRequest(
        tokens=[auth_pb2.TokenCheck(instance_id=key[0], access_key_id=key[1], type=READ, token=issued.token)]
    )
    (result,) = (await service.auth.CheckTokens(request)).results
    assert (result.code, result.grant) == (
        0,
        auth_pb2.TokenGrant(
            token_id=issued.token_id,
            type=READ,
            resources=["demo/+", "demo/p2p/#"],
            expire_time_ms=issued.expire_time_ms,
        ),
    )


async def test_more_than_30_days_are_cut(service: AuthService, key: tuple[str, str]) -> None:
    issued = await service.apply_token(*key, "demo", lifetime_s=400 * 86_400)
    assert abs(issued.expire_time_ms - time.time() * 1_000 - MAX_LIFETIME_MS) < 60_000


@pytest.mark.parametrize(
    ("field", "resources", "actions", "lifetime_s"),
    [
        ("resources", [], BOTH, 3_600),
        ("resources", ["demo"] * 101, BOTH, 3_600),
        ("resources", ["demo/#/x"], BOTH, 3_600),
        ("resources", [""], BOTH, 3_600),
        ("resources", ["x" * 12_801], BOTH, 3_600),
        ("actions", ["demo"], auth_pb2.TOKEN_TYPE_UNSPECIFIED, 3_600),
        ("actions", ["demo"], 9, 3_600),
        ("expire_time_ms", ["demo"], BOTH, 55),
        ("expire_time_ms", ["demo"], BOTH, -3_600),
    ],
)
async def test_what_can_not_be_applied_for(
    service: AuthService,
    key: tuple[str, str],
    field: str,
    resources: list[str],
    actions: auth_pb2.TokenType.ValueType,
    lifetime_s: float,
) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, errors.InvalidFieldError, field=field):
        await service.apply_token(*key, *resources, actions=actions, lifetime_s=lifetime_s)


async def test_an_unknown_instance_or_key_gets_no_token(service: AuthService, key: tuple[str, str]) -> None:
    with refused(StatusCode.NOT_FOUND, errors.NotFoundError, resource="instance/nowhere"):
        await service.apply_token("nowhere", key[1], "demo")
    with refused(StatusCode.NOT_FOUND, errors.NotFoundError, resource="accesskey/AKnone"):
        await service.apply_token(key[0], "AKnone", "demo")


@pytest.mark.parametrize(
    ("permission", "actions"),
    [
        (resource_pb2.ACCESS_KEY_PERMISSION_PUBLISH, READ),
        (resource_pb2.ACCESS_KEY_PERMISSION_PUBLISH, BOTH),
        (resource_pb2.ACCESS_KEY_PERMISSION_SUBSCRIBE, WRITE),
    ],
)
async def test_a_token_allows_no_more_than_its_key(
    service: AuthService,
    key: tuple[str, str],
    permission: resource_pb2.AccessKeyPermission.ValueType,
    actions: auth_pb2.TokenType.ValueType,
) -> None:
    request = resource_pb2.UpdateAccessKeyRequest(instance_id=key[0], access_key_id=key[1], permission=permission)
    await service.resources.UpdateAccessKey(request)
    with refused(StatusCode.PERMISSION_DENIED, errors.NotPermittedError, resource=f"accesskey/{key[1]}"):
        await service.apply_token(*key, "demo", actions=actions)


async def test_a_client_gets_in_with_its_tokens(service: AuthService, key: tuple[str, str]) -> None:
    reading = await service.apply_token(*key, "demo/+", actions=READ)
    writing = await service.apply_token(*key, "demo/#", actions=WRITE)

    async def connect(password: str) -> auth_pb2.ConnectResult:
        attempt = auth_pb2.ConnectAttempt(
            client_id="GID_mine@@@1", user_name=f"Token|{key[1]}|{key[0]}", password=password.encode()
        )
        (result,) = (await service.auth.Authenticate(auth_pb2.AuthenticateRequest(attempts=[attempt]))).results
        return result

    result = await connect(f"W|{writing.token}|R|{reading.token}")
    assert (result.outcome, result.token_mode) == (auth_pb2.CONNECT_OUTCOME_ACCEPTED, True)
    assert [(grant.token_id, grant.type, list(grant.resources)) for grant in result.tokens] == [
        (writing.token_id, WRITE, ["demo/#"]),
        (reading.token_id, READ, ["demo/+"]),
    ]
    for password in (f"W|{reading.token}", f"R|{reading.token}|W|forged", "R"):
        result = await connect(password)
        assert (result.outcome, result.token_mode) == (auth_pb2.CONNECT_OUTCOME_BAD_CREDENTIALS, False)
        assert reading.token not in result.reason
    await revoke(service, reading.token)
    assert (await connect(f"W|{writing.token}|R|{reading.token}")).outcome == auth_pb2.CONNECT_OUTCOME_BAD_CREDENTIALS
    assert (await connect(f"W|{writing.token}")).outcome == auth_pb2.CONNECT_OUTCOME_ACCEPTED


async def test_each_code_of_a_check(
    service: AuthService, key: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    valid, other = (await service.apply_token(*key, "demo")).token, await service.create_key(key[0])
    others = (await service.apply_token(key[0], other[0], "demo")).token
    reading = (await service.apply_token(*key, "demo", actions=READ)).token
    revoked = (await service.apply_token(*key, "demo")).token
    monkeypatch.setattr(tokens, "MIN_LIFETIME_MS", -10_000)
    expired = (await service.apply_token(*key, "demo", lifetime_s=-1)).token
    assert await revoke(service, revoked) == [0]
    assert await codes(service, key, valid, "forged", expired, revoked, reading, others) == [0, 1, 2, 3, 5, 8]
    await service.resources.DeleteAccessKey(
        resource_pb2.DeleteAccessKeyRequest(instance_id=key[0], access_key_id=key[1])
    )
    assert await codes(service, key, valid) == [-1]
    # A key that is made again under the same id is another one.
    await service.resources.CreateAccessKey(
        resource_pb2.CreateAccessKeyRequest(instance_id=key[0], access_key_id=key[1])
    )
    assert await codes(service, key, valid) == [-1]


async def test_revocation_is_idempotent_and_tells_forged_and_expired(
    service: AuthService, key: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = [(await service.apply_token(*key, "demo")).token for _ in range(2)]
    monkeypatch.setattr(tokens, "MIN_LIFETIME_MS", -10_000)
    expired = (await service.apply_token(*key, "demo", lifetime_s=-1)).token
    assert await revoke(service, first, "forged", expired) == [0, 1, 2]
    assert await revoke(service, first, second, first) == [0, 0, 0]
    assert (await service.tokens.QueryToken(token_pb2.QueryTokenRequest(token=first))).code == 3


@pytest.mark.parametrize("count", [0, 1_001])
async def test_the_number_of_tokens_to_revoke_is_checked(service: AuthService, count: int) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, errors.InvalidFieldError, field="tokens"):
        await revoke(service, *["x"] * count)


async def test_revocations_reach_watchers_replicas_and_restarts(
    service: AuthService, key: tuple[str, str], nats_of_module: str
) -> None:
    issued = [await service.apply_token(*key, "demo") for _ in range(3)]
    async with running_auth(nats_of_module) as other:
        watch = other.auth.WatchResources(auth_pb2.WatchResourcesRequest())
        while not (await read(watch)).snapshot_complete:
            pass
        begin = time.monotonic()
        await revoke(service, issued[0].token, issued[1].token)
        told: list[str] = []
        while len(told) < 2:
            told.extend((await read(watch)).revoked_token_ids)
        assert time.monotonic() - begin < 5  # milliseconds when nothing else runs
        assert set(told) == {issued[0].token_id, issued[1].token_id}
        watch.cancel()
        assert await codes(other, key, *(one.token for one in issued)) == [3, 3, 0]
    async with running_auth(nats_of_module) as later:
        assert await codes(later, key, *(one.token for one in issued)) == [3, 3, 0]
        watch = later.auth.WatchResources(auth_pb2.WatchResourcesRequest())
        told = []
        while not (message := await read(watch)).snapshot_complete:
            told.extend(message.revoked_token_ids)
        assert {issued[0].token_id, issued[1].token_id} <= set(told)
        watch.cancel()


async def read(
    watch: aio.UnaryStreamCall[auth_pb2.WatchResourcesRequest, auth_pb2.WatchResourcesResponse],
) -> auth_pb2.WatchResourcesResponse:
    async with asyncio.timeout(20):
        message = await watch.read()
    assert isinstance(message, auth_pb2.WatchResourcesResponse)
    return message


async def test_a_mass_revocation_reaches_a_watcher_within_a_second(
    service: AuthService, key: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "VISIBLE_S", 30.0)  # others may take the CPU meanwhile
    issued: list[token_pb2.ApplyTokenResponse] = []
    while len(issued) < 2_000:  # gRPC drops calls of which more than a thousand wait
        issued += await asyncio.gather(*(service.apply_token(*key, "demo") for _ in range(200)))
    watch = service.auth.WatchResources(auth_pb2.WatchResourcesRequest())
    while not (await read(watch)).snapshot_complete:
        pass
    told: set[str] = set()
    begin = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for half in (issued[:1_000], issued[1_000:]):
            group.create_task(revoke(service, *(one.token for one in half)))
        while len(told) < len(issued):
            told.update((await read(watch)).revoked_token_ids)
    assert time.monotonic() - begin < 15  # under a second alone on this machine; leaves room for others
    assert told == {one.token_id for one in issued}
    watch.cancel()


async def test_jetstream_forgets_a_revocation_when_its_token_has_expired(
    service: AuthService, key: tuple[str, str], nats_of_module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MIN_LIFETIME_MS", 0)
    monkeypatch.setattr(revocation_store, "GRACE_S", 0)
    client = await nats.connect(nats_of_module)
    try:
        bucket = await client.jetstream().key_value(revocation_store.BUCKET)
        lifetime_s = 1.5
        issued = await service.apply_token(*key, "demo", lifetime_s=lifetime_s)
        while await revoke(service, issued.token) != [0]:  # it had expired: the machine is busy with something else
            lifetime_s *= 2
            issued = await service.apply_token(*key, "demo", lifetime_s=lifetime_s)

        async def forgotten() -> bool:
            try:
                return issued.token_id not in await bucket.keys()
            except nats.js.errors.NoKeysError:
                return True

        await in_time(forgotten, "JetStream forgets the revocation")
    finally:
        await client.close()

    async def expired() -> bool:  # JetStream counts in seconds; without the grace it may be a moment early
        return (await service.tokens.QueryToken(token_pb2.QueryTokenRequest(token=issued.token))).code == 2

    await in_time(expired, "the token has expired, too")


async def test_tokens_of_an_older_key_stay_valid(
    service: AuthService, key: tuple[str, str], nats_of_module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (await service.apply_token(*key, "demo")).token
    rotated = await service.tokens.RotateTokenKey(token_pb2.RotateTokenKeyRequest())
    assert rotated.token_keys[-1] == rotated.token_key
    assert len(rotated.token_keys) >= 2
    monkeypatch.setattr(tokens, "KEY_SETTLING_MS", 0)
    after = (await service.apply_token(*key, "demo")).token
    assert before[:7] != after[:7], "the new key did not seal"
    async with running_auth(nats_of_module) as other:
        assert await codes(other, key, before, after) == [0, 0]


async def test_the_number_of_token_keys_is_bounded(service: AuthService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_KEYS", 1)
    with refused(StatusCode.INVALID_ARGUMENT, errors.InvalidFieldError, field="token_keys"):
        await service.tokens.RotateTokenKey(token_pb2.RotateTokenKeyRequest())


async def test_without_nats_tokens_are_issued_and_checked_but_not_revoked(nats_server: NatsServer) -> None:
    async with running_auth(nats_server.url) as service:
        await service.create_instance("one")
        await service.create_group("one", "GID_mine")
        key = ("one", (await service.create_key("one"))[0])
        await asyncio.to_thread(nats_server.kill)
        issued = await service.apply_token(*key, "demo")
        assert await codes(service, key, issued.token) == [0]

        async def is_refused() -> bool:
            try:
                await revoke(service, issued.token)
            except aio.AioRpcError as error:
                return error.code() is StatusCode.UNAVAILABLE
            return False

        await in_time(is_refused, "revocation is refused while NATS is away")
        await asyncio.to_thread(nats_server.start)

        async def is_revoked() -> bool:
            try:
                return await revoke(service, issued.token) == [0]
            except aio.AioRpcError:
                return False

        await in_time(is_revoked, "revocation works when NATS is back")
        assert await codes(service, key, issued.token) == [3]
