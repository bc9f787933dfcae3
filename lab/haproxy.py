"""Render the configuration of the role `haproxy` for this machine."""

import hashlib
import importlib.util
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from jinja2 import Environment, StrictUndefined

from lab.paths import ROOT

HAPROXY_PROGRAM = shutil.which("haproxy", path="/usr/sbin:/usr/bin") or ""
ROLE = ROOT / "roles" / "haproxy"


def haproxy_config(
    nodes: dict[str, str],
    public: int,
    stats: int,
    tls: int = 0,
    certificate: Path | None = None,
    balancers: tuple[str, ...] = (),
    virtual_address: str = "",
    internal_ports: dict[str, int] | None = None,
    weights: dict[str, int] | None = None,
    **variables: object,
) -> str:
    """Return the role's configuration on the loopback, for nodes given by name and URL.

    It has no user, chroot and admin socket, which need root. All clients have one address here, so
    that the limits of an address are off. Variables are those of the role.
    """
    urls = {name: urlsplit(url) for name, url in nodes.items()}
    settings = yaml.safe_load((ROLE / "defaults/main.yml").read_text()) | {
        "haproxy_port": public,
        "haproxy_stats_port": stats,
        "haproxy_stats_bind": ["127.0.0.1"],
        "haproxy_check_inter": 1,
        "haproxy_maxconn": 5000,  # two open files each; a process here may have few
        "haproxy_tls_port": tls,
        "haproxy_source_rate": 0,
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
                    "internal_port": (internal_ports or {}).get(name, url.port),
                    "tls": url.scheme == "https",
                    "weight": (weights or {}).get(name, 1),
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
    environment.filters["wsfleet.wsfleet.netloc"] = _netloc()
    environment.filters["hash"] = lambda text, name: hashlib.new(name, text.encode()).hexdigest()
    template = (ROLE / "templates/haproxy.cfg.j2").read_text()
    text = environment.from_string(template).render(context)
    return re.sub(r"(?m)^ *(chroot|user|group|stats socket) .*\n", "", text)


def _netloc() -> Callable[[str, object], str]:
    """Return a filter of the roles, loaded from its file as Ansible does."""
    file = ROOT / "plugins/plugin_utils/addresses.py"
    spec = importlib.util.spec_from_file_location("addresses", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    netloc: Callable[[str, object], str] = module.netloc
    return netloc
