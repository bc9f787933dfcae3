"""Tests of the cluster's state."""
