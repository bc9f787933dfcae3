"""Tests of the traffic that commands make."""
