"""The additions of `wsfleet dev` to the settings and the configuration."""

from typing import Any

from pydantic import SecretStr

from wsfleet.config.schema import Config

API_KEY = "WSFLEET_DEV_API_KEY"
"""The environment variable with the key of this run, for the console and the server API."""
LOCAL_ORIGINS = [
    f"{scheme}://{host}{port}"
    for scheme in ("http", "https")
    for host in ("localhost", "127.0.0.1", "[[]::1]")
    for port in ("", ":*")
]
"""The origins of pages on this machine, as patterns of `client.allowed_origins`."""
SETTINGS: dict[str, Any] = {
    "node_name": "dev",
    "log_level": "warning",
    "internal_host": "127.0.0.1",
    "drain_delay": 0.0,
    "drain_timeout": 1.0,
    "drain_rate": 100_000,
}
"""Settings of the node, unless the environment has them.

The console is for this machine alone. All clients are sent away at once: the next node follows.
"""


def completed(config: Config, api_key: str, *, built_in: bool) -> Config:
    """Return a configuration with what the console and pages of this machine need.

    The key of this run is a further key of the server API. The origins of this machine are allowed
    if the configuration is the built-in one, or names no origins.
    """
    http_api, client = config.http_api, config.client
    http_api = http_api.model_copy(update={"keys": [*http_api.keys, SecretStr(api_key)]})
    if built_in or not client.allowed_origins:
        client = client.model_copy(update={"allowed_origins": LOCAL_ORIGINS})
    return config.model_copy(update={"http_api": http_api, "client": client})
