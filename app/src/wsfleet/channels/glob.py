"""Patterns for names of channels, with the syntax of github.com/gobwas/glob, Centrifugo's."""

from functools import lru_cache
from typing import Any

from wsfleet.config.types import compile_regex


@lru_cache(maxsize=64)
def compile_glob(pattern: str) -> Any:
    """Translate a pattern to a regular expression of RE2, whose `fullmatch` takes linear time.

    `*` is any text, `?` a character, `[abc]`, `[a-z]` and `[!a-z]` one of a set, `{a,b}` a choice,
    and a backslash takes the next character as it is.

    Raises:
        ValueError: it is not a pattern.
    """
    return compile_regex("(?s)" + "".join(_translated(pattern)))


def _translated(pattern: str) -> list[str]:
    out: list[str] = []
    depth = position = 0
    while position < len(pattern):
        character = pattern[position]
        position += 1
        if character == "\\":
            if position == len(pattern):
                raise ValueError("a backslash at the end escapes nothing")
            out.append(_escaped(pattern[position]))
            position += 1
        elif character == "[":
            end = pattern.find("]", position + 1)
            if end < 0:
                raise ValueError("[ without ]")
            out.append(_set(pattern[position:end]))
            position = end + 1
        elif character == "{":
            depth += 1
            out.append("(?:")
        elif character == "}" and depth:
            depth -= 1
            out.append(")")
        elif character == "," and depth:
            out.append("|")
        else:
            out.append({"*": ".*", "?": "."}.get(character) or _escaped(character))
    if depth:
        raise ValueError("{ without }")
    return out


def _set(members: str) -> str:
    negation = "^" if members.startswith("!") else ""
    members = members.removeprefix("!")
    if not members:
        raise ValueError("[!] is empty")
    return f"[{negation}{''.join(c if c == '-' else _escaped(c) for c in members)}]"


def _escaped(character: str) -> str:
    return character if character.isalnum() else f"\\x{{{ord(character):x}}}"
