"""A net for many labels in groups: lower layers are shared, and each group has small upper layers of its own."""

# Shapes: B rows, S shared layer, W own layer of a group, K labels.

import torch
from torch import Tensor, nn

from recdistill.errors import TrainingError
from recdistill.nets.inputs import Inputs, Outputs, Scorer, Width
from recdistill.nets.towers import Stack


class Group(nn.Module):
    """The labels of one group: a layer that no other group reads, and logits of a learned length.

    ``y = r x / |x|``: all groups answer on spheres, whose radii r tell the pace at which each is learned; at first it
    is the root of the number of labels. A single logit has no direction, so it stays as it is.
    """

    def __init__(self, shared: int, width: int, labels: int) -> None:
        super().__init__()
        self.own = nn.Linear(shared, width)
        self.out = nn.Linear(width, labels)
        self.pace = nn.Parameter(torch.full((1,), labels**0.5))
        self.alone = labels == 1

    def forward(self, shared_BS: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of the group, and its own layer, (B, W)."""
        own_BW = torch.relu(self.own(shared_BS))
        logits_BK = self.out(own_BW)
        if not self.alone:
            logits_BK = self.pace * logits_BK / torch.sqrt(logits_BK.square().sum(1, keepdim=True) + 1e-12)
        return logits_BK, own_BW


class Grouped(Scorer):
    """Shared layers, and above them for each group of labels a small layer that feeds the logits of the group alone.

    With S the last shared width, W that of a group's layer, M groups and K labels the top has ``S W M + W K`` weights,
    where a dense one with a layer of the same size would have ``S W M + W M K``.

    Args:
        mlp: widths of the shared layers.
        groups: how many labels each group has, in the order of the member's labels.
        width: of the layer of each group.

    Source: A7, Knowledge Concentration, Gao et al., 2017, sections 3.2 and 3.3.
    Departure: layers have biases.
    """

    def __init__(self, inputs: Inputs, labels: int, *, mlp: list[Width], groups: list[Width], width: Width) -> None:
        super().__init__()
        if sum(groups) != labels or min(groups, default=0) < 1:
            raise TrainingError(f"grouped: groups {groups} have {sum(groups)} labels, but the member has {labels}")
        self.stack = Stack(inputs.width, [*mlp])
        self.groups = nn.ModuleList(Group(self.stack.width, width, size) for size in groups)

    def forward(self, embed_BE: Tensor) -> Outputs:
        """Logits of each row; the hidden layers are the shared ones, then those of the groups side by side."""
        layers = self.stack(embed_BE)
        logits: list[Tensor] = []
        owns: list[Tensor] = []
        for group in self.groups:
            logits_BK, own_BW = group(layers[-1])
            logits.append(logits_BK)
            owns.append(own_BW)
        hidden = layers[1:]
        hidden.append(torch.cat(owns, 1))
        return Outputs(torch.cat(logits, 1), hidden, embed_BE, [])
