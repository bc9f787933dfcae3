"""The configuration: environment variables, the YAML file, the fleet file, Redis URLs.

May import `protocol`, `hub` and `transports`; reads files, opens no connection.
"""
