"""The results of handlers as answers for the node, and their JSON."""

import datetime
import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from wsfleet import Accept, Allow, Renew
from wsfleet.application import port
from wsfleet.application.realtime.results import encode
from wsfleet.auth.tokens import Grant


class User(BaseModel):
    """A model with an alias."""

    name: str = Field(serialization_alias="displayName")
    since: datetime.date | None = None


@dataclass
class Point:
    """A dataclass."""

    x: int


TEXTS = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=20,
)


@given(VALUES)
def test_json_is_encoded_as_it_is(value: Any) -> None:
    """Every JSON value comes back from its JSON."""
    assert json.loads(encode(value)) == value


def test_models_dataclasses_and_dates_are_encoded() -> None:
    """Values are encoded as pydantic does, also inside of lists and dictionaries."""
    user = User(name="Anna", since=datetime.date(2026, 1, 2))
    assert json.loads(encode([user, {"at": Point(1)}])) == [
        {"displayName": "Anna", "since": "2026-01-02"},
        {"at": {"x": 1}},
    ]
    assert encode(b'{"raw":1}') == b'{"raw":1}'
    assert encode([math.nan, math.inf]) == b"[null,null]"


@pytest.mark.parametrize("value", [object(), {"a": object()}, 10**400, b"[NaN]", "\ud800"])
def test_what_has_no_json_form_is_an_error(value: Any) -> None:
    """So is what other parsers may read in another way."""
    with pytest.raises(ValueError, match=r"serializ|at character"):
        encode(value)


def test_answers() -> None:
    """Values that are None are left out; flags are an override of the channel's options."""
    assert Accept("7").answer() == port.Connected(user="7")
    assert Accept(
        "7", info={"a": 1}, meta=[2], data="x", expire_at=9, channels=["a", "b"]
    ).answer() == port.Connected(
        user="7",
        info=b'{"a":1}',
        meta=b"[2]",
        data=b'"x"',
        expire_at=9,
        subs={"a": Grant(), "b": Grant()},
    )
    allow = Allow(info=1, data=2, presence=False, force_recovery=True)
    grant = Grant(b"1", b"2", {"presence": False, "force_recovery": True})
    assert Accept(channels={"a": allow}).answer().subs == {"a": grant}
    assert Allow(info=1, data=2, presence=False, force_recovery=True, expire_at=5).answer() == (
        port.Subscribed(grant, 5)
    )
    assert Accept(expire_at=5.7).answer().expire_at == 5
    assert Accept(session="é" * 127).answer() == port.Connected(session="é" * 127)
    assert Renew(5).answer() == port.Renewed(expire_at=5)
    assert Renew(0, info={}, meta=0).answer() == port.Renewed(info=b"{}", meta=b"0")


@pytest.mark.parametrize("expire_at", [-1, -0.5, 2**53 + 2, float("nan"), float("inf")])
def test_a_moment_that_http_backends_cannot_give_is_an_error(expire_at: float) -> None:
    """There, a negative one would be never, and here the past."""
    for result in (Accept(expire_at=expire_at), Allow(expire_at=expire_at), Renew(expire_at)):
        with pytest.raises(ValueError, match="expire_at is in Unix seconds"):
            result.answer()


def test_fields_of_accept_are_checked() -> None:
    """Names are strings; a single channel is an error, and so is a subscription that expires."""
    user: Any = 7
    with pytest.raises(TypeError, match="give '7' instead of 7"):
        Accept(user)
    with pytest.raises(TypeError, match="session is a string: give '7'"):
        Accept(session=user)
    with pytest.raises(ValueError, match="at most 255 bytes"):
        Accept(session="é" * 128)
    with pytest.raises(TypeError, match=r"\['room:7'\]"):
        Accept(channels="room:7")
    with pytest.raises(TypeError, match="7 is not a string"):
        Accept(channels=[user]).answer()
    for value in (b"anna", b"[NaN]"):  # the other clients of a channel get them
        for result in (Accept(info=value), Accept(meta=value), Allow(info=value)):
            with pytest.raises(ValueError, match="at character"):
                result.answer()
    with pytest.raises(ValueError, match="give expire_at to Accept"):
        Accept(channels={"a": Allow(expire_at=5)})
