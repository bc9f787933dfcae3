"""Chaos: seeded faults on a cluster of local VMs, while clients account for every message."""
