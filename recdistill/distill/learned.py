"""Signals that learn: an adapter between widths, a gate between teachers, experts from one vector to another.

What has parameters is a member. These signals stand for small members of their own, which are optimised, saved and left
out of the artefact like all others; equal words in a job stand for the same one.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from recdistill.distill.schedule import Now, Schedule, fixed
from recdistill.distill.signal import Live, OfMember, Scene, Signal, Traits, draw
from recdistill.errors import TrainingError
from recdistill.nets.catalog import Net
from recdistill.spec.members import WIDEST


@runtime_checkable
class Wanted(Protocol):
    """A signal that needs a member of its own, which is still to be named."""

    kind: str

    @property
    def net(self) -> Net:
        """The net of that member."""
        ...

    @property
    def outputs(self) -> int:
        """How many values it answers."""
        ...

    @property
    def inputs(self) -> tuple[Signal, ...]:
        """What it reads."""
        ...

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
class Gated(Traits):
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
class Expert(OfMember):
    """Experts mapping a signal to the teacher's width; the gate reads the teacher's vector.

    The choice is a softmax of the gate's logits with Gumbel noise, drawn by row id, seed and step: the lower the
    temperature, the more a single expert dominates and specialises.
    """

    member: str
    signal: Signal
    temperature: Schedule

    @property
    def members(self) -> frozenset[str]:
        """The experts, and those of the signal."""
        return self.signal.members | {self.member}

    def __str__(self) -> str:
        return f"experts({self.signal}) by {self.member}"

    def value(self, scene: Scene) -> Tensor:
        """The mixture, (B, T)."""
        found = scene.outputs[self.member]
        log_share_BE, answers_BET = found.logits_BK, torch.stack(found.hidden, 1)
        uniform_BE = draw(scene, scene.batch.row_id_B, self.member, log_share_BE.shape[1]).clamp(min=2.0**-54)
        noise_BE = -torch.log(-torch.log(uniform_BE)).to(log_share_BE.dtype)
        weight_BE = torch.softmax((log_share_BE + noise_BE) / self.temperature.weight(scene.now), 1)
        return torch.einsum("be,bet->bt", weight_BE, answers_BET)


@dataclass(frozen=True)
class WantedAdapter:
    """An adapter without a name."""

    signal: Signal
    outputs: int
    layers: tuple[int, ...]
    kind: str = "adapter"

    @property
    def net(self) -> Net:
        """Linear, or with one hidden layer."""
        return Net("mlp", {"layers": list(self.layers)})

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

    @property
    def net(self) -> Net:
        """Linear."""
        return Net("mlp", {"layers": []})

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


@dataclass(frozen=True)
class WantedExperts:
    """Experts without a name."""

    signal: Signal
    teacher: Signal
    outputs: int
    temperature: Schedule
    kind: str = "experts"

    @property
    def net(self) -> Net:
        """The experts and their gate."""
        return Net("mixture_of_experts")

    @property
    def inputs(self) -> tuple[Signal, ...]:
        """What they read."""
        return (Live(self.signal), self.teacher)

    def of(self, member: str) -> Expert:
        """The signal, once the experts have a name."""
        return Expert(member, self.signal, self.temperature)


def adapt(signal: Signal, *, width: float, hidden: float = 0) -> WantedAdapter:
    """A learned map to ``width`` values, linear or with one hidden layer (FitNets, Romero et al., 2015).

    Raises:
        TrainingError: a width is no whole number that a vector may have.
    """
    if not (1 <= width <= WIDEST and 0 <= hidden <= WIDEST) or width != int(width) or hidden != int(hidden):
        raise TrainingError(f"adapt: widths are whole numbers from 1 to {WIDEST}, found {width} and {hidden}")
    return WantedAdapter(signal, int(width), (int(hidden),) if hidden else ())


def gate(*signals: Signal, by: Signal) -> WantedGate:
    """A learned mean of signals, weighted row by row by what ``by`` says.

    Raises:
        TrainingError: there are fewer than two signals.

    Source: O5, Lan, Zhu and Gong, 2018 (as in its code).
    Departure: the softmax of a linear layer instead of ``softmax(ReLU(BN(W pool(u))))``.
    """
    if len(signals) < 2:
        raise TrainingError(f"gate: weighs signals against each other, so it takes at least two; found {len(signals)}")
    return WantedGate(by, signals)


def experts(signal: Signal, teacher: Signal, *, count: float = 4, temperature: float | Schedule = 1.0) -> WantedExperts:
    """Learned maps of a signal to a teacher's width; a gate that reads the teacher chooses among them (DE).

    Args:
        signal: what is mapped, usually a user's or an item's vector of the student.
        teacher: that of the teacher, which is also the target.
        count: how many experts.
        temperature: of the choice; let it fall, for example ``ramp(1, 0.1, over=0.999)``.

    Raises:
        TrainingError: the count is no whole number from 1 to 64, or the temperature is not positive.

    Source: DE, Kang et al., 2020, section 3.1.
    Departure: noise is drawn by row, and the temperature falls as the job says.
    """
    cooling = temperature if isinstance(temperature, Schedule) else fixed(temperature)
    if not 1 <= count <= 64 or count != int(count):
        raise TrainingError(f"experts: count is a whole number from 1 to 64, found {count}")
    if not cooling.metrics and min(cooling.weight(now) for now in (Now(0), Now(10**9))) <= 0:
        raise TrainingError(f"experts: temperature stays above 0, found {cooling.words}")
    return WantedExperts(signal, teacher, int(count), cooling)
