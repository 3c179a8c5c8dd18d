"""`weimq.auth.v1.DeviceService`, and device credentials at `AuthService`, over real gRPC and real NATS."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator

import nats
import pytest
import pytest_asyncio
from grpc import StatusCode, aio

from services.auth import bucket, device_servicer
from services.auth.device_store import BUCKET
from services.common import errors
from services.common.settings import Secret
from services.common.signature import sign
from tests.support.auth import AuthService, in_time, refused, running_auth
from tests.support.nats import NatsServer, running_server, unique
from weimq.auth.v1 import auth_pb2, device_pb2, resource_pb2

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

REGISTERED, EXISTS = device_pb2.REGISTER_OUTCOME_REGISTERED, device_pb2.REGISTER_OUTCOME_EXISTS


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
async def instance(service: AuthService) -> str:
    name = unique("inst-")
    await service.create_instance(name)
    await service.create_group(name, "GID_mine", "mine")
    return name


async def register(service: AuthService, instance_id: str, *client_ids: str) -> list[device_pb2.DeviceRegistration]:
    request = device_pb2.RegisterDeviceCredentialsRequest(instance_id=instance_id, client_ids=client_ids)
    return list((await service.devices.RegisterDeviceCredentials(request)).registrations)


async def outcome(service: AuthService, instance_id: str, client_id: str, credential_id: str, secret: str) -> int:
    attempt = auth_pb2.ConnectAttempt(
        client_id=client_id,
        user_name=f"DeviceCredential|{credential_id}|{instance_id}",
        password=sign(secret, client_id).encode(),
    )
    (result,) = (await service.auth.Authenticate(auth_pb2.AuthenticateRequest(attempts=[attempt]))).results
    assert (result.device_credential_id == credential_id) is (result.outcome == auth_pb2.CONNECT_OUTCOME_ACCEPTED)
    return result.outcome


async def invalid_ids(service: AuthService, *credential_ids: str) -> list[str]:
    request = auth_pb2.CheckDeviceCredentialsRequest(device_credential_ids=credential_ids)
    return list((await service.auth.CheckDeviceCredentials(request)).removed_device_credential_ids)


async def test_a_registered_device_gets_in_with_its_own_secret(service: AuthService, instance: str) -> None:
    one, two = await register(service, instance, "GID_mine@@@1", "GID_mine@@@2")
    assert (one.outcome, two.outcome) == (REGISTERED, REGISTERED)
    assert one.secret != two.secret
    ids = [one.device_credential.device_credential_id, two.device_credential.device_credential_id]
    accepted, bad = auth_pb2.CONNECT_OUTCOME_ACCEPTED, auth_pb2.CONNECT_OUTCOME_BAD_CREDENTIALS
    assert await outcome(service, instance, "GID_mine@@@1", ids[0], one.secret) == accepted
    assert await outcome(service, instance, "GID_mine@@@2", ids[1], two.secret) == accepted
    assert await outcome(service, instance, "GID_mine@@@1", ids[0], two.secret) == bad
    assert await outcome(service, instance, "GID_mine@@@2", ids[0], one.secret) == bad
    assert await invalid_ids(service, *ids, "DCnone") == ["DCnone"]


async def test_each_outcome_of_a_registration(service: AuthService, instance: str) -> None:
    (first,) = await register(service, instance, "GID_mine@@@1")
    again = await register(service, instance, "GID_mine@@@1", "GID_none@@@1", "device", "GID_mine@@@2", "GID_mine@@@2")
    assert [one.outcome for one in again] == [
        EXISTS,
        device_pb2.REGISTER_OUTCOME_GROUP_NOT_FOUND,
        device_pb2.REGISTER_OUTCOME_CLIENT_ID_REJECTED,
        REGISTERED,
        REGISTERED,
    ]
    assert [one.device_credential.client_id for one in again] == [
        "GID_mine@@@1",
        "GID_none@@@1",
        "device",
        "GID_mine@@@2",
        "GID_mine@@@2",
    ]
    assert again[0] == device_pb2.DeviceRegistration(outcome=EXISTS, device_credential=first.device_credential)
    assert again[3] == again[4]


async def test_a_standard_instance_takes_any_client_id(service: AuthService) -> None:
    name = unique("std-")
    await service.create_instance(name, auth_pb2.PROFILE_STANDARD)
    odd = "sensor/7 #+ é"
    one, empty, long = await register(service, name, odd, "", "x" * 257)
    assert empty.outcome == long.outcome == device_pb2.REGISTER_OUTCOME_CLIENT_ID_REJECTED
    credential_id = one.device_credential.device_credential_id
    assert await outcome(service, name, odd, credential_id, one.secret) == auth_pb2.CONNECT_OUTCOME_ACCEPTED


@pytest.mark.parametrize("count", [0, 1_001])
async def test_the_number_of_registrations_is_checked(service: AuthService, instance: str, count: int) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, errors.InvalidFieldError, field="client_ids"):
        await register(service, instance, *["GID_mine@@@1"] * count)


async def test_every_call_needs_an_instance(service: AuthService) -> None:
    calls: list[Awaitable[object]] = [
        service.devices.RegisterDeviceCredentials(
            device_pb2.RegisterDeviceCredentialsRequest(instance_id="nowhere", client_ids=["x"])
        ),
        service.devices.RefreshDeviceCredential(device_pb2.RefreshDeviceCredentialRequest(instance_id="nowhere")),
        service.devices.RevokeDeviceCredential(device_pb2.RevokeDeviceCredentialRequest(instance_id="nowhere")),
        service.devices.GetDeviceCredential(device_pb2.GetDeviceCredentialRequest(instance_id="nowhere")),
        service.devices.ListDeviceCredentials(device_pb2.ListDeviceCredentialsRequest(instance_id="nowhere")),
    ]
    for call in calls:
        with refused(StatusCode.NOT_FOUND, errors.NotFoundError, resource="instance/nowhere"):
            await call
    with refused(StatusCode.INVALID_ARGUMENT, errors.InvalidFieldError, field="instance_id"):
        await register(service, "no instance", "x")


async def test_a_client_without_a_credential_is_not_found(service: AuthService, instance: str) -> None:
    names = {"instance_id": instance, "client_id": "GID_mine@@@none"}
    calls: list[Awaitable[object]] = [
        service.devices.RefreshDeviceCredential(device_pb2.RefreshDeviceCredentialRequest(**names)),
        service.devices.RevokeDeviceCredential(device_pb2.RevokeDeviceCredentialRequest(**names)),
        service.devices.GetDeviceCredential(device_pb2.GetDeviceCredentialRequest(**names)),
    ]
    for call in calls:
        with refused(StatusCode.NOT_FOUND, errors.NotFoundError, resource="device/GID_mine@@@none"):
            await call


async def test_refresh_and_revocation_are_told_to_edges(
    service: AuthService, instance: str, nats_of_module: str
) -> None:
    names = {"instance_id": instance, "client_id": "GID_mine@@@1"}
    (made,) = await register(service, instance, "GID_mine@@@1")
    first = made.device_credential.device_credential_id
    async with running_auth(nats_of_module) as other:
        watch = other.auth.WatchResources(auth_pb2.WatchResourcesRequest())

        async def read() -> auth_pb2.WatchResourcesResponse:
            async with asyncio.timeout(20):
                message = await watch.read()
            assert isinstance(message, auth_pb2.WatchResourcesResponse)
            return message

        async def removed() -> list[str]:
            while True:
                if ids := (await read()).removed_device_credential_ids:
                    return list(ids)

        while not (message := await read()).snapshot_complete:
            assert not message.removed_device_credential_ids
        refreshed = await service.devices.RefreshDeviceCredential(device_pb2.RefreshDeviceCredentialRequest(**names))
        second = refreshed.device_credential.device_credential_id
        assert await removed() == [first]
        assert await outcome(other, instance, "GID_mine@@@1", first, made.secret) == 3
        assert await outcome(other, instance, "GID_mine@@@1", second, refreshed.secret) == 1
        begin = time.monotonic()
        await service.devices.RevokeDeviceCredential(device_pb2.RevokeDeviceCredentialRequest(**names))
        assert await removed() == [second]
        assert time.monotonic() - begin < 5  # milliseconds when nothing else runs
        assert await outcome(other, instance, "GID_mine@@@1", second, refreshed.secret) == 3
        assert await invalid_ids(other, first, second) == [first, second]
        watch.cancel()


async def test_lists_come_in_pages_without_secrets(service: AuthService, instance: str) -> None:
    await service.create_group(instance, "GID_other")
    await register(service, instance, *(f"GID_mine@@@{number}" for number in range(5)), "GID_other@@@1")

    async def page(size: int, token: str = "", group: str = "GID_mine") -> device_pb2.ListDeviceCredentialsResponse:
        request = device_pb2.ListDeviceCredentialsRequest(
            instance_id=instance, group_id=group, page_size=size, page_token=token
        )
        return await service.devices.ListDeviceCredentials(request)

    found: list[str] = []
    token = ""
    for _ in range(3):
        answer = await page(2, token)
        found += [one.client_id for one in answer.device_credentials]
        token = answer.next_page_token
        assert answer.total_size == 6
    assert (found, token) == ([f"GID_mine@@@{number}" for number in range(5)], "")
    assert len((await page(0, group="")).device_credentials) == 6
    for size in (-1, 1_001):
        with refused(StatusCode.INVALID_ARGUMENT, errors.InvalidFieldError, field="page_size"):
            await page(size)
    request = device_pb2.GetDeviceCredentialRequest(instance_id=instance, client_id="GID_mine@@@0")
    shown = (await service.devices.GetDeviceCredential(request)).device_credential
    assert shown == (await page(1)).device_credentials[0]
    assert "secret" not in device_pb2.DeviceCredential.DESCRIPTOR.fields_by_name


async def test_a_group_that_is_gone_lets_its_devices_in_no_more(service: AuthService, instance: str) -> None:
    (made,) = await register(service, instance, "GID_mine@@@1")
    await service.resources.DeleteGroup(resource_pb2.DeleteGroupRequest(instance_id=instance, group_id="GID_mine"))
    credential_id = made.device_credential.device_credential_id
    bad = auth_pb2.CONNECT_OUTCOME_BAD_CREDENTIALS
    assert await outcome(service, instance, "GID_mine@@@1", credential_id, made.secret) == bad
    await service.create_group(instance, "GID_mine", "yours")
    assert await outcome(service, instance, "GID_mine@@@1", credential_id, made.secret) == bad


async def test_what_a_crash_left_of_a_deleted_group_stays_dead(
    service: AuthService, instance: str, nats_of_module: str
) -> None:
    (made,) = await register(service, instance, "GID_mine@@@1")
    client = await nats.connect(nats_of_module)
    await (await client.jetstream().key_value("resources")).purge(f"group.{instance}.GID_mine")
    await client.close()
    credential_id = made.device_credential.device_credential_id

    async def is_dead() -> bool:
        answer = await outcome(service, instance, "GID_mine@@@1", credential_id, made.secret)
        return answer == auth_pb2.CONNECT_OUTCOME_NOT_AUTHORIZED

    await in_time(is_dead, "the device is refused without its group")
    await service.create_group(instance, "GID_mine", "yours")
    answer = await outcome(service, instance, "GID_mine@@@1", credential_id, made.secret)
    assert answer == auth_pb2.CONNECT_OUTCOME_BAD_CREDENTIALS


async def test_creating_a_group_twice_costs_its_devices_nothing(service: AuthService, instance: str) -> None:
    (made,) = await register(service, instance, "GID_mine@@@1")
    with refused(StatusCode.ALREADY_EXISTS, errors.AlreadyExistsError, resource="group/GID_mine"):
        await service.create_group(instance, "GID_mine")
    credential_id = made.device_credential.device_credential_id
    assert await outcome(service, instance, "GID_mine@@@1", credential_id, made.secret) == 1


async def test_devices_go_with_their_instance(service: AuthService) -> None:
    name = unique("std-")
    await service.create_instance(name, auth_pb2.PROFILE_STANDARD)
    made = await register(service, name, *(f"device{number}" for number in range(10)))
    with refused(StatusCode.FAILED_PRECONDITION, errors.InUseError, resource=f"instance/{name}"):
        await service.resources.DeleteInstance(resource_pb2.DeleteInstanceRequest(instance_id=name))
    await service.resources.DeleteInstance(resource_pb2.DeleteInstanceRequest(instance_id=name, force=True))
    ids = [one.device_credential.device_credential_id for one in made]
    assert await invalid_ids(service, *ids) == ids
    await service.create_instance(name, auth_pb2.PROFILE_STANDARD)
    assert await outcome(service, name, "device1", ids[1], made[1].secret) == auth_pb2.CONNECT_OUTCOME_BAD_CREDENTIALS


async def test_the_number_of_ids_to_check_is_bounded(service: AuthService) -> None:
    assert await invalid_ids(service) == []
    with refused(StatusCode.INVALID_ARGUMENT, errors.InvalidFieldError, field="device_credential_ids"):
        await invalid_ids(service, *["x"] * 10_001)


async def test_secrets_are_stored_sealed_and_survive_a_restart(
    service: AuthService, instance: str, nats_of_module: str
) -> None:
    (made,) = await register(service, instance, "GID_mine@@@1")
    client = await nats.connect(nats_of_module)
    stored = await (await client.jetstream().key_value(BUCKET)).get(f"{instance}.GID_mine=40=40=401")
    await client.close()
    assert made.secret.encode() not in (stored.value or b"")
    credential_id = made.device_credential.device_credential_id
    async with running_auth(nats_of_module) as later:
        assert await outcome(later, instance, "GID_mine@@@1", credential_id, made.secret) == 1
    other_key = Secret(base64.b64encode(bytes(32)).decode())
    async with running_auth(nats_of_module, master_key=other_key) as later:
        assert await outcome(later, instance, "GID_mine@@@1", credential_id, made.secret) == 3


async def test_thousands_are_registered_at_once(
    service: AuthService, instance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "VISIBLE_S", 30.0)  # others may take the CPU meanwhile
    count = device_servicer.MAX_REGISTRATIONS
    begin = time.monotonic()
    made = await register(service, instance, *(f"GID_mine@@@{number}" for number in range(count)))
    assert {one.outcome for one in made} == {REGISTERED}
    assert len({one.device_credential.device_credential_id for one in made}) == count
    assert time.monotonic() - begin < 30  # about one when nothing else runs


async def test_nothing_changes_while_nats_is_away(nats_server: NatsServer) -> None:
    async with running_auth(nats_server.url) as service:
        await service.create_instance("one", auth_pb2.PROFILE_STANDARD)
        (made,) = await register(service, "one", "device")
        await asyncio.to_thread(nats_server.kill)

        async def is_refused() -> bool:
            try:
                await register(service, "one", "other")
            except aio.AioRpcError as error:
                return error.code() is StatusCode.UNAVAILABLE
            return False

        await in_time(is_refused, "registration is refused while NATS is away")
        credential_id = made.device_credential.device_credential_id
        assert await outcome(service, "one", "device", credential_id, made.secret) == 1
