"""The commands, one module each.

May import `cli.measure`, `cli.access` and `cli.errors`.
"""
