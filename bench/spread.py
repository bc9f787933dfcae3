"""Numbers with three digits, and the spread of a value over the rounds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The median, least and greatest of a value over the rounds."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Return the spread of the values, or None without values."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found)) if found else None

    def __str__(self) -> str:
        """Return the cell of a table."""
        if self.least == self.greatest:
            return number(self.median)
        return f"{number(self.median)} ({number(self.least)}-{number(self.greatest)})"


def number(value: float) -> str:
    """Return the number with three digits; large ones in thousands or millions: 254 k."""
    value = float(f"{value:.3g}")
    scales = ((1e6, 1e6, " M"), (1e4, 1e3, " k"), (0, 1, ""))
    scale, name = next((scale, name) for least, scale, name in scales if abs(value) >= least)
    decimals = max(0, 3 - len(str(int(abs(value / scale)))))
    return f"{value / scale:,.{decimals}f}{name}" if value else "0"
