"""The server's HTTP API, `/api`: requests, answers and errors of Centrifugo's.

`requests` has the requests, `methods` carries them out, `endpoint` speaks HTTP and `openapi`
describes all of it. It may import everything but the endpoints of clients.
"""
