"""HAProxy as the role `haproxy` configures it."""

import hashlib
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from jinja2 import Environment, StrictUndefined

from tests.support.paths import ROOT

HAPROXY_PROGRAM = shutil.which("haproxy", path="/usr/sbin:/usr/bin") or ""


HAPROXY_ROLE = ROOT / "roles" / "haproxy"


def haproxy_config(
    nodes: dict[str, str],
    public: int,
    stats: int,
    tls: int = 0,
    certificate: Path | None = None,
    balancers: tuple[str, ...] = (),
    virtual_address: str = "",
    **variables: object,
) -> str:
    """The role's own configuration, without its `global` section, and on the loopback alone."""
    urls = {name: urlsplit(url) for name, url in nodes.items()}
    settings = yaml.safe_load((HAPROXY_ROLE / "defaults/main.yml").read_text()) | {
        "haproxy_port": public,
        "haproxy_stats_port": stats,
        "haproxy_stats_bind": ["127.0.0.1"],
        "haproxy_check_inter": 1,
        "haproxy_tls_port": tls,
        "haproxy_source_rate": 0,  # all clients have one address
        "haproxy_source_connections": 0,
        **variables,
    }
    context = {f"_{name.lstrip('_')}": value for name, value in settings.items()} | {
        "_haproxy_public": ["127.0.0.1"],
        "_haproxy_loopback": "127.0.0.1",
        "_haproxy_tls": [certificate] if certificate else [],
        "_haproxy_tls_sums": "",
        "fleet_members": {
            "loadbalancers": [
                {"name": f"lb{number}", "address": address}
                for number, address in enumerate(balancers, 1)
            ],
            "virtual_address": virtual_address,
            "nodes": [
                {
                    "name": name,
                    "host": name.rpartition("-")[0],
                    "address": url.hostname,
                    "port": url.port,
                    "tls": url.scheme == "https",
                }
                for name, url in urls.items()
            ],
        },
        "fleet_nodes_tls": any(url.scheme == "https" for url in urls.values()),
        "ansible_managed": "",
    }
    environment = Environment(  # noqa: S701 - no HTML
        trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    environment.filters["netloc"] = "{}:{}".format
    environment.filters["hash"] = lambda text, name: hashlib.new(name, text.encode()).hexdigest()
    template = (HAPROXY_ROLE / "templates/haproxy.cfg.j2").read_text()
    text = environment.from_string(template).render(context)
    return text[text.index("\ndefaults\n") + 1 :]
