"""The check of API keys: a request needs one of the configuration's keys."""

import hmac
from collections.abc import Iterable, Iterator
from urllib.parse import parse_qs

Headers = Iterable[tuple[bytes, bytes]]
"""Pairs of a name in lower case and a value."""
CLOSED = 403, "the API is closed: http_api.key is not configured"
WRONG = 401, "the API key is missing or wrong: send it in the header X-API-Key"


class KeyCheck:
    """A check of a request's key, at the places that Centrifugo reads.

    These are the header `X-API-Key`, `Authorization: apikey KEY`, and `api_key` in the query.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = [key.encode() for key in keys]

    def refusal(self, headers: Headers, query: bytes) -> tuple[int, str] | None:
        """Return the status and text of a refusal; None if the request is allowed."""
        if not self._keys:
            return CLOSED
        # Compare with every key, also after a match: the time must not depend on the keys.
        pairs = ((shown, key) for shown in _shown(headers, query) for key in self._keys)
        matches = [hmac.compare_digest(shown, key) for shown, key in pairs]
        return None if any(matches) else WRONG


def _shown(headers: Headers, query: bytes) -> Iterator[bytes]:
    for name, value in headers:
        if name == b"x-api-key":
            yield value
        elif name == b"authorization":
            scheme, _, credentials = value.partition(b" ")
            if scheme.lower() == b"apikey":
                yield credentials.strip()
    if query:
        yield parse_qs(query.decode("latin-1")).get("api_key", [""])[0].encode()
