"""The operator's command line, `wsfleet`: `main` has the tree of commands, `errors` the exit codes.

May import every folder below; nobody imports it but chaos, and that only `measure`, `access` and
`errors`. Within it imports run down: `main`, `commands`, `traffic`, `measure` and `access` side by
side, `errors`.
"""
