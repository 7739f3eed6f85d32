"""The serving student as one TorchScript module: raw serving columns in, click probabilities out.

It is built from the fitted serving columns and the student's own parameters alone; nothing else can get in. All
tables of the student lie in one matrix, so that all single-valued columns are one lookup.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recdistill.data.fit import FittedSpec
from recdistill.data.transforms.raw import keyed_by_text
from recdistill.distill.layout import Layout
from recdistill.distill.member import Member
from recdistill.errors import ExportError, VisibilityError
from recdistill.nets.catalog import Head
from recdistill.nets.inputs import Inputs
from recdistill.nets.towers import Stack
from recdistill.spec.features import FeatureSpec


@dataclass(frozen=True)
class Wiring:
    """How embedded columns meet tables and the input vector.

    Attributes:
        starts: the first row of the table of each single column and, after them, of each bag.
        order: the place of each embedded column in the input vector: an index into singles, then bags.
        means: for each bag, whether it is averaged.
    """

    starts: list[int]
    order: list[int]
    means: list[bool]


class ServingStudent(nn.Module):
    """Raw columns to probabilities.

    Args:
        singles: encoders of single-valued embedded columns, in order.
        bags: encoders of list columns, in order.
        numbers: encoders of plain numbers, in order.
        wiring: where their vectors come from and go to.
        weight: all table rows, (R, D).
        head: the student's net.
        correction: added to every logit, for negatives left out of the log or of training.
    """

    weight: Tensor
    start_F: Tensor
    bag_starts: list[int]
    order: list[int]
    means: list[bool]

    def __init__(
        self,
        singles: list[nn.Module],
        bags: list[nn.Module],
        numbers: list[nn.Module],
        wiring: "Wiring",
        weight: Tensor,
        head: nn.Module,
        correction: float,
    ) -> None:
        super().__init__()
        self.singles = nn.ModuleList(singles)
        self.bags = nn.ModuleList(bags)
        self.numbers = nn.ModuleList(numbers)
        self.register_buffer("weight", weight)
        self.register_buffer("start_F", torch.tensor(wiring.starts[: len(singles)], dtype=torch.int64).unsqueeze(1))
        self.bag_starts = wiring.starts[len(singles) :]
        self.order = wiring.order
        self.plain_order = self.order == list(range(len(self.order)))
        self.means = wiring.means
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
        weights: list[Tensor] = []
        for bag in self.bags:
            value_L, length_B, weight_L = bag(numbers, texts, lengths, batch)
            values.append(value_L)
            counts.append(length_B)
            weights.append(weight_L)
        floats: list[Tensor] = []
        for number in self.numbers:
            floats.append(number(numbers, texts, lengths, batch))
        ids_FB = torch.stack(ids) if len(ids) > 0 else torch.zeros((0, batch), dtype=torch.int64)
        floats_BN = torch.stack(floats, 1) if len(floats) > 0 else torch.zeros((batch, 0))
        return self.encoded(ids_FB, values, counts, weights, floats_BN)

    @torch.jit.export
    def encoded(
        self,
        ids_FB: Tensor,
        values: list[Tensor],
        lengths: list[Tensor],
        weights: list[Tensor],
        floats_BN: Tensor,
    ) -> Tensor:
        """The logits of encoded rows: table rows and scaled numbers as training saw them.

        Args:
            ids_FB: table rows of the single-valued columns, int64 (F, B).
            values: table rows of each list column, int64 (L,).
            lengths: lengths of each list column, int64 (B,), at least 1.
            weights: weights of the elements of each list column, float32 (L,), or empty if all are 1.
            floats_BN: scaled numbers, float32 (B, N).
        """
        vectors_BFD = nn.functional.embedding((ids_FB + self.start_F).t(), self.weight)
        pooled: list[Tensor] = []
        for k in range(len(values)):
            offsets = torch.cumsum(lengths[k], 0) - lengths[k]
            rows_L = values[k] + self.bag_starts[k]
            if weights[k].numel() > 0:
                bag = nn.functional.embedding_bag(
                    rows_L, self.weight, offsets, mode="sum", per_sample_weights=weights[k]
                )
            else:
                bag = nn.functional.embedding_bag(rows_L, self.weight, offsets, mode="sum")
            pooled.append(bag / size_of(lengths[k], weights[k]).unsqueeze(1) if self.means[k] else bag)
        parts: list[Tensor] = []
        if self.plain_order and len(pooled) == 0:
            parts.append(vectors_BFD.flatten(1))
        else:
            singles = vectors_BFD.size(1)
            for place in self.order:
                parts.append(vectors_BFD[:, place] if place < singles else pooled[place - singles])
        parts.append(floats_BN)
        logits_BK: Tensor = self.head(torch.cat(parts, 1)).logits_BK + self.correction
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
    embedded = [field.name for field in mine.inputs.embedded]
    singles = [n for n in embedded if fitted.columns[n].kind == "id"]
    bags = [n for n in embedded if fitted.columns[n].kind == "bag"]
    tables: dict[str, tuple[int, Tensor]] = {}
    starts, rows = [], 0
    for name in [*singles, *bags]:
        bank = next(b for b in mine.banks if name in [f.column for f in layout.banks[b].features])
        key = f"tables.{bank}.{next(f.table for f in layout.banks[bank].features if f.column == name)}"
        if key not in tables:
            tables[key] = (rows, _parameter(parameters, key))
            rows += len(tables[key][1])
        starts.append(tables[key][0])
    weight = torch.cat([table for _, table in tables.values()]) if tables else torch.zeros(0, member.dim)
    head = _head(member, mine.inputs, parameters, labels)
    means = [spec.columns[n].pool == "mean" for n in bags]  # type: ignore[union-attr]
    order = [[*singles, *bags].index(name) for name in embedded]
    return ServingStudent(
        [fitted.columns[n].torch() for n in singles],
        [fitted.columns[n].torch() for n in bags],
        [fitted.columns[n].torch() for n in mine.serving_floats],
        Wiring(starts, order, means),
        weight,
        head,
        math.log(negative_keep_rate),
    ).eval()


def _head(member: Member, inputs: Inputs, parameters: Mapping[str, Tensor], labels: int) -> Head:
    """The member's head with its trained parameters."""
    with torch.random.fork_rng(devices=[]):
        trunk = Stack(inputs.width, trunk_widths(member, parameters))
        net = member.net.build(Inputs.plain(trunk.width) if len(trunk.blocks) else inputs, labels)
    head = Head(trunk, net)
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
    """The raw columns that the artefact takes: name, kind, list or not, what missing and unknown values become."""
    found: dict[str, dict[str, Any]] = {}
    for name in member.serving:
        column = fitted.columns[name]
        for source, dtype in column.raw.items():
            raw = found.setdefault(source, {"name": source, "feeds": []})
            raw["feeds"].append({"column": name, "type": spec.columns[name].type, "unknown": column.unknown})
            raw["kind"] = "text" if keyed_by_text(dtype) else "float" if dtype.is_float() else "integer"
            raw["list"] = source in column.lists
            raw["missing"] = {"text": "", "float": "NaN", "integer": "the int64 minimum"}[str(raw["kind"])]
    return list(found.values())
