"""The serving student as one TorchScript module: raw serving columns in, click probabilities out.

It is built from the fitted serving columns and the student's own parameters alone; nothing else can get in.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recdistill.nets.sequences import padded


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


@dataclass(frozen=True)
class Places:
    """Which of the encoded columns a member reads; bags come before sequences among the encoded lists."""

    bags: list[int]
    sequences: list[int]
    numbers: list[int]
    all_numbers: bool


class ServingMember(nn.Module):
    """One member, from encoded columns to its outputs.

    Args:
        groups: the tables of the single-valued columns, one group per width.
        pooled: the tables of the bags.
        sequenced: the tables of the sequences.
        places: which of the encoded bags, sequences and numbers these are.
        order: for each embedded column of the input vector its index among the columns of all groups, then bags.
        reads: what it reads of the members before it: the number of an output, and the column of it or -1 for all.
        head: its net.
    """

    order: list[int]
    bag_places: list[int]
    sequence_places: list[int]
    number_places: list[int]
    read_outputs: list[int]
    read_columns: list[int]

    def __init__(
        self,
        groups: list[Singles],
        pooled: list[Pooled],
        sequenced: list[SequenceRows],
        places: Places,
        order: list[int],
        reads: list[tuple[int, int]],
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.groups = nn.ModuleList(groups)
        self.pooled = nn.ModuleList(pooled)
        self.sequenced = nn.ModuleList(sequenced)
        self.bag_places, self.sequence_places, self.number_places = places.bags, places.sequences, places.numbers
        self.all_numbers = places.all_numbers
        self.order = order
        self.plain_order = order == list(range(len(order))) and len(groups) == 1 and len(pooled) == 0
        self.read_outputs = [output for output, _ in reads]
        self.read_columns = [column for _, column in reads]
        self.head = head

    def forward(
        self,
        ids_FB: Tensor,
        values: list[Tensor],
        lengths: list[Tensor],
        channels: list[Tensor],
        floats_BN: Tensor,
        given: list[Tensor],
    ) -> list[Tensor]:
        """Logits (B, K), input vector (B, E) and hidden layers of each row."""
        found: list[Tensor] = []
        plain: list[Tensor] = []
        for group in self.groups:
            vectors_BFD = group(ids_FB)
            if self.plain_order:
                plain.append(vectors_BFD.flatten(1))
            else:
                found.extend(vectors_BFD.unbind(1))
        for k, pool in enumerate(self.pooled):
            place = self.bag_places[k]
            found.append(pool(values[place], lengths[place], channels[place]))
        parts = plain
        for place in self.order:
            if not self.plain_order:
                parts.append(found[place])
        parts.append(floats_BN if self.all_numbers else floats_BN[:, self.number_places])
        for k, output in enumerate(self.read_outputs):
            column = self.read_columns[k]
            parts.append(given[output] if column < 0 else given[output][:, column : column + 1])
        tokens: list[Tensor] = []
        counts: list[Tensor] = []
        for k, sequence in enumerate(self.sequenced):
            place = self.sequence_places[k]
            tokens.append(sequence(values[place], lengths[place], channels[place]))
            counts.append(lengths[place])
        out = self.head(torch.cat(parts, 1), tokens, counts)
        answers: list[Tensor] = [out.logits_BK, out.embed_BE]
        answers.extend(out.hidden)
        return answers


class ServingStudent(nn.Module):
    """Raw columns to probabilities.

    Args:
        encoders: from raw columns to rows and numbers.
        members: the student last, and before it the members whose outputs it reads.
        correction_K: added to the logit of each label, for negatives left out of the log or of training.
        ranks: whether its logit is an inner product of a user's and an item's vector.
    """

    correction_K: Tensor

    def __init__(
        self, encoders: Encoders, members: list[ServingMember], correction_K: Tensor, *, ranks: bool = False
    ) -> None:
        super().__init__()
        self.singles = nn.ModuleList(encoders.singles)
        self.bags = nn.ModuleList(encoders.bags)
        self.sequences = nn.ModuleList(encoders.sequences)
        self.numbers = nn.ModuleList(encoders.numbers)
        self.members = nn.ModuleList(members)
        self.register_buffer("correction_K", correction_K)
        self.ranks = ranks

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
        ids_FB, values, counts, channels, floats_BN = self.columns(numbers, texts, lengths)
        return self.encoded(ids_FB, values, counts, channels, floats_BN)

    @torch.jit.export
    def vectors(
        self, numbers: dict[str, Tensor], texts: dict[str, list[str]], lengths: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The vectors of raw rows whose inner product ranks: those of the users, and those of the items, (B, D) each.

        Columns of the side that is not asked for may be absent.
        """
        if not self.ranks:
            raise ValueError("the student has one score a row, and no vectors of users and items")
        ids_FB, values, counts, channels, floats_BN = self.columns(numbers, texts, lengths)
        answers = self.answers(ids_FB, values, counts, channels, floats_BN)
        return answers[-2], answers[-1]

    def columns(
        self, numbers: dict[str, Tensor], texts: dict[str, list[str]], lengths: dict[str, Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor]:
        """Raw rows as training saw them, in the order of `encoded`."""
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
        return ids_FB, values, counts, channels, floats_BN

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
        logits_BK = self.answers(ids_FB, values, lengths, channels, floats_BN)[0] + self.correction_K
        return logits_BK.squeeze(1) if logits_BK.size(1) == 1 else logits_BK

    def answers(
        self,
        ids_FB: Tensor,
        values: list[Tensor],
        lengths: list[Tensor],
        channels: list[Tensor],
        floats_BN: Tensor,
    ) -> list[Tensor]:
        """Everything that the student answers: its logits (B, K), its input vector, its hidden layers."""
        given: list[Tensor] = []
        found: list[Tensor] = []
        for member in self.members:
            found = member(ids_FB, values, lengths, channels, floats_BN, given)
            given.extend(found)
        return found


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
