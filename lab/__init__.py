"""What the tests, bench, chaos and molecule share: processes, ports, waiting, HAProxy."""
