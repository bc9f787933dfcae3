"""The ways a command ends other than with its result."""

from dataclasses import replace

from wsfleet.protocol.centrifuge.codes import DisconnectCode, ErrorCode, UnsubscribeCode
from wsfleet.protocol.centrifuge.messages import Error
from wsfleet.transports.transport import Close


class RefusedError(Exception):
    """The command is answered with an error; the connection stays open."""

    def __init__(self, reason: ErrorCode | Error, *, temporary: bool | None = None) -> None:
        super().__init__(reason.message)
        self.error = reason.error if isinstance(reason, ErrorCode) else reason
        if temporary is not None:
            self.error = replace(self.error, temporary=temporary)


class DisconnectedError(Exception):
    """The connection ends with a code instead of an answer: the protocol's, or an application's."""

    def __init__(self, code: DisconnectCode | Close) -> None:
        super().__init__(code.reason)
        self.code = code


class EndedError(Exception):
    """A subscription to `channel` ended before it was live, for the reason `code`."""

    def __init__(self, channel: str, code: UnsubscribeCode) -> None:
        super().__init__(code.reason)
        self.channel = channel
        self.code = code
