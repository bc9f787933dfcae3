"""The answers of a backend: JSON with `result`, `error` or `disconnect`.

Source: internal/proxyproto/proxy.proto and internal/proxy/*_handler.go of
github.com/centrifugal/centrifugo. Unknown fields are ignored, and null counts as absent. An answer
without a result grants nothing.
"""

from collections.abc import Callable
from functools import wraps
from typing import Annotated, Generic, ParamSpec, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from wsfleet.application.port import (
    BackendError,
    Connected,
    Disconnect,
    Error,
    Published,
    Renewed,
    Subscribed,
)
from wsfleet.auth.tokens import Grant, SubscribeOptions
from wsfleet.protocol import strict_json
from wsfleet.protocol.payload import NULL, payload

R = TypeVar("R", bound=Struct)
P = ParamSpec("P")
A = TypeVar("A")

UnixSeconds = Annotated[int, Meta(ge=-(2**53), le=2**53)]
UInt64 = Annotated[int, Meta(ge=0)]


class _Error(Struct):
    code: int | None = 0
    message: str | None = ""
    temporary: bool | None = False


class _Disconnect(Struct):
    code: int | None = 0
    reason: str | None = ""


class _Answer(Struct, Generic[R]):
    result: R | None = None
    error: _Error | None = None
    disconnect: _Disconnect | None = None


class _ConnectResult(Struct):
    user: str | None = ""
    expire_at: UnixSeconds | None = 0
    info: Raw = NULL
    b64info: str | None = None
    data: Raw = NULL
    b64data: str | None = None
    meta: Raw = NULL
    channels: list[str] | None = None
    subs: dict[str, SubscribeOptions | None] | None = None


class _SubscribeResult(SubscribeOptions):
    expire_at: UnixSeconds | None = 0


class _RefreshResult(Struct):
    expired: bool | None = False
    expire_at: UnixSeconds | None = 0
    info: Raw = NULL
    b64info: str | None = None
    meta: Raw = NULL


class _PublishResult(Struct):
    data: Raw = NULL
    b64data: str | None = None
    skip_history: bool | None = False
    tags: dict[str, str] | None = None
    idempotency_key: str | None = ""
    version: UInt64 | None = 0
    version_epoch: str | None = ""


class _RpcResult(Struct):
    data: Raw = NULL
    b64data: str | None = None


class _Reader(Generic[R]):
    """A decoder of the answers to one event."""

    def __init__(self, kind: type[R]) -> None:
        self._decoder = msgspec.json.Decoder(_Answer[kind])  # type: ignore[valid-type]

    def read(self, body: bytes) -> R | None:
        """Return the result, None if it is absent.

        Raises:
            Error, Disconnect: the answer has one.
            ValueError: the answer is not valid.
        """
        strict_json.loads(body)
        answer = self._decoder.decode(body)
        if answer.disconnect is not None:
            raise Disconnect(answer.disconnect.code or 0, answer.disconnect.reason or "")
        if answer.error is not None:
            error = answer.error
            raise Error(error.code or 0, error.message or "", temporary=bool(error.temporary))
        return answer.result


_CONNECT = _Reader(_ConnectResult)
_REFRESH = _Reader(_RefreshResult)
_SUBSCRIBE = _Reader(_SubscribeResult)
_PUBLISH = _Reader(_PublishResult)
_RPC = _Reader(_RpcResult)


def _checked(read: Callable[P, A]) -> Callable[P, A]:
    """Make a function raise BackendError for an answer that is not valid."""

    @wraps(read)
    def checked(*args: P.args, **kwargs: P.kwargs) -> A:
        try:
            return read(*args, **kwargs)
        except (ValueError, RecursionError) as error:
            raise BackendError(f"the answer is not valid: {error}", reason="invalid") from None

    return checked


@_checked
def connected(body: bytes) -> Connected | None:
    """Return the answer to a connect; without a result it is None.

    Raises:
        Error, Disconnect: the backend refuses.
        BackendError: the answer is not valid.
    """
    result = _CONNECT.read(body)
    if result is None:
        return None
    subs = {channel: Grant() for channel in result.channels or ()}
    subs |= {
        channel: options.grant() if options else Grant()
        for channel, options in (result.subs or {}).items()
    }
    return Connected(
        user=result.user or "",
        expire_at=max(result.expire_at or 0, 0),
        info=payload(result.info, result.b64info) or b"",
        meta=payload(result.meta, None) or b"",
        data=payload(result.data, result.b64data) or b"",
        subs=subs,
    )


@_checked
def renewed(body: bytes) -> Renewed:
    """Return the answer to a refresh or sub_refresh; without a result it is `expired`.

    Raises:
        Error, Disconnect: the backend refuses.
        BackendError: the answer is not valid.
    """
    result = _REFRESH.read(body)
    if result is None or result.expired:
        return Renewed(expired=True)
    return Renewed(
        expire_at=max(result.expire_at or 0, 0),
        info=payload(result.info, result.b64info),
        meta=payload(result.meta, None),
    )


@_checked
def subscribed(body: bytes) -> Subscribed:
    """Return the answer to a subscribe.

    Raises:
        Error, Disconnect: the backend refuses.
        BackendError: the answer is not valid, or has no result.
    """
    result = _present(_SUBSCRIBE.read(body))
    return Subscribed(grant=result.grant(), expire_at=max(result.expire_at or 0, 0))


@_checked
def published(body: bytes, data: bytes) -> Published:
    """Return the answer to a publish of `data`, which is published unless the answer has other.

    Raises:
        Error, Disconnect: the backend refuses.
        BackendError: the answer is not valid, or has no result.
    """
    result = _present(_PUBLISH.read(body))
    version = result.version or 0
    if version >= 2**64:
        raise ValueError("version is above 2^64 - 1")
    json = payload(result.data, None)
    return Published(
        data=json or payload(NULL, result.b64data) or data,
        skip_history=bool(result.skip_history),
        tags=result.tags or {},
        idempotency_key=result.idempotency_key or "",
        version=version,
        version_epoch=result.version_epoch or "",
    )


@_checked
def rpc_data(body: bytes) -> bytes:
    """Return the data of the answer to a call.

    Raises:
        Error, Disconnect: the backend refuses.
        BackendError: the answer is not valid, or has no result.
    """
    result = _present(_RPC.read(body))
    return payload(result.data, result.b64data) or b""


def _present(result: R | None) -> R:
    if result is None:
        raise ValueError("it has none of result, error and disconnect")
    return result
