"""Errors that a caller of a service can be told; pure, so that domain code may raise them.

    DomainError
        InvalidFieldError       INVALID_ARGUMENT     a field is missing or out of range
        StreamContractError     INVALID_ARGUMENT     a stream broke its contract
        NotFoundError           NOT_FOUND
        AlreadyExistsError      ALREADY_EXISTS
        InUseError              FAILED_PRECONDITION  the resource still owns others
        NotPermittedError       PERMISSION_DENIED    beyond the permissions of an AccessKey
        SupersededError         ABORTED              another stream took this one's place
        UnavailableError        UNAVAILABLE          a dependency does not answer: retry
        NotServingError         UNAVAILABLE          stopping, or not caught up: retry elsewhere
        LimitReachedError       RESOURCE_EXHAUSTED   a bound of the service is reached: retry later

`services.common.grpc_errors` turns them into statuses and back.
"""

from __future__ import annotations


class DomainError(Exception):
    """A call that did not do its work, for a reason that the caller is told.

    Attributes:
        reason: name of a value of `weimq.errors.v1.ErrorReason`, without its prefix.
        metadata: the keys that the comment of that value lists.
    """

    reason = "UNSPECIFIED"

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.metadata = metadata


class InvalidFieldError(DomainError):
    """A field of the request is missing or out of its range; metadata `field`."""

    reason = "INVALID_FIELD"


class StreamContractError(DomainError):
    """A stream broke its contract; metadata `rule`."""

    reason = "STREAM_CONTRACT_VIOLATED"


class NotFoundError(DomainError):
    """The named resource does not exist; metadata `resource`."""

    reason = "RESOURCE_NOT_FOUND"


class AlreadyExistsError(DomainError):
    """The named resource exists already; metadata `resource`."""

    reason = "RESOURCE_EXISTS"


class InUseError(DomainError):
    """The resource still owns others; metadata `resource`."""

    reason = "RESOURCE_IN_USE"


class NotPermittedError(DomainError):
    """What is asked for goes beyond the permissions of an AccessKey; metadata `resource`."""

    reason = "NOT_PERMITTED"


class SupersededError(DomainError):
    """Another stream of the same peer took this one's place."""

    reason = "LINK_SUPERSEDED"


class UnavailableError(DomainError):
    """A dependency does not answer; metadata `dependency`."""

    reason = "DEPENDENCY_UNAVAILABLE"


class NotServingError(DomainError):
    """The service is stopping or has not caught up yet."""

    reason = "NOT_SERVING"


class LimitReachedError(DomainError):
    """A bound of the service is reached; metadata `limit`."""

    reason = "LIMIT_REACHED"
