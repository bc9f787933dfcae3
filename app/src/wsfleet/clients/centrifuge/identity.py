"""The identity of one client."""

from dataclasses import dataclass

from wsfleet.channels.publication import Member


@dataclass(slots=True, eq=False)
class ClientIdentity:
    """The name of a connection, and its user, "" if it has none.

    `info` is sent with presence, joins, leaves and publications. `token_id` is the `jti` of the
    token that the connection was made with, or refreshed with last.
    """

    client: str
    user: str = ""
    info: bytes = b""
    token_id: str = ""

    def member(self, channel_info: bytes = b"") -> Member:
        """Return the client as a member of a channel."""
        return Member(self.user, self.client, self.info, channel_info)
