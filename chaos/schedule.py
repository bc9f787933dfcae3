"""The schedule of a seed: the faults, their order, targets and durations."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from chaos.faults import CONTROL, FAULTS, ROLES


class Step(NamedTuple):
    """A fault `name` at `target` for `hold` seconds, after a pause of `pause` seconds."""

    name: str
    target: str
    hold: float
    pause: float


def schedule(
    seed: int, count: int, groups: Mapping[str, Sequence[str]], names: Sequence[str] = ()
) -> list[Step]:
    """Return the control, and `count` steps with the faults in `names`.

    Without names they are all that these hosts allow. Each fault is used once, in random order,
    before any is repeated.
    """
    possible = [
        name
        for name, fault in FAULTS.items()
        if name != CONTROL and len(groups[ROLES.get(fault.target, fault.target)]) >= fault.least
    ]
    kinds = [name for name in possible if not names or name in names]
    random_ = random.Random(seed)  # noqa: S311 - it must be repeatable
    steps: list[Step] = []
    while kinds and len(steps) < count:
        for name in random_.sample(kinds, len(kinds)):
            fault = FAULTS[name]
            target = fault.target
            if target in groups:
                target = random_.choice(groups[target])
            hold = round(random_.uniform(fault.shortest, fault.longest), 1)
            steps.append(Step(name, target, hold, round(random_.uniform(1, 3), 1)))
    control = FAULTS[CONTROL]
    return [Step(CONTROL, control.target, control.shortest, 1.0), *steps[:count]]
