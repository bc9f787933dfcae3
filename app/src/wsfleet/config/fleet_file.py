"""The fleet file: where nodes, load balancers and Redis of one cluster are."""

from pathlib import Path
from typing import Annotated

from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field
from pydantic.functional_validators import AfterValidator

from wsfleet.config.redis_url import SharedURL

COOKIE = "WSNODE"
"""The name of the balancers' cookie without a fleet file: the role's default."""
SYSTEM_FLEET, SYSTEM_HOSTS = Path("/etc/wsfleet/fleet.json"), Path("/etc/wsfleet/hosts.json")


def _http(text: str) -> str:
    AnyHttpUrl(text)
    return text.rstrip("/")


HttpUrl = Annotated[str, AfterValidator(_http)]


class Hosts(BaseModel):
    """The addresses of nodes and balancers, as site.yml writes them, without secrets."""

    model_config = ConfigDict(frozen=True)

    nodes: dict[str, HttpUrl] = Field(min_length=1)
    loadbalancers: dict[str, HttpUrl] = Field(default_factory=dict)


class Fleet(Hosts):
    """The whole cluster, for the command line."""

    redis_url: SharedURL
    base_url: HttpUrl
    #: The name of the load balancers' stickiness cookie, the variable `haproxy_cookie`.
    cookie: str = COOKIE
    #: How they find a client's node again, the variable `haproxy_stickiness`.
    stickiness: str = "cookie"
    #: PEM file of the CA whose certificates the machines have, where they speak TLS.
    ca: Path | None = None
    #: The processes of the application's handlers, `wsnode_app_processes` on each host of nodes.
    handlers: list[str] = Field(default_factory=list)
    #: The command that runs a shell command on the machine that collects the logs.
    logs: list[str] = Field(default_factory=list)
    #: The hostname of each host of the inventory, as far as it is known.
    hosts: dict[str, str] = Field(default_factory=dict)
