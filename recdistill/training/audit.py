"""What each term would move: its gradient on every parameter and leaf, without a step being taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recdistill.data.batch import Batch
from recdistill.distill.member import Phase, Update
from recdistill.distill.schedule import Now
from recdistill.training.cast import Cast
from recdistill.training.memory import memory_for
from recdistill.training.play import Lookups, Play
from recdistill.training.value import term_value


@dataclass(frozen=True)
class Audit:
    """The gradients of one term, times its weight at the step.

    Attributes:
        words: the term.
        weight: its weight at the step.
        dense: by parameter, ``member.name``; a parameter that the term does not reach is absent.
        tables: by bank, on the looked-up vectors, (B, W); likewise.
    """

    words: str
    weight: float
    dense: dict[str, Tensor]
    tables: dict[str, Tensor]

    def reaches(self, member: str) -> bool:
        """Whether some dense parameter of a member would move."""
        return any(bool(g.any()) for name, g in self.dense.items() if name.startswith(f"{member}."))


def audit(
    cast: Cast,
    phase: Phase | Update,
    batch: Batch,
    *,
    step: int = 0,
    planned: int = 1000,
    seen: Sequence[Mapping[str, float]] = (),
    seed: int = 0,
) -> list[Audit]:
    """The gradients of every term of a phase, or of one update, at a step and after what evaluations have seen.

    Parameters and tables stay as they are.

    Every member that takes part answers in training mode with gradients, frozen or not, so that a term that reaches a
    member it must not reach is seen.
    """
    names = sorted(name for name in phase.members if name in cast.heads)
    everyone = frozenset(names)
    now = Now(step, planned, tuple(seen))
    lookups = Lookups(cast, sorted(phase.members), batch, cast.banks_of(names), training=True, seed=seed, now=now)
    remembered = {memory.key: memory for term in phase.terms for memory in term.memories}
    memories = {key: memory_for(memory, batch.row_id_B) for key, memory in remembered.items()}
    scene = Play(cast, lookups, (0, len(batch)), everyone, seed, now, memories).scene
    parameters = {f"{name}.{key}": p for name in names for key, p in cast.heads[name].named_parameters()}
    leaves = lookups.leaves
    found = []
    for term in phase.terms:
        weight = term.weight(now)
        value = term_value(term, scene) * weight
        inputs = [*parameters.values(), *leaves.values()]
        gradients = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
        dense, tables = gradients[: len(parameters)], gradients[len(parameters) :]
        found.append(
            Audit(
                term.words,
                weight,
                {name: g for name, g in zip(parameters, dense, strict=True) if g is not None},
                {bank: g for bank, g in zip(leaves, tables, strict=True) if g is not None},
            )
        )
    return found
