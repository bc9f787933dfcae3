"""When a write counts as replicated, by the answers of Redis and of the Sentinels."""

import pytest
from redis.exceptions import ResponseError

from wsfleet.redis.primary import Replication

UNBLOCKED = ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed")


@pytest.mark.parametrize(
    ("answer", "still", "replicated"),
    [
        (2, False, True),  # all replicas have it, whatever the Sentinels do
        (3, False, True),  # one was added
        (1, True, True),
        (1, False, False),
        (0, True, False),
        (UNBLOCKED, True, False),  # the primary becomes a replica while WAIT waits
    ],
)
async def test_a_write_is_replicated(answer: object, still: bool, replicated: bool) -> None:
    """All replicas have it, or one has it and the Sentinels keep the primary."""

    async def asked() -> bool:
        return still

    assert (await Replication(2, asked).problem(answer) is None) is replicated


async def test_an_added_replica_counts() -> None:
    """From the first write that it confirms, writes wait for it."""

    async def asked() -> bool:
        return False

    replication = Replication(2, asked)
    assert await replication.problem(3) is None
    assert await replication.problem(2) is not None
