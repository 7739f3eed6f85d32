"""Batches from an encoded log: row groups in shuffled order, rows shuffled within a window of them, read ahead.

An epoch visits every row once. Its order depends on the seed and the epoch alone, so the same seed gives the same
batches.
"""

import contextlib
import math
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from recdistill.data.batch import Audience, Batch, Candidates, Jagged, View, concat
from recdistill.data.encoded import EncodedLog
from recdistill.data.lists import list_of
from recdistill.data.thinning import Sample, Thinning, drawn
from recdistill.data.transforms.hashing import hash_texts
from recdistill.data.unknown import Forgetting
from recdistill.errors import LogError, VisibilityError

Item = TypeVar("Item")

WINDOW_GROUPS = 4  # row groups whose rows are mixed with each other
READ_AHEAD = 4  # batches that wait ready
CHANNELS: dict[str, type[np.generic]] = {"weights": np.float32, "gaps": np.int64}  # of list columns


@dataclass(frozen=True)
class Selection:
    """What is read of each row.

    Attributes:
        serving: serving columns.
        privileged: post-event columns as inputs of teachers.
        labels: raw labels.
        groups: whether each row's group is read.
        scenarios: whether each row's scenario is read.
    """

    serving: tuple[str, ...]
    privileged: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    groups: bool = False
    scenarios: bool = False


@dataclass
class Reader:
    """Reads one or several splits of an encoded log.

    Attributes:
        log: the encoded log.
        splits: the splits, one after the other.
        selection: what is read of each row.
        thinning: what is set aside.
        post_event: where the encoded post-event columns lie, if not in the log's own folder (the shuffled control).
        forgetting: which values of shuffled batches are taken for unknown ones.
        whole_lists: whether shuffled batches hold whole lists, of a log whose lists lie together (`lists.py`); a batch
            is then about as large as asked for.

    Raises:
        VisibilityError: the selection asks for a column in a view that does not hold it.
    """

    log: EncodedLog
    splits: tuple[str, ...]
    selection: Selection
    thinning: Thinning = field(default_factory=Thinning)
    post_event: Path | None = None
    forgetting: Forgetting | None = None
    whole_lists: bool = False

    def __post_init__(self) -> None:
        self._counted: int | None = None
        self._sizes: NDArray[np.int64] | None = None
        # A sample is small and met again and again, so it stays in memory.
        self._rows_of = cache(self._load) if isinstance(self.thinning.shard, Sample) else self._load
        for name in self.selection.serving:
            if name not in self.log.spec.serving:
                raise VisibilityError(
                    f"reader: {name!r} is no serving column of the spec, but was asked for in the serving view; only "
                    f"{list(self.log.spec.serving)} exist when a request is answered"
                )
        for name in self.selection.privileged:
            if name not in self.log.spec.post_event:
                raise VisibilityError(
                    f"reader: {name!r} is no post-event column of the spec, but was asked for in the privileged view; "
                    f"those are {list(self.log.spec.post_event)}, so take it from the serving view"
                )
        self.groups = [(split, file, group) for split in self.splits for file, group in self.log.row_groups(split)]

    def shuffled(self, batch: int, *, seed: int, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, every row once; only the last batch may be smaller."""
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(self.groups))
        windows = [[self.groups[i] for i in order[w : w + WINDOW_GROUPS]] for w in range(0, len(order), WINDOW_GROUPS)]
        if self.whole_lists:
            batches = self._list_batches(windows, batch, rng)
        else:
            batches = self._batches(windows, batch, rng.permutation)
        if self.forgetting is not None:
            forgetting = self.forgetting
            batches = (forgetting.apply(each, epoch) for each in batches)
        return read_ahead(batches)

    def in_order(self, batch: int) -> Iterator[Batch]:
        """All rows in the order of the log."""
        return read_ahead(self._batches([[group] for group in self.groups], batch, np.arange))

    def rows(self) -> int:
        """Rows of an epoch."""
        if not self.thinning.of_rows:
            return sum(self.log.rows[split] for split in self.splits)
        if self._counted is None:
            self._counted = len(self.row_ids())
        return self._counted

    def steps(self, batch: int) -> int:
        """Batches of an epoch."""
        if not self.whole_lists:
            return math.ceil(self.rows() / batch)
        if self._sizes is None:
            self._sizes = np.concatenate([np.unique(rows, return_counts=True)[1] for rows in self._lists()])
        large_G = self._sizes > batch
        return int(large_G.sum() + math.ceil(self._sizes[~large_G].sum() / batch))

    def row_ids(self) -> NDArray[np.int64]:
        """The ids of all rows of an epoch."""
        found = [self._read(*group, "labels", self._decisive) for group in self.groups]
        kept = [table["row_id"].to_numpy()[self._kept(table)] for table in found]
        return np.concatenate(kept) if kept else np.zeros(0, np.int64)

    def _lists(self) -> Iterator[NDArray[np.int64]]:
        """The list of each row of an epoch, row group by row group."""
        for group in self.groups:
            table = self._read(*group, "labels", (*self._decisive, "group"))
            yield _lists(table)[self._kept(table)]

    def scenarios(self) -> NDArray[np.str_]:
        """The scenario of each row as a text, empty where it has none, in the order of the log."""
        columns = [self.log.labels(split).select(pl.col("scenario").cast(pl.String)) for split in self.splits]
        return pl.concat(columns).collect().to_series().fill_null("").to_numpy().astype(np.str_)

    def _batches(
        self,
        windows: list[list[tuple[str, int, int]]],
        batch: int,
        order: Callable[[int], NDArray[np.int64]],
    ) -> Iterator[Batch]:
        left: list[Batch] = []
        for groups in windows:
            window = concat([self._rows_of(*group) for group in groups])
            rows = torch.from_numpy(order(len(window)))
            start = batch - sum(len(part) for part in left) if left else 0
            if start > len(window):
                left.append(take(window, rows))
                continue
            if left:
                yield concat([*left, take(window, rows[:start])])
                left = []
            for begin in range(start, len(window), batch):
                part = take(window, rows[begin : begin + batch])
                if len(part) == batch:
                    yield part
                else:
                    left = [part]
        if left:
            yield concat(left)

    def _list_batches(
        self, windows: list[list[tuple[str, int, int]]], batch: int, rng: np.random.Generator
    ) -> Iterator[Batch]:
        """Whole lists in shuffled order; a list belongs to the batch in which its last row falls.

        A list that is larger than a batch is a batch of its own, so that all epochs have as many.
        """
        offset, number, left = 0, 0, list[Batch]()
        for groups in windows:
            window = concat([self._rows_of(*group) for group in groups])
            _, list_N, size_G = torch.unique(window.groups(), return_inverse=True, return_counts=True)
            order_G = torch.from_numpy(rng.permutation(len(size_G)))
            rows = torch.argsort(torch.argsort(order_G)[list_N], stable=True)
            size_G = size_G[order_G]
            small_G = size_G <= batch
            for first, size in zip((torch.cumsum(size_G, 0) - size_G)[~small_G], size_G[~small_G], strict=True):
                yield take(window, rows[first : first + size])
            rows, size_G = rows[torch.repeat_interleave(small_G, size_G)], size_G[small_G]
            batch_N = torch.repeat_interleave((offset + torch.cumsum(size_G, 0) - 1) // batch, size_G)
            offset += len(rows)
            for found in torch.unique(batch_N).tolist():
                if found != number and left:
                    yield concat(left)
                    left = []
                number = found
                left.append(take(window, rows[batch_N == found]))
        if left:
            yield concat(left)

    def _load(self, split: str, file: int, group: int) -> Batch:
        table = self._read(split, file, group, "labels", (*self._decisive, *self._roles))
        labels = _columns(table.drop_columns([role for role in ("group", "scenario") if role in table.column_names]))
        kept = self._kept(table)
        serving = self._view("serving", self.selection.serving, labels["row_id"], (split, file, group), kept)
        privileged = None
        if self.selection.privileged:
            privileged = self._view(
                "privileged", self.selection.privileged, labels["row_id"], (split, file, group), kept
            )
        row_id = labels["row_id"][kept]
        known = drawn(row_id, "keep_labels", self.thinning.seed) < self.thinning.keep_labels
        unknown = np.full(len(row_id), np.nan, np.float32)
        raw = {
            name: torch.from_numpy(np.where(known, labels[name][kept], np.nan) if name in self._labels else unknown)
            for name in self.selection.labels
        }
        weight = torch.from_numpy(labels["weight"][kept].copy()) if self.log.spec.weight else torch.ones(len(row_id))
        groups = scenarios = None
        if self.selection.groups:
            groups = torch.from_numpy(_lists(table)[kept].copy())
        if self.selection.scenarios:
            named = pl.Series(pl.from_arrow(table["scenario"])).cast(pl.String)  # hashed as the words of a job are
            scenarios = torch.from_numpy(hash_texts(named)[kept].copy())
        return Batch(torch.from_numpy(row_id.copy()), serving, raw, weight, privileged, groups, scenarios)

    @property
    def _labels(self) -> tuple[str, ...]:
        """The raw labels that the log has."""
        return tuple(name for name in self.selection.labels if name in self.log.spec.post_event)

    @property
    def _roles(self) -> tuple[str, ...]:
        """The raw roles that are read."""
        chosen = {
            "weight": self.log.spec.weight is not None,
            "group": self.selection.groups,
            "scenario": self.selection.scenarios,
        }
        return tuple(role for role, read in chosen.items() if read)

    @property
    def _decisive(self) -> tuple[str, ...]:
        """All labels, and what else decides which rows take part."""
        return (*self._labels, "group") if self.thinning.by_group else self._labels

    def _kept(self, table: pa.Table) -> slice | NDArray[np.int64]:
        """The rows of a row group that take part."""
        if not self.thinning.of_rows:
            return slice(None)
        label_N = table[self.selection.labels[0]].to_numpy()
        return self.thinning.kept(
            table["row_id"].to_numpy(), label_N, _lists(table) if self.thinning.by_group else None
        )

    def _view(
        self,
        audience: Audience,
        names: tuple[str, ...],
        row_id: NDArray[np.int64],
        group: tuple[str, int, int],
        kept: slice | NDArray[np.int64],
    ) -> View:
        folder = "serving" if audience == "serving" else "post_event"
        channels = [c for c in self.log.views[folder] if c.partition("/")[0] in names and c not in names]
        table = self._read(*group, folder, (*names, *channels))
        if not np.array_equal(table["row_id"].to_numpy(), row_id):
            raise LogError(
                f"{self.log.folder}: the {audience} rows of {group} are not those of the labels; encode it again"
            )
        kinds = {name: self.log.fitted.columns[name].kind for name in names}
        id_names = tuple(n for n in names if kinds[n] == "id")
        float_names = tuple(n for n in names if kinds[n] == "float")
        ids_FB = np.empty((len(id_names), len(row_id[kept])), np.int32)
        for i, name in enumerate(id_names):
            ids_FB[i] = table[name].to_numpy()[kept]
        by_row = torch.from_numpy(ids_FB).t().contiguous().t()  # a row's ids side by side, as `take_view` gathers them
        floats_BN = np.empty((len(row_id[kept]), len(float_names)), np.float32)
        for i, name in enumerate(float_names):
            floats_BN[:, i] = table[name].to_numpy()[kept]
        bags = {n: _jagged(table, n) for n in names if kinds[n] in ("bag", "sequence")}
        if not isinstance(kept, slice):
            bags = {n: take_jagged(bag, torch.from_numpy(kept)) for n, bag in bags.items()}
        return View(audience, by_row, id_names, torch.from_numpy(floats_BN), float_names, bags)

    def _read(self, split: str, file: int, group: int, view: str, names: tuple[str, ...]) -> pa.Table:
        folder = self.post_event if view == "post_event" and self.post_event is not None else self.log.folder
        path = folder / split / f"{view}-{file:05d}.parquet"
        try:
            table = pq.ParquetFile(path).read_row_group(group, columns=["row_id", *dict.fromkeys(names)])
        except (OSError, pa.ArrowException) as error:
            raise LogError(f"{path}: row group {group} cannot be read ({error}); encode the log again") from None
        return table.combine_chunks()


def _columns(table: pa.Table) -> dict[str, NDArray[Any]]:
    return {name: table[name].to_numpy() for name in table.column_names}


def _lists(table: pa.Table) -> NDArray[np.int64]:
    """The list of each row: the hash of its group."""
    return list_of(pl.DataFrame(pl.from_arrow(table.select(["row_id", "group"]))))


def _jagged(table: pa.Table, name: str) -> Jagged:
    """A list column with its channels."""
    values_L, lengths_B = _flat(table[name], np.int64)
    found = {c: t for c, t in CHANNELS.items() if f"{name}/{c}" in table.column_names}
    channels = {c: _flat(table[f"{name}/{c}"], t)[0] for c, t in found.items()}
    return Jagged(values_L, lengths_B, channels.get("weights"), channels.get("gaps"))


def _flat(column: pa.ChunkedArray, dtype: type[np.generic]) -> tuple[torch.Tensor, torch.Tensor]:
    """The elements of all lists, and the lists' lengths."""
    lists = column.combine_chunks()
    offsets = np.asarray(lists.offsets, dtype=np.int64)
    values = np.array(lists.values, dtype=dtype)[offsets[0] : offsets[-1]]
    return torch.from_numpy(values), torch.from_numpy(np.diff(offsets))


def take(batch: Batch, rows: torch.Tensor) -> Batch:
    """Some rows of a batch, in the order given."""
    labels = {name: label[rows] for name, label in batch.labels.items()}
    privileged = take_view(batch.privileged, rows) if batch.privileged is not None else None
    groups, scenarios = (None if h is None else h[rows] for h in (batch.group_B, batch.scenario_B))
    serving = take_view(batch.serving, rows)
    return Batch(batch.row_id_B[rows], serving, labels, batch.weight_B[rows], privileged, groups, scenarios)


def take_anchors(batch: Batch, anchors: torch.Tensor) -> Batch:
    """Some anchors of a batch with candidates, in the order given, and the rows of all candidates."""
    ranked = batch.ranked()
    rows = torch.cat([anchors, torch.arange(ranked.anchors, len(batch))])
    shift = ranked.anchors - len(anchors)
    parts = tuple((part if part.dim() == 1 else part[anchors]) - shift for part in ranked.parts)
    marks = {name: mark_AM[anchors] for name, mark_AM in ranked.marks.items()}
    return replace(take(batch, rows), candidates=Candidates(ranked.anchor, parts, marks))


def take_view(view: View, rows: torch.Tensor) -> View:
    """Some rows of a view, in the order given."""
    bags = {name: take_jagged(bag, rows) for name, bag in view.bags.items()}
    ids_FB = view.ids_FB.t().index_select(0, rows).t().to(torch.int64, memory_format=torch.contiguous_format)
    return View(view.audience, ids_FB, view.id_names, view.floats_BN.index_select(0, rows), view.float_names, bags)


def take_jagged(bag: Jagged, rows: torch.Tensor) -> Jagged:
    """Some lists, in the order given."""
    ends = torch.cumsum(bag.lengths_B, 0)
    lengths = bag.lengths_B[rows]
    first = torch.repeat_interleave(ends[rows] - lengths - torch.cumsum(lengths, 0) + lengths, lengths)
    places = first + torch.arange(len(first))
    weights, gaps = (None if channel is None else channel[places] for channel in (bag.weights_L, bag.gaps_L))
    return Jagged(bag.values_L[places], lengths, weights, gaps)


def read_ahead(items: Iterator[Item], depth: int = READ_AHEAD) -> Iterator[Item]:
    """The same items, produced by a thread that stays up to ``depth`` ahead; its errors surface here."""
    ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(entry: tuple[Item | None, BaseException | None]) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(entry, timeout=0.1)
                return

    def produce() -> None:
        torch.set_num_threads(1)  # of this thread: a second pool would spin against the one that trains
        try:
            for item in items:
                put((item, None))
                if stop.is_set():
                    return
            put((None, None))
        except BaseException as error:  # handed to the consumer, who raises it
            put((None, error))

    thread = threading.Thread(target=produce, daemon=True, name="recdistill-reader")
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stop.set()
        thread.join()
