"""The commands: one module each, named as on the command line, with a function `command`.

May import `cli.traffic`, `cli.measure`, `cli.access`, `cli.options` and `cli.errors`.
"""
