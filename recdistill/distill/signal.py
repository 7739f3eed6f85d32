"""What a term compares: named outputs of members, raw columns, and signals made from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from recdistill.data.batch import Batch
from recdistill.data.transforms.hashing import splitmix64_tensor
from recdistill.nets.inputs import Outputs


@dataclass(frozen=True)
class Scene:
    """What is known during a step: each member's outputs, the batch, the seed of the run, the step of the phase."""

    outputs: Mapping[str, Outputs]
    batch: Batch
    seed: int = 0
    step: int = 0


class Signal(Protocol):
    """Something with one value, or one vector, per row."""

    @property
    def members(self) -> frozenset[str]:
        """The members whose outputs it needs."""
        ...

    def value(self, scene: Scene) -> Tensor:
        """Its value in a step, (B,) or (B, H)."""
        ...


@dataclass(frozen=True)
class Logit:
    """``member.logit``, or ``member.logit.label`` where a member predicts several labels: (B,)."""

    member: str
    label: int = 0

    @property
    def members(self) -> frozenset[str]:
        """The member itself."""
        return frozenset({self.member})

    def value(self, scene: Scene) -> Tensor:
        """The logit of each row, (B,)."""
        return scene.outputs[self.member].logits_BK[:, self.label]


@dataclass(frozen=True)
class Hidden:
    """``member.hidden[k]``, a hidden layer counted from the input, or from the end if negative: (B, H)."""

    member: str
    layer: int

    @property
    def members(self) -> frozenset[str]:
        """The member itself."""
        return frozenset({self.member})

    def value(self, scene: Scene) -> Tensor:
        """The layer of each row, (B, H)."""
        return scene.outputs[self.member].hidden[self.layer]


@dataclass(frozen=True)
class Embed:
    """``member.embed``, the input vector after the lookup: (B, E)."""

    member: str

    @property
    def members(self) -> frozenset[str]:
        """The member itself."""
        return frozenset({self.member})

    def value(self, scene: Scene) -> Tensor:
        """The input vector of each row, (B, E)."""
        return scene.outputs[self.member].embed_BE


@dataclass(frozen=True)
class Attention:
    """``member.attention.column``: the weights that a member gives the tokens of a sequence, (B, L), zeros behind."""

    member: str
    sequence: int

    @property
    def members(self) -> frozenset[str]:
        """The member itself."""
        return frozenset({self.member})

    def value(self, scene: Scene) -> Tensor:
        """The weights of each row, (B, L)."""
        return scene.outputs[self.member].attention[self.sequence]


@dataclass(frozen=True)
class Column:
    """A raw binary column, for example the label: (B,), NaN where it is not known."""

    name: str
    members: frozenset[str] = frozenset()

    def value(self, scene: Scene) -> Tensor:
        """The column, (B,)."""
        return scene.batch.labels[self.name]


@dataclass(frozen=True)
class Live:
    """``live(x)``: a target that is not detached, so that the term teaches it as well."""

    signal: Signal

    @property
    def members(self) -> frozenset[str]:
        """Those of the signal."""
        return self.signal.members

    def value(self, scene: Scene) -> Tensor:
        """The value of the signal."""
        return self.signal.value(scene)


@dataclass(frozen=True)
class Shuffled:
    """``shuffled(x)``: each row gets the value of another row of the batch; the control for a teacher's signal.

    The rows are put in a circle by the hash of their ids and the seed, and each takes its neighbour's value; so the
    permutation depends on which rows meet, not on their order, and no row keeps its own value.
    """

    signal: Signal

    @property
    def members(self) -> frozenset[str]:
        """Those of the signal."""
        return self.signal.members

    def value(self, scene: Scene) -> Tensor:
        """The permuted value."""
        salt = splitmix64_tensor(torch.tensor(scene.seed, dtype=torch.int64))
        order = torch.argsort(splitmix64_tensor(scene.batch.row_id_B ^ salt), stable=True)
        value = self.signal.value(scene)
        return value[torch.empty_like(order).index_copy_(0, order, order.roll(1))]
