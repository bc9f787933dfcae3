"""A WebSocket node for clusters with sticky sessions, and the operator's command line.

`Realtime` and the names beside it are for applications that a node serves; all other modules are
internal. The names are imported when they are used, so that the command line starts quickly.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsfleet.application.port import Client, Disconnect, Error, Published
    from wsfleet.application.realtime.calls import (
        CallError,
        ClientInfo,
        History,
        NodeInfo,
        PresenceStats,
        Publication,
    )
    from wsfleet.application.realtime.events import (
        Connect,
        Disconnected,
        Publish,
        Refresh,
        Rpc,
        SubRefresh,
        Subscribe,
    )
    from wsfleet.application.realtime.leases import Lease
    from wsfleet.application.realtime.listening import GapError
    from wsfleet.application.realtime.realtime import Realtime
    from wsfleet.application.realtime.results import Accept, Allow, Renew
    from wsfleet.application.session import Session
    from wsfleet.channels.stream import Position

__version__ = "0.1.0"

__all__ = [
    "Accept",
    "Allow",
    "CallError",
    "Client",
    "ClientInfo",
    "Connect",
    "Disconnect",
    "Disconnected",
    "Error",
    "GapError",
    "History",
    "Lease",
    "NodeInfo",
    "Position",
    "PresenceStats",
    "Publication",
    "Publish",
    "Published",
    "Realtime",
    "Refresh",
    "Renew",
    "Rpc",
    "Session",
    "SubRefresh",
    "Subscribe",
]

_MODULES = {
    "port": ("Client", "Disconnect", "Error", "Published"),
    "realtime.calls": (
        *("CallError", "ClientInfo", "History", "NodeInfo", "PresenceStats", "Publication"),
    ),
    "realtime.events": (
        *("Connect", "Disconnected", "Publish", "Refresh", "Rpc", "SubRefresh", "Subscribe"),
    ),
    "realtime.leases": ("Lease",),
    "realtime.listening": ("GapError", "Position"),
    "realtime.realtime": ("Realtime",),
    "realtime.results": ("Accept", "Allow", "Renew"),
    "session": ("Session",),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is used first (PEP 562)."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"wsfleet.application.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return [*__all__, "__version__"]
