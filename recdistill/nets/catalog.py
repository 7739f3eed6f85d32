"""The nets that a job can name, and how one is built. A new net is one class and one line here."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from recdistill.nets.inputs import Inputs, Outputs
from recdistill.nets.interactions import DcnV2, DeepFM
from recdistill.nets.towers import Mlp, Stack, TwoTower

NETS: dict[str, Callable[..., nn.Module]] = {
    "mlp": Mlp,
    "deepfm": DeepFM,
    "dcn_v2": DcnV2,
    "two_tower": TwoTower,
}


@dataclass(frozen=True)
class Net:
    """The description of a net: its name in `NETS` and its options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """What is wrong with the options, one sentence each."""
        parameters = {
            n: p for n, p in inspect.signature(NETS[self.name]).parameters.items() if p.kind is p.KEYWORD_ONLY
        }
        missing = [n for n, p in parameters.items() if p.default is p.empty and n not in self.options]
        unknown = [n for n in self.options if n not in parameters]
        return [f"{self.name} needs {n!r}" for n in missing] + [
            f"{self.name} has no option {n!r}; known: {', '.join(parameters)}" for n in unknown
        ]

    def build(self, inputs: Inputs, labels: int) -> nn.Module:
        """The module, with parameters drawn from PyTorch's generator."""
        return NETS[self.name](inputs, labels, **self.options)


class Head(nn.Module):
    """What a member computes after the lookup: dropout on the input vector, its trunk, its net.

    A trunk may belong to several heads; it is one module, registered in each of them.
    """

    def __init__(self, trunk: Stack, net: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.trunk = trunk
        self.net = net

    def forward(self, embed_BE: Tensor) -> Outputs:
        """The outputs of each row; the trunk's layers come first among the hidden ones."""
        layers = self.trunk(self.dropout(embed_BE))
        out = self.net(layers[-1])
        return Outputs(out.logits_BK, layers[1:] + out.hidden, embed_BE)
