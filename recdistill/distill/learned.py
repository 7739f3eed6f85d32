"""Signals that learn: an adapter between widths, a gate between teachers.

What has parameters is a member. These signals stand for small members of their own, which are optimised, saved and left
out of the artefact like all others; equal words in a job stand for the same one.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from recdistill.distill.signal import Live, OfMember, Scene, Signal
from recdistill.errors import TrainingError


class Wanted(Protocol):
    """A signal that needs a member of its own, which is still to be named."""

    kind: str
    outputs: int
    layers: tuple[int, ...]
    inputs: tuple[Signal, ...]

    def of(self, member: str) -> Signal:
        """The signal, once the member has a name."""
        ...


@dataclass(frozen=True)
class Adapted(OfMember):
    """A learned map of a signal to another width; it teaches its own parameters and whoever is behind the signal."""

    member: str
    signal: Signal

    @property
    def members(self) -> frozenset[str]:
        """The adapter, and those of the signal."""
        return self.signal.members | {self.member}

    def __str__(self) -> str:
        return f"adapt({self.signal}) by {self.member}"

    def value(self, scene: Scene) -> Tensor:
        """The mapped signal, (B, width), or (B,) for the width 1."""
        found = scene.outputs[self.member].logits_BK
        return found[:, 0] if found.shape[1] == 1 else found


@dataclass(frozen=True)
class Gated:
    """The mean of signals with weights that a small member gives them for each row: a softmax of what it reads."""

    member: str
    by: Signal
    signals: tuple[Signal, ...]

    @property
    def members(self) -> frozenset[str]:
        """The gate, those of the signals, and those of what the gate reads."""
        return frozenset({self.member}).union(self.by.members, *(signal.members for signal in self.signals))

    def __str__(self) -> str:
        return f"gate({', '.join(map(str, self.signals))}, by={self.by})"

    def weights(self, scene: Scene) -> Tensor:
        """The weights of each row, (B, number of signals); they add up to 1."""
        return torch.softmax(scene.outputs[self.member].logits_BK, 1)

    def value(self, scene: Scene) -> Tensor:
        """The mean of each row, of the shape of each signal."""
        value_BK = torch.stack([signal.value(scene) for signal in self.signals], 1)
        weight_BK = self.weights(scene)
        return (weight_BK.reshape(*weight_BK.shape, *[1] * (value_BK.dim() - 2)) * value_BK).sum(1)


@dataclass(frozen=True)
class WantedAdapter:
    """An adapter without a name."""

    signal: Signal
    outputs: int
    layers: tuple[int, ...]
    kind: str = "adapter"

    @property
    def inputs(self) -> tuple[Signal, ...]:
        """What it reads."""
        return (Live(self.signal),)

    def of(self, member: str) -> Adapted:
        """The signal, once the adapter has a name."""
        return Adapted(member, self.signal)


@dataclass(frozen=True)
class WantedGate:
    """A gate without a name."""

    by: Signal
    signals: tuple[Signal, ...]
    kind: str = "gate"
    layers: tuple[int, ...] = ()

    @property
    def outputs(self) -> int:
        """One value for each signal."""
        return len(self.signals)

    @property
    def inputs(self) -> tuple[Signal, ...]:
        """What it reads."""
        return (Live(self.by),)

    def of(self, member: str) -> Gated:
        """The signal, once the gate has a name."""
        return Gated(member, self.by, self.signals)


def adapt(signal: Signal, *, width: float, hidden: float = 0) -> WantedAdapter:
    """A learned map to ``width`` values, linear or with one hidden layer (FitNets, Romero et al., 2015).

    Raises:
        TrainingError: a width is no positive whole number.
    """
    if width < 1 or width != int(width) or hidden < 0 or hidden != int(hidden):
        raise TrainingError(f"adapt: widths are positive whole numbers, found {width} and {hidden}")
    return WantedAdapter(signal, int(width), (int(hidden),) if hidden else ())


def gate(*signals: Signal, by: Signal) -> WantedGate:
    """A learned mean of signals, weighted row by row by what ``by`` says (O5).

    Raises:
        TrainingError: there are fewer than two signals.
    """
    if len(signals) < 2:
        raise TrainingError(f"gate: weighs signals against each other, so it takes at least two; found {len(signals)}")
    return WantedGate(by, signals)
