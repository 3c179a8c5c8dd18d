"""Domain errors as gRPC statuses with `google.rpc.ErrorInfo`, in both directions."""

from __future__ import annotations

from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode, aio
from grpc_status import rpc_status

from services.common import errors

DOMAIN = "weimq"
_PREFIX = "ERROR_REASON_"

_CODES: dict[type[errors.DomainError], StatusCode] = {
    errors.InvalidFieldError: StatusCode.INVALID_ARGUMENT,
    errors.StreamContractError: StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: StatusCode.NOT_FOUND,
    errors.AlreadyExistsError: StatusCode.ALREADY_EXISTS,
    errors.InUseError: StatusCode.FAILED_PRECONDITION,
    errors.NotPermittedError: StatusCode.PERMISSION_DENIED,
    errors.SupersededError: StatusCode.ABORTED,
    errors.UnavailableError: StatusCode.UNAVAILABLE,
    errors.NotServingError: StatusCode.UNAVAILABLE,
    errors.LimitReachedError: StatusCode.RESOURCE_EXHAUSTED,
}
_TYPES = {error_type.reason: error_type for error_type in _CODES}


async def abort(
    context: aio.ServicerContext[object, object],
    code: StatusCode,
    message: str,
    reason: str,
    metadata: dict[str, str] | None = None,
) -> None:
    """End a call with a status that carries one `ErrorInfo`; never returns normally."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=_PREFIX + reason, domain=DOMAIN, metadata=metadata or {}))
    status = status_pb2.Status(code=code.value[0], message=message, details=[detail])
    await context.abort_with_status(rpc_status.to_status(status))


async def abort_with(context: aio.ServicerContext[object, object], error: errors.DomainError) -> None:
    """End a call with the status of a domain error; never returns normally."""
    await abort(context, _CODES[type(error)], str(error), error.reason, error.metadata)


def from_rpc_error(error: aio.AioRpcError) -> errors.DomainError | None:
    """Return the domain error that a failed call carries, or None when it carries none."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # AioRpcError has what it reads
    if status is None:
        return None
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            error_type = _TYPES.get(info.reason.removeprefix(_PREFIX))
            return error_type(status.message, **info.metadata) if error_type else None
    return None
