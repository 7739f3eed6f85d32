"""Which table each column of each member is looked up in, and where its vector lies in the member's input.

Tables are grouped into banks, one per member that owns tables. A bank is looked up once per step; the pooled vectors
become one detached leaf (B, W), and every member, term and micro-batch works on slices of that leaf.

    bank 'student'   | user_id 16 | item_id 16 | tags 16 |       leaf (B, 48)
    bank 'teacher'   | dwell buckets 16 |                        leaf (B, 16)
    teacher's input  | user_id | item_id | tags | dwell buckets | price | dwell |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recdistill.data.batch import Batch, View
from recdistill.distill.member import Member
from recdistill.errors import VisibilityError
from recdistill.nets.inputs import Field, Inputs
from recdistill.spec.columns import Bag, Numeric, Vocabularied
from recdistill.spec.features import FeatureSpec


@dataclass(frozen=True)
class Feature:
    """One column looked up in a bank."""

    column: str
    table: str
    audience: str
    bag: bool
    mean: bool
    weighted: bool = False


@dataclass(frozen=True)
class Bank:
    """The tables of one member: features in lookup order (those of one table stand together), and the tables' rows."""

    owner: str
    dim: int
    features: tuple[Feature, ...]
    tables: dict[str, int]

    def place(self, column: str) -> int:
        """Where the vector of a column starts in the leaf."""
        return [f.column for f in self.features].index(column) * self.dim


@dataclass(frozen=True)
class Piece:
    """A run of a bank's leaf in a member's input; a mean-pooled bag stands alone and is divided by its length."""

    bank: str
    start: int
    width: int
    mean_of: Feature | None = None


@dataclass(frozen=True)
class MemberLayout:
    """A member's input: pieces of leaves, then plain numbers."""

    pieces: tuple[Piece, ...]
    serving_floats: tuple[str, ...]
    privileged_floats: tuple[str, ...]
    inputs: Inputs
    banks: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """Banks by owner, and the input of each member."""

    banks: dict[str, Bank]
    members: dict[str, MemberLayout]


def lay_out(members: Sequence[Member], spec: FeatureSpec, rows: Mapping[str, int]) -> Layout:
    """The layout of all members.

    Args:
        members: the members; sharing refers to them by name.
        spec: the feature spec.
        rows: rows of each table.
    """
    homes = {member.name: _homes(member, members, spec) for member in members}
    banks = {}
    for member in members:
        own = [column for column, owner in homes[member.name].items() if owner == member.name]
        if own:
            features = _grouped([_feature(column, spec) for column in own])
            banks[member.name] = Bank(member.name, member.dim, features, {f.table: rows[f.table] for f in features})
    return Layout(banks, {m.name: _member_layout(m, homes[m.name], banks, spec) for m in members})


def _homes(member: Member, members: Sequence[Member], spec: FeatureSpec) -> dict[str, str]:
    """The member in whose bank each embedded column is looked up."""
    embedded = [c for c in (*member.serving, *member.privileged) if is_embedded(spec, c)]
    source = next((m for m in members if m.name == member.share.tables), None)
    shared = {*source.serving, *source.privileged} - {*member.share.own} if source else set()
    return {column: source.name if source and column in shared else member.name for column in embedded}


def is_embedded(spec: FeatureSpec, name: str) -> bool:
    """Whether a column is looked up in a table."""
    column = spec.columns[name]
    return isinstance(column, Vocabularied) or (isinstance(column, Numeric) and column.buckets is not None)


def _feature(name: str, spec: FeatureSpec) -> Feature:
    column = spec.columns[name]
    bag = isinstance(column, Bag)
    mean = isinstance(column, Bag) and column.pool == "mean"
    weighted = isinstance(column, Bag) and column.weights is not None
    return Feature(name, spec.table(name), "serving" if name in spec.serving else "privileged", bag, mean, weighted)


def _grouped(features: list[Feature]) -> tuple[Feature, ...]:
    """Features of one table next to each other, single-valued columns first, so that lookups need no reordering."""
    tables = list(dict.fromkeys(f.table for f in sorted(features, key=lambda f: f.bag)))
    return tuple(sorted(features, key=lambda f: (tables.index(f.table), f.bag)))


def _member_layout(member: Member, homes: dict[str, str], banks: dict[str, Bank], spec: FeatureSpec) -> MemberLayout:
    pieces: list[Piece] = []
    fields: list[Field] = []
    start = 0
    used = tuple(dict.fromkeys(homes.values()))
    for name in used:
        bank = banks[name]
        for feature in bank.features:
            if homes.get(feature.column) != name:
                continue
            fields.append(Field(feature.column, start, bank.dim, embedded=True))
            start += bank.dim
            _append(pieces, Piece(name, bank.place(feature.column), bank.dim, feature if feature.mean else None))
    floats = [c for c in (*member.serving, *member.privileged) if not is_embedded(spec, c)]
    for column in floats:
        fields.append(Field(column, start, 1, embedded=False))
        start += 1
    serving = tuple(c for c in floats if c in member.serving)
    return MemberLayout(tuple(pieces), serving, tuple(floats[len(serving) :]), Inputs(tuple(fields)), used)


def _append(pieces: list[Piece], piece: Piece) -> None:
    """Add a piece, joined to the one before where both are one run of the same leaf."""
    last = pieces[-1] if pieces else None
    joined = last is not None and last.bank == piece.bank and last.start + last.width == piece.start
    if last is not None and joined and last.mean_of is None and piece.mean_of is None:
        pieces[-1] = Piece(last.bank, last.start, last.width + piece.width)
    else:
        pieces.append(piece)


def assemble(layout: MemberLayout, leaves: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """A member's input vectors, (B, E): slices of leaves, bags divided by their lengths, plain numbers.

    A member without privileged columns is never given the privileged view.

    Raises:
        VisibilityError: the batch does not show a column that the member reads.
    """
    parts = []
    for piece in layout.pieces:
        leaf = leaves[piece.bank]
        part = leaf if piece.width == leaf.shape[1] else leaf[:, piece.start : piece.start + piece.width]
        if piece.mean_of is not None:
            part = part / size_of(piece.mean_of, batch).unsqueeze(1)
        parts.append(part)
    if layout.serving_floats:
        parts.append(batch.serving.floats(layout.serving_floats))
    if layout.privileged_floats:
        parts.append(view_of(batch, "privileged").floats(layout.privileged_floats))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


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
