"""Tests of `Realtime`."""
