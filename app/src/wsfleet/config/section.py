"""A section of the configuration file, and the keys within it."""

import typing
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A mapping of the file; an attribute is a key, its docstring the key's documentation."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    unsupported: ClassVar[str] = ""
    """Keys that Centrifugo 6.9 has in this section and that are not supported here."""

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {k: v for k, v in data.items() if v is not None or k not in cls.model_fields}


def section_of(section: type[Section], key: str) -> type[Section] | None:
    """The section that `key` is, or that it is a list of."""
    annotation = section.model_fields[key].annotation
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def paths(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Path of each key in the section, and of those below it."""
    for key in section.model_fields:
        yield prefix + key
        if inner := section_of(section, key):
            is_list = typing.get_origin(section.model_fields[key].annotation) is list
            yield from paths(inner, f"{prefix}{key}{'[]' if is_list else ''}.")
