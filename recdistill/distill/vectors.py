"""Signals of several values per row, joined or cut, so that a member of few labels can teach one of many."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recdistill.distill.signal import OfSignal, Scene, Several, Signal
from recdistill.errors import TrainingError


@dataclass(frozen=True)
class Stacked(Several):
    """The values of several signals side by side."""

    signals: tuple[Signal, ...]

    def value(self, scene: Scene) -> Tensor:
        """The values of each row, (B, K)."""
        values = [signal.value(scene) for signal in self.signals]
        return torch.cat([value.unsqueeze(1) if value.dim() == 1 else value for value in values], 1)


@dataclass(frozen=True)
class Topmost(OfSignal):
    """The largest values of each row; the others are 0."""

    signal: Signal
    keep: int

    def value(self, scene: Scene) -> Tensor:
        """The values of each row, (B, K)."""
        value_BK = self.signal.value(scene)
        kept = torch.topk(value_BK, min(self.keep, value_BK.shape[1]), dim=1)
        return torch.zeros_like(value_BK).scatter(1, kept.indices, kept.values)


@dataclass(frozen=True)
class Padded(OfSignal):
    """A signal with zeros before and after its values."""

    signal: Signal
    before: int
    after: int

    def value(self, scene: Scene) -> Tensor:
        """The values of each row, (B, before + K + after)."""
        return F.pad(self.signal.value(scene), (self.before, self.after))


def stack(*signals: Signal) -> Stacked:
    """Several signals as one of several values, for example the labels of a member (A7).

    Raises:
        TrainingError: there is no signal.
    """
    if not signals:
        raise TrainingError("stack: takes at least one signal")
    return Stacked(signals)


def top(signal: Signal, *, keep: float) -> Topmost:
    """The ``keep`` largest values of each row, zeros instead of the others.

    Raises:
        TrainingError: ``keep`` is no positive whole number.

    Source: A7, Gao et al., 2017 (from summaries): a target is 0 below the teacher's K largest probabilities.
    Departure: K = 2 of three labels in the job instead of 100; beside the specialists the job teaches labels, at 0.1,
        which the paper's loss does not.
    """
    if keep < 1 or keep != int(keep):
        raise TrainingError(f"top: keep is a positive whole number, found {keep}")
    return Topmost(signal, int(keep))


def pad(signal: Signal, *, before: float = 0, after: float = 0) -> Padded:
    """Zeros before and after the values of each row: those of labels that a member does not know.

    Raises:
        TrainingError: a number of zeros is negative or not whole.

    Source: A7, Gao et al., 2017 (from summaries): a target is 0 outside of its teacher's labels.
    Departure: none; on the job's labels see `top`.
    """
    if before < 0 or after < 0 or before != int(before) or after != int(after):
        raise TrainingError(f"pad: numbers of zeros are whole and not negative, found {before} and {after}")
    return Padded(signal, int(before), int(after))
