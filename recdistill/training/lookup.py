"""What is looked up of a batch: a bank's vectors as a detached leaf, and how its columns become lines of it."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from recdistill.data.batch import Batch, View
from recdistill.distill.layout import Bank, Feature, Leaf, view_of
from recdistill.errors import TrainingError


@dataclass(frozen=True)
class LeafPart:
    """Some rows of a leaf."""

    leaf_BW: Tensor
    spans: dict[str, tuple[int, int]]


@dataclass
class Lookup:
    """The vectors of a bank for one batch, and the detached leaf on which members work.

    In a bank of tokens ``spans`` holds the lines of each feature and ``lines`` how many of them each row has, where
    that is not one; otherwise a line is a row of the batch. ``rarity_BW`` is 1 / n for each looked-up vector whose
    value occurs n times in training, if a penalty needs it. ``share`` is this process's fraction of each line's
    penalty, where others look up the same rows.
    """

    pooled: Tensor
    leaf_BW: Tensor
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    lines: dict[str, Tensor] = field(default_factory=dict)
    rarity_BW: Tensor | None = None
    share: Tensor | None = None

    def part(self, first: int, end: int) -> "Leaf":
        """The vectors of some rows of the batch, as a slice of the leaf."""
        if not self.spans:
            whole = first == 0 and end == len(self.leaf_BW)
            return self if whole else LeafPart(self.leaf_BW[first:end], {})
        spans = {}
        for name, (start, _) in self.spans.items():
            before, inside = first, end - first
            if name in self.lines:
                before, inside = int(self.lines[name][:first].sum()), int(self.lines[name][first:end].sum())
            spans[name] = (start + before, start + before + inside)
        return LeafPart(self.leaf_BW, spans)

    def push(self, l2: float = 0.0, l2_rare: float = 0.0) -> None:
        """Send the gradient collected on the leaf into the tables, where the fused optimizer steps at once.

        Args:
            l2: weight of the penalty ``|vector|^2 / 2`` of each looked-up vector.
            l2_rare: the same, times the rarity of the value.
        """
        gradient = self.leaf_BW.grad
        if gradient is None:
            return
        penalised = self.leaf_BW.detach() if self.share is None else self.leaf_BW.detach() * self.share
        if l2:
            gradient = gradient.add(penalised, alpha=l2)
        if self.rarity_BW is not None:
            gradient = gradient.addcmul(penalised, self.rarity_BW, value=l2_rare)
        self.pooled.backward(gradient)


def in_order(bank: Bank, given: list[str], wanted: list[str]) -> Tensor:
    """The columns of looked-up vectors in the order in which the bank names its features.

    Raises:
        TrainingError: other features were looked up.
    """
    if sorted(given) != sorted(wanted):
        raise TrainingError(f"tables of {bank.owner}: TorchRec returned {given}; expected {wanted}")
    tables = {f.column: f.table for f in bank.features}
    width = {key: bank.dims[key if bank.tokens else tables[key]] for key in given}
    starts = dict(zip(given, itertools.accumulate((width[key] for key in given), initial=0), strict=False))
    return torch.cat([torch.arange(starts[key], starts[key] + width[key]) for key in wanted])


def spread(bank: Bank, lookup: Lookup, value_B: Tensor) -> Tensor:
    """A number of each row on the lines that stand for it: (B, 1), or in a bank of tokens as wide as its vectors."""
    if not lookup.spans:
        return value_B.unsqueeze(1).to(lookup.pooled.device)
    found = torch.zeros_like(lookup.pooled)
    for feature in bank.features:
        lines = lookup.lines.get(feature.name)
        first, end = lookup.spans[feature.name]
        start, width = bank.columns(feature)
        of_lines = value_B if lines is None else torch.repeat_interleave(value_B, lines)
        found[first:end, start : start + width] = of_lines.unsqueeze(1).to(found.device)
    return found


def rarity_of(
    bank: Bank, batch: Batch, spans: Mapping[str, tuple[int, int]], pooled: Tensor, rarity: Mapping[str, Tensor]
) -> Tensor:
    """The rarity of the value behind each looked-up vector, as wide as the vectors; 0 for pooled lists."""
    found = torch.zeros_like(pooled)
    for feature in bank.features:
        if feature.table not in rarity or feature.form not in ("single", "sequence"):
            continue
        values_L, _, _ = _lines(feature, view_of(batch, feature.audience))
        first, end = spans.get(feature.name, (0, len(batch)))
        start, width = bank.columns(feature)
        found[first:end, start : start + width] = rarity[feature.table][values_L].unsqueeze(1).to(found.device)
    return found


def token_features(bank: Bank, batch: Batch) -> tuple[KeyedJaggedTensor, dict[str, tuple[int, int]]]:
    """What a bank of tokens looks up, and the lines of each feature.

    There is one key per table: the values of its features one after the other, each value (or pooled bag) a line of its
    own. TorchRec's collections of unpooled vectors are an order of magnitude slower on CPU than such bags of one. All
    keys have as many lines as the longest; the others end in empty bags.
    """
    spans: dict[str, tuple[int, int]] = {}
    values: dict[str, list[Tensor]] = {table: [] for table in bank.tables}
    lengths: dict[str, list[Tensor]] = {table: [] for table in bank.tables}
    weights: dict[str, list[Tensor]] = {table: [] for table in bank.tables}
    lines = dict.fromkeys(bank.tables, 0)
    for feature in bank.features:
        values_L, lengths_R, weights_L = _lines(feature, view_of(batch, feature.audience))
        values[feature.table].append(values_L)
        lengths[feature.table].append(lengths_R)
        weights[feature.table].append(weights_L)
        spans[feature.name] = (lines[feature.table], lines[feature.table] + len(lengths_R))
        lines[feature.table] += len(lengths_R)
    longest = max(lines.values())
    for table, count in lines.items():
        lengths[table].append(torch.zeros(longest - count, dtype=torch.int64))
    weighted = any(feature.weighted for feature in bank.features)
    features = KeyedJaggedTensor(
        keys=list(bank.tables),
        values=torch.cat([part for parts in values.values() for part in parts]),
        lengths=torch.cat([part for parts in lengths.values() for part in parts]),
        weights=torch.cat([part for parts in weights.values() for part in parts]) if weighted else None,
        stride=longest,
    )
    return features, spans


def _lines(feature: Feature, view: View) -> tuple[Tensor, Tensor, Tensor]:
    """The values of a feature, the number of them on each line, and their weights."""
    if feature.form == "single":
        values_L = view.ids((feature.column,))[0]
        return values_L, torch.ones(len(values_L), dtype=torch.int64), torch.ones(len(values_L))
    bag = view.bag(feature.column)
    if feature.form == "bag":
        weights_L = torch.ones(len(bag.values_L)) if bag.weights_L is None else bag.weights_L
        return bag.values_L, bag.lengths_B, weights_L
    values_L = bag.values_L if feature.form == "sequence" or bag.gaps_L is None else bag.gaps_L
    return values_L, torch.ones(len(values_L), dtype=torch.int64), torch.ones(len(values_L))
