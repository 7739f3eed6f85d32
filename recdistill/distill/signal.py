"""What a term compares: named outputs of members, raw columns, and signals made from them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from recdistill.data.batch import Batch
from recdistill.data.transforms.hashing import splitmix64_tensor
from recdistill.distill.schedule import Now
from recdistill.nets.inputs import Outputs

CERTAIN = 1e-6  # probabilities are kept this far from 0 and 1 before they become logits


class Store(Protocol):
    """What is kept from step to step: by a `memory` of each row, by others of all rows together."""

    def read(self, row_id_B: Tensor) -> Tensor:
        """What is kept of some rows, NaN where nothing is, (B,), or several numbers of each, (B, n)."""
        ...


@dataclass(frozen=True)
class Scene:
    """What is known during a step.

    Attributes:
        outputs: what each member answers; computed when it is first asked for.
        batch: the rows.
        seed: of the run.
        now: the moment of the phase.
        memories: what is kept of each row, by the words of the signal.
    """

    outputs: Mapping[str, Outputs]
    batch: Batch
    seed: int = 0
    now: Now = field(default_factory=Now)
    memories: Mapping[str, Store] = field(default_factory=dict)


class Traits:
    """What terms ask of signals and selectors besides their values; a class says where it differs."""

    @property
    def turns(self) -> bool:
        """Whether gradients pass through it, though it is no learner, turned on their way."""
        return False

    @property
    def in_batch(self) -> bool:
        """Whether what it is for a row depends on the rows that meet it in a batch."""
        return False

    @property
    def over_lists(self) -> bool:
        """Whether it exchanges values within lists, of which a lone logit knows nothing."""
        return False


@runtime_checkable
class Signal(Protocol):
    """Something with one value, or one vector, per row."""

    @property
    def turns(self) -> bool:
        """Whether gradients pass through it, though it is no learner."""
        ...

    @property
    def members(self) -> frozenset[str]:
        """The members whose outputs it needs."""
        ...

    def value(self, scene: Scene) -> Tensor:
        """Its value in a step, (B,) or (B, H)."""
        ...


@runtime_checkable
class Remembering(Signal, Protocol):
    """A signal that depends on what it was in earlier steps.

    Attributes:
        key: what tells its memory from others.
        decay: share of the old that is kept in one step.
    """

    @property
    def key(self) -> str:
        """What tells its memory from others."""
        ...

    @property
    def decay(self) -> float:
        """Share of the old that is kept in one step."""
        ...

    def noted(self, scene: Scene) -> Tensor:
        """What enters the memory after a step, one number of each row, (B,), or several, (B, n)."""
        ...


def walk(thing: object) -> Iterator[object]:
    """A signal, term or selector, and everything that it is made of."""
    yield thing
    if is_dataclass(thing):
        for each in fields(thing):
            value = getattr(thing, each.name)
            for inner in value if isinstance(value, tuple) else (value,):
                if is_dataclass(inner) and not isinstance(inner, type):
                    yield from walk(inner)


class OfMember(Traits):
    """A signal that is one output of one member."""

    member: str

    @property
    def members(self) -> frozenset[str]:
        """The member itself."""
        return frozenset({self.member})


class OfSignal(Traits):
    """A signal made from another one."""

    signal: Signal

    @property
    def members(self) -> frozenset[str]:
        """Those of the signal."""
        return self.signal.members


class Several(Traits):
    """A signal made from several."""

    signals: "tuple[Signal, ...]"

    @property
    def members(self) -> frozenset[str]:
        """Those of all signals."""
        return frozenset().union(*(signal.members for signal in self.signals))


@dataclass(frozen=True)
class Logit(OfMember):
    """``member.logit``, or ``member.logit.label`` where a member predicts several labels: (B,)."""

    member: str
    label: int = 0

    def __str__(self) -> str:
        return f"{self.member}.logit" + (f".{self.label}" if self.label else "")

    def value(self, scene: Scene) -> Tensor:
        """The logit of each row, (B,)."""
        return scene.outputs[self.member].logits_BK[:, self.label]


@dataclass(frozen=True)
class All(OfMember):
    """``member.logits``, the logits of all labels, or ``member.out``, all values of a member with `outputs`: (B, K).

    ``labels`` are the places of its labels among those of the job; none with `outputs`.
    """

    member: str
    labels: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.member}.logits"

    def value(self, scene: Scene) -> Tensor:
        """The values of each row, (B, K)."""
        return scene.outputs[self.member].logits_BK


@dataclass(frozen=True)
class Hidden(OfMember):
    """``member.hidden[k]``, a hidden layer counted from the input, or from the end if negative: (B, H)."""

    member: str
    layer: int

    def __str__(self) -> str:
        return f"{self.member}.hidden[{self.layer}]"

    def value(self, scene: Scene) -> Tensor:
        """The layer of each row, (B, H)."""
        return scene.outputs[self.member].hidden[self.layer]


@dataclass(frozen=True)
class Embed(OfMember):
    """``member.embed``, the input vector after the lookup: (B, E)."""

    member: str

    def __str__(self) -> str:
        return f"{self.member}.embed"

    def value(self, scene: Scene) -> Tensor:
        """The input vector of each row, (B, E)."""
        return scene.outputs[self.member].embed_BE


@dataclass(frozen=True)
class Attention(OfMember):
    """``member.attention.column``: the weights that a member gives the tokens of a sequence, (B, L), zero-padded.

    L is the most that the sequence can hold, whatever a batch or a shortened view of it holds, so that what a row is
    worth depends on no other.
    """

    member: str
    sequence: int
    length: int

    def __str__(self) -> str:
        return f"{self.member}.attention[{self.sequence}]"

    def value(self, scene: Scene) -> Tensor:
        """The weights of each row, (B, L)."""
        weight_BL = scene.outputs[self.member].attention[self.sequence]
        return torch.nn.functional.pad(weight_BL, (0, self.length - weight_BL.shape[1]))


@dataclass(frozen=True)
class Column(Traits):
    """A raw binary column, for example the label: (B,), NaN where it is not known."""

    name: str
    members: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.name

    def value(self, scene: Scene) -> Tensor:
        """The column, (B,)."""
        return scene.batch.labels[self.name]


@dataclass(frozen=True)
class Scenario(Traits):
    """``scenario``: the hash of each row's scenario, int64 (B,)."""

    members: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return "scenario"

    def value(self, scene: Scene) -> Tensor:
        """The hash of each row's scenario."""
        return scene.batch.scenarios()


@dataclass(frozen=True)
class Noise(Traits):
    """``noise(width)``: standard normal numbers, (B, width), drawn by row id, seed and step."""

    width: int
    members: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"noise({self.width})"

    def value(self, scene: Scene) -> Tensor:
        """The numbers of each row, (B, width), by Box and Muller's transform of hashed row ids."""
        uniform = [
            draw(scene, scene.batch.row_id_B, f"{part}/{self.width}", self.width) for part in ("radius", "angle")
        ]
        return (torch.sqrt(-2 * torch.log(1 - uniform[0])) * torch.cos(2 * torch.pi * uniform[1])).float()


@dataclass(frozen=True)
class Live(OfSignal):
    """``live(x)``: a target or input that is not detached, so that gradients reach whoever is behind it."""

    signal: Signal

    def __str__(self) -> str:
        return f"live({self.signal})"

    def value(self, scene: Scene) -> Tensor:
        """The value of the signal."""
        return self.signal.value(scene)


@dataclass(frozen=True)
class Probability(OfSignal):
    """``probability(x)``: the sigmoid of logits."""

    signal: Signal

    def __str__(self) -> str:
        return f"probability({self.signal})"

    def value(self, scene: Scene) -> Tensor:
        """The probability of each row, of the shape of the signal."""
        return torch.sigmoid(self.signal.value(scene))


@dataclass(frozen=True)
class Remembered(OfSignal):
    """``memory(x, decay=)``: the moving average of what a signal was for each row in earlier steps; NaN at first.

    The average is divided by what has entered it, so that a constant is remembered as itself from the first time on.

    Source: O3, Laine and Aila, 2017 (as in its code).
    Departure: a value enters right after its step, not at the end of the epoch. In the job the weight rises by step
        instead of epoch, to 10 instead of 30, without the code's factor of labelled rows M / N: labels are averaged
        over the rows that have one, so that it cancels. Neither rate nor beta1 is ramped.
    """

    signal: Signal
    decay: float

    @property
    def key(self) -> str:
        """Tells it from other memories; equal signals share one."""
        return repr(self)

    def __str__(self) -> str:
        return f"memory({self.signal}, decay={self.decay})"

    def noted(self, scene: Scene) -> Tensor:
        """What enters the memory after a step, (B,)."""
        return self.signal.value(scene)

    def value(self, scene: Scene) -> Tensor:
        """What is remembered of each row, (B,); it carries no gradient."""
        return scene.memories[self.key].read(scene.batch.row_id_B)


@dataclass(frozen=True)
class Shuffled(OfSignal):
    """``shuffled(x)``: each row gets the value of another row of the batch; the control for a teacher's signal.

    The rows are put in a circle by the hash of their ids and the seed, and each takes its neighbour's value; so the
    permutation depends on which rows meet, not on their order, and no row keeps its own value, except in a batch of one
    row, where there is no other.
    """

    signal: Signal
    in_batch = True

    def __str__(self) -> str:
        return f"shuffled({self.signal})"

    def value(self, scene: Scene) -> Tensor:
        """The permuted value."""
        return self.signal.value(scene)[exchanged(scene.batch.row_id_B, scene.seed)]


def exchanged(row_id_B: Tensor, seed: int) -> Tensor:
    """For each row the place of another one, int64 (B,); a single row has only its own."""
    salt = splitmix64_tensor(torch.tensor(seed, dtype=torch.int64))
    order = torch.argsort(splitmix64_tensor(row_id_B ^ salt), stable=True)
    return torch.empty_like(order).index_copy_(0, order, order.roll(1))


def salted(scene: Scene, purpose: str) -> Tensor:
    """A number that depends on the run's seed, the step and what it is for, int64 ()."""
    words = [scene.seed, scene.now.step, *purpose.encode()]
    total = torch.zeros((), dtype=torch.int64)
    for word in words:
        total = splitmix64_tensor(total ^ word)
    return total


def draw(scene: Scene, key_B: Tensor, purpose: str, width: int = 1) -> Tensor:
    """Numbers in [0, 1) by key, seed, step and purpose, float64 (B, width): independent of batch composition."""
    place_W = splitmix64_tensor(torch.arange(width, dtype=torch.int64) ^ salted(scene, purpose))
    hashed_BW = splitmix64_tensor(key_B.unsqueeze(1) ^ place_W)
    return (hashed_BW & (2**53 - 1)).to(torch.float64) / 2.0**53


def flows(signal: Signal) -> bool:
    """Whether gradients pass through a signal that is not the learner."""
    return isinstance(signal, Live) or signal.turns


def unknown_at_times(signal: Signal) -> bool:
    """Whether a signal has no value for some rows, which then take no part."""
    return any(isinstance(part, Column | Remembered) for part in walk(signal))
