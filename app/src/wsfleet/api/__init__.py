"""The server API, `/api`, with the methods and the JSON of Centrifugo v6.

May import `node` and below, but not `clients`.
"""
