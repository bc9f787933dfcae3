"""JSON that every parser reads alike (RFC 8259 with the rules of RFC 7493, I-JSON).

Parsers differ in what they do with half a surrogate pair and with a number that no double holds:
one refuses it, one puts U+FFFD or null in its place, one keeps it. Such text is refused where it
comes in, because different clients would receive different values.
"""

import json
from typing import Any

import orjson


class InvalidJSONError(ValueError):
    """The text is not JSON, or not the same JSON to every parser; the message has the reason."""


def loads(text: str | bytes) -> Any:
    """Read JSON.

    Raises:
        InvalidJSONError: it is not JSON in UTF-8, or has half a surrogate pair, or a number that
            no double holds, or nests too deep.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidJSONError(_reason(error)) from None


def is_json(data: bytes) -> bool:
    """Whether `loads` takes it."""
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True


def split(text: bytes) -> list[bytes]:
    """Split JSON documents that follow each other, with or without whitespace; `loads` reads each.

    Raises:
        InvalidJSONError: there is no document, or something else follows.
    """
    documents: list[bytes] = []
    try:
        whole = text.decode().strip(_WHITESPACE)
        position = 0
        while position < len(whole) or not documents:
            _, end = _lenient.raw_decode(whole, position)
            documents.append(whole[position:end].encode())
            position = end
            while whole[position : position + 1] in tuple(_WHITESPACE):
                position += 1
    except RecursionError:
        raise InvalidJSONError("it nests too deep") from None
    except ValueError as error:
        raise InvalidJSONError(str(error)) from None
    return documents


def is_ambiguous(text: str | bytes) -> bool:
    """Whether text that `loads` refuses is JSON to another parser; `NaN` alone is just a word."""
    try:
        found = _lenient.decode(text if isinstance(text, str) else text.decode())
    except RecursionError:  # a parser without a limit may take it
        return True
    except ValueError:
        return False
    return found is not _WORD


def check_opaque(data: bytes) -> None:
    """Check a payload that may be anything: JSON for some parser must be JSON for all.

    Raises:
        InvalidJSONError: it is not.
    """
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if is_ambiguous(data):
            raise InvalidJSONError(_reason(error)) from None


def _reason(error: orjson.JSONDecodeError) -> str:
    return f"{error.msg} at character {error.pos}"


_WHITESPACE = " \t\r\n"
_WORD = object()
# Numbers stay text: their size does not matter here.
_lenient = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=lambda name: _WORD)
