"""The autoscaler's metrics for Prometheus."""

from collections import Counter as Tally

from prometheus_client import CollectorRegistry, Counter, Gauge

from wsfleet.cluster.autoscale_policy import Action, Decision, Host, Load, Place


class AutoscaleMetrics:
    """The metrics of one autoscaler, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"wsfleet_autoscale_{name}", text, labels, registry=registry)

        self.redis = gauge("redis_connected", "1 if Redis answered the last time.")
        self.leader = gauge("leader", "1 if this autoscaler leads.")
        self.short = gauge("short", "1 if a host is needed, but none is in standby.")
        self.hosts = gauge("hosts", "Hosts, by their place in the pool.", "place")
        self.connections = gauge("connections_per_node", "Average over the nodes that serve.")
        self.cpu = gauge("cpu_percent", "Average over the hosts that serve.")
        self.decisions = Counter(
            "wsfleet_autoscale_decisions",
            "Decisions that were carried out.",
            ["action"],
            registry=registry,
        )
        for place in Place:  # a series must exist before its first change, or rate() misses it
            self.hosts.labels(place.value)
        for action in (Action.SCALE_IN, Action.SCALE_OUT):
            self.decisions.labels(action.value)

    def show(self, hosts: list[Host], decision: Decision) -> None:
        """Set the gauges from the hosts and the decision."""
        places, load = Tally(host.place for host in hosts), Load.of(hosts)
        for place in Place:
            self.hosts.labels(place.value).set(places[place])
        self.connections.set(load.per_node if load.nodes else 0)
        self.cpu.set(load.per_host if load.hosts else 0)
        self.short.set(decision.action is Action.SCALE_OUT and not decision.hosts)
