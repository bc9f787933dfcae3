"""Codes of errors, disconnects and unsubscribes.

Source: errors.go, disconnect.go and unsubscribe.go of github.com/centrifugal/centrifuge.
"""

from enum import Enum

from wsfleet.protocol.centrifuge.messages import Error, Unsubscribe


class ErrorCode(Enum):
    """Why a command was not carried out; applications use 400 to 1999 for errors of their own.

    SDKs try again after a temporary error, and after 109 with a new token; any other error of
    connect or subscribe is final for them.
    """

    INTERNAL = 100, "internal server error", True
    UNAUTHORIZED = 101, "unauthorized", False
    UNKNOWN_CHANNEL = 102, "unknown channel", False
    PERMISSION_DENIED = 103, "permission denied", False
    METHOD_NOT_FOUND = 104, "method not found", False
    ALREADY_SUBSCRIBED = 105, "already subscribed", False
    LIMIT_EXCEEDED = 106, "limit exceeded", False
    BAD_REQUEST = 107, "bad request", False
    NOT_AVAILABLE = 108, "not available", False
    TOKEN_EXPIRED = 109, "token expired", False
    EXPIRED = 110, "expired", False
    TOO_MANY_REQUESTS = 111, "too many requests", True
    UNRECOVERABLE_POSITION = 112, "unrecoverable position", False
    CONCURRENT_PAGINATION = 113, "concurrent pagination", True

    def __init__(self, code: int, message: str, temporary: bool) -> None:
        self.code = code
        self.message = message
        self.temporary = temporary

    @property
    def error(self) -> Error:
        """The error for the reply."""
        return Error(self.code, self.message, self.temporary)


class DisconnectCode(Enum):
    """Why a connection ends: close code and reason of the WebSocket.

    Over WebSocket there is no push before the close frame, as in Centrifugo: some SDKs come back
    after such a push, even where its code is final. Applications use 4000 to 4999 for codes of
    their own. The reason is never left out: some SDKs need one to tell a final code.
    """

    CONNECTION_CLOSED = 3000, "connection closed"  # the client went; never sent
    SHUTDOWN = 3001, "shutdown"
    SERVER_ERROR = 3004, "internal server error"
    EXPIRED = 3005, "connection expired"
    SUB_EXPIRED = 3006, "subscription expired"
    SLOW = 3008, "slow"
    WRITE_ERROR = 3009, "write error"
    INSUFFICIENT_STATE = 3010, "insufficient state"
    FORCE_RECONNECT = 3011, "force reconnect"
    NO_PONG = 3012, "no pong"
    TOO_MANY_REQUESTS = 3013, "too many requests"
    STATE_INVALIDATED = 3014, "state invalidated"

    INVALID_TOKEN = 3500, "invalid token"
    BAD_REQUEST = 3501, "bad request"
    STALE = 3502, "stale"
    FORCE_NO_RECONNECT = 3503, "force disconnect"
    CONNECTION_LIMIT = 3504, "connection limit"
    CHANNEL_LIMIT = 3505, "channel limit"
    INAPPROPRIATE_PROTOCOL = 3506, "inappropriate protocol"
    PERMISSION_DENIED = 3507, "permission denied"
    NOT_AVAILABLE = 3508, "not available"
    TOO_MANY_ERRORS = 3509, "too many errors"

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason


class UnsubscribeCode(Enum):
    """Why a subscription ended: from 2500 on, SDKs subscribe again; below 2000 is never sent."""

    CLIENT = 0, "client unsubscribed"
    DISCONNECT = 1, "client disconnected"
    SERVER = 2000, "server unsubscribe"
    INSUFFICIENT_STATE = 2500, "insufficient state"
    EXPIRED = 2501, "subscription expired"
    STATE_INVALIDATED = 2502, "state invalidated"

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason

    @property
    def push(self) -> Unsubscribe:
        """The push for the client."""
        return Unsubscribe(self.code, self.reason)


def reconnects(close_code: int) -> bool:
    """Whether SDKs come back after a connection was closed with this code.

    1009 (message too big) is the one code below 3000 that is final for them.
    """
    final = 3500 <= close_code < 4000 or 4500 <= close_code < 5000 or close_code == 1009
    return not final
