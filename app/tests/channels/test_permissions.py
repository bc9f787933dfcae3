"""Names of channels and permissions."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfleet.channels.permissions import (
    Channel,
    ChannelError,
    Channels,
    may_publish,
    may_read_history,
    may_see_presence,
    may_subscribe,
    subscription_options,
)
from wsfleet.config.schema import ChannelConfig, ChannelOptions
from wsfleet.protocol.centrifuge.codes import ErrorCode

HISTORY: dict[str, Any] = {"history_size": 10, "history_ttl": "60s"}
YES, NO = None, ErrorCode.PERMISSION_DENIED


def channels(**config: Any) -> Channels:
    """Channels of a configuration, with a namespace `chat`."""
    return Channels(ChannelConfig.model_validate({"namespaces": [{"name": "chat"}]} | config))


def channel(name: str = "c", **options: Any) -> Channel:
    """A channel without a namespace, with these options."""
    return channels(without_namespace=options).resolve(name)


def refusal(found: Channels, name: str) -> int:
    """Return the reason why the channel is refused."""
    with pytest.raises(ChannelError) as caught:
        found.resolve(name)
    return caught.value.code.code


# Names


@pytest.mark.parametrize(
    ("name", "namespace", "private"),
    [("broadcast", "", False), ("chat:a", "chat", False), ("chat:a:b", "chat", False),
     ("$chat:a", "chat", True), ("$a", "", True), (":a", "", False), ("a$chat", "", False),
     ("chat:", "chat", False)],
)  # fmt: skip
def test_a_name_has_namespace_and_privacy(name: str, namespace: str, private: bool) -> None:
    """The namespace ends at the first boundary, and does not contain the prefix."""
    found = channels().resolve(name)
    assert (found.name, found.namespace, found.private) == (name, namespace, private)


def test_the_namespace_decides_the_options() -> None:
    """Not those without a namespace, and nothing is inherited."""
    found = channels(without_namespace={"presence": True}, namespaces=[{"name": "chat"}])
    assert found.resolve("a").options.presence
    assert not found.resolve("chat:a").options.presence


@pytest.mark.parametrize("name", ["news:a", "$news:a", "Chat:a", "$$chat:a"])
def test_an_unknown_namespace_is_error_102(name: str) -> None:
    """Also behind a private prefix, which counts once."""
    assert refusal(channels(), name) == 102
    with pytest.raises(ChannelError, match="unknown namespace"):
        channels().find(name)


def test_marks_in_names_can_be_changed_and_switched_off() -> None:
    """An empty mark switches its meaning off."""
    other = channels(namespace_boundary="/", private_prefix="!")
    assert other.resolve("!chat/a:b").namespace == "chat"
    assert other.resolve("!chat/a").private
    assert not other.resolve("$chat:a").private
    off = channels(namespace_boundary="", private_prefix="")
    assert off.resolve("chat:a").namespace == ""
    assert not off.resolve("$a").private


def test_the_length_of_a_name_is_in_bytes() -> None:
    """255 of UTF-8 by default, however the channel is found."""
    found = channels(without_namespace={"channel_regex": ".*"})
    found.resolve("a" * 255)
    found.resolve("ä" * 127)
    assert refusal(found, "a" * 256) == 107
    assert refusal(found, "ä" * 128) == 107
    assert refusal(channels(max_length=9), "broadcasts") == 107
    with pytest.raises(ChannelError, match="too long"):
        found.find("a" * 256)


def test_a_name_that_would_spread_its_keys_is_refused() -> None:
    """In a Redis Cluster the keys of a channel must be on one primary."""
    with pytest.raises(ChannelError, match="begins with }"):
        Channels(ChannelConfig()).find("}room")


def test_an_empty_name_is_refused() -> None:
    """Even if the expression matches it."""
    assert refusal(channels(without_namespace={"channel_regex": ".*"}), "") == 107


def test_a_name_is_ascii() -> None:
    """Where a client names it; the server may use any: its personal channels hold users' names."""
    assert refusal(channels(), "chat:ä") == 107
    assert channels().find("chat:#ä").namespace == "chat"


def test_a_regex_replaces_the_ascii_rule() -> None:
    """It is searched in what follows the namespace, of its own namespace only."""
    found = channels(
        namespaces=[{"name": "chat", "channel_regex": "^[a-zä]+$"}, {"name": "news"}],
    )
    found.resolve("chat:bär")
    found.resolve("$chat:bar")
    for name in ("chat:Bar", "chat:a:b", "chat:", "chat:a\n"):
        assert refusal(found, name) == 107
    found.resolve("news:Bar")
    found.resolve("Bar")
    assert found.find("chat:Bar").namespace == "chat"


def test_a_regex_without_namespace_sees_the_whole_name() -> None:
    """With the private prefix, as in Centrifugo."""
    found = channels(without_namespace={"channel_regex": "^[$]?[a-z]+$"})
    found.resolve("$abc")
    assert refusal(channels(without_namespace={"channel_regex": "^[a-z]+$"}), "$abc") == 107


def test_a_regex_cannot_stall_the_node() -> None:
    """A pattern that takes ages elsewhere is linear in RE2: without it, this never ends."""
    found = channels(without_namespace={"channel_regex": "^(a+)+$"})
    assert refusal(found, "a" * 200 + "!") == 107


@given(st.text())
def test_any_name_is_a_channel_or_refused(name: str) -> None:
    """No name crashes; what is accepted comes back as it was."""
    for found in (channels(), channels(without_namespace={"channel_regex": "."})):
        for find in (found.find, found.resolve):
            try:
                assert find(name).name == name
            except ChannelError as error:
                assert error.code.code in (102, 107)  # noqa: PT017


def test_half_a_surrogate_pair_is_refused() -> None:
    """JSON can spell it, UTF-8 cannot."""
    assert refusal(channels(without_namespace={"channel_regex": "."}), "\ud800") == 107


def test_the_time_of_meta_is_the_global_one_unless_set() -> None:
    """Options are complete when a channel is found."""
    found = channels(
        history_meta_ttl="100s", namespaces=[{"name": "chat", "history_meta_ttl": "200s"}]
    )
    assert found.resolve("a").options.history_meta_ttl == 100
    assert found.resolve("chat:a").options.history_meta_ttl == 200


def test_personal_channels_are_named_with_their_user() -> None:
    """And only that user may subscribe."""
    found = channels(user_boundary="@", namespaces=[
        {"name": "chat", "allow_user_limited_channels": True}
    ])  # fmt: skip
    assert found.personal("7", "") == "@7"
    assert found.personal("7", "chat") == "chat:@7"
    assert found.find("chat:@7").users == frozenset("7")


# Permissions


@pytest.mark.parametrize(
    ("options", "user", "answer"),
    [
        ({}, "7", NO),
        ({}, "", NO),
        ({"allow_subscribe_for_client": True}, "7", YES),
        ({"allow_subscribe_for_client": True}, "", NO),
        ({"allow_subscribe_for_anonymous": True}, "", NO),
        ({"allow_subscribe_for_anonymous": True}, "7", NO),
        ({"allow_subscribe_for_client": True, "allow_subscribe_for_anonymous": True}, "", YES),
    ],
)
def test_subscribing_is_for_clients_or_for_all(
    options: dict[str, Any], user: str, answer: ErrorCode | None
) -> None:
    """The key for anonymous extends the other."""
    assert may_subscribe(channel(**options), user) == answer


def test_a_private_channel_is_open_to_no_permission() -> None:
    """Only a token opens it, not even being in its list of users."""
    options = {
        "allow_subscribe_for_client": True,
        "allow_subscribe_for_anonymous": True,
        "allow_user_limited_channels": True,
    }
    assert may_subscribe(channel("$c", **options), "7") == NO
    assert may_subscribe(channel("$c#7", **options), "7") == NO


@pytest.mark.parametrize(
    ("name", "user", "answer"),
    [("c#7", "7", YES), ("c#7,42", "42", YES), ("c#7,42", "7,42", NO), ("c#7", "42", NO),
     ("c#7", "", NO), ("c#", "", NO), ("c#7,", "", NO), ("c#42#7", "7", YES), ("c#42#7", "42", NO),
     ("c", "42", YES)],
)  # fmt: skip
def test_a_list_of_users_limits_subscribers(name: str, user: str, answer: ErrorCode | None) -> None:
    """The last mark begins it; it overrules the permission; it never lets in who has no user."""
    found = channel(
        name,
        allow_user_limited_channels=True,
        allow_subscribe_for_client=True,
        allow_subscribe_for_anonymous=True,
    )
    assert may_subscribe(found, user) == answer


def test_a_list_of_users_must_be_switched_on() -> None:
    """Else the name is an ordinary one."""
    assert channel("c#7").users is None
    assert may_subscribe(channel("c#7"), "7") == NO
    assert may_subscribe(channel("c#7", allow_subscribe_for_client=True), "42") == YES


@pytest.mark.parametrize(
    ("marks", "name", "users"),
    [({"user_separator": ""}, "c#7,42", frozenset(["7,42"])),
     ({"user_separator": ";"}, "c#7;42", frozenset(["7", "42"])),
     ({"user_boundary": ""}, "c#7", None)],
)  # fmt: skip
def test_the_marks_of_users_can_be_changed_and_switched_off(
    marks: dict[str, str], name: str, users: frozenset[str] | None
) -> None:
    """An empty separator makes the list one user, an empty mark makes no list."""
    limited = {"allow_user_limited_channels": True}
    assert channels(without_namespace=limited, **marks).resolve(name).users == users


ACCESS = [
    # client, subscriber, anonymous: (user subscribed, user, anonymous subscribed, anonymous)
    ((0, 0, 0), (NO, NO, NO, NO)),
    ((1, 0, 0), (YES, YES, NO, NO)),
    ((0, 1, 0), (YES, NO, NO, NO)),
    ((0, 0, 1), (NO, NO, NO, NO)),
    ((1, 0, 1), (YES, YES, YES, YES)),
    ((0, 1, 1), (YES, NO, YES, NO)),
]


@pytest.mark.parametrize(
    ("what", "may", "needed"),
    [("publish", may_publish, {}), ("presence", may_see_presence, {"presence": True}),
     ("history", may_read_history, HISTORY)],
)  # fmt: skip
@pytest.mark.parametrize(("given_to", "answers"), ACCESS)
def test_publish_presence_and_history_are_for_clients_subscribers_or_all(
    what: str, may: Any, needed: dict[str, Any], given_to: tuple[int, int, int], answers: Any
) -> None:
    """Three keys for each, of the same meaning."""
    kinds = ("client", "subscriber", "anonymous")
    keys = (f"allow_{what}_for_{kind}" for kind in kinds)
    options: dict[str, Any] = dict(zip(keys, map(bool, given_to), strict=True))
    found = channel(**needed, **options)
    assert answers == tuple(
        may(found, user, subscribed=subscribed)
        for user in ("7", "")
        for subscribed in (True, False)
    )


def test_presence_and_history_that_are_not_kept_are_error_108() -> None:
    """For every client."""
    found = channel(allow_presence_for_client=True, allow_history_for_client=True)
    assert may_see_presence(found, "7", subscribed=True) is ErrorCode.NOT_AVAILABLE
    assert may_read_history(found, "7", subscribed=True) is ErrorCode.NOT_AVAILABLE


ASKED = {
    "positioned": "force_positioning",
    "recoverable": "force_recovery",
    "join_leave": "force_push_join_leave",
}


def effective(user: str = "7", asked: str = "", **options: Any) -> set[str]:
    """Which of the three a subscription gets."""
    found = channel(**options)
    flags = {asked: True} if asked else {}
    got = subscription_options(found, user, found.options, **flags)
    return {key for key in ASKED.values() if getattr(got, key)}


@pytest.mark.parametrize(
    ("asked", "allowing"),
    [("positioned", {"allow_positioning": True}),
     ("positioned", {"allow_history_for_client": True}),
     ("recoverable", {"allow_recovery": True}),
     ("recoverable", {"allow_history_for_subscriber": True}),
     ("join_leave", {"allow_presence_for_client": True}),
     ("join_leave", {"allow_presence_for_subscriber": True})],
)  # fmt: skip
def test_requested_options_need_permission(asked: str, allowing: dict[str, Any]) -> None:
    """By the option's own key, or because it may read history or presence anyhow."""
    kept: dict[str, Any] = HISTORY | {"join_leave": True}
    assert effective(asked=asked, **kept, **allowing) == {ASKED[asked]}
    assert effective(asked=asked, **kept) == set()
    assert effective(asked="", **kept, **allowing) == set()
    assert effective(asked=asked, **allowing) == set()


@pytest.mark.parametrize("asked", ASKED)
def test_anonymous_clients_get_no_options(asked: str) -> None:
    """Unless the keys for anonymous say otherwise."""
    kept: dict[str, Any] = HISTORY | {
        "join_leave": True,
        "allow_history_for_client": True,
        "allow_presence_for_client": True,
    }
    anonymous: dict[str, Any] = {
        "allow_history_for_anonymous": True,
        "allow_presence_for_anonymous": True,
    }
    assert effective("", asked, **kept) == set()
    assert effective("", asked, **kept, **anonymous) == {ASKED[asked]}


def test_requests_only_add_options() -> None:
    """Asking never takes away."""
    forced: dict[str, Any] = HISTORY | {"force_recovery": True, "force_positioning": True}
    assert effective(**forced) == {"force_recovery", "force_positioning"}
    assert effective("", "recoverable", **forced) == {"force_recovery", "force_positioning"}
    found = channel(**HISTORY, allow_positioning=True)
    of_token = ChannelOptions.model_validate(HISTORY | {"presence": True})
    got = subscription_options(found, "7", of_token, positioned=True)
    assert (got.presence, got.force_positioning) == (True, True)
