"""The serving student as one TorchScript module: raw serving columns in, click probabilities out.

It is built from the fitted serving columns and the student's own parameters alone; nothing else can get in.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recdistill.data.fit import FittedSpec
from recdistill.data.transforms.raw import keyed_by_text, unit_of
from recdistill.distill.layout import Layout, MemberLayout, SequencePiece, pools_of
from recdistill.distill.member import Member
from recdistill.errors import ExportError, VisibilityError
from recdistill.nets.catalog import Head
from recdistill.nets.inputs import Inputs
from recdistill.nets.sequences import padded
from recdistill.nets.towers import Stack
from recdistill.spec.features import FeatureSpec


class Singles(nn.Module):
    """All single-valued columns of one width: their tables lie in one matrix, so that they are one lookup.

    Args:
        weight: rows of all their tables, (R, D).
        starts: the first row of each column's table.
        places: which of the encoded columns these are.
    """

    weight: Tensor
    start_F: Tensor
    place_F: Tensor

    def __init__(self, weight: Tensor, starts: list[int], places: list[int]) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("start_F", torch.tensor(starts, dtype=torch.int64).unsqueeze(1))
        self.register_buffer("place_F", torch.tensor(places, dtype=torch.int64))

    def forward(self, ids_FB: Tensor) -> Tensor:
        """The vectors of these columns, (B, F, D), from the rows of all columns."""
        return nn.functional.embedding((ids_FB[self.place_F] + self.start_F).t(), self.weight)


class Rows(nn.Module):
    """The table of a list column."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, rows_L: Tensor) -> Tensor:
        """The vector of each row, (L, D)."""
        return nn.functional.embedding(rows_L, self.weight)


class Pooled(nn.Module):
    """The table of a bag."""

    weight: Tensor

    def __init__(self, weight: Tensor, mean: bool) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.mean = mean

    def forward(self, rows_L: Tensor, lengths_B: Tensor, weights_L: Tensor) -> Tensor:
        """One vector per bag, (B, D); weights may be empty."""
        first_B = torch.cumsum(lengths_B, 0) - lengths_B
        if weights_L.numel() > 0:
            sum_BD = nn.functional.embedding_bag(rows_L, self.weight, first_B, mode="sum", per_sample_weights=weights_L)
        else:
            sum_BD = nn.functional.embedding_bag(rows_L, self.weight, first_B, mode="sum")
        return sum_BD / size_of(lengths_B, weights_L).unsqueeze(1) if self.mean else sum_BD


class SequenceRows(nn.Module):
    """The tables of a sequence and of its time gaps."""

    def __init__(self, values: Rows, gaps: Rows | None) -> None:
        super().__init__()
        self.values = values
        self.gaps = gaps if gaps is not None else Rows(torch.zeros(1, 1))

    def forward(self, rows_L: Tensor, lengths_B: Tensor, gaps_L: Tensor) -> Tensor:
        """The padded tokens, (B, L, D)."""
        tokens_TD = self.values(rows_L)
        if gaps_L.numel() > 0:
            tokens_TD = tokens_TD + self.gaps(gaps_L)
        return padded(tokens_TD, lengths_B)


@dataclass(frozen=True)
class Encoders:
    """The modules from raw columns to table rows and numbers, in the order of the input vector within each kind."""

    singles: list[nn.Module]
    bags: list[nn.Module]
    sequences: list[nn.Module]
    numbers: list[nn.Module]


class ServingStudent(nn.Module):
    """Raw columns to probabilities.

    Args:
        encoders: from raw columns to rows and numbers.
        groups: the tables of the single-valued columns, one group per width.
        pooled: the tables of the bags.
        sequenced: the tables of the sequences.
        order: for each embedded column of the input vector its index among the columns of all groups, then bags.
        head: the student's net.
        correction: added to every logit, for negatives left out of the log or of training.
    """

    order: list[int]

    def __init__(
        self,
        encoders: Encoders,
        groups: list[Singles],
        pooled: list[Pooled],
        sequenced: list[SequenceRows],
        order: list[int],
        head: nn.Module,
        correction: float,
    ) -> None:
        super().__init__()
        self.singles = nn.ModuleList(encoders.singles)
        self.bags = nn.ModuleList(encoders.bags)
        self.sequences = nn.ModuleList(encoders.sequences)
        self.numbers = nn.ModuleList(encoders.numbers)
        self.groups = nn.ModuleList(groups)
        self.pooled = nn.ModuleList(pooled)
        self.sequenced = nn.ModuleList(sequenced)
        self.order = order
        self.plain_order = order == list(range(len(order))) and len(groups) == 1 and len(pooled) == 0
        self.head = head
        self.correction = correction

    def forward(self, numbers: dict[str, Tensor], texts: dict[str, list[str]], lengths: dict[str, Tensor]) -> Tensor:
        """Probabilities of raw rows: (B,) for one label, (B, K) for several.

        Args:
            numbers: integer and float columns; of lists, all elements in a row.
            texts: text columns; of lists, all elements in a row.
            lengths: for list columns, the number of elements of each row, int64 (B,).

        A missing value is NaN, the int64 minimum or the empty text; an absent column is missing in all rows.
        """
        return torch.sigmoid(self.logits(numbers, texts, lengths))

    @torch.jit.export
    def logits(self, numbers: dict[str, Tensor], texts: dict[str, list[str]], lengths: dict[str, Tensor]) -> Tensor:
        """The logits of raw rows."""
        batch = count_rows(numbers, texts, lengths)
        ids: list[Tensor] = []
        for single in self.singles:
            ids.append(single(numbers, texts, lengths, batch))
        values: list[Tensor] = []
        counts: list[Tensor] = []
        channels: list[Tensor] = []
        for bag in self.bags:
            value_L, length_B, channel_L = bag(numbers, texts, lengths, batch)
            values.append(value_L)
            counts.append(length_B)
            channels.append(channel_L)
        for sequence in self.sequences:
            value_L, length_B, channel_L = sequence(numbers, texts, lengths, batch)
            values.append(value_L)
            counts.append(length_B)
            channels.append(channel_L)
        floats: list[Tensor] = []
        for number in self.numbers:
            floats.append(number(numbers, texts, lengths, batch))
        ids_FB = torch.stack(ids) if len(ids) > 0 else torch.zeros((0, batch), dtype=torch.int64)
        floats_BN = torch.stack(floats, 1) if len(floats) > 0 else torch.zeros((batch, 0))
        return self.encoded(ids_FB, values, counts, channels, floats_BN)

    @torch.jit.export
    def encoded(
        self,
        ids_FB: Tensor,
        values: list[Tensor],
        lengths: list[Tensor],
        channels: list[Tensor],
        floats_BN: Tensor,
    ) -> Tensor:
        """The logits of encoded rows: table rows and scaled numbers as training saw them.

        Args:
            ids_FB: table rows of the single-valued columns, int64 (F, B).
            values: table rows of each bag, then of each sequence, int64 (L,).
            lengths: the number of them on each row, int64 (B,); of bags at least 1.
            channels: of bags the weights, float32 (L,), of sequences the rows of the time gaps, int64 (L,); empty if
                the column has none.
            floats_BN: scaled numbers, float32 (B, N).
        """
        found: list[Tensor] = []
        plain: list[Tensor] = []
        for group in self.groups:
            vectors_BFD = group(ids_FB)
            if self.plain_order:
                plain.append(vectors_BFD.flatten(1))
            else:
                found.extend(vectors_BFD.unbind(1))
        for k, pool in enumerate(self.pooled):
            found.append(pool(values[k], lengths[k], channels[k]))
        parts = plain
        for place in self.order:
            if not self.plain_order:
                parts.append(found[place])
        parts.append(floats_BN)
        tokens: list[Tensor] = []
        bags = len(self.bags)
        for k, sequence in enumerate(self.sequenced):
            tokens.append(sequence(values[bags + k], lengths[bags + k], channels[bags + k]))
        logits_BK: Tensor = self.head(torch.cat(parts, 1), tokens, lengths[bags:]).logits_BK + self.correction
        return logits_BK.squeeze(1) if logits_BK.size(1) == 1 else logits_BK


def size_of(lengths_B: Tensor, weight_L: Tensor) -> Tensor:
    """What the sum of a bag is divided by for its mean: the number of its elements or the sum of their weights."""
    if weight_L.numel() == 0:
        return lengths_B.to(torch.float32)
    bag_L = torch.repeat_interleave(torch.arange(lengths_B.numel()), lengths_B)
    total_B = torch.zeros(lengths_B.numel()).index_add(0, bag_L, weight_L)
    return torch.clamp(total_B, min=1e-12)


def count_rows(numbers: dict[str, Tensor], texts: dict[str, list[str]], lengths: dict[str, Tensor]) -> int:
    """The number of rows that all given columns agree on; 0 if no column is given."""
    batch = -1
    for name, length_B in lengths.items():
        if length_B.numel() > 0 and int(length_B.min()) < 0:
            raise ValueError("negative length in column " + name)
        elements = -1
        if name in numbers:
            elements = numbers[name].numel()
        if name in texts:
            elements = len(texts[name])
        if elements != int(length_B.sum()):
            raise ValueError("the lengths of list column " + name + " do not add up to its number of elements")
        batch = agreed(batch, length_B.numel(), name)
    for name, column in numbers.items():
        if name not in lengths:
            batch = agreed(batch, column.numel(), name)
    for name, text in texts.items():
        if name not in lengths:
            batch = agreed(batch, len(text), name)
    return max(batch, 0)


def agreed(batch: int, rows: int, name: str) -> int:
    """The number of rows, if a column has as many as those before it."""
    if batch >= 0 and rows != batch:
        raise ValueError("column " + name + " has " + str(rows) + " rows, others have " + str(batch))
    return rows


def serving_student(
    member: Member,
    layout: Layout,
    spec: FeatureSpec,
    fitted: FittedSpec,
    parameters: Mapping[str, Tensor],
    *,
    labels: int,
    negative_keep_rate: float,
) -> ServingStudent:
    """The serving module of a member, from the parameters of a checkpoint.

    Args:
        member: the member; it must read serving columns only.
        layout: where its columns are looked up.
        spec: the feature spec.
        fitted: the fitted columns.
        parameters: of the checkpoint; only the member's own are used.
        labels: number of labels that it predicts.
        negative_keep_rate: the share of negatives that it has seen; logits are corrected by its logarithm.

    Raises:
        VisibilityError: the member reads a column that is known only after the event.
        ExportError: a parameter is missing.
    """
    mine = layout.members[member.name]
    for field in mine.inputs.fields:
        if field.name not in spec.serving:
            raise VisibilityError(
                f"export of {member.name!r}: reads {field.name!r}, known only after the event; only a member that "
                "reads serving columns can be exported, so choose another member"
            )
    kinds = {field.name: fitted.columns[field.name].kind for field in mine.inputs.fields}
    by_kind = {kind: [n for n in kinds if kinds[n] == kind] for kind in ("id", "bag", "sequence", "float")}
    tables = _Tables(mine, layout, parameters)
    by_width: dict[int, list[str]] = {}
    for name in by_kind["id"]:
        by_width.setdefault(tables.of(name).shape[1], []).append(name)
    groups = [tables.together(names, [by_kind["id"].index(n) for n in names]) for names in by_width.values()]
    found = [name for names in by_width.values() for name in names] + by_kind["bag"]
    modules = {kind: [fitted.columns[n].torch() for n in names] for kind, names in by_kind.items()}
    return ServingStudent(
        Encoders(modules["id"], modules["bag"], modules["sequence"], modules["float"]),
        groups,
        [Pooled(tables.of(n), spec.columns[n].pool == "mean") for n in by_kind["bag"]],  # type: ignore[union-attr]
        [tables.sequence(sequence) for sequence in mine.sequences],
        [found.index(name) for name in kinds if kinds[name] in ("id", "bag")],
        _head(member, mine, parameters, labels),
        math.log(negative_keep_rate),
    ).eval()


class _Tables:
    """The tables of a member, from the parameters of a checkpoint."""

    def __init__(self, layout: MemberLayout, whole: Layout, parameters: Mapping[str, Tensor]) -> None:
        features = ((bank, feature) for bank in layout.banks for feature in whole.banks[bank].features)
        self.keys = {feature.name: f"tables.{bank}.{feature.table}" for bank, feature in features}
        self.parameters = parameters

    def of(self, name: str) -> Tensor:
        """The table that a feature is looked up in."""
        return _parameter(self.parameters, self.keys[name])

    def together(self, names: list[str], places: list[int]) -> Singles:
        """The tables of several columns in one matrix; a table that several of them use lies in it once."""
        unique = dict.fromkeys(self.keys[name] for name in names)
        first, starts = 0, {}
        for key in unique:
            starts[key] = first
            first += len(self.parameters[key])
        weight = torch.cat([self.parameters[key] for key in unique])
        return Singles(weight, [starts[self.keys[name]] for name in names], places)

    def sequence(self, piece: SequencePiece) -> SequenceRows:
        """The tables of a sequence."""
        gaps = None if piece.gaps is None else Rows(self.of(f"{piece.column}/gaps"))
        return SequenceRows(Rows(self.of(piece.column)), gaps)


def _head(member: Member, layout: MemberLayout, parameters: Mapping[str, Tensor], labels: int) -> Head:
    """The member's head with its trained parameters."""
    inputs = layout.inputs
    with torch.random.fork_rng(devices=[]):
        pools = pools_of(member, layout)
        trunk = Stack(inputs.width, trunk_widths(member, parameters))
        net = member.net.build(Inputs.plain(trunk.width) if len(trunk.blocks) else inputs, labels)
    head = Head(pools, trunk, net)
    head.load_state_dict({key: _parameter(parameters, f"{member.name}.{key}") for key in head.state_dict()})
    return head


def trunk_widths(member: Member, parameters: Mapping[str, Tensor]) -> list[int]:
    """The widths of a member's trunk, its own or a shared one, read off its parameters."""
    biases = {
        k: v for k, v in parameters.items() if k.startswith(f"{member.name}.trunk.blocks.") and k.endswith(".0.bias")
    }
    return [len(biases[key]) for key in sorted(biases, key=lambda k: int(k.split(".")[3]))]


def _parameter(parameters: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in parameters:
        raise ExportError(f"export: the checkpoint has no parameter {key!r}; it is of another job")
    return parameters[key]


def describe_inputs(member: Member, spec: FeatureSpec, fitted: FittedSpec) -> list[dict[str, Any]]:
    """The raw columns that the artefact takes: name, kind, list or not, what missing and unknown values become.

    Optional ones are fresher values of history columns, which the artefact knows as they were after the last row that
    was trained on.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in member.serving:
        column = fitted.columns[name]
        for source, dtype in {**column.raw, **column.optional}.items():
            raw = found.setdefault(source, {"name": source, "feeds": []})
            raw["feeds"].append({"column": name, "type": spec.columns[name].type, "unknown": column.unknown})
            raw["kind"] = "text" if keyed_by_text(dtype) else "float" if dtype.is_float() else "integer"
            raw["list"] = source in column.lists
            if (unit := unit_of(dtype)) is not None:
                raw["unit"] = unit
            raw["missing"] = {"text": "", "float": "NaN", "integer": "the int64 minimum"}[str(raw["kind"])]
            if source in column.optional:
                raw["optional"] = True
    return list(found.values())
