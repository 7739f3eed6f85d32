"""Signals with a value for every candidate of an anchor: scores of members, and what is known of candidates.

A term that compares them has one value per anchor. They exist on feeds with ``candidates`` alone.
"""

# Shapes: A anchors, M candidates of each, R rows of a batch, D width of a vector.

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from recdistill.data.batch import Candidates
from recdistill.distill.signal import OfMember, OfSignal, Scene, Signal, Traits, exchanged, walk
from recdistill.errors import TrainingError

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Scores(OfMember):
    """``member.scores``: the inner product of the anchor's vector and that of each candidate, (A, M).

    Permuted, each anchor has the vector of another one of the batch.
    """

    member: str
    permuted: bool = False

    def __str__(self) -> str:
        return f"{self.member}.scores"

    def value(self, scene: Scene) -> Tensor:
        """The scores of each anchor, (A, M)."""
        ranked = scene.batch.ranked()
        user_BD, item_BD = scene.outputs[self.member].hidden[-2:]
        anchor_BD, candidate_BD = (user_BD, item_BD) if ranked.anchor == "user" else (item_BD, user_BD)
        anchor_AD = anchor_BD[: ranked.anchors]
        if self.permuted:
            anchor_AD = anchor_AD[exchanged(scene.batch.row_id_B[: ranked.anchors], scene.seed)]
        return products(anchor_AD, candidate_BD, ranked)


def products(anchor_AD: Tensor, candidate_RD: Tensor, ranked: Candidates) -> Tensor:
    """The inner product of each anchor with each of its candidates, (A, M); what all share is one matrix product."""
    parts = [
        anchor_AD @ candidate_RD[part].t()
        if part.dim() == 1
        else torch.einsum("ad,amd->am", anchor_AD, candidate_RD[part])
        for part in ranked.parts
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


@dataclass(frozen=True)
class Mark(Traits):
    """``own``, ``taken``, ``log_q`` or ``popularity``: what is known of each candidate (`data/batch.py`), (A, M)."""

    name: str
    members: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.name

    def value(self, scene: Scene) -> Tensor:
        """The mark of each candidate, (A, M).

        Raises:
            TrainingError: the feed does not tell.
        """
        marks = scene.batch.ranked().marks
        if self.name not in marks:
            raise TrainingError(f"{self.name}: the feed divides candidates into no groups; give it `groups`")
        return marks[self.name]


@dataclass(frozen=True)
class Untaken(OfSignal):
    """A signal over candidates, NaN, which is no candidate, for those that the anchor is known to have taken."""

    signal: Signal

    def __str__(self) -> str:
        return f"untaken({self.signal})"

    def value(self, scene: Scene) -> Tensor:
        """The value of each candidate, (A, M)."""
        value_AM = self.signal.value(scene)
        return torch.where(scene.batch.ranked().marks["taken"] == 0, value_AM, torch.full_like(value_AM, torch.nan))


@dataclass(frozen=True)
class Hardest(OfSignal):
    """``own`` with only the negatives that a member scores highest; the others are NaN and so left out."""

    signal: Signal
    count: int

    def __str__(self) -> str:
        return f"hardest({self.signal}, count={self.count})"

    def value(self, scene: Scene) -> Tensor:
        """The mark of each candidate, (A, M)."""
        own_AM = scene.batch.ranked().marks["own"]
        score_AM = self.signal.value(scene).detach().masked_fill(own_AM != 0, -torch.inf)
        place_AK = score_AM.topk(min(self.count, score_AM.shape[1]), dim=1).indices
        chosen_AM = torch.zeros_like(own_AM, dtype=torch.bool).scatter(1, place_AK, value=True)
        return own_AM.masked_fill((own_AM == 0) & ~chosen_AM, torch.nan)


def untaken(signal: Signal) -> Untaken:
    """A signal over candidates without those that the anchor is known to have taken (RD, CD, RRD, UnKD)."""
    return Untaken(over_candidates(signal, "untaken"))


def hardest(signal: Signal, *, count: int = 1) -> Hardest:
    """``own`` with the ``count`` negatives that a member scores highest (dynamic negative sampling).

    Raises:
        TrainingError: the count is not positive, or the signal has no value for candidates.
    """
    if count < 1:
        raise TrainingError(f"hardest: count is a positive whole number, found {count}")
    return Hardest(over_candidates(signal, "hardest"), count)


def over_candidates(signal: Signal, name: str) -> Signal:
    """The signal.

    Raises:
        TrainingError: it has no value for candidates.
    """
    if not is_ranked(signal):
        raise TrainingError(f"{name}: {signal} has one value a row; name a member's `scores`")
    return signal


def is_ranked(thing: object) -> bool:
    """Whether a signal, or something made of signals, has values for candidates."""
    return any(isinstance(part, Scores | Mark) for part in walk(thing))


def permuted(thing: Thing) -> Thing:
    """A copy whose scores use permuted anchor vectors."""
    if isinstance(thing, Scores):
        return replace(thing, permuted=True)
    if not is_dataclass(thing) or isinstance(thing, type):
        return thing
    changed = {}
    for each in fields(thing):
        value = getattr(thing, each.name)
        changed[each.name] = tuple(map(permuted, value)) if isinstance(value, tuple) else permuted(value)
    return replace(thing, **changed)
