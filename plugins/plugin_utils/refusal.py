"""The errors of a validator about a file with secrets, without the secrets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SHORTEST = 4
"""Least length of a secret: without shorter texts a message would be unreadable."""


def refusal(result: Mapping[str, Any], secrets: Any) -> str:
    """Return why a task has failed, with stars in place of each text in `secrets`.

    `result` is what the task registered, `secrets` any lists and dictionaries of the values in the
    file. `no_log` would hide the message together with the secrets.
    """
    parts = [str(result.get(part) or "").strip() for part in ("msg", "stdout", "stderr")]
    text = "\n".join(dict.fromkeys(filter(None, parts)))
    for secret in sorted(set(_texts(secrets)), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if len(value) >= SHORTEST:
            yield str(value)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _texts(each)
