"""The types of values in the configuration file: durations, expressions, origins."""

import re
from decimal import Decimal
from typing import Annotated, Any

import re2  # type: ignore[import-untyped]
from pydantic import AfterValidator, BeforeValidator

# Go's time.ParseDuration, which is what Centrifugo's durations are.
_NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,  # micro sign
    "μs": 10**3,  # Greek mu
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_LONGEST = 2**63 - 1


def _nanoseconds(value: object) -> int:
    if value in ("0", 0) and value is not False:
        return 0
    if not isinstance(value, str):
        raise ValueError("a duration needs its unit, such as 300s, 10m or 1h30m")  # noqa: TRY004
    quantities = _QUANTITY.findall(value)
    if not quantities or "".join(map("".join, quantities)) != value:
        raise ValueError(f"{value!r} is not a duration such as 300s, 10m or 1h30m")
    total = sum(int(Decimal(number) * _NANOSECONDS[unit]) for number, unit in quantities)
    if total > _LONGEST:
        raise ValueError("longer than 292 years")
    return total


def _seconds(value: object) -> float:
    return _nanoseconds(value) / 10**9


def _whole_seconds(value: object) -> int:
    seconds, rest = divmod(_nanoseconds(value), 10**9)
    if rest:
        raise ValueError("whole seconds only")
    return seconds


def _positive_seconds(value: object) -> float:
    if not (seconds := _seconds(value)):
        raise ValueError("must be longer than 0")
    return seconds


def _seconds_or_never(value: object) -> float:
    return 0.0 if value == -1 else _positive_seconds(value)


def compile_regex(pattern: str) -> Any:
    """Compile a regular expression in RE2's syntax, which is Go's and Centrifugo's.

    RE2 takes linear time: clients choose the names that it is run on.

    Raises:
        ValueError: it is invalid.
    """
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        raise ValueError(error.args[0].decode()) from None


def _regex(pattern: str) -> str:
    compile_regex(pattern)
    return pattern


def _origin(pattern: str) -> str:
    if "{" in pattern:
        raise ValueError("{a,b} is not supported in an origin: list each on its own")
    return pattern


Seconds = Annotated[float, BeforeValidator(_positive_seconds), "duration"]
SecondsOrNever = Annotated[float, BeforeValidator(_seconds_or_never), "duration, or -1 for never"]
WholeSeconds = Annotated[int, BeforeValidator(_whole_seconds), "duration, whole seconds"]
Regex = Annotated[str, AfterValidator(_regex), "RE2 expression"]
Origin = Annotated[str, AfterValidator(_origin)]
