"""Training the row for unknown values: some known values are taken for unknown ones, anew in each epoch.

The row for unknown values is otherwise trained only by values too rare for the vocabulary, if at all, and a new item
would be scored by a vector that never learned anything. Rare values are replaced more often (``rare / (rare + n)``),
which at the same time keeps their own vectors from being trusted too much.

Source: word dropout by frequency, Kiperwasser and Goldberg, 2016, section 4; input dropout of unknown words, Iyyer et
al., 2015.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from torch import Tensor

from recdistill.data.batch import Batch, Jagged, View
from recdistill.data.fit import FittedSpec
from recdistill.data.transforms.hashing import hash_texts, splitmix64_tensor
from recdistill.data.transforms.rows import FIRST, UNKNOWN
from recdistill.spec.train import Unknown


@dataclass(frozen=True)
class Forgetting:
    """The probability, by column and table row, with which a value is replaced; and the seed of the draws."""

    chances: Mapping[str, Tensor]
    seed: int

    @classmethod
    def of(cls, fitted: FittedSpec, setting: Unknown, seed: int) -> "Forgetting | None":
        """What a job asks for, or None if it asks for nothing; hashed columns have no unknown values."""
        chances = {}
        for name, column in fitted.columns.items() if setting.rate or setting.rare else ():
            counts = fitted.counts(getattr(column, "table", ""))
            if counts is not None:
                rare = setting.rare / np.maximum(setting.rare + counts, 1e-300)
                chance = 1 - (1 - setting.rate) * (1 - rare)
                chance[:FIRST] = 0
                chances[name] = torch.from_numpy(chance)
        return cls(chances, seed) if chances else None

    def apply(self, batch: Batch, epoch: int) -> Batch:
        """The batch with some values replaced; what is drawn depends on row id, column, epoch and seed alone."""
        privileged = batch.privileged and self._view(batch.privileged, batch.row_id_B, epoch)
        return replace(batch, serving=self._view(batch.serving, batch.row_id_B, epoch), privileged=privileged)

    def _view(self, view: View, row_id_B: Tensor, epoch: int) -> View:
        ids_FB = view.ids_FB.clone()
        for i, name in enumerate(view.id_names):
            if name in self.chances:
                ids_FB[i] = self._replaced(name, ids_FB[i], row_id_B, epoch)
        bags = {name: self._bag(name, bag, row_id_B, epoch) for name, bag in view.bags.items()}
        return replace(view, ids_FB=ids_FB, bags=bags)

    def _bag(self, name: str, bag: Jagged, row_id_B: Tensor, epoch: int) -> Jagged:
        if name not in self.chances:
            return bag
        row_L = torch.repeat_interleave(torch.arange(len(bag.lengths_B)), bag.lengths_B)
        place_L = torch.arange(len(row_L)) - (torch.cumsum(bag.lengths_B, 0) - bag.lengths_B)[row_L]
        key_L = splitmix64_tensor(row_id_B[row_L] ^ splitmix64_tensor(place_L))
        return replace(bag, values_L=self._replaced(name, bag.values_L, key_L, epoch))

    def _replaced(self, name: str, rows_N: Tensor, key_N: Tensor, epoch: int) -> Tensor:
        salt = int(hash_texts(pl.Series([f"unknown/{name}/{self.seed}/{epoch}"]))[0])
        draw_N = (splitmix64_tensor(key_N ^ salt) & (2**53 - 1)).to(torch.float64) / 2.0**53
        return torch.where(draw_N < self.chances[name][rows_N], torch.full_like(rows_N, UNKNOWN), rows_N)
