"""The permissions of channels and clients: one YAML file with the keys of Centrifugo v6."""

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from wsfleet.config.schema import Config
from wsfleet.config.section import Section, paths, section_of

BUILT_IN = """\
channel:
  without_namespace:
    presence: true
    history_size: 1000
    history_ttl: 300s
    force_recovery: true
    allow_subscribe_for_client: true
    allow_subscribe_for_anonymous: true
    allow_publish_for_client: true
    allow_publish_for_anonymous: true
    allow_presence_for_subscriber: true
    allow_presence_for_anonymous: true
    allow_history_for_subscriber: true
    allow_history_for_anonymous: true
client:
  allow_anonymous_connect_without_token: true
  allowed_origins: ["*"]
"""
"""The configuration without a file: everybody may use any channel without a namespace.

That is as open as the plain protocol, whose channel `broadcast` is one of them. A file replaces all
of it: a missing key has its default, which is closed, as in Centrifugo.
"""

_PROXIES = (
    *(f"client.proxy.{event}" for event in ("connect", "refresh", "disconnect")),
    *(f"channel.proxy.{event}" for event in ("subscribe", "publish", "sub_refresh")),
    "rpc.proxy",
    "proxies",
)
_CHANNELS = ("channel.without_namespace", "channel.namespaces")
_STREAM = "let the backend publish by the server API instead"

REPLACED_BY = {
    "http_server": "set WSFLEET_HOST and WSFLEET_PORT instead",
    "log": "set WSFLEET_LOG_LEVEL instead",
    "engine": "set WSFLEET_REDIS_URL instead",
    "broker": "set WSFLEET_REDIS_URL instead",
    "presence_manager": "set WSFLEET_REDIS_URL instead",
    "node": "set WSFLEET_NODE_NAME instead",
    "websocket": "set WSFLEET_MAX_MESSAGE_SIZE instead",
    "shutdown": "set WSFLEET_DRAIN_TIMEOUT instead",
    "prometheus": "/metrics is always on",
    "health": "/health and /ready are always on",
    "client.connection_limit": "set WSFLEET_MAX_CONNECTIONS instead",
    "client.token.jwks_public_endpoint": "set client.token.jwks_file instead",
    "client.subscription_token.jwks_public_endpoint": (
        "set client.subscription_token.jwks_file instead"
    ),
    **{f"{proxy}.grpc": "set endpoint to one with HTTP, and http instead" for proxy in _PROXIES},
    **{f"{proxy}.grpc_metadata": "set http_headers instead" for proxy in _PROXIES},
    **{
        f"{proxy}.http.tls.client_ca_pem": "it is for servers; set server_ca_pem instead"
        for proxy in _PROXIES
    },
    "channel.proxy.subscribe_stream": _STREAM,
    **{f"{channels}.subscribe_stream_proxy_enabled": _STREAM for channels in _CHANNELS},
}
"""The replacement of each key of Centrifugo that is not supported."""


class ConfigError(Exception):
    """The configuration is invalid; `mistakes` has one line for each reason, and so has str()."""

    def __init__(self, source: str, mistakes: list[str]) -> None:
        super().__init__("\n".join(f"{source}: {mistake}" for mistake in mistakes))
        self.mistakes = mistakes


def load(path: Path | None) -> Config:
    """Read the file at `path`; None is the built-in configuration.

    Raises:
        ConfigError: the file cannot be read, or is invalid.
    """
    if path is None:
        return parse(BUILT_IN, "built-in configuration")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), ["is not UTF-8"]) from error
    return parse(text, str(path))


def parse(text: str, source: str = "configuration") -> Config:
    """Parse the file's text; `source` is its name in messages.

    Raises:
        ConfigError: the text is not YAML, or has an unknown key or an invalid value.
    """
    try:
        loader = _Loader(text)
        data = loader.get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2026-99-99
        raise ConfigError(source, [" ".join(str(error).split())]) from error
    if loader.repeated:
        raise ConfigError(source, loader.repeated)
    try:
        return Config.model_validate({} if data is None else data)
    except ValidationError as error:
        raise ConfigError(source, [_mistake(details) for details in error.errors()]) from None


class _Loader(yaml.SafeLoader):
    """PyYAML's loader that notes keys given twice in `repeated`; PyYAML takes the last."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.repeated: list[str] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if first.setdefault(key.value, line) != line:
                self.repeated.append(
                    f"line {line}: {key.value} is given twice, first on line {first[key.value]}"
                )
        return node


def _mistake(details: Any) -> str:
    """Return one error of pydantic's as a line; never with the value, which may be a secret."""
    match details["type"]:
        case "extra_forbidden":
            reason = _unknown_key(details["loc"])
        case "model_type":
            reason = "must be a mapping of keys to values"
        case "string_type":
            reason = "must be a string: put it in quotes"
        case _:
            reason = details["msg"].removeprefix("Value error, ")
    path = _path(details["loc"])
    return f"{path}: {reason}" if path else reason


def _path(loc: tuple[str | int, ...]) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in loc).removeprefix(".")


def _unknown_key(loc: tuple[str | int, ...]) -> str:
    *parents, key = (part for part in loc if isinstance(part, str))
    section: type[Section] = Config
    for parent in parents:
        section = section_of(section, parent) or section
    if key in section.unsupported.split():
        hint = REPLACED_BY.get(".".join((*parents, key)))
        return "known to Centrifugo, not supported here: remove it" + (f"; {hint}" if hint else "")
    if near := difflib.get_close_matches(key, section.model_fields, 1):
        return f"unknown key; did you mean {near[0]}?"
    everywhere = {path.rpartition(".")[2]: path for path in reversed(list(paths(Config)))}
    if near := difflib.get_close_matches(key, everywhere, 1, 0.75):
        return f"unknown key; did you mean {everywhere[near[0]]}?"
    return f"unknown key; known are {', '.join(section.model_fields)}"
