"""Targets made of labels that are unknown or wrong at times: the first that is known, unbiased, mixed, or corrected."""

# Shapes: B rows, M numbers of a meter.

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from recdistill.distill.signal import Column, OfSignal, Scene, Several, Signal, Traits
from recdistill.errors import TrainingError

MEASURES = ("accuracy", "balanced", "auc")  # agreement of a belief with a label, in the order of the meter's numbers
THRESHOLD = len(MEASURES)  # place of the logit above which lie as many rows as have the label 1
METERED = len(MEASURES) + 1  # numbers of the meter
TRUST = (*MEASURES, "always")
BY = ("quantile", "side", "probability")


@dataclass(frozen=True)
class Corrected(OfSignal):
    """``(1 - w) label + w belief``, with ``w = most * agreement`` as earlier steps have measured it.

    What a net believes early is what many labels have in common; single wrong ones it learns by heart later. So the
    share of the belief grows with its agreement, and the labels that remain unlearned are outvoted. Nothing is measured
    before the first step, so that it begins with the labels; unknown labels stay unknown.
    """

    label: Column
    signal: Signal
    most: float
    by: str
    trust: str
    decay: float

    @property
    def key(self) -> str:
        """What tells its meter from others."""
        return repr(self)

    def __str__(self) -> str:
        return f"corrected({self.label}, {self.signal}, most={self.most}, by={self.by!r}, trust={self.trust!r})"

    def noted(self, scene: Scene) -> Tensor:
        """What enters the meter after a step: label and logit of each row, (B, 2)."""
        return torch.stack([self.label.value(scene), self.signal.value(scene)], 1)

    def value(self, scene: Scene) -> Tensor:
        """The target of each row, (B,)."""
        meter_BM = scene.memories[self.key].read(scene.batch.row_id_B)
        agreement_B = torch.ones(len(meter_BM))
        if self.trust != "always":
            agreement_B = meter_BM[:, MEASURES.index(self.trust)].nan_to_num(0.0)
        weight_B = self.most * agreement_B
        return (1 - weight_B) * self.label.value(scene) + weight_B * self._belief(scene, meter_BM[:, THRESHOLD])

    def _belief(self, scene: Scene, threshold_B: Tensor) -> Tensor:
        """What the member believes of each row, (B,), between 0 and 1."""
        logit_B = self.signal.value(scene)
        if self.by == "probability":
            return torch.sigmoid(logit_B)
        return (logit_B > (threshold_B.nan_to_num(0.0) if self.by == "quantile" else 0.0)).to(logit_B.dtype)


@dataclass(frozen=True)
class FirstKnown(Several):
    """For each row the first of several labels that is known."""

    signals: tuple[Signal, ...]

    def __str__(self) -> str:
        return f"first_known({', '.join(map(str, self.signals))})"

    def value(self, scene: Scene) -> Tensor:
        """The label of each row, (B,); NaN where none is known."""
        first, *others = (signal.value(scene) for signal in self.signals)
        for other_B in others:
            first = torch.where(torch.isnan(first), other_B, first)
        return first


@dataclass(frozen=True)
class Unflipped(OfSignal):
    """A label made unbiased by known rates of flips: ``(y - f+) / (1 - f+ - f-)``.

    On single rows it may lie outside [0, 1]; losses that are linear in their target, such as `bce`, are unbiased.
    """

    signal: Column
    false_positive: float
    false_negative: float

    def __str__(self) -> str:
        return f"unflipped({self.signal})"

    def value(self, scene: Scene) -> Tensor:
        """The label of each row, (B,); NaN where it is not known."""
        return (self.signal.value(scene) - self.false_positive) / (1 - self.false_positive - self.false_negative)


@dataclass(frozen=True)
class Hedged(Traits):
    """``w y + (1 - w) p``: a label that is wrong at times and a teacher's probability, each as far as it is trusted.

    ``w = R_p / (R_p + R_y)``, where R is the mean squared distance to the verified label, over the verified rows of the
    batch. For two guesses with independent errors, no other mixture has a smaller error.
    """

    label: FirstKnown
    signal: Signal
    in_batch = True

    @property
    def members(self) -> frozenset[str]:
        """Those of the label and of the answer."""
        return self.label.members | self.signal.members

    def __str__(self) -> str:
        return f"hedged({self.label}, {self.signal})"

    def share(self, scene: Scene) -> Tensor:
        """The share of the label, (); a half where no row of the batch is verified."""
        verified_B, reported_B = (label.value(scene) for label in self.label.signals)
        risk, risk_of_signal = (
            (guess_B - verified_B).square().nanmean()
            for guess_B in (reported_B, torch.sigmoid(self.signal.value(scene)))
        )
        return (risk_of_signal / (risk_of_signal + risk)).nan_to_num(0.5)

    def value(self, scene: Scene) -> Tensor:
        """The target of each row, (B,); NaN where no label is known."""
        share = self.share(scene)
        return share * self.label.value(scene) + (1 - share) * torch.sigmoid(self.signal.value(scene))


def first_known(*signals: Signal) -> FirstKnown:
    """The first of several labels that is known: ``first_known(label, reported)``.

    Raises:
        TrainingError: there is no label.

    Source: P2a, Li et al., 2017: the student learns from verified and other rows together (details unverified).
    Departure: none; where a row has both labels, the verified one counts.
    """
    if not signals:
        raise TrainingError("first_known: takes at least one label")
    return FirstKnown(signals)


def unflipped(label: Column, *, false_positive: float = 0.0, false_negative: float = 0.0) -> Unflipped:
    """A label that is wrong at times, made unbiased.

    Args:
        label: the label as it is reported.
        false_positive: share of the true zeros that are reported as ones.
        false_negative: share of the true ones that are reported as zeros.

    Raises:
        TrainingError: the label would tell nothing, or the opposite.

    Source: P2a, Li et al., 2017, for the label that is mixed; that it is unbiased first is an adaptation to clicks.
    Departure: the paper mixes labels as they are. The rates of flips are given in the job, not fitted on verified rows.
    """
    if min(false_positive, false_negative) < 0 or false_positive + false_negative >= 1:
        raise TrainingError(
            f"unflipped: expected two shares whose sum is below 1, found {false_positive} and {false_negative}"
        )
    return Unflipped(label, false_positive, false_negative)


def hedged(label: Signal, signal: Signal) -> Hedged:
    """A label and a teacher's answer, mixed by how far each is from verified labels.

    A teacher that has learned from the verified rows looks better on them than it is; of copies with folds,
    ``hedged(first_known(label, reported), out_of_fold(teacher[:].logit))`` takes those that have not.

    Args:
        label: ``first_known(label, reported)``: the verified label, and the one that is wrong at times.
        signal: the logit of the teacher.

    Raises:
        TrainingError: the label is no pair of a verified and a reported one.

    Source: P2a, Li et al., 2017 (the mixture; its share as the handbook derives it from the risks of both; unverified).
    Departure: the share is measured on the verified rows of each batch instead of being one number tuned on them.
    """
    if not isinstance(label, FirstKnown) or len(label.signals) != 2:
        raise TrainingError(f"hedged: expected first_known(verified, reported), found {label}")
    return Hedged(label, signal)


def corrected(
    label: Column, signal: Signal, *, most: float = 0.9, by: str = "quantile", trust: str = "auc", decay: float = 0.9
) -> Corrected:
    """A label, corrected by a belief as far as the two have agreed so far.

    Args:
        label: the label as it is given.
        signal: the logit that says what is believed.
        most: the share of the belief if both agree fully.
        by: the belief: 1 for as many rows as have the label 1, the highest ones (``quantile``), 1 where the logit is
            above 0 (``side``), or its ``probability``.
        trust: how agreement is measured: by ``accuracy``, ``balanced`` accuracy, or ``auc``, the last two from 0 (no
            better than chance) to 1; or ``always``, a share that does not depend on it.
        decay: share of the old agreement that is kept in a step.

    Raises:
        TrainingError: an option is out of its range.

    Source: U4, Dong, Hou, Lu and Zhang, 2019 (formulas from a third party's code, unverified).
    Departure: agreement is measured so that rare labels count, over earlier steps instead of in the batch itself; a
        belief that keeps the rate of the label.
    """
    if not 0 <= most <= 1 or not 0 <= decay < 1:
        raise TrainingError(f"corrected: most is a share in [0, 1] and decay in [0, 1), found {most} and {decay}")
    for name, word, known in (("by", by, BY), ("trust", trust, TRUST)):
        if word not in known:
            raise TrainingError(f"corrected: {name} is {word!r}; expected one of {', '.join(known)}")
    return Corrected(label, signal, most, by, trust, decay)


LABELS: dict[str, Callable[..., object]] = {
    "corrected": corrected,
    "first_known": first_known,
    "hedged": hedged,
    "unflipped": unflipped,
}
