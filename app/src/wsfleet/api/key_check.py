"""Who may use the API: whoever shows one of the keys of the configuration."""

import hmac
from collections.abc import Iterable, Iterator
from urllib.parse import parse_qs

Headers = Iterable[tuple[bytes, bytes]]
"""Names, in lower case, and values."""
CLOSED = 403, "the API is closed: http_api.key is not configured"
WRONG = 401, "the API key is missing or wrong: send it in the header X-API-Key"


class KeyCheck:
    """Finds the key of a request where Centrifugo does.

    That is the header `X-API-Key`, `Authorization: apikey KEY`, or `api_key` in the query.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = [key.encode() for key in keys]

    def refusal(self, headers: Headers, query: bytes) -> tuple[int, str] | None:
        """Status and text for a request that must not be carried out; None if it may be."""
        if not self._keys:
            return CLOSED
        # All of them, whether or not one is right: the time that it takes tells nothing.
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
