"""Tests of a whole fleet: nodes, HAProxy and Redis together."""
