"""What is kept from step to step: of each row a moving average, by row id and not by position; or of all rows together.

Every process holds the whole memory and is told what the others have seen, so that a row may turn up anywhere.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from recdistill.distill.labels import METERED, Corrected
from recdistill.distill.signal import Remembering
from recdistill.evaluation import auc
from recdistill.training.processes import world


class RowMemory:
    """Moving averages of a number for each row.

    Args:
        row_id_N: the rows, in any order.
        decay: share of the old average that is kept.
    """

    def __init__(self, row_id_N: Tensor, decay: float) -> None:
        self.row_id_N = torch.unique(row_id_N)
        self.decay = decay
        self.total_N = torch.zeros(len(self.row_id_N))
        self.entered_N = torch.zeros(len(self.row_id_N))  # the weight of what has entered; 1 in the end

    def admit(self, row_id_N: Tensor) -> None:
        """Make room for further rows; what is known of the others stays."""
        wider = RowMemory(torch.cat([self.row_id_N, row_id_N]), self.decay)
        place_N = torch.searchsorted(wider.row_id_N, self.row_id_N)
        wider.total_N[place_N], wider.entered_N[place_N] = self.total_N, self.entered_N
        self.row_id_N, self.total_N, self.entered_N = wider.row_id_N, wider.total_N, wider.entered_N

    def _places(self, row_id_B: Tensor) -> tuple[Tensor, Tensor]:
        """Where rows lie, and whether they are known."""
        if not len(self.row_id_N):
            return torch.zeros_like(row_id_B), torch.zeros_like(row_id_B, dtype=torch.bool)
        place_B = torch.searchsorted(self.row_id_N, row_id_B).clamp(max=len(self.row_id_N) - 1)
        return place_B, self.row_id_N[place_B] == row_id_B

    def read(self, row_id_B: Tensor) -> Tensor:
        """The average of each row, free of the zero it began with; NaN for a row that was never written, (B,)."""
        place_B, known_B = self._places(row_id_B)
        found_B = torch.full((len(row_id_B),), torch.nan)
        place_K = place_B[known_B]
        found_B[known_B] = self.total_N[place_K] / self.entered_N[place_K]  # 0 / 0 is NaN
        return found_B

    def write(self, row_id_B: Tensor, value_B: Tensor) -> None:
        """Let a value of each row enter its average; what is NaN does not."""
        for row_id, value in gathered(row_id_B, value_B.detach().float().cpu()):
            place, known = self._places(row_id)
            keep = known & ~torch.isnan(value)
            place, value = place[keep], value[keep]
            self.total_N[place] = self.decay * self.total_N[place] + (1 - self.decay) * value
            self.entered_N[place] = self.decay * self.entered_N[place] + (1 - self.decay)

    @property
    def state(self) -> dict[str, Tensor]:
        """All that it is made of."""
        decay = torch.tensor(self.decay, dtype=torch.float64)
        return {"rows": self.row_id_N, "decay": decay, "total": self.total_N, "entered": self.entered_N}

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> "RowMemory":
        """The memory with a state."""
        made = cls(state["rows"], float(state["decay"]))
        made.total_N, made.entered_N = state["total"].clone(), state["entered"].clone()
        return made


class Meter:
    """How the beliefs of a `corrected` label have agreed with it: moving averages of numbers of whole steps.

    Args:
        decay: share of the old averages that is kept in a step.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.total_M = torch.zeros(METERED)
        self.entered_M = torch.zeros(METERED)

    def admit(self, row_id_N: Tensor) -> None:
        """Nothing to do: rows are not told apart."""

    def read(self, row_id_B: Tensor) -> Tensor:
        """The averages, the same for every row, NaN where nothing was measured, (B, M)."""
        return (self.total_M / self.entered_M).expand(len(row_id_B), -1)

    def write(self, row_id_B: Tensor, value_B2: Tensor) -> None:
        """Let a step enter: the label and the logit of each of its rows."""
        parts = gathered(row_id_B, value_B2.detach().float().cpu())
        new_M = measured(torch.cat([value for _, value in parts]))
        seen_M = ~torch.isnan(new_M)
        kept_M = torch.where(seen_M, self.decay, 1.0)
        self.total_M = kept_M * self.total_M + (1 - kept_M) * new_M.nan_to_num(0.0)
        self.entered_M = kept_M * self.entered_M + (1 - kept_M)

    @property
    def state(self) -> dict[str, Tensor]:
        """All that it is made of."""
        decay = torch.tensor(self.decay, dtype=torch.float64)
        return {"decay": decay, "total": self.total_M, "entered": self.entered_M}


def measured(value_B2: Tensor) -> Tensor:
    """How logits agree with labels on some rows, by each measure, and the logit above which as many lie as are 1."""
    label_N, logit_N = value_B2[~torch.isnan(value_B2).any(1)].T
    if not len(label_N):
        return torch.full((METERED,), torch.nan)
    right_N = ((logit_N > 0) == (label_N > 0.5)).float()
    balanced = right_N[label_N > 0.5].mean() + right_N[label_N <= 0.5].mean() - 1  # NaN where a class is missing
    ranked = torch.tensor(2 * auc(label_N.numpy(), logit_N.numpy()) - 1)
    threshold = torch.quantile(logit_N, 1 - label_N.mean())
    return torch.stack([right_N.mean(), balanced.clamp(0, 1), ranked.clamp(0, 1).float(), threshold])


Memory = RowMemory | Meter


def memory_for(signal: Remembering, row_id_N: Tensor) -> Memory:
    """An empty memory for a signal."""
    return Meter(signal.decay) if isinstance(signal, Corrected) else RowMemory(row_id_N, signal.decay)


def memory_of(state: Mapping[str, Tensor]) -> Memory:
    """The memory with a state."""
    if "rows" in state:
        return RowMemory.of(state)
    made = Meter(float(state["decay"]))
    made.total_M, made.entered_M = state["total"].clone(), state["entered"].clone()
    return made


def gathered(row_id_B: Tensor, value_B: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
    """The rows and values of every process, in the order of their numbers."""
    if world() == 1:
        return [(row_id_B, value_B)]
    everything: list[tuple[Tensor, Tensor] | None] = [None] * world()
    dist.all_gather_object(everything, (row_id_B, value_B))
    return [each for each in everything if each is not None]
