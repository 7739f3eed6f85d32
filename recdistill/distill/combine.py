"""Signals made from several: teachers become one target, or a gradient turns around.

Means of logits are means of log-odds; means of probabilities are returned as logits too, so that every loss takes them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function

from recdistill.data.transforms.hashing import splitmix64_tensor, text_hash
from recdistill.distill.batchwise import quota, scrambled, smoothed
from recdistill.distill.labels import LABELS
from recdistill.distill.learned import adapt, experts, gate
from recdistill.distill.ranked import hardest, is_ranked, permuted, untaken
from recdistill.distill.signal import (
    CERTAIN,
    Column,
    Live,
    Noise,
    Probability,
    Remembered,
    Scenario,
    Scene,
    Several,
    Shuffled,
    Signal,
    Traits,
    draw,
)
from recdistill.distill.unify import among, unify
from recdistill.distill.vectors import pad, stack, top
from recdistill.errors import TrainingError
from recdistill.losses.supervised import bce
from recdistill.spec.members import WIDEST

OF = ("logit", "probability")
BY = ("step", "row", "epoch")


def listed(signals: tuple[Signal, ...]) -> str:
    """Signals as they are written."""
    return ", ".join(map(str, signals))


@dataclass(frozen=True)
class Weighted(Several):
    """A mean by weights that add up to 1; of softened probabilities, the logit that softens to their mean."""

    signals: tuple[Signal, ...]
    weights: tuple[float, ...]
    of: str
    temperature: float = 1.0

    def __str__(self) -> str:
        return f"weighted({listed(self.signals)})"

    def value(self, scene: Scene) -> Tensor:
        """The mean, of the shape of each signal."""
        values = [signal.value(scene) for signal in self.signals]
        if self.of == "probability":
            values = [torch.sigmoid(value / self.temperature) for value in values]
        total = torch.zeros_like(values[0])
        for value, weight in zip(values, self.weights, strict=True):
            total = total + weight * value
        return self.temperature * torch.logit(total, CERTAIN) if self.of == "probability" else total


@dataclass(frozen=True)
class Closest(Several):
    """For each row the signal that predicts its label best; their mean where the label is not known."""

    label: Column
    signals: tuple[Signal, ...]

    def __str__(self) -> str:
        return f"closest({listed(self.signals)})"

    def value(self, scene: Scene) -> Tensor:
        """The logit of each row, (B,)."""
        logit_KB = torch.stack([signal.value(scene) for signal in self.signals])
        label_B = self.label.value(scene)
        loss_KB = torch.stack([bce(logit_B, label_B.nan_to_num()) for logit_B in logit_KB])
        best_B = logit_KB.gather(0, loss_KB.argmin(0, keepdim=True))[0]
        return torch.where(torch.isnan(label_B), logit_KB.mean(0), best_B)


@dataclass(frozen=True)
class Picked(Several):
    """One of the signals: for a whole step, so that only one member answers, for each row, or in turn by epoch."""

    signals: tuple[Signal, ...]
    weights: tuple[float, ...]
    by: str

    def __str__(self) -> str:
        return f"pick({listed(self.signals)})"

    def value(self, scene: Scene) -> Tensor:
        """The value of the signal that is drawn, of its shape."""
        if self.by == "epoch":
            first_B = splitmix64_tensor(scene.batch.row_id_B ^ text_hash(f"pick {scene.seed}")) & (2**63 - 1)
            return chosen(self.signals, (first_B + scene.now.epoch) % len(self.signals), scene)
        edges = torch.tensor(self.weights, dtype=torch.float64).cumsum(0)
        if self.by == "step":
            place = torch.searchsorted(edges, draw(scene, torch.zeros(1, dtype=torch.int64), "pick")[0], right=True)
            return self.signals[min(int(place), len(self.signals) - 1)].value(scene)
        place_B = torch.searchsorted(edges, draw(scene, scene.batch.row_id_B, "pick")[:, 0], right=True)
        return chosen(self.signals, place_B.clamp(max=len(self.signals) - 1), scene)


@dataclass(frozen=True)
class Routed(Several):
    """The signal of each row, numbered by a binary column or named by its scenario; else their mean."""

    column: Column | Scenario
    signals: tuple[Signal, ...]
    values: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"route({listed(self.signals)})"

    def value(self, scene: Scene) -> Tensor:
        """The value of each row, of the shape of each signal."""
        key_B = self.column.value(scene)
        if isinstance(self.column, Scenario):
            matches_BK = key_B.unsqueeze(1) == torch.tensor(self.values)
            known_B, place_B = matches_BK.any(1), matches_BK.to(torch.int64).argmax(1)
        else:
            known_B, place_B = ~torch.isnan(key_B), key_B.nan_to_num().long().clamp(0, len(self.signals) - 1)
        found = chosen(self.signals, place_B, scene)
        if bool(known_B.all()):
            return found
        mean = torch.stack([signal.value(scene) for signal in self.signals]).mean(0)
        return torch.where(known_B.reshape(-1, *[1] * (found.dim() - 1)), found, mean)


@dataclass(frozen=True)
class Unseen(Several):
    """The copy that was trained without the row's fold; copy k has seen no row of fold k."""

    signals: tuple[Signal, ...]

    def __str__(self) -> str:
        return f"out_of_fold({listed(self.signals)})"

    def value(self, scene: Scene) -> Tensor:
        """The value of each row, of the shape of each signal."""
        return chosen(self.signals, fold_of(scene.batch.row_id_B, len(self.signals)), scene)


def fold_of(row_id_B: Tensor, folds: int) -> Tensor:
    """The fold of each row, 0 to folds - 1, fixed by its id, (B,)."""
    return (splitmix64_tensor(row_id_B ^ text_hash("fold")) & (2**63 - 1)) % folds


def chosen(signals: tuple[Signal, ...], place_B: Tensor, scene: Scene) -> Tensor:
    """The value of the signal chosen for each row; values that are not chosen, even NaN, have no effect."""
    found = signals[0].value(scene)
    for k, signal in enumerate(signals[1:], 1):
        here_B = (place_B == k).reshape(-1, *[1] * (found.dim() - 1))
        found = torch.where(here_B, signal.value(scene), found)
    return found


@dataclass(frozen=True)
class Voted(Several):
    """The share of signals that speak for a click, as a logit; half a vote added to each side keeps it finite."""

    signals: tuple[Signal, ...]

    def __str__(self) -> str:
        return f"vote({listed(self.signals)})"

    def value(self, scene: Scene) -> Tensor:
        """The logit of each row, (B,)."""
        votes = torch.stack([(signal.value(scene) > 0).float() for signal in self.signals]).sum(0)
        return torch.logit((votes + 0.5) / (len(self.signals) + 1))


class _Turned(Function):
    @staticmethod
    def forward(ctx: object, value: Tensor, scale: float) -> Tensor:
        ctx.scale = scale  # type: ignore[attr-defined]
        return value.view_as(value)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradients[0], None  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Reversed(Traits):
    """A signal with its gradient reversed: the members behind it are taught the opposite (T8)."""

    signal: Signal
    scale: float
    turns = True

    @property
    def members(self) -> frozenset[str]:
        """Those of the signal."""
        return self.signal.members

    def __str__(self) -> str:
        return f"reverse({self.signal}, scale={self.scale})"

    def value(self, scene: Scene) -> Tensor:
        """The value of the signal."""
        turned: Tensor = _Turned.apply(self.signal.value(scene), self.scale)  # type: ignore[no-untyped-call]
        return turned


def live(signal: Signal) -> Live:
    """A target or input that is not detached, so that gradients reach whoever is behind it."""
    return Live(signal)


def shuffled(signal: Signal) -> Signal:
    """Each row gets the value of another row of the batch; each anchor its candidates' scores for another anchor."""
    return permuted(signal) if is_ranked(signal) else Shuffled(signal)


def probability(signal: Signal) -> Probability:
    """The sigmoid of logits."""
    return Probability(signal)


def memory(signal: Signal, *, decay: float = 0.6) -> Remembered:
    """What a signal was for each row in earlier steps, as a moving average (O3).

    Raises:
        TrainingError: the decay is not in [0, 1).
    """
    if not 0 <= decay < 1:
        raise TrainingError(f"memory: decay is a share in [0, 1), found {decay}")
    return Remembered(signal, decay)


def noise(width: float) -> Noise:
    """Standard normal numbers, (B, width).

    Raises:
        TrainingError: the width is no whole number that a vector may have.
    """
    if not 1 <= width <= WIDEST or width != int(width):
        raise TrainingError(f"noise: the width is a whole number from 1 to {WIDEST}, found {width}")
    return Noise(int(width))


def mean(*signals: Signal, of: str = "logit", temperature: float = 1.0) -> Weighted:
    """The mean of several signals: of ``logit`` values (or layers), or of the ``probability`` behind logits.

    Probabilities are softened by the temperature of the loss that takes their mean as its target.

    Raises:
        TrainingError: there is no signal, ``of`` is unknown, or the temperature is not positive.
    """
    return weighted_mean(signals, tuple(1.0 for _ in signals), of, temperature, "mean")


def weighted(*signals: Signal, weights: str, of: str = "logit", temperature: float = 1.0) -> Weighted:
    """The weighted mean; ``weights`` is a text of numbers: ``weighted(a.logit, b.logit, weights='3 1')``.

    Raises:
        TrainingError: the weights are not positive or do not fit, ``of`` is unknown, or the temperature not positive.
    """
    return weighted_mean(signals, positive_numbers(weights, len(signals), "weighted"), of, temperature, "weighted")


def positive_numbers(words: str, count: int, name: str) -> tuple[float, ...]:
    """The numbers in a text.

    Raises:
        TrainingError: they are not ``count`` positive numbers.
    """
    try:
        numbers = tuple(float(word) for word in words.split())
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(number > 0 for number in numbers):
        raise TrainingError(f"{name}: expected {count} positive numbers as weights, found {words!r}")
    return numbers


def weighted_mean(
    signals: tuple[Signal, ...], numbers: tuple[float, ...], of: str, temperature: float, name: str
) -> Weighted:
    """The mean, after checks."""
    if not signals:
        raise TrainingError(f"{name}: takes at least one signal; name the outputs to combine")
    if of not in OF:
        raise TrainingError(f"{name}: of is {of!r}; expected one of {', '.join(OF)}")
    if temperature <= 0:
        raise TrainingError(f"{name}: temperature must be positive, found {temperature}")
    return Weighted(signals, tuple(number / sum(numbers) for number in numbers), of, temperature)


def closest(label: Column, *signals: Signal) -> Closest:
    """For each row the signal that predicts its label best."""
    return Closest(label, several(signals, "closest"))


def pick(*signals: Signal, by: str = "step", weights: str = "") -> Picked:
    """One of the signals, drawn anew in every ``step`` or for every ``row``; by ``epoch`` a row meets each in turn.

    Raises:
        TrainingError: there is only one signal, ``by`` is unknown, or the weights do not fit.

    Source: E9, Fukuda et al., 2017 (details unverified): one teacher for a batch, or each row once with every teacher.
    Departure: rows take turns by id and epoch, m epochs for m teachers, instead of m copies; the job adds labels * 0.1.
    """
    if by not in BY:
        raise TrainingError(f"pick: by is {by!r}; expected one of {', '.join(BY)}")
    if by == "epoch" and weights:
        raise TrainingError(f"pick: by='epoch' takes the signals in turn, so it takes no weights; found {weights!r}")
    count = len(several(signals, "pick"))
    numbers = positive_numbers(weights, count, "pick") if weights else (1.0,) * count
    return Picked(signals, tuple(number / sum(numbers) for number in numbers), by)


def route(column: Column | Scenario, *signals: Signal, values: str = "") -> Routed:
    """The signal of each row, numbered by a binary column or named by its scenario.

    ``route(scenario, a.logit, b.logit, values='home search')`` names the scenario of each signal as the log holds it.

    Raises:
        TrainingError: there is only one signal, or the scenarios are not as many as the signals.

    Source: E3, Tan et al., 2019: rows of a language hear the expert of that language.
    Departure: no store of top K answers, since one logit is all there is; T = 1 in the job instead of 0.6 with T^2.
    """
    several(signals, "route")
    named = values.split()
    if isinstance(column, Scenario) != bool(named) or len(named) not in (0, len(signals)):
        raise TrainingError(
            f"route: expected values that name the scenario of each of the {len(signals)} signals (and none for a "
            f"binary column), found {values!r}"
        )
    return Routed(column, signals, tuple(text_hash(word) for word in named))


def out_of_fold(*signals: Signal) -> Unseen:
    """For each row the copy that has not learned from it: ``out_of_fold(teacher[:].logit)`` of a member with folds.

    Source: E8, Freitag, Al-Onaizan and Sankaran, 2017 (from summaries).
    Departure: out of fold; the paper's ensemble labels the rows that it was trained on.
    """
    return Unseen(several(signals, "out_of_fold"))


def vote(*signals: Signal) -> Voted:
    """The share of signals that speak for a click; E1's vote on the order of rows is ``relative_order``."""
    return Voted(several(signals, "vote"))


def several(signals: tuple[Signal, ...], name: str) -> tuple[Signal, ...]:
    """The signals, of which there must be two at least."""
    if len(signals) < 2:
        raise TrainingError(f"{name}: chooses between signals, so it takes at least two; found {len(signals)}")
    return signals


def reverse(signal: Signal, *, scale: float = 1.0) -> Reversed:
    """The same value, with the gradient times ``-scale``."""
    return Reversed(signal, scale)


SIGNALS: dict[str, Callable[..., object]] = {
    "live": live,
    "shuffled": shuffled,
    "scrambled": scrambled,
    "probability": probability,
    "memory": memory,
    **LABELS,
    "smoothed": smoothed,
    "noise": noise,
    "mean": mean,
    "weighted": weighted,
    "closest": closest,
    "pick": pick,
    "route": route,
    "out_of_fold": out_of_fold,
    "vote": vote,
    "unify": unify,
    "among": among,
    "quota": quota,
    "untaken": untaken,
    "hardest": hardest,
    "reverse": reverse,
    "stack": stack,
    "top": top,
    "pad": pad,
    "adapt": adapt,
    "gate": gate,
    "experts": experts,
}
