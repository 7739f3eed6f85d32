"""Columns of type ``numeric`` without buckets, and ``binary`` columns used as inputs: one float per row.

``x -> clip -> sign(x) log(1 + |x|) -> (x - shift) / scale``, in float64, rounded to float32 at the end; each step only
if the spec asks for it. A missing value becomes 0, which is the training mean after standardising.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from recdistill.data.transforms.column import Kind, Learned, OfOneColumn, Statistics
from recdistill.data.transforms.raw import numbers, numbers_tensor
from recdistill.errors import LogError
from recdistill.spec.columns import Binary, Numeric

STEPS = 2**50  # of a column's range: values are added up as integers, since sums of floats depend on their order


def summaries(name: str, column: Numeric | Binary, number: pl.Expr) -> Iterator[pl.Expr]:
    """The aggregates of raw numbers that `fit` needs, of the first pass over the training rows."""
    if isinstance(column, Binary):
        yield number.mean().alias(f"{name}/mean")  # exact, of zeros and ones; numeric columns get theirs from `moments`
        return
    number = shaped(number, column.clip, log=column.log)
    yield number.min().alias(f"{name}/min")
    yield number.max().alias(f"{name}/max")


def moments(
    train: pl.LazyFrame, columns: Iterable[tuple[str, Numeric, pl.Expr]], found: Statistics
) -> dict[str, float]:
    """Mean and standard deviation of the columns that are standardised and not constant: a second pass.

    Args:
        train: raw columns of the training rows.
        columns: names, declarations and raw numbers.
        found: the statistics of the first pass.
    """
    sums: list[pl.Expr] = []
    ranges: dict[str, tuple[float, float]] = {}
    for name, column, raw in columns:
        low, high = found[f"{name}/min"] or 0.0, found[f"{name}/max"] or 0.0
        if not low < high or not np.isfinite(high - low):
            continue
        ranges[name] = (low, high - low)
        step = (shaped(raw, column.clip, log=column.log) - low) / (high - low) * float(STEPS)
        sums.append(raw.count().alias(f"{name}/count"))
        sums.append(step.round().cast(pl.Int128).sum().alias(f"{name}/sum"))
        sums.append((step * step / float(STEPS)).round().cast(pl.Int128).sum().alias(f"{name}/squares"))
    whole = train.select(pl.len().alias("__rows__"), *sums).collect(engine="streaming").row(0, named=True)
    made: dict[str, float] = {}
    for name, (low, span) in ranges.items():
        count, total, squares = (whole[f"{name}/{what}"] for what in ("count", "sum", "squares"))
        made[f"{name}/mean"] = low + span * (total / (count * STEPS))
        made[f"{name}/std"] = span * float(np.sqrt((squares * count * STEPS - total * total) / (count * STEPS) ** 2))
    return made


def fit(name: str, column: Numeric | Binary, learned: Learned) -> "Number":
    """The fitted column."""
    clip, log = (column.clip, column.log) if isinstance(column, Numeric) else (None, False)
    found = {s: learned.statistics.get(f"{name}/{s}") or 0.0 for s in ("mean", "std", "min", "max")}
    return Number(name, *learned.only(name), clip, log, *scaling(name, column, found))


def scaling(name: str, column: Numeric | Binary, found: dict[str, float]) -> tuple[float, float]:
    """Shift and scale; a constant column is only shifted.

    Raises:
        LogError: the values span more than a float can hold.
    """
    if isinstance(column, Binary):
        return found["mean"], 1.0
    if column.scale == "none":
        return 0.0, 1.0
    span = found["max"] - found["min"]
    if not np.isfinite(span):
        raise LogError(f"{name}: values from {found['min']} to {found['max']} cannot be scaled; use `clip` or `log`")
    return (found["mean"], found["std"] or 1.0) if column.scale == "standard" and span else (found["min"], span or 1.0)


@dataclass(frozen=True)
class Number(OfOneColumn):
    """A fitted numeric column."""

    name: str
    source: str
    dtype: pl.DataType
    clip: tuple[float, float] | None
    log: bool
    shift: float
    scale: float
    kind: ClassVar[Kind] = "float"

    @property
    def unknown(self) -> str:
        """Numbers are never unknown."""
        return "scaled like any other"

    @property
    def scaling(self) -> tuple[object, ...]:
        """The raw column, how it is compressed, shift and scale."""
        return (*super().scaling, self.clip, self.log, self.shift, self.scale)

    def polars(self) -> list[pl.Expr]:
        """Scaled values, Float32."""
        number = shaped(numbers(pl.col(self.source), self.dtype, self.name), self.clip, log=self.log)
        return [((number - self.shift) / self.scale).fill_null(0.0).cast(pl.Float32).alias(self.name)]

    def torch(self) -> nn.Module:
        """Scaled values, float32 (B,), from raw inputs."""
        low, high = self.clip or (-float("inf"), float("inf"))
        return NumberModule(self.source, low, high, self.log, self.shift, self.scale)


def shaped(number: pl.Expr, clip: tuple[float, float] | None, *, log: bool) -> pl.Expr:
    """Clipped and log-compressed numbers, before scaling."""
    if clip is not None:
        number = number.clip(*clip)
    return number.sign() * number.abs().log1p() if log else number


class NumberModule(nn.Module):
    """`Number` inside the artefact."""

    def __init__(self, source: str, low: float, high: float, log: bool, shift: float, scale: float) -> None:
        super().__init__()
        self.source = source
        self.low, self.high, self.log = low, high, log
        self.shift, self.scale = shift, scale

    def forward(
        self,
        numbers: dict[str, Tensor],
        texts: dict[str, list[str]],  # noqa: ARG002
        lengths: dict[str, Tensor],  # noqa: ARG002
        batch: int,
    ) -> Tensor:
        """Scaled values, float32 (B,)."""
        if self.source not in numbers:
            return torch.zeros(batch)
        number = torch.clamp(numbers_tensor(numbers[self.source]), self.low, self.high)
        if self.log:
            number = torch.sign(number) * torch.log1p(torch.abs(number))
        scaled = (number - self.shift) / self.scale
        return torch.where(torch.isnan(scaled), torch.zeros_like(scaled), scaled).to(torch.float32)
