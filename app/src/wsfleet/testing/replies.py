"""The refusals that a client gets, as exceptions."""

from wsfleet.application.port import Disconnect, Error


class ReplyError(Error):
    """An error in a reply, with any code of the protocol: 103 is "permission denied"."""

    def __init__(self, code: int, message: str, *, temporary: bool = False) -> None:
        Exception.__init__(self, message)
        self.code = code
        self.message = message
        self.temporary = temporary


class ReplyDisconnect(Disconnect):
    """A close of the connection, with any code of the protocol: 3001 is a drain.

    A node that was killed closes with 1006, as WebSockets report it.
    """

    def __init__(self, code: int, reason: str) -> None:
        Exception.__init__(self, reason)
        self.code = code
        self.reason = reason


class HandshakeRefused(Exception):  # noqa: N818 - named as what it is
    """A handshake that was answered with an HTTP status, such as 403 for a wrong origin."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason
