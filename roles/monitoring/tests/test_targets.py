"""The targets of Prometheus: nodes by TLS where they speak it, all others without."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import certifi
import jinja2
import pytest
import yaml

TEMPLATE = Path(__file__).resolve().parents[1] / "templates" / "prometheus.yml.j2"
NODES = [
    {"name": "node1-8001", "address": "10.0.0.21:8001", "scheme": "http"},
    {"name": "node2-8001", "address": "10.0.0.22:8001", "scheme": "https"},
]
REDIS = [{"name": "redis1", "address": "rediss://10.0.0.31:6379"}]


def written(folder: Path, *, tls: bool) -> dict[str, dict[str, Any]]:
    """The jobs by name, of a configuration that Prometheus takes."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        autoescape=False,  # noqa: S701 - no HTML
    )
    environment.filters["wsfleet.wsfleet.netloc"] = "{}:{}".format
    rules = folder / "rules.yml"
    rules.write_text("groups: []\n")
    text = environment.from_string(TEMPLATE.read_text()).render(
        ansible_managed="by the test",
        _monitoring_scrape_interval="15s",
        _monitoring_bind="10.0.0.41",
        _monitoring_alertmanager_port=9093,
        _monitoring_rules=rules,
        _monitoring_redis_exporter="127.0.0.1:9121",
        _monitoring_ca=certifi.where(),
        fleet_nodes_tls=tls,
        fleet_members={"targets": {"wsfleet": NODES[: 1 + tls], "redis": REDIS}},
    )
    path = folder / "prometheus.yml"
    path.write_text(text)
    done = subprocess.run(["promtool", "check", "config", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {job["job_name"]: job for job in yaml.safe_load(text)["scrape_configs"]}


@pytest.mark.parametrize("tls", [False, True])
def test_nodes_are_asked_as_they_speak(tmp_path: Path, tls: bool) -> None:
    """Each by its own scheme, and by TLS with the CA of the machines alone."""
    jobs = written(tmp_path, tls=tls)
    labels = [each["labels"] for each in jobs["wsfleet"]["static_configs"]]
    assert [(each["instance"], each["__scheme__"]) for each in labels] == [
        (node["name"], node["scheme"]) for node in NODES[: 1 + tls]
    ]
    assert jobs["wsfleet"].get("tls_config") == ({"ca_file": certifi.where()} if tls else None)
    assert "tls_config" not in jobs["redis"]


@pytest.mark.parametrize(
    ("retention", "words"),
    [("15d", ""), ("1d12h", ""), ("15x", "duration")],  # each version has its own words
)
def test_arguments_are_tried_before_they_are_written(
    tmp_path: Path, retention: str, words: str
) -> None:
    """Prometheus reads them in its start alone, after the old process has ended."""
    role = Path(__file__).resolve().parents[1]
    variables = yaml.safe_load((role / "vars" / "main" / "main.yml").read_text())
    (command,) = (
        file["validate"]
        for file in variables["_monitoring_arguments"]
        if file["path"] == "/etc/default/prometheus"
    )
    environment = jinja2.Environment(autoescape=False)  # noqa: S701 - no HTML
    environment.filters["wsfleet.wsfleet.netloc"] = "{}:{}".format
    text = environment.from_string((role / "templates" / "prometheus.default.j2").read_text())
    (tmp_path / "prometheus").write_text(
        text.render(
            ansible_managed="by the test",
            _monitoring_bind="127.0.0.1",
            _monitoring_prometheus_port=9,
            fleet_host_address="127.0.0.1",
            _monitoring_retention=retention,
        )
    )
    arguments = shlex.split(command.replace("%s", str(tmp_path / "prometheus")))
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == (1 if words else 0), done.stdout
    assert words in done.stdout
