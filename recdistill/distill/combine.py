"""Signals made from signals: several teachers become one target, or a gradient turns around.

Means of logits are means of log-odds; means of probabilities are returned as logits too, so that every loss takes them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function

from recdistill.distill.signal import Column, Live, Scene, Shuffled, Signal
from recdistill.errors import TrainingError
from recdistill.losses.supervised import bce

CERTAIN = 1e-6  # probabilities are kept this far from 0 and 1 before they become logits
OF = ("logit", "probability")


class Several:
    """A signal made from several."""

    signals: tuple[Signal, ...]

    @property
    def members(self) -> frozenset[str]:
        """Those of all signals."""
        return frozenset().union(*(signal.members for signal in self.signals))


@dataclass(frozen=True)
class Weighted(Several):
    """The weighted mean of signals; the weights add up to 1."""

    signals: tuple[Signal, ...]
    weights: tuple[float, ...]
    of: str

    def value(self, scene: Scene) -> Tensor:
        """The mean, of the shape of each signal."""
        values = [signal.value(scene) for signal in self.signals]
        if self.of == "probability":
            values = [torch.sigmoid(value) for value in values]
        total = torch.zeros_like(values[0])
        for value, weight in zip(values, self.weights, strict=True):
            total = total + weight * value
        return torch.logit(total, CERTAIN) if self.of == "probability" else total


@dataclass(frozen=True)
class Picked(Several):
    """For each row the signal that predicts its label best; their mean where the label is not known."""

    label: Column
    signals: tuple[Signal, ...]

    def value(self, scene: Scene) -> Tensor:
        """The logit of each row, (B,)."""
        logit_KB = torch.stack([signal.value(scene) for signal in self.signals])
        label_B = self.label.value(scene)
        loss_KB = torch.stack([bce(logit_B, label_B.nan_to_num()) for logit_B in logit_KB])
        best_B = logit_KB.gather(0, loss_KB.argmin(0, keepdim=True))[0]
        return torch.where(torch.isnan(label_B), logit_KB.mean(0), best_B)


@dataclass(frozen=True)
class Routed(Several):
    """For each row the signal whose number a raw column holds, 0 the first; their mean where it is null."""

    column: Column
    signals: tuple[Signal, ...]

    def value(self, scene: Scene) -> Tensor:
        """The logit of each row, (B,)."""
        logit_KB = torch.stack([signal.value(scene) for signal in self.signals])
        route_B = self.column.value(scene)
        chosen_B = route_B.nan_to_num().long().clamp(0, len(self.signals) - 1)
        return torch.where(torch.isnan(route_B), logit_KB.mean(0), logit_KB.gather(0, chosen_B.unsqueeze(0))[0])


@dataclass(frozen=True)
class Voted(Several):
    """The share of signals that speak for a click, as a logit; one more half vote on each side keeps it finite."""

    signals: tuple[Signal, ...]

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
class Reversed:
    """A signal whose gradient turns around: who is behind it is taught the opposite (T8)."""

    signal: Signal
    scale: float

    @property
    def members(self) -> frozenset[str]:
        """Those of the signal."""
        return self.signal.members

    def value(self, scene: Scene) -> Tensor:
        """The value of the signal."""
        turned: Tensor = _Turned.apply(self.signal.value(scene), self.scale)  # type: ignore[no-untyped-call]
        return turned


def live(signal: Signal) -> Live:
    """A target that is not detached, so that the term teaches it as well."""
    return Live(signal)


def shuffled(signal: Signal) -> Shuffled:
    """Each row gets the value of another row of the batch."""
    return Shuffled(signal)


def mean(*signals: Signal, of: str = "logit") -> Weighted:
    """The mean of several signals: of ``logit`` values (or layers), or of the ``probability`` behind logits.

    Raises:
        TrainingError: there is no signal, or ``of`` is unknown.
    """
    return weighted_mean(signals, tuple(1.0 for _ in signals), of, "mean")


def weighted(*signals: Signal, weights: str, of: str = "logit") -> Weighted:
    """The weighted mean; ``weights`` is a text of numbers: ``weighted(a.logit, b.logit, weights='3 1')``.

    Raises:
        TrainingError: the weights are not as many positive numbers as there are signals, or ``of`` is unknown.
    """
    try:
        numbers = tuple(float(word) for word in weights.split())
    except ValueError:
        numbers = ()
    if len(numbers) != len(signals) or not all(number > 0 for number in numbers):
        raise TrainingError(f"weighted: expected {len(signals)} positive numbers as weights, found {weights!r}")
    return weighted_mean(signals, numbers, of, "weighted")


def weighted_mean(signals: tuple[Signal, ...], numbers: tuple[float, ...], of: str, name: str) -> Weighted:
    """The mean, after checks."""
    if not signals:
        raise TrainingError(f"{name}: takes at least one signal; name the outputs to combine")
    if of not in OF:
        raise TrainingError(f"{name}: of is {of!r}; expected one of {', '.join(OF)}")
    return Weighted(signals, tuple(number / sum(numbers) for number in numbers), of)


def pick(label: Column, *signals: Signal) -> Picked:
    """For each row the signal that predicts its label best."""
    return Picked(label, several(signals, "pick"))


def route(column: Column, *signals: Signal) -> Routed:
    """For each row the signal whose number a binary column holds (E3, E10)."""
    return Routed(column, several(signals, "route"))


def vote(*signals: Signal) -> Voted:
    """The share of signals that speak for a click (E1)."""
    return Voted(several(signals, "vote"))


def several(signals: tuple[Signal, ...], name: str) -> tuple[Signal, ...]:
    """The signals, of which there must be two at least."""
    if len(signals) < 2:
        raise TrainingError(f"{name}: chooses between signals, so it takes at least two; found {len(signals)}")
    return signals


def reverse(signal: Signal, *, scale: float = 1.0) -> Reversed:
    """The same value, with the gradient times ``-scale``."""
    return Reversed(signal, scale)


SIGNALS: dict[str, Callable[..., Signal]] = {
    "live": live,
    "shuffled": shuffled,
    "mean": mean,
    "weighted": weighted,
    "pick": pick,
    "route": route,
    "vote": vote,
    "reverse": reverse,
}
