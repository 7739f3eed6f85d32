"""Columns of type ``numeric`` without buckets, and ``binary`` columns used as inputs: one float per row.

``x -> clip -> sign(x) log(1 + |x|) -> (x - shift) / scale``, in float64, rounded to float32 at the end; each step only
if the spec asks for it. A missing value becomes 0, which is the training mean after standardising.
"""

from dataclasses import dataclass
from typing import Literal

import polars as pl
import torch
from torch import Tensor, nn

from recdistill.data.transforms.raw import numbers, numbers_tensor


@dataclass(frozen=True)
class Number:
    """A fitted numeric column."""

    name: str
    source: str
    dtype: pl.DataType
    clip: tuple[float, float] | None
    log: bool
    shift: float
    scale: float
    kind: Literal["float"] = "float"

    def polars(self) -> pl.Expr:
        """Scaled values, Float32."""
        number = shaped(numbers(pl.col(self.source), self.dtype, self.name), self.clip, log=self.log)
        return ((number - self.shift) / self.scale).fill_null(0.0).cast(pl.Float32).alias(self.name)

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

    def forward(self, numbers: dict[str, Tensor], batch: int) -> Tensor:
        """Scaled values, float32 (B,)."""
        if self.source not in numbers:
            return torch.zeros(batch)
        number = torch.clamp(numbers_tensor(numbers[self.source]), self.low, self.high)
        if self.log:
            number = torch.sign(number) * torch.log1p(torch.abs(number))
        scaled = (number - self.shift) / self.scale
        return torch.where(torch.isnan(scaled), torch.zeros_like(scaled), scaled).to(torch.float32)
