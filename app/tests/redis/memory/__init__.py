"""Tests of a node without Redis."""
