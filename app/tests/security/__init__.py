"""Attacks on a node; after each the node serves as before, and a metric counts the refusal."""
