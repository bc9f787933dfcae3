"""The fleet file: where nodes, load balancers and Redis of one cluster are."""

from pathlib import Path
from typing import Annotated

from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field
from pydantic.functional_validators import AfterValidator

from wsfleet.topology import CheckedURL

SYSTEM_FLEET = Path("/etc/wsfleet/fleet.json")


def _http(text: str) -> str:
    AnyHttpUrl(text)
    return text.rstrip("/")


HttpUrl = Annotated[str, AfterValidator(_http)]


class Fleet(BaseModel):
    """A cluster, as site.yml writes it down."""

    model_config = ConfigDict(frozen=True)

    redis_url: CheckedURL
    base_url: HttpUrl
    nodes: dict[str, HttpUrl] = Field(min_length=1)
    loadbalancers: dict[str, HttpUrl] = Field(default_factory=dict)
    #: What ssh takes to get to the machine that collects the logs.
    logs: list[str] = Field(default_factory=list)
