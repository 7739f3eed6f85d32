"""From an encoded log to a graph: which events are edges, and which nodes stay.

Rows come encoded, so that nodes are rows of the embedding tables. Before anything is read into memory the number of
events is counted, and a graph that would not fit is refused with an estimate.
"""

# Shapes: E edges.

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from recdistill.data.encoded import EncodedLog
from recdistill.data.graph import Graph
from recdistill.data.log import allowed
from recdistill.data.transforms.rows import FIRST, UNKNOWN
from recdistill.data.transforms.single import Single
from recdistill.errors import LogError
from recdistill.spec.strict import nearest

# Measured with 20 million events: 60 bytes each at the peak, while pairs are sorted and checked. The graph itself holds
# 16 an edge, and its normalised halves 2 x 12 more.
EVENT_BYTES = 64
NODE_BYTES = 64  # offsets and degrees, with what they are made from
SHARE_OF_MEMORY = 0.5  # of what is available now
ROLES = ("group", "time", "scenario")


def build_graph(
    log: EncodedLog,
    user: str,
    item: str,
    *,
    where: Mapping[str, Any] | None = None,
    before: Any = None,
    splits: tuple[str, ...] = ("train",),
    min_degree: tuple[int, int] = (1, 1),
    limit_bytes: int | None = None,
) -> Graph:
    """The graph of the events of a log: an edge for each pair of user and item that occurs, however often.

    Args:
        log: the encoded log.
        user: the column whose rows are the users: serving, of type `id` or `categorical`.
        item: the column whose rows are the items, likewise.
        where: which events are edges: the value, or one of several, that a column must have: a label, the raw column
            of a role (group, time, scenario), or a column with a vocabulary. Missing values are none of them.
        before: only events before this time.
        splits: the splits whose rows count.
        min_degree: the least number of items of a user and of users of an item. Nodes with fewer lose their edges,
            again and again until all that are left have enough: the largest subgraph in which every node does (the
            k-core, where both numbers are k).
        limit_bytes: how much memory the graph may take; by default half of what is available.

    Returns:
        The graph. Rows of missing and unknown values are no nodes, because they stand for many users or items at once.

    Raises:
        LogError: a column does not suit, the graph is too large, or it has no edges.
    """
    where = dict(where or {})
    columns = {name: _keyed(log, name) for name in (user, item)}
    users, items = (column.rows.count for column in columns.values())
    events = _events(log, user, item, where, before, splits)
    count = int(events.select(pl.len()).collect(engine="streaming").item())
    check_memory(estimate(count, users, items), limit_bytes, f"{log.folder}: {count} events")
    found = events.collect(engine="streaming")
    edges = torch.from_numpy(_pairs(found["user"].to_numpy(), found["item"].to_numpy(), items))
    user_E, item_E = core(edges // items, edges % items, users, items, min_degree)
    if not len(user_E):
        raise LogError(
            f"{log.folder}: no edge is left of {count} events with where {where}, before {before}, min_degree "
            f"{min_degree} in {list(splits)}; ask for less"
        )
    built = {
        "log": log.fingerprint, "user": columns[user].table, "item": columns[item].table, "where": where,
        "before": before, "splits": list(splits), "min_degree": list(min_degree), "events": count,
    }  # fmt: skip
    return Graph(users, items, user_E, item_E, built)


def core(user_E: Tensor, item_E: Tensor, users: int, items: int, min_degree: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The edges of the largest subgraph whose users and items all have their minimum degree; maybe none.

    Example:
        >>> user, item = torch.tensor([2, 2, 3, 3, 4]), torch.tensor([2, 3, 2, 3, 3])
        >>> core(user, item, 5, 4, (2, 2))
        (tensor([2, 2, 3, 3]), tensor([2, 3, 2, 3]))
    """
    while True:
        enough_U = torch.bincount(user_E, minlength=users) >= min_degree[0]
        enough_I = torch.bincount(item_E, minlength=items) >= min_degree[1]
        kept_E = enough_U[user_E] & enough_I[item_E]
        if bool(kept_E.all()):
            return user_E, item_E
        user_E, item_E = user_E[kept_E], item_E[kept_E]


def estimate(events: int, users: int, items: int) -> int:
    """Bytes that building a graph and normalising it take at their peak; duplicates are not known before.

    Example:
        >>> estimate(1_000_000, 10_000, 5_000)
        64960000
    """
    return EVENT_BYTES * events + NODE_BYTES * (users + items)


def check_memory(needed: int, limit: int | None, place: str) -> None:
    """Raise unless this many bytes may be taken.

    Raises:
        LogError: they may not.
    """
    allowance = int(SHARE_OF_MEMORY * available_memory()) if limit is None else limit
    if needed > allowance:
        raise LogError(
            f"{place} make a graph of about {needed / 2**30:.2f} GiB, but it may take {allowance / 2**30:.2f} GiB; "
            "keep fewer events (where, before), use a larger machine, or raise limit_bytes"
        )


def available_memory() -> int:
    """Bytes that can be had without swapping: of the machine, or of the control group if that allows less."""
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        found.append(int(fields["MemAvailable"].split()[0]) * 1024)
    groups = (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    )
    for most, used in groups:
        if Path(most).exists() and Path(used).exists():
            text = Path(most).read_text(encoding="ascii").strip()
            if text.isdigit():
                found.append(max(int(text) - int(Path(used).read_text(encoding="ascii")), 0))
    return min(found) if found else 2**33  # systems that tell nothing: as if 8 GiB were there


def _keyed(log: EncodedLog, name: str) -> Single:
    """The fitted column of nodes."""
    if name not in log.spec.serving:
        raise LogError(f"graph: {name!r} is no serving column of the spec; {nearest(name, log.spec.serving)}")
    column = log.fitted.columns[name]
    if not isinstance(column, Single):
        raise LogError(
            f"graph: {name!r} is of type {log.spec.columns[name].type}, but nodes are single values with a table; "
            "name a column of type id or categorical"
        )
    return column


def lost_events(log: EncodedLog, user: str, item: str, where: Mapping[str, Any], splits: tuple[str, ...]) -> Tensor:
    """The users of events that would be edges if training had known their items, int64, one an event."""
    found = _events(log, user, item, where, None, splits, lost=True).collect(engine="streaming")
    return torch.from_numpy(found["user"].to_numpy().astype("int64"))


def _events(
    log: EncodedLog,
    user: str,
    item: str,
    where: Mapping[str, Any],
    before: Any,
    splits: tuple[str, ...],
    *,
    lost: bool = False,
) -> pl.LazyFrame:
    """User and item row of each event that is an edge, Int32, as often as it occurs; or of those whose item is lost."""
    if before is not None and log.spec.time is None:
        raise LogError("graph: before needs a time; add `time: <column>` to the spec")
    if unknown := [split for split in splits if not log.files(split, "labels")]:
        raise LogError(f"graph: {log.folder} has no rows in the split {unknown[0]!r}; name train, valid or test")
    parts = []
    for split in splits:
        encoded = {view: log.view(split, view) for view in ("serving", "post_event")}
        labels = log.labels(split)
        conditions, needed = _conditions(log, where, labels.collect_schema())
        if before is not None:
            dtype = labels.collect_schema()["time"]
            conditions.append(pl.col("labels/time") < pl.lit(allowed(before, dtype, "before")[0]))
            needed.append(("labels", "time"))
        frames = [encoded["serving"].select(pl.col(user).alias("user"), pl.col(item).alias("item"))]
        for view in ("serving", "post_event", "labels"):
            names = sorted({name for v, name in needed if v == view})
            if names:
                frame = labels if view == "labels" else encoded[view]
                frames.append(frame.select(pl.col(n).alias(f"{view}/{n}") for n in names))
        known = [pl.col("user") >= FIRST, (pl.col("item") < FIRST) if lost else (pl.col("item") >= FIRST)]
        joined = pl.concat(frames, how="horizontal") if len(frames) > 1 else frames[0]
        parts.append(joined.filter(pl.all_horizontal(*known, *conditions)).select("user", "item"))
    return pl.concat(parts)


def _conditions(
    log: EncodedLog, where: Mapping[str, Any], labels: pl.Schema
) -> tuple[list[pl.Expr], list[tuple[str, str]]]:
    """The conditions of a filter, on columns called ``view/name``, and the (view, name) that they need."""
    roles = {str(getattr(log.spec, role)): role for role in ROLES if getattr(log.spec, role) is not None}
    conditions, needed = [], []
    for name, value in where.items():
        values = value if isinstance(value, list) else [value]
        if any(v is None for v in values):
            raise LogError(f"where: {name!r} asks for missing values, which no edge can have; name the others")
        raw = name if name in labels and name in log.spec.columns else roles.get(name)
        if raw is not None:
            needed.append(("labels", raw))
            conditions.append(pl.col(f"labels/{raw}").is_in(allowed(values, labels[raw], name)))
        else:
            view = "serving" if name in log.spec.serving else "post_event"
            needed.append((view, name))
            conditions.append(pl.col(f"{view}/{name}").is_in(_rows_of(log, name, values, roles)))
    return conditions, needed


def _rows_of(log: EncodedLog, name: str, values: list[Any], roles: Mapping[str, str]) -> list[int]:
    """The table rows of some values of a column with a vocabulary."""
    column = log.fitted.columns.get(name)
    if not isinstance(column, Single):
        usable = [n for n, c in log.fitted.columns.items() if isinstance(c, Single) or n in log.views["labels"]]
        raise LogError(
            f"where: {name!r} is no label, role or column with a vocabulary, so that its raw values are not in the "
            f"encoded log; {nearest(name, [*usable, *roles])}"
        )
    given = pl.DataFrame({column.source: pl.Series(allowed(values, column.dtype, name), dtype=column.dtype)})
    rows = given.select(column.polars()[0]).to_series()
    if bool((rows == UNKNOWN).any()):
        raise LogError(f"where: {name!r} never was {given.filter(rows == UNKNOWN).to_series().to_list()} in training")
    return rows.to_list()


def _pairs(user_N: Any, item_N: Any, items: int) -> Any:
    """Each pair once, as user * items + item, ascending."""
    key_N = user_N.astype(np.int64)
    key_N *= items
    key_N += item_N
    key_N.sort()
    return key_N[np.concatenate([[True], key_N[1:] != key_N[:-1]])] if len(key_N) else key_N
