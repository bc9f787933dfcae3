"""The configuration file: what is read, what is refused, and that its documentation is true."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from lab.paths import ROOT
from wsfleet.config import file, reference, schema, types
from wsfleet.config.file import ConfigError, load, parse
from wsfleet.config.section import Section, paths, section_of
from wsfleet.config.settings import Settings

DOCUMENT = ROOT / "docs" / "configuration.md"


def mistakes(text: str) -> list[str]:
    """Return the mistakes in a file."""
    with pytest.raises(ConfigError) as caught:
        parse(text, "f.yml")
    assert str(caught.value) == "\n".join(f"f.yml: {line}" for line in caught.value.mistakes)
    return caught.value.mistakes


def channel(**options: Any) -> str:
    """A file with these options for channels without a namespace."""
    return yaml.safe_dump({"channel": {"without_namespace": options}})


def client(**options: Any) -> str:
    """A file with these options for clients."""
    return yaml.safe_dump({"client": options})


def test_without_a_file_broadcast_is_open_to_everybody() -> None:
    """The built-in configuration lets all use channels without a namespace, and recover."""
    built_in = load(None)
    options = built_in.channel.without_namespace
    assert options.allow_subscribe_for_client
    assert options.allow_subscribe_for_anonymous
    assert options.allow_publish_for_client
    assert options.allow_publish_for_anonymous
    assert options.force_recovery
    assert options.presence
    assert (options.history_size, options.history_ttl) == (1000, 300)
    assert built_in.client.allow_anonymous_connect_without_token
    assert built_in.client.allowed_origins == ["*"]
    assert built_in.http_api.key.get_secret_value() == ""


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "channel:\nclient:\n"])
def test_a_file_replaces_the_built_in_configuration(text: str) -> None:
    """Everything that a file leaves out is closed, also in a short file."""
    options = parse(text).channel.without_namespace
    assert not options.allow_subscribe_for_client
    assert not options.has_history
    assert not parse(text).client.allow_anonymous_connect_without_token
    assert parse(text).client.allowed_origins == []


def test_defaults_are_centrifugos() -> None:
    """The defaults are those of Centrifugo 6.9; docs/configuration.md names the differences."""
    defaults = parse("")
    naming = defaults.channel
    assert naming.history_meta_ttl == 720 * 3600
    assert naming.max_length == 255
    assert (naming.private_prefix, naming.namespace_boundary) == ("$", ":")
    assert (naming.user_boundary, naming.user_separator) == ("#", ",")
    clients = defaults.client
    assert (clients.ping_interval, clients.pong_timeout) == (25, 8)
    assert (clients.expired_close_delay, clients.expired_sub_close_delay) == (25, 25)
    assert (clients.stale_close_delay, clients.presence_update_interval) == (10, 27)
    assert (clients.queue_max_size, clients.channel_limit) == (8_388_608, 128)
    assert clients.history_max_publication_limit == 300
    assert clients.recovery_max_publication_limit == 0


def test_the_documents_example_is_a_configuration() -> None:
    """The first example of the document can be copied."""
    example = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[0]
    namespace = parse(example).channel.namespaces[0]
    assert (namespace.name, namespace.history_ttl) == ("chat", 600)
    assert namespace.durability == "replicated"


def test_the_reference_shows_value_default_and_meaning() -> None:
    """The reference has a line of each kind."""
    for line in (
        '| `private_prefix` | string | `"$"` | A name with this prefix needs a subscription',
        "| `history_meta_ttl` | duration, whole seconds | `720h` | Time to live ",
        "| `history_meta_ttl` | duration, whole seconds | `0s` | Time to live ",
        "| `pong_timeout` | duration, or -1 for never | `8s` | Time for ",
        "| `presence` | true or false | `false` | Store ",
        "| `max_length` | number | `255` | Longest name ",
        '| `channel_regex` | RE2 expression | `""` | The part ',
        "| `durability` | `primary` or `replicated` | `primary` | A publish ",
        "| `allowed_origins` | list of strings | `[]` | Origins ",
        '| `hmac_secret_key` | string | `""` | A secret ',
        "| `namespaces` | list | see below | Options ",
        "| `token` | mapping | see below | The keys ",
        "| `name` | string |  | The namespace's name",
        "- `http_api`: `disabled`, `external`, `handler_prefix`, `insecure`.",
    ):
        assert f"\n{line}" in reference.reference()


def test_the_document_is_made_from_the_models() -> None:
    """If this fails: `python -m wsfleet.config.reference docs/configuration.md`."""
    prose, mark, table = DOCUMENT.read_text().partition(reference.REFERENCE_BEGINS)
    assert prose
    assert mark
    assert table == "\n" + reference.reference()


def test_the_document_can_be_updated(tmp_path: Path) -> None:
    """Updating keeps the prose, and updating twice changes nothing."""
    copy = tmp_path / "configuration.md"
    copy.write_text("Prose.\n\n" + reference.REFERENCE_BEGINS + "outdated\n")
    reference._update(copy)
    once = copy.read_text()
    assert once.startswith("Prose.\n")
    assert "outdated" not in once
    reference._update(copy)
    assert copy.read_text() == once


def sections(model: type[Section]) -> list[type[Section]]:
    """The section and all within it."""
    found = [model]
    for key in model.model_fields:
        if inner := section_of(model, key):
            found += sections(inner)
    return found


@pytest.mark.parametrize("section", sections(schema.Config))
def test_every_key_is_documented_and_none_is_refused_too(section: type[Section]) -> None:
    """A key has a text, and is either supported or on the list of those that are not."""
    for key, field in section.model_fields.items():
        assert (field.description or "").strip(), key
        assert section is schema.Config or f"| `{key}` |" in reference.reference()
    assert not set(section.unsupported.split()) & set(section.model_fields)


# Unknown keys


def test_an_unknown_key_is_named_with_its_path_and_the_nearest_known_one() -> None:
    """In a list, too; one line for each mistake."""
    assert mistakes(
        "channel:\n"
        "  without_namespace: {histroy_size: 10}\n"
        "  namespaces:\n"
        "    - {name: chat}\n"
        "    - {name: news, presense: true}\n"
        "client:\n"
        "  tokens: {}\n"
    ) == [
        "channel.without_namespace.histroy_size: unknown key; did you mean history_size?",
        "channel.namespaces[1].presense: unknown key; did you mean presence?",
        "client.tokens: unknown key; did you mean token?",
    ]


def test_a_key_in_the_wrong_place_is_sent_to_the_right_one() -> None:
    """As Centrifugo's users had it before v6."""
    assert mistakes("token_hmac_secret_key: x\nnamespaces: []\n") == [
        "token_hmac_secret_key: unknown key; did you mean client.token.hmac_secret_key?",
        "namespaces: unknown key; did you mean channel.namespaces?",
    ]


def test_a_key_like_no_other_is_answered_with_the_known_ones() -> None:
    """The error lists the known keys, because none is near."""
    assert mistakes("http_api: {zzz: 1}") == [
        "http_api.zzz: unknown key; known are key, keys, error_mode"
    ]


def test_a_key_without_value_is_absent_but_must_be_known() -> None:
    """`history_ttl:` with nothing behind it."""
    assert parse("channel:\n  history_meta_ttl:\n").channel.history_meta_ttl == 720 * 3600
    assert len(mistakes("channel:\n  zzzzzz:\n")) == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("client: {insecure: true}", "client.insecure: {}"),
        ("client: {token: {user_id_claim: x}}", "client.token.user_id_claim: {}"),
        (
            "client: {token: {jwks_public_endpoint: x}}",
            "client.token.jwks_public_endpoint: {}; set client.token.jwks_file instead",
        ),
        (
            "channel: {namespaces: [{name: ab, delta_publish: true}]}",
            "channel.namespaces[0].delta_publish: {}",
        ),
        ("engine: {type: redis}", "engine: {}; set WSFLEET_REDIS_URL instead"),
        (
            "client: {connection_limit: 1}",
            "client.connection_limit: {}; set WSFLEET_MAX_CONNECTIONS instead",
        ),
    ],
)
def test_an_unsupported_key_of_centrifugo_is_refused(text: str, line: str) -> None:
    """It is told as what it is, with what there is instead."""
    known = "known to Centrifugo, not supported here: remove it"
    assert mistakes(text) == [line.format(known)]


def test_hints_are_about_refused_keys() -> None:
    """A hint for a key that is supported would never be seen."""
    for path in file.REPLACED_BY:
        *parents, key = path.split(".")
        section: type[Section] = schema.Config
        for parent in parents:
            inner = section_of(section, parent)
            assert inner
            section = inner
        assert key in section.unsupported.split()


# YAML


def test_a_key_given_twice_is_refused() -> None:
    """At any depth, with both lines; YAML forbids it, and many readers take the last."""
    assert mistakes("client:\n  channel_limit: 1\n  queue_max_size: 1\n  channel_limit: 2\n") == [
        "line 4: channel_limit is given twice, first on line 2"
    ]
    assert len(mistakes("client: {}\nclient: {}\nchannel:\n  max_length: 9\n  max_length: 9")) == 2


def test_anchors_and_merges_work() -> None:
    """YAML's own way not to repeat options; a merged key may be overridden."""
    text = """
        channel:
          namespaces:
            - &base {name: one, presence: true, join_leave: true}
            - {<<: *base, name: two, join_leave: false}
    """
    two = parse(text).channel.namespaces[1]
    assert (two.name, two.presence, two.join_leave) == ("two", True, False)


@pytest.mark.parametrize(
    "text",
    ["[1, 2]", "[]", "0", "a", "client: [", "client: 2026-99-99", "a: b: c",
     "--- {}\n--- {}", "? [1]\n: 2", "client: !!python/object:os.system {}", "[" * 5000],
)  # fmt: skip
def test_a_file_without_a_mapping_is_one_error(text: str) -> None:
    """And never another exception."""
    assert len(mistakes(text)) == 1


@given(st.text())
def test_any_text_is_a_configuration_or_a_clear_error(text: str) -> None:
    """No text crashes the reader."""
    try:
        parse(text)
    except ConfigError as error:
        assert error.mistakes  # noqa: PT017


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text())


@given(st.sampled_from(list(paths(schema.Config))), PLAIN)
def test_any_value_of_any_key_is_taken_or_refused(path: str, value: Any) -> None:
    """A mistake names the key, or the section whose rule the value breaks."""
    for key in reversed(path.split(".")):
        value = {key.removesuffix("[]"): [value] if key.endswith("[]") else value}
    try:
        parse(yaml.safe_dump(value, allow_unicode=True))
    except ConfigError as error:
        for line in error.mistakes:
            assert line.startswith((re.split(r"[.[]", path)[0], "client.subscribe"))


def test_a_file_is_read(tmp_path: Path) -> None:
    """UTF-8; a message begins with the file's name."""
    path = tmp_path / "wsfleet.yml"
    path.write_text("http_api: {key: schlüssel}", "utf-8")
    assert load(path).http_api.key.get_secret_value() == "schlüssel"
    path.write_text("http_api: {kye: x}")
    with pytest.raises(ConfigError, match=rf"^{path}: http_api\.kye: "):
        load(path)


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    """Missing, or not UTF-8: no silent fallback to the open built-in configuration."""
    path = tmp_path / "wsfleet.yml"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load(path)


# Values


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (channel(presence="true"), "channel.without_namespace.presence: "),
        (channel(presence=1), "channel.without_namespace.presence: "),
        (channel(history_size="10"), "channel.without_namespace.history_size: "),
        (channel(history_size=-1), "channel.without_namespace.history_size: "),
        (channel(history_size=True), "channel.without_namespace.history_size: "),
        (channel(durability="some"), "channel.without_namespace.durability: "),
        ("channel: {max_length: 0}", "channel.max_length: "),
        ("channel: {namespaces: {}}", "channel.namespaces: "),
        ("channel: {namespaces: [{presence: true}]}", "channel.namespaces[0].name: "),
        (client(channel_limit=0), "client.channel_limit: "),
        (client(allowed_origins="*"), "client.allowed_origins: "),
        (client(allowed_origins=["https://{a,b}.org"]), "client.allowed_origins[0]: {a,b} is not"),
        (client(token=5), "client.token: must be a mapping of keys to values"),
        ("http_api: {key: 123}", "http_api.key: must be a string: put it in quotes"),
    ],
)
def test_types_are_strict(text: str, line: str) -> None:
    """Nothing is guessed."""
    (mistake,) = mistakes(text)
    assert mistake.startswith(line)


def test_secrets_are_never_shown() -> None:
    """Neither in a message nor where the configuration is printed."""
    assert "hunter" not in str(mistakes("http_api: {key: [hunter]}"))
    secret = parse(client(token={"hmac_secret_key": "hunter"}) + "http_api: {key: hunter}")
    assert "hunter" not in repr(secret)
    assert secret.client.token.hmac_secret_key.get_secret_value() == "hunter"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("300s", 300), ("10m", 600), ("1h30m", 5400), ("1.5h", 5400), (".5m", 30), ("1500ms", 1.5),
     ("1500000µs", 1.5), ("1500000μs", 1.5), ("1500000us", 1.5), ("1500000000ns", 1.5),
     ("1m0.5s", 60.5)],
)  # fmt: skip
def test_durations_are_gos(text: str, seconds: float) -> None:
    """With both of Unicode's letters for micro."""
    assert parse(client(stale_close_delay=text)).client.stale_close_delay == seconds


@pytest.mark.parametrize(
    "value", ["", "300", "s", "1x", "1s ", " 1s", "-1s", "1s-2s", "1e3s", "1.s.", 300, 1.5, True,
              False, [], "999999999999h", "٣s"],
)  # fmt: skip
def test_an_invalid_duration_is_refused(value: Any) -> None:
    """A bare number, above all: Centrifugo reads it as nanoseconds, people as seconds."""
    (mistake,) = mistakes(client(stale_close_delay=value))
    assert mistake.startswith("client.stale_close_delay: ")
    (mistake,) = mistakes(channel(history_ttl=value))
    assert mistake.startswith("channel.without_namespace.history_ttl: ")


@given(st.integers(0, 10**6), st.integers(0, 59), st.integers(0, 59))
def test_durations_add_up(hours: int, minutes: int, seconds: int) -> None:
    """Each quantity counts."""
    text = f"{hours}h{minutes}m{seconds}s"
    wanted = hours * 3600 + minutes * 60 + seconds
    assert types._nanoseconds(text) == wanted * 10**9


@pytest.mark.parametrize("value", [0, "0", "0s"])
def test_a_delay_of_nothing_is_refused(value: Any) -> None:
    """It would close every connection at once; a history key of 0 means none."""
    assert mistakes(client(stale_close_delay=value))
    assert parse(channel(history_ttl=value)).channel.without_namespace.history_ttl == 0


def test_history_counts_in_whole_seconds() -> None:
    """As Centrifugo demands it."""
    assert "whole seconds only" in mistakes(channel(history_size=1, history_ttl="1500ms"))[0]


def test_the_pong_may_be_waited_for_without_end() -> None:
    """-1, Centrifugo's word for it; not so the interval of pings."""
    assert parse(client(pong_timeout=-1)).client.pong_timeout == 0
    assert parse(client(pong_timeout="9s")).client.pong_timeout == 9
    assert mistakes(client(pong_timeout="0s"))
    assert mistakes(client(ping_interval=-1))


# Rules between keys


@pytest.mark.parametrize("options", [{"history_size": 1}, {"history_ttl": "1s"}])
def test_history_needs_size_and_time(options: dict[str, Any]) -> None:
    """One alone is a mistake, not no history."""
    assert "history_size and history_ttl" in mistakes(channel(**options))[0]


@pytest.mark.parametrize("key", ["force_recovery", "force_positioning"])
def test_recovery_and_positioning_need_history(key: str) -> None:
    """There is no position without a stream."""
    assert f"{key} needs history_size" in mistakes(channel(**{key: True}))[0]
    parse(channel(**{key: True, "history_size": 1, "history_ttl": "1s"}))


def test_meta_outlives_history() -> None:
    """By the namespace's own key where it has one, else by the global."""
    history: dict[str, Any] = {"history_size": 1, "history_ttl": "60s"}
    for bad, where in (
        ({"history_meta_ttl": "59s", "without_namespace": history}, ""),
        ({"history_meta_ttl": "59s", "namespaces": [{"name": "chat"} | history]},
         " of namespace chat"),
        ({"without_namespace": history | {"history_meta_ttl": "59s"}}, ""),
    ):  # fmt: skip
        assert mistakes(yaml.safe_dump({"channel": bad})) == [
            f"channel: history_ttl{where} must not be longer than history_meta_ttl"
        ]
    parse(yaml.safe_dump({"channel": {
        "history_meta_ttl": "60s",
        "without_namespace": history,
        "namespaces": [{"name": "chat", "history_size": 1, "history_ttl": "61s",
                        "history_meta_ttl": "61s"}],
    }}))  # fmt: skip


@pytest.mark.parametrize("name", ["a", "", "a b", "chät", "a:b", "ab\n"])
def test_a_namespaces_name_has_a_form(name: str) -> None:
    """Two or more ASCII letters, digits, dots, dashes, underscores."""
    text = yaml.safe_dump({"channel": {"namespaces": [{"name": name}]}})
    assert mistakes(text)[0].startswith("channel.namespaces[0].name: ")


def test_a_namespaces_name_is_given_once() -> None:
    """Else one would hide the other."""
    text = "channel: {namespaces: [{name: chat}, {name: news}, {name: chat}]}"
    assert "'chat' is given twice" in mistakes(text)[0]


@pytest.mark.parametrize(
    "naming",
    [{"namespace_boundary": "o"}, {"user_boundary": "cast"}, {"private_prefix": "b"},
     {"max_length": 8}],
)  # fmt: skip
def test_broadcast_always_exists(naming: dict[str, Any]) -> None:
    """No rule about names may take it from the plain protocol."""
    assert "'broadcast' must stay" in mistakes(yaml.safe_dump({"channel": naming}))[0]
    none = {"namespace_boundary": "", "user_boundary": "", "private_prefix": "", "max_length": 9}
    parse(yaml.safe_dump({"channel": none}))


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [("(", "missing ): ("), ("[a", "missing ]: [a"), (r"a(?=b)", "invalid perl operator: (?="),
     (r"(a)\1", r"invalid escape sequence: \1")],
)  # fmt: skip
def test_a_channel_regex_is_re2s(
    pattern: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Look-ahead and back-references are errors: they could take for ever. RE2 logs nothing."""
    assert mistakes(channel(channel_regex=pattern)) == [
        f"channel.without_namespace.channel_regex: {reason}"
    ]
    assert capfd.readouterr().err == ""


def test_a_ping_comes_after_the_pong() -> None:
    """Else two pings would be under way."""
    assert "ping_interval must be longer" in mistakes(client(ping_interval="8s"))[0]


def test_pings_have_whole_seconds() -> None:
    """An SDK that is told 0 answers no ping, and would be disconnected for it."""
    short = client(ping_interval="0.9s", pong_timeout="0.5s")
    assert "ping_interval must be 1s or longer" in mistakes(short)[0]
    parse(client(ping_interval="1s", pong_timeout="0.5s"))


@pytest.mark.parametrize("interval", ["31s", "60s", "90s", "1h"])
def test_presence_outlives_a_renewal_that_fails(interval: str) -> None:
    """An interval too long for that is refused, with the longest one that is not."""
    assert "must be 30s or shorter" in mistakes(client(presence_update_interval=interval))[0]
    parse(client(presence_update_interval="30s"))


def test_a_node_outlives_a_sign_of_life_that_is_late() -> None:
    """Settings by which other nodes would bury a living one are refused."""
    with pytest.raises(ValidationError, match="at least twice WSFLEET_HEARTBEAT_INTERVAL"):
        Settings(heartbeat_interval=5, node_dead_after=8)
    Settings(heartbeat_interval=4, node_dead_after=8)


def test_a_previous_key_needs_a_current_one() -> None:
    """And its end needs the key."""
    both = {"hmac_secret_key": "x", "hmac_previous_secret_key": "y"}
    parse(client(token=both | {"hmac_previous_secret_key_valid_until": 1}))
    assert mistakes(client(token={"hmac_previous_secret_key": "x"}))
    assert mistakes(client(subscription_token={"hmac_previous_secret_key": "x"}))
    assert mistakes(client(token={"hmac_previous_secret_key_valid_until": 1}))


def test_personal_channels_need_their_namespace() -> None:
    """Where they are enabled."""
    personal: dict[str, Any] = {"enabled": True, "personal_channel_namespace": "own"}
    text = client(subscribe_to_user_personal_channel=personal)
    assert mistakes(text) == [
        "client.subscribe_to_user_personal_channel.personal_channel_namespace: "
        "there is no namespace 'own'"
    ]
    parse(text + "channel: {namespaces: [{name: own}]}")
    parse(client(subscribe_to_user_personal_channel=personal | {"enabled": False}))


def test_a_configuration_does_not_change() -> None:
    """It is shared by all connections."""
    for model in sections(schema.Config):
        assert issubclass(model, BaseModel)
        assert model.model_config["frozen"]
