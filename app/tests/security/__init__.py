"""Attacks on a node: afterwards it serves as before, and a metric tells of each refusal."""
