"""The goals for the node's speed, and the server that each compares it with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """A bound on a peer's result, or on its ratio to another peer's result in the same round.

    With `difference` the bound is on the difference of the two results.
    """

    mode: str
    size: int
    bound: float
    other: str = ""
    peer: str = "wsfleet"
    difference: bool = False


GOALS = (
    Goal("one", 500, 280_000),
    Goal("one", 500, 1, "nchan"),
    Goal("one", 500, 1, "ws-framed"),
    Goal("one", 500, 1, "socketify"),
    Goal("one", 500, 0.85, "limit"),
    Goal("one", 2000, 240_000),
    Goal("one", 2000, 1, "nchan"),
    Goal("one", 2000, 1, "ws-framed"),
    Goal("one", 2000, 1, "socketify"),
    Goal("one", 2000, 0.85, "limit"),
    Goal("sixteen", 500, 2_500_000),
    Goal("sixteen", 500, 10, "socket.io"),
    Goal("sixteen", 500, 4, "nchan"),
    Goal("sixteen", 500, 1.8, "nats"),
    Goal("sixteen", 500, 0.8, "limit-joined"),
    Goal("sixteen", 2000, 2_200_000),
    Goal("sixteen", 2000, 10, "socket.io"),
    Goal("sixteen", 2000, 4, "nchan"),
    Goal("sixteen", 2000, 1.8, "nats"),
    Goal("sixteen", 2000, 0.8, "limit-joined"),
    Goal("rooms", 2000, 3, "socket.io", "wsfleet-centrifuge"),
    Goal("publish", 64, 20_000, peer="wsfleet-centrifuge"),
    Goal("publish", 64, 5, "guide", "wsfleet-centrifuge"),
    Goal("memory", 2000, 15),
    Goal("haproxy-memory", 2000, 8),
    Goal("setup", 2000, 8_000),
    Goal("half", 2000, 15),
    Goal("idle", 1, 0.2, "socket.io", difference=True),
    Goal("slow-clients", 200, 1.25),
    Goal("haproxy", 500, 5, "ws-framed"),
)
