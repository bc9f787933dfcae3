"""The clients that load and check a fleet through its public URL: one module a run.

May import `cli.measure`, `cli.access` and `cli.errors`.
"""
