"""The keys of proxies: Centrifugo's examples, references, and what is refused."""

from typing import Any

import pytest
import yaml

from wsfleet.config.file import ConfigError, parse
from wsfleet.config.schema import Config

CENTRIFUGOS = """
client:
  proxy:
    connect:
      enabled: true
      endpoint: https://your_backend/centrifugo/connect
      timeout: 500ms
      http_headers: [Cookie, Origin, User-Agent, X-Real-Ip, X-Forwarded-For, X-Request-Id]
      emulated_headers: [Authorization]
      http:
        static_headers: {X-Custom-Header: custom value}
        status_to_code_transforms:
          - {status_code: 404, to_error: {code: 404, message: not found, temporary: false}}
          - {status_code: 403, to_disconnect: {code: 4903, reason: permission denied}}
    refresh: {enabled: true, endpoint: "https://your_backend/centrifugo/refresh", timeout: 1s}
channel:
  proxy:
    subscribe: {endpoint: "http://localhost:3000/centrifugo/subscribe"}
    publish: {endpoint: "http://localhost:3000/centrifugo/publish"}
    sub_refresh: {endpoint: "http://localhost:3000/centrifugo/sub_refresh"}
  without_namespace: {subscribe_proxy_enabled: true}
  namespaces:
    - {name: sun, subscribe_proxy_enabled: true, publish_proxy_enabled: true}
    - {name: ns1, sub_refresh_proxy_enabled: true, publish_proxy_enabled: true,
       publish_proxy_name: publish1}
rpc:
  proxy: {endpoint: "http://localhost:3000/centrifugo/rpc"}
  without_namespace: {proxy_enabled: true}
  namespaces:
    - {name: sun, proxy_enabled: true}
    - {name: ns1, proxy_enabled: true, proxy_name: rpc1}
  ping: {enabled: true}
proxies:
  - {name: publish1, endpoint: "http://localhost:3001/centrifugo/publish"}
  - {name: rpc1, endpoint: "http://localhost:3001/centrifugo/rpc", include_connection_meta: true}
"""


def mistake(config: Any) -> str:
    """Return the one mistake in a configuration."""
    text = config if isinstance(config, str) else yaml.safe_dump(config)
    with pytest.raises(ConfigError) as caught:
        parse(text, "f")
    (line,) = caught.value.mistakes
    return line


def with_proxy(**options: Any) -> dict[str, Any]:
    """Return a configuration with a proxy that has these options."""
    return {"rpc": {"proxy": {"endpoint": "https://app/rpc", **options}}}


def test_centrifugos_examples_are_a_configuration() -> None:
    """Those of https://centrifugal.dev/docs/server/proxy, in one file."""
    config = parse(CENTRIFUGOS)
    connect = config.client.proxy.connect
    assert (connect.enabled, connect.timeout) == (True, 0.5)
    assert connect.http.static_headers["X-Custom-Header"].get_secret_value() == "custom value"
    error, disconnect = connect.http.status_to_code_transforms
    assert error.to_error is not None
    assert (error.status_code, error.to_error.code) == (404, 404)
    assert disconnect.to_disconnect is not None
    assert disconnect.to_disconnect.reason == "permission denied"


def test_namespaces_refer_to_proxies_by_name() -> None:
    """`default` is the one of the event, others are in `proxies`; none where it is not enabled."""
    config = parse(CENTRIFUGOS)
    sun, ns1 = config.channel.namespaces
    events = config.channel.proxy
    assert config.channel_proxy("subscribe", config.channel.without_namespace) is events.subscribe
    assert config.channel_proxy("publish", config.channel.without_namespace) is None
    assert config.channel_proxy("publish", sun) is events.publish
    assert config.channel_proxy("publish", ns1) is config.proxies[0]
    assert config.channel_proxy("subscribe", ns1) is None
    assert config.channel_proxy("sub_refresh", ns1) is events.sub_refresh
    assert config.rpc_proxy(config.rpc.namespaces[0]) is config.rpc.proxy
    assert config.rpc_proxy(config.rpc.namespaces[1]) is config.proxies[1]


def test_defaults_are_centrifugos() -> None:
    """One second, nothing forwarded, nothing enabled."""
    proxy = Config().rpc.proxy
    assert proxy.timeout == 1
    assert (proxy.http_headers, proxy.emulated_headers) == ([], [])
    assert not proxy.include_connection_meta
    assert not proxy.binary_encoding
    assert not Config().client.proxy.connect.enabled
    assert (Config().rpc.ping.method, Config().rpc.namespace_boundary) == ("ping", ":")


NAMED = {"name": "ns", "endpoint": "http://app/"}


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            {"client": {"proxy": {"connect": {"enabled": True}}}},
            "client.proxy.connect: endpoint is missing",
        ),
        (
            {"channel": {"namespaces": [{"name": "ab", "publish_proxy_enabled": True}]}},
            "channel.namespaces 'ab': publish_proxy_name: needs channel.proxy.publish.endpoint",
        ),
        (
            {"channel": {"without_namespace": {"subscribe_proxy_name": "x"}}},
            "channel.without_namespace: subscribe_proxy_name: there is no proxy 'x' in proxies",
        ),
        (
            {"rpc": {"without_namespace": {"proxy_enabled": True}}},
            "rpc.without_namespace: proxy_name: needs rpc.proxy.endpoint",
        ),
        (
            {"rpc": {"namespaces": [{"name": "ab", "proxy_name": "x"}]}},
            "rpc.namespaces 'ab': proxy_name: there is no proxy 'x' in proxies",
        ),
        ({"rpc": {"namespaces": [{"name": "ab"}, {"name": "ab"}]}},
         "rpc: namespaces: the name 'ab' is given twice"),
        ({"proxies": [NAMED, NAMED]}, "proxies: the name 'ns' is given twice"),
        ({"proxies": [{"name": "ns"}]}, "proxies[0]: endpoint is missing"),
        (
            {"proxies": [NAMED | {"name": "default"}]},
            "proxies[0]: the name 'default' is reserved: choose another",
        ),
    ],
)  # fmt: skip
def test_a_missing_proxy_is_named(config: Any, line: str) -> None:
    """With the key that mends it."""
    assert mistake(config) == line


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"endpoint": "grpc://app:9000"}, "rpc.proxy.endpoint: backends with gRPC are not"),
        ({"timeout": "0s"}, "rpc.proxy.timeout: must be longer than 0"),
        ({"timeout": 1}, "rpc.proxy.timeout: a duration needs its unit"),
        ({"http_headers": ["a b"]}, "rpc.proxy.http_headers[0]: 'a b' is not the name"),
        ({"http_headers": ["Host"]}, "rpc.proxy.http_headers[0]: Host belongs to the connection"),
        ({"emulated_headers": ["Content-Length"]}, "Content-Length belongs to the connection"),
        ({"http": {"static_headers": {"A": "b\r\nc: d"}}}, "printable ASCII"),
        ({"http": {"static_headers": {"A b": "c"}}}, "is not the name"),
        ({"http": {"status_to_code_transforms": [{"status_code": 404}]}},
         "rpc.proxy.http.status_to_code_transforms[0]: needs either to_error or to_disconnect"),
        ({"http": {"status_to_code_transforms": [{"status_code": 200, "to_error": {"code": 400}}]}},
         "status_to_code_transforms[0].status_code: "),
        ({"http": {"status_to_code_transforms": [{"status_code": 404, "to_error": {"code": 99}}]}},
         "status_to_code_transforms[0].to_error.code: "),
        ({"http": {"tls": {"enabled": True, "cert_pem": "x"}}}, "both cert_pem and key_pem"),
        ({"endpoint": "http://app/", "http": {"tls": {"enabled": True}}}, "needs an https://"),
    ],
)  # fmt: skip
def test_invalid_options_are_refused(options: dict[str, Any], part: str) -> None:
    """Before the node starts."""
    assert part in mistake(with_proxy(**options))


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        (
            with_proxy(grpc={}),
            "rpc.proxy.grpc: {}; set endpoint to one with HTTP, and http instead",
        ),
        (with_proxy(grpc_metadata=[]), "rpc.proxy.grpc_metadata: {}; set http_headers instead"),
        (
            {"channel": {"proxy": {"subscribe_stream": {}}}},
            "channel.proxy.subscribe_stream: {}; let the backend publish by the server API instead",
        ),
        ({"channel": {"proxy": {"map_publish": {}}}}, "channel.proxy.map_publish: {}"),
        ({"channel": {"proxy": {"map_remove": {}}}}, "channel.proxy.map_remove: {}"),
        (
            {"channel": {"proxy": {"shared_poll_refresh": {}}}},
            "channel.proxy.shared_poll_refresh: {}",
        ),
        (
            {"channel": {"without_namespace": {"subscribe_stream_proxy_enabled": True}}},
            "channel.without_namespace.subscribe_stream_proxy_enabled: {}; "
            "let the backend publish by the server API instead",
        ),
    ],
)
def test_what_is_not_built_is_named(config: Any, hint: str) -> None:
    """With what there is instead."""
    known = "known to Centrifugo, not supported here: remove it"
    assert mistake(config) == hint.format(known)


def test_secrets_of_proxies_are_not_shown() -> None:
    """A static header field may be a password."""
    config = parse(yaml.safe_dump(with_proxy(http={"static_headers": {"Authorization": "hunter"}})))
    assert "hunter" not in repr(config)
    assert "hunter" not in mistake(
        with_proxy(http={"static_headers": {"Authorization": ["hunter"]}})
    )
