"""Distorted views of a batch: values that go missing, sequences cut short, noise on numbers; drawn by row id.

What is drawn depends on row id, column and a number that differs in every step, so that rows are distorted alike
however they meet. A value that is lost becomes what a missing value is in the encoded log: the row for missing values,
and 0 for a scaled number.
"""

# Shapes: B rows, F id columns, N float columns, L list elements over all rows.

import math
from dataclasses import replace

import torch
from torch import Tensor

from recdistill.data.batch import Batch, Jagged, View
from recdistill.data.transforms.hashing import splitmix64_tensor, text_hash
from recdistill.data.transforms.rows import MISSING
from recdistill.spec.members import Distortion


def distorted(batch: Batch, how: Distortion, salt: Tensor) -> Batch:
    """The batch as a member sees it.

    Args:
        batch: the rows.
        how: what happens to them.
        salt: a number of this step, int64 ().
    """
    levels = torch.tensor(how.levels)
    place_B = (uniform(batch.row_id_B, salt, "level") * len(levels)).long()
    strength_B = levels[place_B]
    privileged = batch.privileged and _view(batch.privileged, batch.row_id_B, how, salt, strength_B)
    serving = _view(batch.serving, batch.row_id_B, how, salt, strength_B)
    return replace(batch, serving=serving, privileged=privileged)


def _view(view: View, row_id_B: Tensor, how: Distortion, salt: Tensor, strength_B: Tensor) -> View:
    ids_FB, floats_BN = view.ids_FB.clone(), view.floats_BN.clone()
    for i, name in enumerate(view.id_names):
        if _touched(name, how):
            lost_B = _lost(name, row_id_B, how, salt, strength_B)
            ids_FB[i] = torch.where(lost_B, torch.full_like(ids_FB[i], MISSING), ids_FB[i])
    for i, name in enumerate(view.float_names):
        if _touched(name, how):
            noisy_B = floats_BN[:, i]
            if how.noise:
                noisy_B = noisy_B + how.noise * strength_B * normal(row_id_B, salt, name)
            lost_B = _lost(name, row_id_B, how, salt, strength_B)
            floats_BN[:, i] = torch.where(lost_B, torch.zeros_like(noisy_B), noisy_B)
    bags = {
        name: _bag(name, bag, row_id_B, how, salt, strength_B) if _touched(name, how) else bag
        for name, bag in view.bags.items()
    }
    return replace(view, ids_FB=ids_FB, floats_BN=floats_BN, bags=bags)


def _touched(name: str, how: Distortion) -> bool:
    return not how.columns or name in how.columns


def _lost(name: str, key_B: Tensor, how: Distortion, salt: Tensor, strength_B: Tensor) -> Tensor:
    """Whether the value of a column goes missing, (B,): by itself, or with the whole column."""
    masked_B = uniform(key_B, salt, f"mask/{name}") < how.mask * strength_B
    column = uniform(torch.zeros(1, dtype=torch.int64), salt, f"fields/{name}")
    return masked_B | (column < how.fields * strength_B)


def _bag(name: str, bag: Jagged, row_id_B: Tensor, how: Distortion, salt: Tensor, strength_B: Tensor) -> Jagged:
    """A list whose older end is cut off, and some of whose values go missing; a bag is never left empty."""
    if how.truncate:
        bag = _cut(name, bag, row_id_B, how, salt, strength_B)
    row_L = torch.repeat_interleave(torch.arange(len(bag.lengths_B)), bag.lengths_B)
    place_L = torch.arange(len(row_L)) - (torch.cumsum(bag.lengths_B, 0) - bag.lengths_B)[row_L]
    key_L = splitmix64_tensor(row_id_B[row_L] ^ splitmix64_tensor(place_L))
    lost_L = _lost(name, key_L, how, salt, strength_B[row_L])
    return replace(bag, values_L=torch.where(lost_L, torch.full_like(bag.values_L, MISSING), bag.values_L))


def _cut(name: str, bag: Jagged, row_id_B: Tensor, how: Distortion, salt: Tensor, strength_B: Tensor) -> Jagged:
    """The last k values of each list that is cut, k drawn evenly from 1 to its length."""
    is_cut_B = uniform(row_id_B, salt, f"truncate/{name}") < how.truncate * strength_B
    drawn_B = 1 + (uniform(row_id_B, salt, f"length/{name}") * bag.lengths_B).long()
    kept_B = torch.where(is_cut_B, torch.minimum(drawn_B, bag.lengths_B), bag.lengths_B)
    row_L = torch.repeat_interleave(torch.arange(len(bag.lengths_B)), bag.lengths_B)
    place_L = torch.arange(len(row_L)) - (torch.cumsum(bag.lengths_B, 0) - bag.lengths_B)[row_L]
    kept_L = place_L >= (bag.lengths_B - kept_B)[row_L]
    weights, gaps = (None if channel is None else channel[kept_L] for channel in (bag.weights_L, bag.gaps_L))
    return Jagged(bag.values_L[kept_L], kept_B, weights, gaps)


def uniform(key_B: Tensor, salt: Tensor, purpose: str) -> Tensor:
    """Numbers in [0, 1) by key, salt and purpose, float64 (B,)."""
    hashed_B = splitmix64_tensor(key_B ^ splitmix64_tensor(salt ^ text_hash(purpose)))
    return (hashed_B & (2**53 - 1)).to(torch.float64) / 2.0**53


def normal(key_B: Tensor, salt: Tensor, purpose: str) -> Tensor:
    """Standard normal numbers by key, salt and purpose, float32 (B,); Box and Muller's transform."""
    radius_B = torch.sqrt(-2 * torch.log(1 - uniform(key_B, salt, f"radius/{purpose}")))
    return (radius_B * torch.cos(2 * math.pi * uniform(key_B, salt, f"angle/{purpose}"))).float()
