"""How the weight of a term changes: functions of the step within the phase."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from recdistill.errors import TrainingError


@dataclass(frozen=True)
class Moment:
    """A point in a phase: a number of steps, or a fraction (below 1) of the steps that the phase is planned to take."""

    given: float

    def steps(self, planned: int) -> float:
        """The point in steps."""
        return self.given * planned if self.given < 1 else self.given


@dataclass(frozen=True)
class Schedule:
    """A weight over the steps of a phase; ``weight(step, planned)`` with steps counted from 0."""

    weight: Callable[[int, int], float]
    words: str


def step(before: float, after: float, *, at: float) -> Schedule:
    """``before`` until the step ``at``, ``after`` from then on.

    Args:
        before: the first weight.
        after: the last weight.
        at: a step of the phase, or a fraction below 1 of its planned steps.

    Raises:
        TrainingError: ``at`` is negative.

    Example:
        >>> s = step(0, 0.5, at=200)
        >>> s.weight(199, 1000), s.weight(200, 1000)
        (0, 0.5)
    """
    if at < 0:
        raise TrainingError(f"step: at must not be negative, found {at}")
    moment = Moment(at)
    return Schedule(lambda k, n: after if k >= moment.steps(n) else before, f"step({before}, {after}, at={at})")


def ramp(start: float, end: float, *, over: float, begin: float = 0) -> Schedule:
    """From ``start`` to ``end`` in a straight line over ``over`` steps, beginning at the step ``begin``.

    Args:
        start: the first weight.
        end: the last weight.
        over: steps, or a fraction below 1 of the planned steps.
        begin: the step, or fraction, at which the line starts.

    Raises:
        TrainingError: ``over`` is not positive or ``begin`` is negative.

    Example:
        >>> r = ramp(0, 1, over=100, begin=50)
        >>> [r.weight(k, 1000) for k in (0, 50, 75, 150, 900)]
        [0.0, 0.0, 0.25, 1.0, 1.0]
    """
    if over <= 0 or begin < 0:
        raise TrainingError(f"ramp: over must be positive and begin not negative, found over={over}, begin={begin}")
    length, first = Moment(over), Moment(begin)

    def weight(k: int, n: int) -> float:
        share = (k - first.steps(n)) / length.steps(n)
        return start + (end - start) * min(1.0, max(0.0, share))

    return Schedule(weight, f"ramp({start}, {end}, over={over}, begin={begin})")


def cosine(start: float, end: float, *, over: float, begin: float = 0) -> Schedule:
    """From ``start`` to ``end`` along half a cosine, slow at both ends, over ``over`` steps from the step ``begin`` on.

    Args:
        start: the first weight.
        end: the last weight.
        over: steps, or a fraction below 1 of the planned steps.
        begin: the step, or fraction, at which it starts to change.

    Raises:
        TrainingError: ``over`` is not positive or ``begin`` is negative.

    Example:
        >>> c = cosine(1, 0, over=100)
        >>> [round(c.weight(k, 1000), 3) for k in (0, 25, 50, 100, 200)]
        [1.0, 0.854, 0.5, 0.0, 0.0]
    """
    line = ramp(0, 1, over=over, begin=begin)
    words = f"cosine({start}, {end}, over={over}, begin={begin})"
    return Schedule(lambda k, n: start + (end - start) * (1 - math.cos(math.pi * line.weight(k, n))) / 2, words)


SCHEDULES: dict[str, Callable[..., Schedule]] = {"step": step, "ramp": ramp, "cosine": cosine}
