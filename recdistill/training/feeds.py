"""Which rows the steps see: the log, other logs, mixtures of them, or no log at all.

A feed gives the batches of an epoch, which depend on seed and epoch alone. A cursor walks through epochs and can be put
back to where an interrupted training stood.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from recdistill.data.batch import Batch, View, concat
from recdistill.data.reader import Reader, take
from recdistill.errors import TrainingError


class Feed(Protocol):
    """A source of batches."""

    def steps(self, batch: int) -> int:
        """Batches of one epoch."""
        ...

    def epoch(self, batch: int, *, seed: int, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        ...

    def rows(self) -> int:
        """Rows of one epoch."""
        ...

    def row_ids(self) -> Tensor:
        """The ids of all rows, int64 (N,)."""
        ...


@dataclass(frozen=True)
class LogFeed:
    """The rows of a log, each once in an epoch."""

    reader: Reader

    def steps(self, batch: int) -> int:
        """Batches of one epoch."""
        return self.reader.steps(batch)

    def epoch(self, batch: int, *, seed: int, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, every row once."""
        return self.reader.shuffled(batch, seed=seed, epoch=epoch)

    def rows(self) -> int:
        """Rows of one epoch."""
        return self.reader.rows()

    def row_ids(self) -> Tensor:
        """The ids of all rows, int64 (N,)."""
        return torch.from_numpy(self.reader.row_ids())


@dataclass(frozen=True)
class MixFeed:
    """Rows of several feeds in every batch; an epoch is one of the first feed, the others begin again when they end."""

    parts: tuple[Feed, ...]
    shares: tuple[int, ...]

    def sizes(self, batch: int) -> list[int]:
        """Rows of each part in a batch; the first takes what rounding leaves."""
        total = sum(self.shares)
        rest = [max(1, round(batch * share / total)) for share in self.shares[1:]]
        return [max(1, batch - sum(rest)), *rest]

    def steps(self, batch: int) -> int:
        """Batches of one epoch."""
        return self.parts[0].steps(self.sizes(batch)[0])

    def epoch(self, batch: int, *, seed: int, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        sizes, steps = self.sizes(batch), self.steps(batch)
        streams = [self.parts[0].epoch(sizes[0], seed=seed, epoch=epoch)]
        for number, (part, size) in enumerate(zip(self.parts[1:], sizes[1:], strict=True), 1):
            streams.append(_endless(part, size, seed + number, epoch * steps * size))
        for batches in zip(*streams, strict=False):
            yield concat(list(batches))

    def rows(self) -> int:
        """Rows of the first feed in one epoch of it."""
        return self.parts[0].rows()

    def row_ids(self) -> Tensor:
        """The ids of all rows, int64 (N,)."""
        return torch.cat([part.row_ids() for part in self.parts])


def _endless(feed: Feed, batch: int, seed: int, first: int) -> Iterator[Batch]:
    """Batches of exactly ``batch`` rows of a feed, epoch after epoch, from behind its ``first`` rows."""
    number, behind = divmod(first, feed.rows())
    left: list[Batch] = []
    for epoch in itertools.count(number):
        for found in feed.epoch(batch, seed=seed, epoch=epoch):
            skipped = min(behind, len(found))
            behind -= skipped
            left.append(take(found, torch.arange(skipped, len(found))) if skipped else found)
            while (rows := sum(map(len, left))) >= batch:
                whole = concat(left)
                yield whole if rows == batch else take(whole, torch.arange(batch))
                left = [] if rows == batch else [take(whole, torch.arange(batch, rows))]


@dataclass(frozen=True)
class NoiseFeed:
    """Rows without columns and labels, for members that read nothing but signals."""

    count: int

    def steps(self, batch: int) -> int:
        """Batches of one epoch."""
        return math.ceil(self.count / batch)

    def rows(self) -> int:
        """Rows of one epoch."""
        return self.count

    def epoch(self, batch: int, *, seed: int, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch; ids differ from epoch to epoch, so that noise is never drawn twice."""
        del seed
        for first in range(0, self.count, batch):
            rows = min(batch, self.count - first)
            row_id_B = torch.arange(rows, dtype=torch.int64) + (epoch * self.count + first)
            view = View("serving", torch.zeros(0, rows, dtype=torch.int64), (), torch.zeros(rows, 0), ())
            yield Batch(row_id_B, view, {}, torch.ones(rows))

    def row_ids(self) -> Tensor:
        """No rows that could be met again."""
        return torch.zeros(0, dtype=torch.int64)


class Cursor:
    """Walks through the epochs of a feed.

    Args:
        feed: the feed.
        batch: rows of a batch.
        seed: of the order of rows.
    """

    def __init__(self, feed: Feed, batch: int, seed: int) -> None:
        self.feed, self.batch, self.seed = feed, batch, seed
        self.number, self.taken = 0, 0
        self._batches: Iterator[Batch] | None = None

    def go_to(self, number: int, taken: int) -> None:
        """Go on in an epoch, skipping this many of its batches."""
        self.close()
        self.number, self.taken = number, taken

    def begin(self) -> None:
        """Start with an epoch that was not begun yet."""
        if self.taken:
            self.go_to(self.number + 1, 0)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        ended = 0
        while True:
            if self._batches is None:
                batches = self.feed.epoch(self.batch, seed=self.seed, epoch=self.number)
                self._batches = itertools.islice(batches, self.taken, None) if self.taken else batches
            found = next(self._batches, None)
            if found is not None:
                self.taken += 1
                return found
            self.go_to(self.number + 1, 0)
            ended += 1
            if ended > 1:
                raise TrainingError(
                    "feed: holds no rows to train on; check its log, its `where`, and how it is thinned"
                )

    def close(self) -> None:
        """Stop reading ahead."""
        batches, self._batches = self._batches, None
        del batches


def unique_rows(feeds: Mapping[str, Feed]) -> Tensor:
    """The ids of the rows of all feeds, each once."""
    found = [feed.row_ids() for feed in feeds.values()]
    return torch.from_numpy(np.unique(torch.cat(found).numpy())) if found else torch.zeros(0, dtype=torch.int64)
