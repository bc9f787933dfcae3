"""Helpers of the tests, bench, chaos and molecule: processes, ports, waiting, HAProxy."""
