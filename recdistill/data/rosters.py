"""Who is there: the last row of each user or item of a raw log, and which items each user is known to have taken."""

# Shapes: U users, E pairs of a user and an item.

import polars as pl
import pyarrow as pa
import torch
from torch import Tensor

from recdistill.data.files import scan
from recdistill.errors import LogError
from recdistill.spec.strict import nearest

Pairs = tuple[Tensor, Tensor]  # where the list of each user starts and the last one ends, (U + 1,), and places of items


def last_rows(table: pa.Table, key: str) -> pa.Table:
    """The last row of each value of a column, in the order of the values."""
    return pl.DataFrame(pl.from_arrow(table)).drop_nulls(key).unique(key, keep="last").sort(key).to_arrow()


def last_of_log(log: str, columns: list[str]) -> pa.Table:
    """The last row per value of ``columns[0]``, which must exist; the others are kept if present.

    Raises:
        LogError: the first column is missing.
    """
    frame = scan(log)
    names = frame.collect_schema().names()
    if columns[0] not in names:
        raise LogError(f"{log}: lacks {columns[0]!r}, by which lists are made; {nearest(columns[0], names)}")
    present = [name for name in columns if name in names]
    rows = frame.select(present).drop_nulls(columns[0]).unique(columns[0], keep="last", maintain_order=True)
    return rows.collect(engine="streaming").to_arrow()


def known_pairs(log: str, users: pa.Array, items: pa.Array, user: str, item: str) -> Pairs:
    """For each user, indices into ``items`` of what the log says they took.

    Raises:
        LogError: the log lacks one of the columns ``user`` and ``item``, or holds values of another type there.
    """
    frame = scan(log)
    if lacking := [name for name in (user, item) if name not in frame.collect_schema()]:
        raise LogError(f"{log}: lacks {lacking[0]!r}, so that nobody can say which items are known; add it")
    who, what = (
        _of_one_width(pl.DataFrame({name: pl.from_arrow(values)}).with_row_index(place).lazy())
        for values, name, place in ((users, user, "user place"), (items, item, "item place"))
    )
    taken = _of_one_width(frame.select(user, item)).unique()
    for name, ours in ((user, who), (item, what)):
        theirs, wanted = taken.collect_schema()[name], ours.collect_schema()[name]
        if theirs != wanted:
            raise LogError(f"{log}: {name!r} is {theirs}, but {wanted} where lists are made; cast the column")
    pairs = taken.join(who, on=user).join(what, on=item)
    found = pairs.select("user place", "item place").sort("user place", "item place").collect(engine="streaming")
    user_E, place_E = (torch.from_numpy(found[name].to_numpy().astype("int64")) for name in found.columns)
    counts = torch.bincount(user_E, minlength=len(users))
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]), place_E


def _of_one_width(frame: pl.LazyFrame) -> pl.LazyFrame:
    """The same with all integers at one width, so that equal values compare equal."""
    return frame.with_columns(pl.selectors.integer().cast(pl.Int64))
