"""Options of one subscription that override those of its channel, as JSON has them.

Centrifugo's shape in tokens, in its server API and in the answers of backends: `{"presence":
{"value": true}}`.
"""

from msgspec import Struct


class Flag(Struct):
    """A boolean that may be absent."""

    value: bool | None = False


class Override(Struct):
    """Options of one subscription that override those of the channel."""

    presence: Flag | None = None
    join_leave: Flag | None = None
    force_recovery: Flag | None = None
    force_positioning: Flag | None = None
    force_push_join_leave: Flag | None = None

    def flags(self) -> dict[str, bool]:
        """Return the options that are present."""
        names = self.__struct_fields__
        return {n: bool(f.value) for n in names if (f := getattr(self, n)) is not None}
