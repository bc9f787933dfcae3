"""Tests of how the command line reaches the cluster."""
