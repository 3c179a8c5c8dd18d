"""`weimq.auth.v1.DeviceService`: checks requests and hands them to `DeviceStore`."""

from __future__ import annotations

from typing import Any

from grpc import aio
from typing_extensions import override

from services.auth.device_store import DeviceStore, missing
from services.auth.domain import names
from services.auth.domain.devices import DeviceCredential
from services.auth.domain.records import Instance, Profile
from services.auth.domain.view import View
from services.auth.gate import Gate
from services.common.errors import InvalidFieldError, NotFoundError
from weimq.auth.v1 import device_pb2, device_pb2_grpc

MAX_REGISTRATIONS = 1_000
MAX_PAGE = 1_000
DEFAULT_PAGE = 100
MAX_CLIENT_ID_BYTES = 256
"""Of a `standard` instance, where MQTT allows more; it is part of a NATS subject here."""

Context = aio.ServicerContext[Any, Any]


class DeviceServicer(device_pb2_grpc.DeviceServiceServicer):
    """Answers operators, application servers and the command line."""

    def __init__(self, *, view: View, gate: Gate) -> None:
        self._view = view
        self._gate = gate
        self.store: DeviceStore | None = None
        """Set before the gate opens: it needs NATS, which connects after the server has started."""

    @property
    def _store(self) -> DeviceStore:
        self._gate.check()
        if self.store is None:
            raise AssertionError("the gate opened before there was a store")
        return self.store

    @override
    async def RegisterDeviceCredentials(
        self, request: device_pb2.RegisterDeviceCredentialsRequest, context: Context
    ) -> device_pb2.RegisterDeviceCredentialsResponse:
        store = self._store
        instance = self._instance(request.instance_id)
        if not 1 <= len(request.client_ids) <= MAX_REGISTRATIONS:
            raise InvalidFieldError(f"client_ids must be 1 to {MAX_REGISTRATIONS}", field="client_ids")
        refused = {client_id: self._refusal(instance, client_id) for client_id in request.client_ids}
        # A client that is named twice gets one credential.
        wanted = [client_id for client_id, refusal in refused.items() if refusal is None]
        registered = dict(zip(wanted, await store.register(request.instance_id, wanted), strict=True))
        return device_pb2.RegisterDeviceCredentialsResponse(
            registrations=[
                _registration(*registered[client_id])
                if (refusal := refused[client_id]) is None
                else device_pb2.DeviceRegistration(
                    outcome=refusal,
                    device_credential=device_pb2.DeviceCredential(instance_id=request.instance_id, client_id=client_id),
                )
                for client_id in request.client_ids
            ]
        )

    @override
    async def RefreshDeviceCredential(
        self, request: device_pb2.RefreshDeviceCredentialRequest, context: Context
    ) -> device_pb2.RefreshDeviceCredentialResponse:
        store = self._store
        self._instance(request.instance_id)
        credential = await store.refresh(request.instance_id, request.client_id)
        return device_pb2.RefreshDeviceCredentialResponse(
            device_credential=_message(credential), secret=credential.secret or ""
        )

    @override
    async def RevokeDeviceCredential(
        self, request: device_pb2.RevokeDeviceCredentialRequest, context: Context
    ) -> device_pb2.RevokeDeviceCredentialResponse:
        store = self._store
        self._instance(request.instance_id)
        await store.revoke(request.instance_id, request.client_id)
        return device_pb2.RevokeDeviceCredentialResponse()

    @override
    async def GetDeviceCredential(
        self, request: device_pb2.GetDeviceCredentialRequest, context: Context
    ) -> device_pb2.GetDeviceCredentialResponse:
        self._gate.check()
        self._instance(request.instance_id)
        credential = self._view.devices.of_client(request.instance_id, request.client_id)
        if credential is None:
            raise missing(request.client_id)
        return device_pb2.GetDeviceCredentialResponse(device_credential=_message(credential))

    @override
    async def ListDeviceCredentials(
        self, request: device_pb2.ListDeviceCredentialsRequest, context: Context
    ) -> device_pb2.ListDeviceCredentialsResponse:
        self._gate.check()
        self._instance(request.instance_id)
        if not 0 <= request.page_size <= MAX_PAGE:
            raise InvalidFieldError(f"page_size must be 0 ({DEFAULT_PAGE}) to {MAX_PAGE}", field="page_size")
        size = request.page_size or DEFAULT_PAGE
        prefix = f"{request.group_id}{names.SEPARATOR}" if request.group_id else ""
        # One more than asked for tells whether there is another page.
        found = self._view.devices.page(request.instance_id, prefix, request.page_token, size + 1)
        return device_pb2.ListDeviceCredentialsResponse(
            device_credentials=map(_message, found[:size]),
            next_page_token=found[size - 1].client_id if len(found) > size else "",
            total_size=len(self._view.devices.of_instance(request.instance_id)),
        )

    def _instance(self, instance_id: str) -> Instance:
        if fault := names.instance_id_fault(instance_id):
            raise InvalidFieldError(f"instance_id {fault}", field="instance_id")
        instance = self._view.resources.instance(instance_id)
        if instance is None:
            raise NotFoundError(f"instance/{instance_id} does not exist", resource=f"instance/{instance_id}")
        return instance

    def _refusal(self, instance: Instance, client_id: str) -> device_pb2.RegisterOutcome.ValueType | None:
        if instance.profile is Profile.STANDARD:
            is_right = 0 < len(client_id.encode()) <= MAX_CLIENT_ID_BYTES
            return None if is_right else device_pb2.REGISTER_OUTCOME_CLIENT_ID_REJECTED
        if names.client_id_fault(client_id) is not None:
            return device_pb2.REGISTER_OUTCOME_CLIENT_ID_REJECTED
        if self._view.resources.group(instance.instance_id, names.group_of(client_id)) is None:
            return device_pb2.REGISTER_OUTCOME_GROUP_NOT_FOUND
        return None


def _registration(credential: DeviceCredential, is_new: bool) -> device_pb2.DeviceRegistration:  # noqa: FBT001 - a pair
    if not is_new:
        return device_pb2.DeviceRegistration(
            outcome=device_pb2.REGISTER_OUTCOME_EXISTS, device_credential=_message(credential)
        )
    return device_pb2.DeviceRegistration(
        outcome=device_pb2.REGISTER_OUTCOME_REGISTERED,
        device_credential=_message(credential),
        secret=credential.secret or "",
    )


def _message(credential: DeviceCredential) -> device_pb2.DeviceCredential:
    return device_pb2.DeviceCredential(
        instance_id=credential.instance_id,
        client_id=credential.client_id,
        device_credential_id=credential.credential_id,
        create_time_ms=credential.create_time_ms,
    )
