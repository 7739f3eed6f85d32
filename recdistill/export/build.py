"""From a checkpoint to the serving module of a member, and what the artefact says of its inputs."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from recdistill.data.fit import FittedSpec
from recdistill.data.keep_rates import correction
from recdistill.data.transforms.raw import keyed_by_text, unit_of
from recdistill.distill.checks import behind
from recdistill.distill.heads import build_heads, in_order
from recdistill.distill.layout import Layout, MemberLayout, SequencePiece, table_key
from recdistill.distill.member import Member
from recdistill.distill.signal import All, Embed, Hidden, Live, Logit, Signal
from recdistill.errors import ExportError, VisibilityError
from recdistill.export.serving import (
    Encoders,
    Places,
    Pooled,
    Rows,
    SequenceRows,
    ServingMember,
    ServingStudent,
    Singles,
)
from recdistill.nets.inputs import Outputs
from recdistill.spec.features import FeatureSpec
from recdistill.spec.members import Sharing


def serving_student(
    member: Member,
    members: Sequence[Member],
    layout: Layout,
    spec: FeatureSpec,
    fitted: FittedSpec,
    parameters: Mapping[str, Tensor],
    *,
    negative_keep_rate: float,
) -> ServingStudent:
    """The serving module of a member, from the parameters of a checkpoint.

    Args:
        member: the member; it, and those whose outputs it reads, must read serving columns only.
        members: all members of its job.
        layout: where their columns are looked up.
        spec: the feature spec.
        fitted: the fitted columns.
        parameters: of the checkpoint; only those of the served members are used.
        negative_keep_rate: the share of negatives that it has seen; logits are corrected for it (`keep_rates.py`).

    Raises:
        VisibilityError: a member reads a column that is known only after the event.
        ExportError: a parameter is missing.
    """
    served = served_members(member, members)
    for each in served:
        mine = layout.members[each.name]
        for name in (*(c.name for c in mine.columns), *(c.name for c in mine.pooled)):
            if name not in spec.serving:
                raise VisibilityError(
                    f"export of {member.name!r}: {of(each, member)}reads {name!r}, known only after the event; only a "
                    "member that reads serving columns can be exported, so choose another member"
                )
    by_kind = {
        kind: [n for n in _looked_up_first(served, layout) if fitted.columns[n].kind == kind]
        for kind in ("id", "bag", "sequence", "float")
    }
    made = build_heads([replace(each, share=Sharing(), origin=None, embed=None) for each in served], layout, _undrawn)
    parts: list[ServingMember] = []
    offsets: dict[str, int] = {}
    for each in in_order(served):
        head = made.heads[each.name]
        head.load_state_dict({key: _parameter(parameters, f"{each.name}.{key}") for key in head.state_dict()})
        reads = [_read(signal, made.trial, offsets) for signal in each.inputs]
        parts.append(_serving_member(layout.members[each.name], spec, parameters, by_kind, reads, head))
        offsets[each.name] = sum(2 + len(made.trial[name].hidden) for name in offsets)
    modules = {kind: [fitted.columns[n].torch() for n in names] for kind, names in by_kind.items()}
    correction_K = torch.from_numpy(correction(member.labels, negative_keep_rate))
    encoders = Encoders(modules["id"], modules["bag"], modules["sequence"], modules["float"])
    return ServingStudent(encoders, parts, correction_K, ranks=member.net.ranks).eval()


def of(each: Member, member: Member) -> str:
    """The subject of a message, where it is not the member itself."""
    return "" if each is member or each.name == member.name else f"{each.name!r}, which it needs, "


def served_members(member: Member, members: Sequence[Member]) -> list[Member]:
    """A member, and those whose outputs it reads when it serves, directly or not."""
    by_name = {each.name: replace(each, embed=None) for each in members}
    names = behind({member.name}, by_name)
    return [each for each in in_order([by_name[m.name] for m in members]) if each.name in names]


def served_columns(member: Member, members: Sequence[Member]) -> list[str]:
    """The serving columns that a member needs, its own and those of the members that it reads."""
    return list(dict.fromkeys(name for each in served_members(member, members) for name in each.serving))


def _looked_up_first(served: Sequence[Member], layout: Layout) -> list[str]:
    """Columns of all served members, ordered as in the input of the first member that has them."""
    layouts = [layout.members[member.name] for member in served]
    return list(dict.fromkeys(c.name for mine in layouts for c in (*mine.columns, *mine.pooled)))


def _undrawn(_: Member) -> AbstractContextManager[object]:
    """A context for drawing parameters that will be replaced, which keeps the random state as it is."""
    return torch.random.fork_rng(devices=[])


def _read(signal: Signal, trial: Mapping[str, Outputs], offsets: Mapping[str, int]) -> tuple[int, int]:
    """Index of the signal's output among earlier members' outputs, and its column."""
    match signal:
        case Live(signal=inner):
            return _read(inner, trial, offsets)
        case Logit(member=name, label=label):
            return offsets[name], label
        case All(member=name):
            return offsets[name], -1
        case Embed(member=name):
            return offsets[name] + 1, -1
        case Hidden(member=name, layer=layer):
            return offsets[name] + 2 + layer % len(trial[name].hidden), -1
    raise ExportError(f"export: {signal} cannot be computed when the student serves; read a plain output instead")


def _serving_member(
    mine: MemberLayout,
    spec: FeatureSpec,
    parameters: Mapping[str, Tensor],
    by_kind: Mapping[str, list[str]],
    reads: list[tuple[int, int]],
    head: nn.Module,
) -> ServingMember:
    """One member with its tables."""
    tables = _Tables(mine, parameters)
    own = [c.name for c in (*mine.columns, *mine.pooled)]
    ids, bags = ([name for name in own if name in by_kind[kind]] for kind in ("id", "bag"))
    by_width: dict[int, list[str]] = {}
    for name in ids:
        by_width.setdefault(tables.of(name).shape[1], []).append(name)
    groups = [tables.together(names, [by_kind["id"].index(n) for n in names]) for names in by_width.values()]
    found = [name for names in by_width.values() for name in names] + bags
    numbers = [by_kind["float"].index(name) for name in (*mine.serving_floats, *mine.privileged_floats)]
    first = len(by_kind["bag"])
    places = Places(
        [by_kind["bag"].index(name) for name in bags],
        [first + by_kind["sequence"].index(sequence.column) for sequence in mine.sequences],
        numbers,
        numbers == list(range(len(by_kind["float"]))),
    )
    return ServingMember(
        groups,
        [Pooled(tables.of(n), spec.columns[n].pool == "mean") for n in bags],  # type: ignore[union-attr]
        [tables.sequence(sequence) for sequence in mine.sequences],
        places,
        [found.index(name) for name in own if name in ids or name in bags],
        reads,
        head,
    )


class _Tables:
    """The tables of a member, from the parameters of a checkpoint."""

    def __init__(self, layout: MemberLayout, parameters: Mapping[str, Tensor]) -> None:
        self.keys = {feature.name: table_key(bank, feature.table) for feature, bank in layout.lookups}
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


def _parameter(parameters: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in parameters:
        raise ExportError(f"export: the checkpoint has no parameter {key!r}; it is of another job")
    return parameters[key]


def describe_inputs(columns: Iterable[str], spec: FeatureSpec, fitted: FittedSpec) -> list[dict[str, Any]]:
    """The raw columns that the artefact takes: name, kind, list or not, what missing and unknown values become.

    Optional ones are fresher values of history columns, which the artefact knows as they were after the last row that
    was trained on.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in columns:
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
