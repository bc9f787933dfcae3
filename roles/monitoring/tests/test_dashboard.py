"""Grafana's dashboard: it asks for metrics that there are, in words that Prometheus knows."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml
from wsfleet.telemetry.metrics import Metrics

ROLE = Path(__file__).resolve().parents[1]
DASHBOARD: dict[str, Any] = json.loads((ROLE / "files" / "grafana-dashboard.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
#: The metrics of HAProxy and of Debian 12's exporters in a small cluster.
EXPORTED = set((Path(__file__).with_name("exported_metrics.txt")).read_text().split())
#: The metrics that the role node_exporter adds, and those of Prometheus.
OURS = {"wsfleet_haproxy_workers", "up", "ALERTS"}


def of_the_node() -> set[str]:
    """The names of all samples that a node can have, also of those that have not happened yet."""
    metrics = Metrics()
    metrics.watch(
        max_connections=1,
        weight=1,
        handshakes=lambda: 0,
        outbox_bytes=lambda: 0,
        ready=lambda: True,
        states=["running"],
        state=lambda: "running",
        drain_wanted=lambda: False,
        redis=lambda: True,
        pubsub=lambda: True,
    )
    ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {
        family.name + end
        for family in metrics.registry.collect()
        for end in ends.get(family.type, ("",))
    }


def test_every_metric_exists() -> None:
    """A panel about a metric that nobody has stays empty, and looks as if all were well."""
    names = set(
        re.findall(
            r"\b(?:(?:wsfleet|redis|haproxy|node|process)_\w+|up|ALERTS)\b", str(EXPRESSIONS)
        )
    )
    assert len(names) > 25
    assert names - of_the_node() - EXPORTED - OURS == set()


def test_prometheus_can_read_every_expression(tmp_path: Path) -> None:
    """They are checked as rules are."""
    rules = [
        {"record": f"panel{number}", "expr": expression.replace("$__rate_interval", "1m")}
        for number, expression in enumerate(EXPRESSIONS)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_have_their_place() -> None:
    """Each has a number and a name of its own, and none covers another."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for key in ("id", "title"):
        values = [panel[key] for panel in DASHBOARD["panels"]]
        assert len(values) == len(set(values))
