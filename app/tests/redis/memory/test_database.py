"""Keys in memory expire by the clock, and leave nothing behind."""

import pytest
from redis.exceptions import ResponseError

from wsfleet.redis.memory.commands import COMMANDS
from wsfleet.redis.memory.database import Database, EntryStream, Hash, Members, SortedSet
from wsfleet.redis.memory.functions import FUNCTIONS


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return Unix seconds."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock."""
    return Clock()


@pytest.fixture
def database(clock: Clock) -> Database:
    """An empty database on that clock."""
    return Database(clock)


def test_a_key_is_gone_when_its_time_is_over(database: Database, clock: Clock) -> None:
    """Not before; and what is written under its name afterwards is new."""
    database.ensure(b"key", Hash)[b"field"] = b"1"
    database.expire(b"key", 10)
    clock.now += 9.9
    assert database.find(b"key", Hash) == {b"field": b"1"}
    clock.now += 0.1
    assert not database.exists(b"key")
    assert database.find(b"key", Hash) is None
    assert database.ensure(b"key", Hash) == {}
    assert database.deadline(b"key") is None


def test_a_key_that_is_stored_again_does_not_expire(database: Database, clock: Clock) -> None:
    """Nor one that is to persist."""
    for key in (b"stored", b"persisted"):
        database.put(key, b"1")
        database.expire(key, 10)
    database.put(b"stored", b"2")
    assert database.persist(b"persisted")
    clock.now += 11
    assert database.find(b"stored", bytes) == b"2"
    assert database.find(b"persisted", bytes) == b"1"
    assert not database.persist(b"persisted")


def test_a_sweep_removes_expired_keys(database: Database, clock: Clock) -> None:
    """Expired keys alone."""
    for number in range(100):
        database.put(b"%d" % number, b"1")
        database.expire(b"%d" % number, 1 + number % 2)
    database.put(b"stays", b"1")
    clock.now += 1
    assert len(database) == 101
    database.sweep()
    assert len(database) == 51
    clock.now += 1
    database.sweep()
    assert len(database) == 1


def test_a_sorted_set_is_in_the_order_of_its_scores() -> None:
    """Then of its members; the highest score may be left out."""
    found = SortedSet({b"c": 1.0, b"b": 2.0, b"a": 2.0, b"d": 3.0})
    assert found.between(1, 2) == [b"c", b"a", b"b"]
    assert found.between(1, 2, exclusive=True) == [b"c"]


def test_an_empty_collection_is_no_key(database: Database) -> None:
    """The last member takes the key along."""
    database.ensure(b"hash", Hash)[b"one"] = b"1"
    database.ensure(b"set", Members).add(b"one")
    database.ensure(b"sorted", SortedSet)[b"one"] = 1.0
    assert database.remove(b"hash", Hash, b"one", b"other") == 1
    assert database.remove(b"set", Members, b"one", b"one") == 1
    assert database.remove(b"sorted", SortedSet, b"one") == 1
    assert database.remove(b"none", Members, b"one") == 0
    assert len(database) == 0


def test_a_key_of_another_kind_is_an_error(database: Database) -> None:
    """As in Redis, and the key stays as it was."""
    database.put(b"key", b"1")
    for name in (b"HGETALL", b"SMEMBERS"):
        with pytest.raises(ResponseError, match="wrong kind"):
            COMMANDS[name](database, b"key")
    with pytest.raises(ResponseError, match="wrong kind"):
        database.ensure(b"key", EntryStream)
    assert database.find(b"key", bytes) == b"1"


def test_an_idempotency_key_expires(database: Database, clock: Clock) -> None:
    """A second publication under it is one then."""
    keys = [b"stream", b"meta", b"once"]
    args = b"channel,record,10,300,300,epoch,60,0,0,".split(b",")

    def publish() -> object:
        return FUNCTIONS["publish"](database, keys, args)

    assert [publish(), publish()] == [[1, b"epoch"]] * 2
    clock.now += 60
    assert publish() == [2, b"epoch"]


def test_a_history_expires_and_its_offsets_go_on(database: Database, clock: Clock) -> None:
    """The position outlives the publications; after that the stream is another one."""
    keys = [b"stream", b"meta", b"once"]

    def publish(epoch: bytes) -> object:
        args = [b"channel", b"record", b"10", b"60", b"300", epoch, b"0", b"0", b"0", b""]
        return FUNCTIONS["publish"](database, keys, args)

    def history() -> object:
        return FUNCTIONS["history"](database, keys[:2], [b"0", b"10", b"0", b"1000"])

    assert publish(b"first") == [1, b"first"]
    assert history() == [1, b"first", [1, 0, b"record"], 0]
    clock.now += 60
    assert history() == [1, b"first", [], 0]
    assert publish(b"second") == [2, b"first"]
    clock.now += 300
    assert history() == [0, b"", [], 0]
    assert publish(b"second") == [1, b"second"]


def test_presence_expires(database: Database, clock: Clock) -> None:
    """A client whose presence is not renewed is left out, and cleared away by the next."""
    keys = [b"presence", b"expiry"]
    FUNCTIONS["join"](database, keys, [b"ann", b"1", b"60"])
    clock.now += 59
    FUNCTIONS["join"](database, keys, [b"bob", b"2", b"60"])
    assert FUNCTIONS["members"](database, keys, [b"0"]) == [b"ann", b"1", b"bob", b"2"]
    clock.now += 1
    assert FUNCTIONS["members"](database, keys, [b"0"]) == [b"bob", b"2"]
    FUNCTIONS["join"](database, keys, [b"bob", b"2", b"60"])
    assert database.find(b"presence", Hash) == {b"bob": b"2"}
    assert database.read(b"expiry", SortedSet).keys() == {b"bob"}


def test_a_node_goes_silent(database: Database, clock: Clock) -> None:
    """The others hear of it at their next sign of life, and forget it."""
    assert FUNCTIONS["heartbeat"](database, [b"nodes"], [b"one", b"8"]) == [0, []]
    clock.now += 8
    assert FUNCTIONS["heartbeat"](database, [b"nodes"], [b"two", b"8"]) == [0, []]
    clock.now += 0.5
    assert FUNCTIONS["silence"](database, [b"nodes"], [b"one"]) == 8500
    assert FUNCTIONS["heartbeat"](database, [b"nodes"], [b"two", b"8"]) == [1, [b"one"]]
    assert FUNCTIONS["forget"](database, [b"nodes"], [b"one", b"8"]) == 1
    assert COMMANDS[b"ZRANGE"](database, b"nodes", b"0", b"-1") == [b"two"]
