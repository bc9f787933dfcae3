"""A session saves what has changed, key by key."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from wsfleet import CallError, Session
from wsfleet.application.session import MAX_SESSION


class Store:
    """A store of sessions that notes the changes."""

    def __init__(self) -> None:
        self.stored: dict[bytes, bytes] = {}
        self.changes: list[Mapping[str, bytes]] = []

    async def read(self, name: str) -> Mapping[bytes, bytes]:
        """Return the session."""
        return dict(self.stored)

    async def write(self, name: str, changes: Mapping[str, bytes]) -> int:
        """Change it."""
        self.changes.append(changes)
        self.stored |= {key.encode(): value for key, value in changes.items()}
        self.stored = {key: value for key, value in self.stored.items() if value}
        return sum(len(key) + len(value) for key, value in self.stored.items())


async def test_a_save_stores_what_has_changed() -> None:
    """Also what changed within a value, and what was removed; without a change it does nothing."""
    store = Store()
    session = Session("tab", store)
    await session.save()
    session["cart"] = [1]
    session["name"] = "Ann"
    await session.save()
    await session.save()
    session["cart"].append(2)
    await session.save()
    del session["name"]
    await session.save()
    assert store.changes == [
        {"cart": b"[1]", "name": b'"Ann"'},
        {"cart": b"[1,2]"},
        {"name": b""},
    ]
    other = Session("tab", store)
    await other.load()
    assert other == {"cart": [1, 2]}
    await other.save()
    assert len(store.changes) == 3


async def test_a_load_drops_what_was_not_saved() -> None:
    """It has what other clients have saved."""
    store = Store()
    one, other = Session("tab", store), Session("tab", store)
    one["a"] = 1
    await one.save()
    other["b"] = 2
    await other.save()
    one["c"] = 3
    await one.load()
    assert one == {"a": 1, "b": 2}
    await one.save()
    assert len(store.changes) == 2


class Cart(BaseModel):
    """A value that is not JSON."""

    items: list[int]


async def test_values_are_json() -> None:
    """A model is loaded as a dictionary; NaN becomes null."""
    store = Store()
    session = Session("tab", store)
    session |= {"cart": Cart(items=[1]), "none": None, "nan": float("nan"), "é": "ü"}
    await session.save()
    await session.load()
    assert session == {"cart": {"items": [1]}, "none": None, "nan": None, "é": "ü"}


@pytest.mark.parametrize(
    ("content", "error", "text"),
    [
        ({"a": "x" * MAX_SESSION}, ValueError, "at most 16384"),
        ({"a": object()}, ValueError, "object"),
        ({"a": 10**400}, ValueError, "character"),
        ({1: "a"}, TypeError, "strings: 1 is not"),
    ],
    ids=["large", "no JSON", "a number that not all can read", "a key that is no string"],
)
async def test_what_cannot_be_stored_is_an_error(content: Any, error: Any, text: str) -> None:
    """Nothing is stored of it, not even the other keys."""
    store = Store()
    session = Session("tab", store)
    session |= {"b": 1} | content
    with pytest.raises(error, match=text):
        await session.save()
    assert not store.changes


async def test_a_save_without_an_answer_is_repeated() -> None:
    """It may have been stored: the next save stores its keys again, or removes them."""
    store = Store()
    session = Session("tab", store)
    session |= {"cart": [1], "draft": "hello"}
    write = store.write

    async def write_without_answer(name: str, changes: Mapping[str, bytes]) -> int:
        await write(name, changes)
        raise CallError(100, "internal server error")

    store.write = write_without_answer  # type: ignore[method-assign]
    with pytest.raises(CallError):
        await session.save()
    store.write = write  # type: ignore[method-assign]
    del session["draft"]
    await session.save()
    assert store.stored == {b"cart": b"[1]"}
    await session.save()
    assert len(store.changes) == 2


async def test_a_save_that_is_refused_has_stored_nothing() -> None:
    """The keys of the session in the store may be of another client, and are not removed."""
    store = Store()
    one, other = Session("tab", store), Session("tab", store)
    one["a"] = "x" * (MAX_SESSION - 100)
    await one.save()
    other["b"] = "x" * 200
    with pytest.raises(ValueError, match="at most 16384"):
        await other.save()
    assert other._stored == {}


async def test_a_session_without_a_name_cannot_be_saved() -> None:
    """The error says how it gets one."""
    session = Session()
    assert session == {}
    for call in (session.save, session.load):
        with pytest.raises(RuntimeError, match="session=NAME"):
            await call()


KEYS = st.sampled_from("abc")
STEPS = st.one_of(
    st.tuples(st.just("set"), st.integers(0, 1), KEYS, st.integers(0, 3)),
    st.tuples(st.just("remove"), st.integers(0, 1), KEYS),
    st.tuples(st.just("save"), st.integers(0, 1)),
    st.tuples(st.just("load"), st.integers(0, 1)),
)


@given(st.lists(STEPS, max_size=30))
async def test_the_last_write_of_a_key_wins(steps: list[Any]) -> None:
    """Of two clients with one session, in any order of changes, saves and loads."""
    store, stored = Store(), dict[str, int]()
    sessions = [Session("tab", store) for _ in range(2)]
    changed: list[dict[str, int | None]] = [{}, {}]
    known: list[dict[str, int]] = [{}, {}]
    for what, number, *rest in steps:
        session = sessions[number]
        match what, rest:
            case "set", (key, value):
                session[key] = value
                changed[number][key] = value
            case "remove", (key,):
                session.pop(key, None)
                changed[number][key] = None
            case "save", _:
                await session.save()
                for key, value in changed[number].items():
                    if value == known[number].get(key):  # changed, and changed back
                        continue
                    known[number].pop(key, None)
                    stored.pop(key, None)
                    if value is not None:
                        known[number][key] = stored[key] = value
                changed[number] = {}
            case "load", _:
                await session.load()
                known[number], changed[number] = dict(stored), {}
                assert session == stored
        assert {key.decode(): int(value) for key, value in store.stored.items()} == stored
