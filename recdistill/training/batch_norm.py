"""Batch normalisation by the rows of all processes, so that several of them train as one does.

PyTorch's own `SyncBatchNorm` works on GPUs alone.
"""

# Shapes: B rows of this process, H units.

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from recdistill.training.processes import world


class BatchNorm(nn.BatchNorm1d):
    """Takes means and variances over the rows of all processes while it is trained."""

    @classmethod
    def of(cls, other: nn.BatchNorm1d) -> "BatchNorm":
        """The same normalisation, with the very parameters and statistics of another module."""
        made = cls(other.num_features, other.eps, other.momentum)
        made._parameters, made._buffers = other._parameters, other._buffers
        return made

    def forward(self, x_BH: Tensor) -> Tensor:
        """The normalised units, (B, H)."""
        if not self.training:
            return super().forward(x_BH)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        x_BH = x_BH.float()
        totals = all_reduce(torch.cat([x_BH.sum(0), x_BH.new_full((1,), len(x_BH))]))
        count, mean_H = totals[-1].detach(), totals[:-1] / totals[-1]
        var_H = all_reduce((x_BH - mean_H).square().sum(0)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean_H, self.momentum)
            self.running_var.lerp_(var_H * count / (count - 1).clamp(min=1), self.momentum)
        normal_BH: Tensor = (x_BH - mean_H) * torch.rsqrt(var_H + self.eps)
        return normal_BH * self.weight + self.bias


def over_all_processes(nets: Iterable[nn.Module]) -> None:
    """Let the batch normalisations of some nets, which may share them, look at all processes if there are several."""
    known: dict[nn.Module, BatchNorm] = {}
    for parent in [module for net in nets for module in net.modules() if world() > 1]:
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm1d:
                setattr(parent, name, known.setdefault(child, BatchNorm.of(child)))
