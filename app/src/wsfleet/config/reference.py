"""The reference of the configuration file's keys, which docs/configuration.md has."""

import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from wsfleet.config.file import BUILT_IN
from wsfleet.config.proxy import (
    ChannelProxies,
    ClientProxies,
    EventProxy,
    NamedProxy,
    Proxy,
    ProxyHTTP,
    ProxyTLS,
    RpcConfig,
    RpcNamespace,
    RpcOptions,
    RpcPing,
    StatusTransform,
    ToDisconnect,
    ToError,
)
from wsfleet.config.schema import (
    ChannelConfig,
    ChannelOptions,
    ClientConfig,
    Config,
    HttpApi,
    Namespace,
    PersonalChannel,
)
from wsfleet.config.section import Section, section_of
from wsfleet.config.token import SubscriptionTokenConfig, TokenConfig

EMPTY = '""'
"""An empty string in the reference."""
_TABLES: list[tuple[str, type[Section], type[Section]]] = [  # the third: keys not to repeat
    ("`channel`", ChannelConfig, Section),
    ("`channel.without_namespace`, and each of `channel.namespaces`", ChannelOptions, Section),
    ("Each of `channel.namespaces` as well", Namespace, ChannelOptions),
    ("`client`", ClientConfig, Section),
    ("`client.token`", TokenConfig, Section),
    (
        "`client.subscription_token`: the keys of `client.token`, and",
        SubscriptionTokenConfig,
        TokenConfig,
    ),
    ("`client.subscribe_to_user_personal_channel`", PersonalChannel, Section),
    ("`client.proxy`", ClientProxies, Section),
    ("`channel.proxy`", ChannelProxies, Section),
    ("`rpc`", RpcConfig, Section),
    ("`rpc.without_namespace`, and each of `rpc.namespaces`", RpcOptions, Section),
    ("Each of `rpc.namespaces` as well", RpcNamespace, RpcOptions),
    ("`rpc.ping`", RpcPing, Section),
    ("A proxy: `rpc.proxy`, each of `client.proxy`, `channel.proxy` and `proxies`", Proxy, Section),
    ("Each of `client.proxy` as well", EventProxy, Proxy),
    ("Each of `proxies` as well", NamedProxy, Proxy),
    ("`http` of a proxy", ProxyHTTP, Section),
    ("`http.tls` of a proxy", ProxyTLS, Section),
    ("Each of `http.status_to_code_transforms` of a proxy", StatusTransform, Section),
    ("`to_error` of one of them", ToError, Section),
    ("`to_disconnect` of one of them", ToDisconnect, Section),
    ("`http_api`", HttpApi, Section),
]
_REFUSED: list[tuple[str, type[Section]]] = [
    ("Top level", Config),
    ("`channel`", ChannelConfig),
    ("`channel.without_namespace`, `channel.namespaces`", ChannelOptions),
    ("`client`", ClientConfig),
    ("`client.token`, `client.subscription_token`", TokenConfig),
    ("`channel.proxy`", ChannelProxies),
    ("Each proxy", Proxy),
    ("`http.tls` of a proxy", ProxyTLS),
    ("`http_api`", HttpApi),
]


def reference() -> str:
    """Return all keys as Markdown, for docs/configuration.md."""
    lines = ["## Defaults without a file", "", "```yaml", *BUILT_IN.splitlines(), "```"]
    for title, section, skipped in _TABLES:
        lines += ["", f"## {title}", "", *_table(section, skipped)]
    lines += ["", "## Keys of Centrifugo that are refused", ""]
    for name, section in _REFUSED:
        keys = ", ".join(f"`{key}`" for key in sorted(section.unsupported.split()))
        lines.append(f"- {name}: {keys}.")
    return "\n".join(lines) + "\n"


def _table(section: type[Section], skipped: type[Section]) -> Iterator[str]:
    yield "| Key | Value | Default | Meaning |"
    yield "|---|---|---|---|"
    for key, field in section.model_fields.items():
        if key in skipped.model_fields:
            continue
        meaning = " ".join((field.description or "").split())
        if section_of(section, key):
            kind = "list" if isinstance(field.default, list) else "mapping"
            default = "see below"
        else:
            kind = _kind(field.annotation, field.metadata)
            default = "" if field.is_required() else f"`{_shown(field.default, kind)}`"
        yield f"| `{key}` | {kind} | {default} | {meaning} |"


def _kind(annotation: Any, metadata: list[Any]) -> str:
    for note in metadata:
        if isinstance(note, str):
            return note
    if typing.get_origin(annotation) is Literal:
        return " or ".join(f"`{choice or EMPTY}`" for choice in typing.get_args(annotation))
    if isinstance(annotation, types.GenericAlias):
        return "list of strings" if annotation.__origin__ is list else "mapping of strings"
    return {bool: "true or false", int: "number"}.get(annotation, "string")


def _shown(default: Any, kind: str) -> str:
    if kind.startswith("duration"):
        return f"{default // 3600}h" if default and default % 3600 == 0 else f"{default:g}s"
    if isinstance(default, bool):
        return str(default).lower()
    return f'"{default}"' if kind in ("string", "RE2 expression") else str(default) or EMPTY


REFERENCE_BEGINS = "<!-- Below: python -m wsfleet.config.reference docs/configuration.md -->\n"


def _update(path: Path) -> None:
    """Write the reference into a Markdown file, below its mark."""
    prose, mark, _ = path.read_text(encoding="utf-8").partition(REFERENCE_BEGINS)
    path.write_text(f"{prose}{mark}\n{reference()}", encoding="utf-8")


if __name__ == "__main__":
    _update(Path(sys.argv[1]))
