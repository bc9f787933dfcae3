"""Tests of the node and of the operator's command line."""
