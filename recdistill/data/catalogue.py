"""What is known of every user and every item: the columns that describe it, as of its last row in training.

    users   row  user_id  city        items   row  item_id  category  price
            2    2        5                   2    2        7         .3
            3    3        2                   3    3        4         .9       rows are those of the id's table

Joined, they are the serving view of any pair of a user and an item, whether the log holds such a row or not. Columns
that describe neither (the hour of a request, say) are missing in such rows, as they are when lists are made ahead.
"""

# Shapes: B rows, F id columns, N float columns, R rows of a side, L list elements over all rows.

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recdistill.data.batch import Batch, Jagged, View, concat
from recdistill.data.encoded import EncodedLog
from recdistill.data.reader import Reader, Selection, take, take_jagged, take_view
from recdistill.data.transforms.rows import FIRST, MISSING
from recdistill.errors import LogError
from recdistill.publish import published
from recdistill.spec import columns as declared
from recdistill.spec.features import FeatureSpec

CHUNK = 65_536


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The columns of users and items.

    Attributes:
        spec: the feature spec.
        kinds: the kind of each serving column in the encoded log, ``id``, ``float``, ``bag`` or ``sequence``.
        sides: for ``user`` and ``item``, the serving view of each row of its table.
    """

    spec: FeatureSpec
    kinds: Mapping[str, str]
    sides: Mapping[str, View]

    @classmethod
    def of(cls, log: EncodedLog, sides: Mapping[str, Sequence[str]], splits: tuple[str, ...]) -> "Catalogue":
        """The last rows of all users and items in some splits.

        Args:
            log: the encoded log.
            sides: the columns of ``user`` and ``item``, that of its ids first.
            splits: in the order of time.
        """
        kinds = _kinds(log)
        views = {side: _side(log, columns, kinds, splits) for side, columns in sides.items()}
        return cls(log.spec, kinds, views)

    def save(self, path: Path) -> None:
        """Write the columns to a safetensors file, which appears only when it is complete."""
        tensors, names = dict[str, Tensor](), {}
        for side, view in self.sides.items():
            names[side] = [view.id_names, view.float_names, [*view.bags]]
            tensors |= {f"{side}/ids": view.ids_FB, f"{side}/floats": view.floats_BN}
            for name, bag in view.bags.items():
                tensors |= {f"{side}/{name}/{part}": value for part, value in vars(bag).items() if value is not None}
        with published(path) as work:
            save_file({key: value.contiguous() for key, value in tensors.items()}, work, {"names": json.dumps(names)})

    @classmethod
    def load(cls, path: Path, log: EncodedLog) -> "Catalogue":
        """What `save` has written, for a log that was encoded with the same columns.

        Raises:
            LogError: the file holds no such columns.
        """
        try:
            with safe_open(path, "pt") as file:
                names = json.loads((file.metadata() or {})["names"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no mapping
            sides = {}
            for side, (ids, floats, lists) in names.items():
                found = {name: {p: tensors.get(f"{side}/{name}/{p}") for p in Jagged.__annotations__} for name in lists}
                bags = {name: Jagged(**parts) for name, parts in found.items()}  # type: ignore[arg-type]
                ids_FB, floats_BN = tensors[f"{side}/ids"], tensors[f"{side}/floats"]
                sides[side] = View("serving", ids_FB, tuple(ids), floats_BN, tuple(floats), bags)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise LogError(f"{path}: holds no readable users and items ({error}); run the job again") from None
        return cls(log.spec, _kinds(log), sides)

    def rows(self, side: str) -> int:
        """R, the rows of a side."""
        return self.sides[side].ids_FB.shape[1]

    def join(self, names: Iterable[str], row_B: Mapping[str, Tensor]) -> View:
        """The serving view of pairs; a side that is not given is missing in all of them.

        Args:
            names: the columns, in order.
            row_B: the row of ``user`` and ``item``, int64 (B,).
        """
        rows = len(next(iter(row_B.values())))
        return overlaid(blank([*names], self.kinds, rows, self.spec), {s: (self.sides[s], r) for s, r in row_B.items()})


def _kinds(log: EncodedLog) -> dict[str, str]:
    """The kind of each serving column."""
    return {name: log.fitted.columns[name].kind for name in log.spec.serving}


def blank(names: Sequence[str], kinds: Mapping[str, str], rows: int, spec: FeatureSpec) -> View:
    """Rows with every value missing, as the encoder writes them."""
    id_names = tuple(name for name in names if kinds[name] == "id")
    float_names = tuple(name for name in names if kinds[name] == "float")
    missing = [1.0 if isinstance(spec.columns[name], declared.Missing) else 0.0 for name in float_names]
    bags = {name: _blank_list(name, rows, spec) for name in names if kinds[name] in ("bag", "sequence")}
    ids_FB = torch.full((len(id_names), rows), MISSING, dtype=torch.int64)
    return View("serving", ids_FB, id_names, torch.tensor(missing).repeat(rows, 1), float_names, bags)


def _blank_list(name: str, rows: int, spec: FeatureSpec) -> Jagged:
    """Lists of nothing: sequences are empty, bags hold one missing value."""
    column = spec.columns[name]
    if isinstance(column, declared.Sequence):
        nothing = torch.zeros(0, dtype=torch.int64)
        gaps_L = nothing if column.times_of(name) is not None else None
        return Jagged(nothing, torch.zeros(rows, dtype=torch.int64), None, gaps_L)
    weights_L = torch.ones(rows) if getattr(column, "weighted", False) else None
    one_B = torch.ones(rows, dtype=torch.int64)
    return Jagged(torch.full((rows,), MISSING, dtype=torch.int64), one_B, weights_L)


def overlaid(view: View, sides: Mapping[str, tuple[View, Tensor]]) -> View:
    """The view, with the columns that other views have taken from these, at the given row of each."""
    ids_FB, floats_BN, bags = view.ids_FB.clone(), view.floats_BN.clone(), dict(view.bags)
    for side, row_B in sides.values():
        for i, name in enumerate(view.id_names):
            if name in side.id_names:
                ids_FB[i] = side.ids((name,))[0][row_B]
        for i, name in enumerate(view.float_names):
            if name in side.float_names:
                floats_BN[:, i] = side.floats((name,))[row_B, 0]
        bags |= {name: take_jagged(side.bags[name], row_B) for name in bags if name in side.bags}
    return View("serving", ids_FB, view.id_names, floats_BN, view.float_names, bags)


def _side(log: EncodedLog, columns: Sequence[str], kinds: Mapping[str, str], splits: tuple[str, ...]) -> View:
    """The view of every row of a side: those that occur as they were last, the others with nothing but their id."""
    key = columns[0]
    column = log.fitted.columns[key]
    rows = log.fitted.tables[column.table]  # type: ignore[attr-defined]
    everyone = blank(columns, kinds, rows, log.spec)
    everyone.ids_FB[everyone.id_names.index(key)] = torch.arange(rows)
    if len(columns) == 1:
        return everyone
    found = _last_rows(log, key, columns, splits)
    row_N = found.ids((key,))[0]
    named_N = torch.nonzero(row_N >= FIRST).flatten()  # the reserved rows stand for many at once
    place_R = (len(row_N) + torch.arange(rows)).index_copy(0, row_N[named_N], named_N)
    return take_view(concat([_as_batch(found), _as_batch(everyone)]).serving, place_R)


def _last_rows(log: EncodedLog, key: str, columns: Sequence[str], splits: tuple[str, ...]) -> View:
    """The last row of each value of a column."""
    keys = pl.concat([log.view(split, "serving").select(key) for split in splits]).with_row_index("place")
    last = keys.group_by(key).agg(pl.col("place").last()).select("place").collect(engine="streaming")
    wanted = torch.from_numpy(last["place"].sort().to_numpy().astype("int64"))
    parts, first = [], 0
    for batch in Reader(log, splits, Selection(tuple(columns))).in_order(CHUNK):
        here = wanted[(wanted >= first) & (wanted < first + len(batch))] - first
        parts.append(take(batch, here))
        first += len(batch)
    return concat(parts).serving


def _as_batch(view: View) -> Batch:
    rows = torch.arange(len(view.floats_BN))
    return Batch(rows, view, {}, torch.ones(len(rows)))
