"""Distorted views of a batch: values that go missing, sequences cut short, noise on numbers; drawn by row id.

What is drawn depends on row id, column and a number that differs in every step, so that a row's distortion does not
depend on its batch. A lost value becomes what a missing value is in the encoded log: the row for missing values, and 0
for a scaled number. A lost list becomes what a missing list is; a lost value of a list keeps its place.

Source: E12, Markov and Matsui, 2016: a teacher on clean rows, a student on noisy ones (its values unverified).
Departure: values go missing and numbers are disturbed, anew in every step, instead of recordings with noise; levels,
    temperature 1 and the share of the teacher are the job's.
"""

# Shapes: B rows, F id columns, N float columns, L list elements over all rows.

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recdistill.data.batch import Batch, Jagged, View
from recdistill.data.transforms.hashing import splitmix64_tensor, text_hash
from recdistill.data.transforms.rows import MISSING
from recdistill.spec.columns import Missing, Sequence
from recdistill.spec.features import FeatureSpec
from recdistill.spec.members import Distortion


def distorted(batch: Batch, how: Distortion, salt: Tensor, spec: FeatureSpec) -> Batch:
    """The batch as a member sees it.

    Args:
        batch: the rows.
        how: what happens to them.
        salt: a number of this step, int64 ().
        spec: says what is missing of a column, by its type.
    """
    levels = torch.tensor(how.levels)
    place_B = (uniform(batch.row_id_B, salt, "level") * len(levels)).long()
    draws = _Draws(how, salt, batch.row_id_B, levels[place_B])
    privileged = batch.privileged and _view(batch.privileged, draws, spec)
    return replace(batch, serving=_view(batch.serving, draws, spec), privileged=privileged)


@dataclass(frozen=True)
class _Draws:
    """What is drawn for the rows of a batch, each of which has a strength."""

    how: Distortion
    salt: Tensor
    row_id_B: Tensor
    strength_B: Tensor

    def touches(self, name: str) -> bool:
        """Whether a column is distorted at all."""
        return not self.how.columns or name in self.how.columns

    def gone(self, name: str) -> Tensor:
        """Whether the whole column is missing, (B,): in all rows of one strength alike."""
        column = uniform(torch.zeros(1, dtype=torch.int64), self.salt, f"fields/{name}")
        return column < self.how.fields * self.strength_B

    def masked(self, name: str, key_N: Tensor, strength_N: Tensor) -> Tensor:
        """Whether each value goes missing by itself, (N,)."""
        return uniform(key_N, self.salt, f"mask/{name}") < self.how.mask * strength_N

    def lost(self, name: str) -> Tensor:
        """Whether the only value of each row goes missing, (B,): by itself, or with the whole column."""
        return self.masked(name, self.row_id_B, self.strength_B) | self.gone(name)

    def noisy(self, name: str, value_B: Tensor) -> Tensor:
        """Numbers with noise, (B,)."""
        if not self.how.noise:
            return value_B
        return value_B + self.how.noise * self.strength_B * normal(self.row_id_B, self.salt, name)

    def kept(self, name: str, lengths_B: Tensor) -> Tensor:
        """How many of the last values of each list are left, (B,): all, or a number drawn evenly from 1 on."""
        is_cut_B = uniform(self.row_id_B, self.salt, f"truncate/{name}") < self.how.truncate * self.strength_B
        drawn_B = 1 + (uniform(self.row_id_B, self.salt, f"length/{name}") * lengths_B).long()
        return torch.where(is_cut_B, torch.minimum(drawn_B, lengths_B), lengths_B)


def _view(view: View, draws: _Draws, spec: FeatureSpec) -> View:
    ids_FB, floats_BN = view.ids_FB.clone(), view.floats_BN.clone()
    for i, name in enumerate(view.id_names):
        if draws.touches(name):
            ids_FB[i] = torch.where(draws.lost(name), torch.full_like(ids_FB[i], MISSING), ids_FB[i])
    for i, name in enumerate(view.float_names):
        if draws.touches(name):
            missing = 1.0 if isinstance(spec.columns[name], Missing) else 0.0
            noisy_B = draws.noisy(name, floats_BN[:, i])
            floats_BN[:, i] = torch.where(draws.lost(name), torch.full_like(noisy_B, missing), noisy_B)
    bags = {
        name: _list(name, bag, draws, least=0 if isinstance(spec.columns[name], Sequence) else 1)
        if draws.touches(name)
        else bag
        for name, bag in view.bags.items()
    }
    return replace(view, ids_FB=ids_FB, floats_BN=floats_BN, bags=bags)


def _list(name: str, bag: Jagged, draws: _Draws, *, least: int) -> Jagged:
    """A list whose older end is cut off, and some of whose values go missing, each in its place.

    Of a list that is missing as a whole, ``least`` values are left: a bag is never empty, but a sequence may be.
    """
    row_L, place_L = places(bag.lengths_B)
    bag = left(bag, place_L >= (bag.lengths_B - draws.kept(name, bag.lengths_B))[row_L])
    row_L, place_L = places(bag.lengths_B)
    gone_L = draws.gone(name)[row_L]
    key_L = splitmix64_tensor(draws.row_id_B[row_L] ^ splitmix64_tensor(place_L))
    lost_L = gone_L | draws.masked(name, key_L, draws.strength_B[row_L])
    values_L = torch.where(lost_L, torch.full_like(bag.values_L, MISSING), bag.values_L)
    weights_L = None if bag.weights_L is None else bag.weights_L.masked_fill(gone_L, 1.0)
    return left(replace(bag, values_L=values_L, weights_L=weights_L), ~gone_L | (place_L < least))


def places(lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """The row of each list element, and its place in the list, both (L,)."""
    row_L = torch.repeat_interleave(torch.arange(len(lengths_B)), lengths_B)
    return row_L, torch.arange(len(row_L)) - (torch.cumsum(lengths_B, 0) - lengths_B)[row_L]


def left(bag: Jagged, kept_L: Tensor) -> Jagged:
    """The lists with some of their elements."""
    row_L, _ = places(bag.lengths_B)
    weights, gaps = (None if channel is None else channel[kept_L] for channel in (bag.weights_L, bag.gaps_L))
    return Jagged(bag.values_L[kept_L], torch.bincount(row_L[kept_L], minlength=len(bag.lengths_B)), weights, gaps)


def uniform(key_B: Tensor, salt: Tensor, purpose: str) -> Tensor:
    """Numbers in [0, 1) by key, salt and purpose, float64 (B,)."""
    hashed_B = splitmix64_tensor(key_B ^ splitmix64_tensor(salt ^ text_hash(purpose)))
    return (hashed_B & (2**53 - 1)).to(torch.float64) / 2.0**53


def normal(key_B: Tensor, salt: Tensor, purpose: str) -> Tensor:
    """Standard normal numbers by key, salt and purpose, float32 (B,); Box and Muller's transform."""
    radius_B = torch.sqrt(-2 * torch.log(1 - uniform(key_B, salt, f"radius/{purpose}")))
    return (radius_B * torch.cos(2 * math.pi * uniform(key_B, salt, f"angle/{purpose}"))).float()
