"""How the weight of a term changes: functions of the step within the phase, and of what validation has seen in it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from recdistill.errors import TrainingError


@dataclass(frozen=True)
class Now:
    """A moment of a phase.

    Attributes:
        step: steps taken in the phase.
        planned: steps that the phase takes unless its stop rule ends it.
        seen: what each evaluation of the phase has found so far, ``member.metric`` to value.
        epoch: passes over the rows of the phase's first feed that are over.
    """

    step: int = 0
    planned: int = 1000
    seen: tuple[Mapping[str, float], ...] = ()
    epoch: int = 0


@dataclass(frozen=True)
class Moment:
    """A point in a phase: a number of steps, or a fraction (below 1) of the steps that the phase is planned to take."""

    given: float

    def steps(self, planned: int) -> float:
        """The point in steps."""
        return self.given * planned if self.given < 1 else self.given

    def stretch(self, step: int, planned: int) -> tuple[int, int]:
        """First step and end of the stretch that holds a step, where stretches of this length follow each other.

        Each end is rounded separately, so that quarters of a phase end where the phase does, whatever its length.
        """
        length = max(1.0, self.steps(planned))
        number = int(step / length) + 1
        while round(number * length) > step:
            number -= 1
        return round(number * length), round((number + 1) * length)


@dataclass(frozen=True)
class Metric:
    """A member's validation metric, ``student.auc`` or ``student.logloss``; within one scenario if it is named."""

    member: str
    name: str
    scenario: str | None = None

    @property
    def key(self) -> str:
        """Its name among the values of an evaluation."""
        return f"{self.member}.{self.name}" + ("" if self.scenario is None else f"@{self.scenario}")

    @property
    def sign(self) -> int:
        """1 if higher is better, -1 if lower is."""
        return 1 if self.name == "auc" else -1

    def within(self, scenario: str | None) -> "Metric":
        """The same within a scenario."""
        return Metric(self.member, self.name, scenario)


METRICS = ("auc", "logloss")


@dataclass(frozen=True)
class Schedule:
    """A weight over a phase: ``weight(now)``; the metrics that it looks at are evaluated for it."""

    weight: Callable[[Now], float]
    words: str
    metrics: tuple[Metric, ...] = ()


def fixed(value: float) -> Schedule:
    """A weight that does not change."""
    return Schedule(lambda _: value, str(value))


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
        >>> s.weight(Now(199)), s.weight(Now(200))
        (0, 0.5)
    """
    if at < 0:
        raise TrainingError(f"step: at must not be negative, found {at}")
    moment = Moment(at)
    return Schedule(
        lambda now: after if now.step >= moment.steps(now.planned) else before, f"step({before}, {after}, at={at})"
    )


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
        >>> [r.weight(Now(k)) for k in (0, 50, 75, 150, 900)]
        [0.0, 0.0, 0.25, 1.0, 1.0]
    """
    share = progress("ramp", over, begin)
    return Schedule(lambda now: start + (end - start) * share(now), f"ramp({start}, {end}, over={over}, begin={begin})")


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
        >>> [round(c.weight(Now(k)), 3) for k in (0, 25, 50, 100, 200)]
        [1.0, 0.854, 0.5, 0.0, 0.0]
    """
    share = progress("cosine", over, begin)
    words = f"cosine({start}, {end}, over={over}, begin={begin})"
    return Schedule(lambda now: start + (end - start) * (1 - math.cos(math.pi * share(now))) / 2, words)


def cycle(start: float, end: float, *, over: float) -> Schedule:
    """A cosine from ``start`` to ``end`` that begins anew every ``over`` steps.

    Args:
        start: the first weight of each cycle.
        end: the weight that each cycle approaches.
        over: steps of a cycle, or a fraction below 1 of the planned steps.

    Raises:
        TrainingError: ``over`` is not positive.

    Example:
        >>> c = cycle(1, 0, over=4)
        >>> [round(c.weight(Now(k)), 3) for k in (0, 2, 3, 4, 6)]
        [1.0, 0.5, 0.146, 1.0, 0.5]

    Source: S3, Yang et al., 2019: the learning rate begins anew with every cycle.
    Departure: none.
    """
    if over <= 0:
        raise TrainingError(f"cycle: over must be positive, found {over}")
    length = Moment(over)

    def weight(now: Now) -> float:
        first, following = length.stretch(now.step, now.planned)
        share = (now.step - first) / (following - first)
        return start + (end - start) * (1 - math.cos(math.pi * share)) / 2

    return Schedule(weight, f"cycle({start}, {end}, over={over})")


def gaussian(start: float, end: float, *, over: float, begin: float = 0) -> Schedule:
    """From ``start`` to ``end`` along ``exp(-5 (1 - t)^2)``: late and steep; exactly ``start`` at the beginning.

    Args:
        start: the weight at and before ``begin``.
        end: the last weight.
        over: steps, or a fraction below 1 of the planned steps.
        begin: the step, or fraction, at which it starts to change.

    Raises:
        TrainingError: ``over`` is not positive or ``begin`` is negative.

    Example:
        >>> g = gaussian(0, 1, over=100)
        >>> [round(g.weight(Now(k)), 3) for k in (0, 50, 100)]
        [0, 0.287, 1.0]
    """
    share = progress("gaussian", over, begin)

    def weight(now: Now) -> float:
        t = share(now)
        return start if t == 0 else start + (end - start) * math.exp(-5 * (1 - t) ** 2)

    return Schedule(weight, f"gaussian({start}, {end}, over={over}, begin={begin})")


def progress(name: str, over: float, begin: float) -> Callable[[Now], float]:
    """The share of a stretch of steps that is over, from 0 to 1.

    Raises:
        TrainingError: the stretch is empty or begins before the phase.
    """
    if over <= 0 or begin < 0:
        raise TrainingError(f"{name}: over must be positive and begin not negative, found over={over}, begin={begin}")
    length, first = Moment(over), Moment(begin)
    return lambda now: min(1.0, max(0.0, (now.step - first.steps(now.planned)) / length.steps(now.planned)))


def stalled(moving: float, standing: float, metric: Metric, *, patience: float = 1, warmup: float = 0) -> Schedule:
    """``standing`` while the metric has not reached its best for ``patience`` evaluations, ``moving`` otherwise.

    It starts with ``moving``, and returns to it as soon as an evaluation is at least as good as the best before.

    Args:
        moving: the weight while the metric improves.
        standing: the weight while it does not.
        metric: what validation measures, for example ``student.logloss``.
        patience: evaluations without a new best after which the weight changes.
        warmup: evaluations at the beginning of the phase that do not count as standing still.

    Raises:
        TrainingError: patience is below 1, or warmup is negative.

    Example:
        >>> s = stalled(0, 0.5, Metric("m", "auc"))
        >>> seen = [{"m.auc": v} for v in (0.70, 0.72, 0.71, 0.715, 0.73, 0.729)]
        >>> [s.weight(Now(seen=tuple(seen[:k]))) for k in range(1, 7)]
        [0, 0, 0.5, 0.5, 0, 0.5]

    Source: O2, Wei et al., 2019 (as in its code).
    Departure: it counts evaluations, which the job takes every 25 steps, instead of epochs, and by default no warm-up;
        the code lets one epoch pass before it counts.
    """
    if patience < 1 or warmup < 0:
        raise TrainingError(f"stalled: patience is at least 1 and warmup at least 0, found {patience} and {warmup}")

    def weight(now: Now) -> float:
        best, waited = -math.inf, 0
        for place, values in enumerate(now.seen):
            value = metric.sign * values[metric.key]
            if value >= best:
                best, waited = value, 0
            elif place >= warmup:
                waited += 1
        return standing if waited >= patience else moving

    return Schedule(weight, f"stalled({moving}, {standing}, {metric.key}, patience={patience})", (metric,))


def behind(
    weight: float, caught_up: float, learner: Metric, teacher: Metric, *, margin: float = 0.0, scenario: str = ""
) -> Schedule:
    """``weight`` while the learner is not better than its teacher by the margin, ``caught_up`` otherwise.

    It follows the last evaluation, in both directions; before the first one the learner counts as behind.

    Args:
        weight: the weight while the learner is behind.
        caught_up: the weight while it is ahead by at least the margin.
        learner: the learner's metric.
        teacher: the teacher's.
        margin: by how much the learner must be better.
        scenario: if given, the metrics are those of the rows of this scenario alone.

    Raises:
        TrainingError: the two metrics are of different kinds.

    Example:
        >>> b = behind(0.9, 0, Metric("s", "auc"), Metric("t", "auc"), margin=0.01)
        >>> [b.weight(Now(seen=({"s.auc": s, "t.auc": 0.8},))) for s in (0.8, 0.811, 0.805)]
        [0.9, 0, 0.9]

    Source: E3, Tan et al., 2019 (the threshold strategy of its code).
    Departure: AUC with a margin of 0.002 (in the job) instead of one point of BLEU, at every evaluation instead of
        every third epoch; labels are not smoothed, and the adaptive strategy is left out.
    """
    if learner.name != teacher.name:
        raise TrainingError(f"behind: compares two metrics of one kind, found {learner.name} and {teacher.name}")
    first, second = (m.within(scenario) if scenario else m for m in (learner, teacher))

    def value(now: Now) -> float:
        if not now.seen:
            return weight
        lead = first.sign * (now.seen[-1][first.key] - now.seen[-1][second.key])
        return caught_up if lead >= margin else weight

    words = f"behind({weight}, {caught_up}, {first.key}, {second.key}, margin={margin})"
    return Schedule(value, words, (first, second))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "step": step,
    "ramp": ramp,
    "cosine": cosine,
    "cycle": cycle,
    "gaussian": gaussian,
    "stalled": stalled,
    "behind": behind,
}
