"""Which table each column of each member is looked up in, and where its vector lies in the member's input.

Tables are grouped into banks: one per member that owns tables, and one more for its tables that an ordered sequence
is looked up in. A bank is looked up once per step; its vectors become one detached leaf, and every member, term and
micro-batch works on slices of that leaf.

    bank 'student'          | user_id 16 | city 16 | tags 16 |      leaf (B, 48), one line per row
    bank 'student-tokens'   | item_id 16: B items, then T clicks |  leaf (B + T, 16), one line per value
    bank 'teacher'          | dwell buckets 16 |                    leaf (B, 16)
    teacher's input         | user_id | city | tags | item_id | dwell buckets | price | dwell | pooled clicks |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from recdistill.data.batch import Batch, View
from recdistill.distill.member import Member, home_of
from recdistill.errors import VisibilityError
from recdistill.nets.inputs import Field, Inputs
from recdistill.nets.sequences import padded
from recdistill.spec.columns import Bag, Text
from recdistill.spec.columns import Sequence as SequenceColumn
from recdistill.spec.features import FeatureSpec

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Feature:
    """One lookup of a column in a bank.

    Attributes:
        column: the typed column.
        table: the table.
        audience: the view that holds it.
        form: ``single``, ``bag`` (pooled), ``sequence`` (not pooled), or ``gaps``, the time gaps of a sequence.
        mean: whether a bag is averaged.
        weighted: whether the values of a bag have weights.
    """

    column: str
    table: str
    audience: str
    form: str = "single"
    mean: bool = False
    weighted: bool = False

    @property
    def name(self) -> str:
        """Its name among the features of a bank."""
        return f"{self.column}/gaps" if self.form == "gaps" else self.column


@dataclass(frozen=True)
class Bank:
    """Tables of one member that are looked up together.

    Attributes:
        owner: the member.
        features: in lookup order; those of one table stand together.
        tables: rows of each table.
        dims: width of each table.
        tokens: whether vectors are not pooled, because a sequence is among the features.
    """

    owner: str
    features: tuple[Feature, ...]
    tables: dict[str, int]
    dims: dict[str, int]
    tokens: bool = False

    def columns(self, feature: Feature) -> tuple[int, int]:
        """Where the vectors of a feature start in the leaf, and how wide they are."""
        if self.tokens:
            before = list(self.tables)[: list(self.tables).index(feature.table)]
        else:
            before = [f.table for f in self.features[: self.features.index(feature)]]
        return sum(self.dims[table] for table in before), self.dims[feature.table]


@dataclass(frozen=True)
class Piece:
    """A run of a bank's leaf in a member's input.

    Attributes:
        bank: the bank.
        start, width: columns of its leaf.
        feature: what is looked up, where one feature stands alone: in a bank of tokens, or a bag to be averaged.
    """

    bank: str
    start: int
    width: int
    feature: Feature | None = None


@dataclass(frozen=True)
class SequencePiece:
    """An ordered sequence in a member's input: its tokens, and those of its time gaps, which are added to them."""

    column: str
    audience: str
    tokens: Piece
    gaps: Piece | None


@dataclass(frozen=True)
class Column:
    """Something in a member's input vector: its name, its width, and whether it is an embedding."""

    name: str
    width: int
    embedded: bool


def fields(columns: Sequence[Column]) -> Inputs:
    """The fields of columns that stand side by side."""
    starts = [sum(c.width for c in columns[:i]) for i in range(len(columns))]
    return Inputs(tuple(Field(c.name, start, c.width, c.embedded) for c, start in zip(columns, starts, strict=True)))


@dataclass(frozen=True)
class MemberLayout:
    """A member's input: pieces of leaves, plain numbers, and pooled sequences.

    Attributes:
        pieces: of the leaves, in order.
        serving_floats, privileged_floats: plain numbers, after the pieces.
        sequences: what the member's head pools itself; the vectors come last.
        columns: the fields of pieces and numbers.
        pooled: the fields of the sequences.
        lookups: every feature, and the bank in which it is looked up for this member.
        taps: what it reads of other members, between the numbers and the sequences.
    """

    pieces: tuple[Piece, ...]
    serving_floats: tuple[str, ...]
    privileged_floats: tuple[str, ...]
    sequences: tuple[SequencePiece, ...]
    columns: tuple[Column, ...]
    pooled: tuple[Column, ...]
    lookups: tuple[tuple[Feature, str], ...]
    taps: tuple[Column, ...] = ()

    @property
    def banks(self) -> tuple[str, ...]:
        """The banks that are looked up."""
        return tuple(dict.fromkeys(bank for _, bank in self.lookups))

    @property
    def flat(self) -> Inputs:
        """The fields that the head is given: all but the sequences, which it pools itself."""
        return fields([*self.columns, *self.taps])

    @property
    def inputs(self) -> Inputs:
        """The fields of the whole input vector."""
        return fields([*self.columns, *self.taps, *self.pooled])


def table_key(bank: str, table: str) -> str:
    """What a table is called among the parameters of a training."""
    return f"tables.{bank}.{table}"


@dataclass(frozen=True)
class Layout:
    """Banks by name, and the input of each member."""

    banks: dict[str, Bank]
    members: dict[str, MemberLayout]


def lay_out(members: Sequence[Member], spec: FeatureSpec, rows: Mapping[str, int]) -> Layout:
    """The layout of all members.

    Args:
        members: the members; sharing refers to them by name.
        spec: the feature spec.
        rows: rows of each table.
    """
    homes = {member.name: _homes(member, members, spec) for member in members if member.same is None}
    homes |= {member.name: homes[member.same] for member in members if member.same is not None}
    banks: dict[str, Bank] = {}
    for member in members:
        own = [column for column, owner in homes[member.name].items() if owner == member.name]
        for tokens, chosen in enumerate(_groups(own, spec)):
            if chosen:
                tables = {f.table: rows[f.table] for f in chosen}
                dims = {table: member.dims.get(table.removesuffix("/gaps"), member.dim) for table in tables}
                name = f"{member.name}-tokens" if tokens else member.name
                banks[name] = Bank(member.name, chosen, tables, dims, bool(tokens))
    return Layout(banks, {m.name: _member_layout(m, homes[m.name], banks, spec) for m in members})


def _homes(member: Member, members: Sequence[Member], spec: FeatureSpec) -> dict[str, str]:
    """The member among whose tables each embedded column is looked up."""
    by_name = {other.name: other for other in members}
    return {column: home_of(column, member, by_name) for column in member.columns if is_embedded(spec, column)}


def is_embedded(spec: FeatureSpec, name: str) -> bool:
    """Whether a column is looked up in a table."""
    return spec.columns[name].embedded


def _features(name: str, spec: FeatureSpec) -> list[Feature]:
    column = spec.columns[name]
    table, audience = spec.table(name), "serving" if name in spec.serving else "privileged"
    if isinstance(column, SequenceColumn):
        gaps = [Feature(name, f"{name}/gaps", audience, "gaps")] if column.times_of(name) is not None else []
        return [Feature(name, table, audience, "sequence"), *gaps]
    if isinstance(column, Bag | Text):
        return [Feature(name, table, audience, "bag", column.pool == "mean", column.weighted)]
    return [Feature(name, table, audience)]


def _groups(columns: Sequence[str], spec: FeatureSpec) -> tuple[tuple[Feature, ...], tuple[Feature, ...]]:
    """The lookups of columns: those that are pooled, and those in tables that a sequence is looked up in as well."""
    features = [feature for column in columns for feature in _features(column, spec)]
    unpooled = {f.table for f in features if f.form in ("sequence", "gaps")}
    pooled, tokens = ([f for f in features if (f.table in unpooled) == each] for each in (False, True))
    return _grouped(pooled), _grouped(tokens)


def _grouped(features: list[Feature]) -> tuple[Feature, ...]:
    """Features of one table next to each other, single-valued columns first, so that lookups need no reordering."""
    tables = list(dict.fromkeys(f.table for f in sorted(features, key=lambda f: f.form != "single")))
    return tuple(sorted(features, key=lambda f: (tables.index(f.table), f.form != "single")))


def _member_layout(member: Member, homes: dict[str, str], banks: dict[str, Bank], spec: FeatureSpec) -> MemberLayout:
    where = {f.name: (n, f) for n in banks for f in banks[n].features if homes.get(f.column) == banks[n].owner}
    # In the order of tables of its own, so that members built alike are alike whatever they share.
    mine = [where[feature.name] for group in _groups(list(homes), spec) for feature in group]
    pieces: list[Piece] = []
    columns: list[Column] = []
    for name, feature in mine:
        if feature.form in ("single", "bag"):
            alone = banks[name].tokens or feature.mean
            _append(pieces, Piece(name, *banks[name].columns(feature), feature if alone else None))
            columns.append(Column(feature.column, banks[name].dims[feature.table], embedded=True))
    floats = [c for c in member.columns if not is_embedded(spec, c)]
    columns += [Column(column, 1, embedded=False) for column in floats]
    by_name = {feature.name: Piece(name, *banks[name].columns(feature), feature) for name, feature in mine}
    sequences = []
    for column in member.columns:
        tokens = by_name.get(column)
        if tokens is not None and tokens.feature is not None and tokens.feature.form == "sequence":
            sequences.append(SequencePiece(column, tokens.feature.audience, tokens, by_name.get(f"{column}/gaps")))
    serving = tuple(c for c in floats if c in member.serving)
    return MemberLayout(
        pieces=tuple(pieces),
        serving_floats=serving,
        privileged_floats=tuple(floats[len(serving) :]),
        sequences=tuple(sequences),
        columns=tuple(columns),
        pooled=tuple(Column(sequence.column, sequence.tokens.width, embedded=True) for sequence in sequences),
        lookups=tuple((feature, name) for name, feature in mine),
    )


def _append(pieces: list[Piece], piece: Piece) -> None:
    """Append a piece, merged with the previous one where both are one run of the same leaf."""
    last = pieces[-1] if pieces else None
    joined = last is not None and last.bank == piece.bank and last.start + last.width == piece.start
    if last is not None and joined and last.feature is None and piece.feature is None:
        pieces[-1] = Piece(last.bank, last.start, last.width + piece.width)
    else:
        pieces.append(piece)


class Leaf(Protocol):
    """The looked-up vectors of a bank, on which members work.

    Attributes:
        leaf_BW: one line per row, or in a bank of tokens one line per value.
        spans: in a bank of tokens, the lines of each feature, by name.
    """

    @property
    def leaf_BW(self) -> Tensor:
        """The vectors."""
        ...

    @property
    def spans(self) -> dict[str, tuple[int, int]]:
        """The lines of each feature, if they are not rows."""
        ...


@dataclass(frozen=True)
class Assembled:
    """What a member's head receives: (B, E) without sequences; of each of those tokens (B, L, D), lengths (B,)."""

    flat_BE: Tensor
    tokens: list[Tensor]
    lengths: list[Tensor]


def assemble(
    layout: MemberLayout,
    leaves: Mapping[str, Leaf],
    batch: Batch,
    taps: Sequence[Tensor] = (),
    *,
    device: torch.device = CPU,
) -> Assembled:
    """A member's input: slices of leaves, bags divided by their sizes, plain numbers, taps, tokens of sequences.

    A member without privileged columns is never given the privileged view. All parts are brought to the device where
    the leaves lie and the member works.

    Raises:
        VisibilityError: the batch does not show a column that the member reads.
    """
    parts = []
    for piece in layout.pieces:
        part = _slice(piece, leaves[piece.bank])
        if piece.feature is not None and piece.feature.mean:
            part = part / size_of(piece.feature, batch).unsqueeze(1).to(device)
        parts.append(part)
    if layout.serving_floats:
        parts.append(batch.serving.floats(layout.serving_floats))
    if layout.privileged_floats:
        parts.append(view_of(batch, "privileged").floats(layout.privileged_floats))
    parts = [part.to(device) for part in (*parts, *taps)]
    tokens, lengths = [], []
    for sequence in layout.sequences:
        values_TD = _slice(sequence.tokens, leaves[sequence.tokens.bank])
        if sequence.gaps is not None:
            values_TD = values_TD + _slice(sequence.gaps, leaves[sequence.gaps.bank])
        lengths_B = view_of(batch, sequence.audience).bag(sequence.column).lengths_B.to(device)
        tokens.append(padded(values_TD, lengths_B))
        lengths.append(lengths_B)
    flat = parts[0] if len(parts) == 1 else torch.cat(parts, 1) if parts else torch.zeros(len(batch), 0, device=device)
    return Assembled(flat, tokens, lengths)


def _slice(piece: Piece, leaf: Leaf) -> Tensor:
    """The vectors of a piece."""
    vectors = leaf.leaf_BW
    if leaf.spans and piece.feature is not None:
        first, end = leaf.spans[piece.feature.name]
        vectors = vectors[first:end]
    return vectors if piece.width == vectors.shape[1] else vectors[:, piece.start : piece.start + piece.width]


def size_of(feature: Feature, batch: Batch) -> Tensor:
    """The number of values of each list, or the sum of their weights, (B,)."""
    bag = view_of(batch, feature.audience).bag(feature.column)
    if bag.weights_L is None:
        return bag.lengths_B
    rows_L = torch.repeat_interleave(torch.arange(len(bag.lengths_B)), bag.lengths_B)
    return torch.zeros(len(bag.lengths_B)).index_add(0, rows_L, bag.weights_L).clamp(min=1e-12)


def view_of(batch: Batch, audience: str) -> View:
    """The view of a batch for an audience.

    Raises:
        VisibilityError: the batch has no privileged view.
    """
    if audience == "serving":
        return batch.serving
    if batch.privileged is None:
        raise VisibilityError(
            "batch: holds no privileged view, but a member reads privileged columns; name them in the job"
        )
    return batch.privileged
