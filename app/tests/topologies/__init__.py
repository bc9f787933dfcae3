"""Tests on Sentinel and Redis Cluster."""
