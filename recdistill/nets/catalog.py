"""The nets that a job can name, and how one is built. A new net is one class and one line here."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import torch
from torch import Tensor, nn

from recdistill.nets.binary import BinaryTwoTower
from recdistill.nets.exclusive import Exclusive
from recdistill.nets.experts import Experts
from recdistill.nets.grouped import Grouped
from recdistill.nets.inputs import Between, Inputs, Outputs, Scorer
from recdistill.nets.interactions import DcnV2, DeepFM
from recdistill.nets.mixtures import Average, Blend
from recdistill.nets.retrieval import BinaryMf, CrossGcnNet, LightGcnNet, Mf
from recdistill.nets.towers import Mlp, Stack, TwoTower

NETS: dict[str, Callable[..., nn.Module]] = {
    "mlp": Mlp,
    "deepfm": DeepFM,
    "dcn_v2": DcnV2,
    "two_tower": TwoTower,
    "binary_two_tower": BinaryTwoTower,
    "mf": Mf,
    "binary_mf": BinaryMf,
    "light_gcn": LightGcnNet,
    "cross_gcn": CrossGcnNet,
    "grouped": Grouped,
    "exclusive": Exclusive,
    "average": Average,
    "blend": Blend,
    "mixture_of_experts": Experts,
}
BUILT_IN = dict(NETS)  # before Python brings others


@dataclass(frozen=True)
class Net:
    """The description of a net: its name in `NETS` and its options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> type[Scorer]:
        """Its class, as far as it says anything of its kind: nets from Python and recorded scores are plain ones."""
        found = NETS.get(self.name)
        return found if isinstance(found, type) and issubclass(found, Scorer) else Scorer

    @property
    def learns(self) -> bool:
        """Whether gradients teach it: whether it has parameters that they could move."""
        return self.kind.learns

    @property
    def ranks(self) -> bool:
        """Whether its logit is an inner product of a user's and an item's vector."""
        return self.kind.ranks

    @property
    def codes(self) -> bool:
        """Whether the vectors that it ranks by are codes, of which the signs count."""
        return self.kind.codes and self.options.get("kind") != "real"

    @property
    def whole(self) -> bool:
        """Whether it needs all rows of its tables."""
        return self.kind.whole

    @property
    def chosen(self) -> bool:
        """Whether it is chosen on validation rows."""
        return self.kind.by_validation

    @property
    def in_batch(self) -> bool:
        """Whether what it answers to a row in training depends on the other rows that it is given."""
        return bool(self.options.get("norm") == "batch")

    def problems(self) -> list[str]:
        """What is wrong with the options, one sentence each."""
        return wrong_options(self.name, NETS[self.name], self.options)

    def build(self, inputs: Inputs, labels: int) -> nn.Module:
        """The module, with parameters drawn from PyTorch's generator."""
        return NETS[self.name](inputs, labels, **self.options)


def wrong_options(name: str, module: Callable[..., nn.Module], options: dict[str, Any]) -> list[str]:
    """What is wrong with the options of a module, which are its keyword parameters; one sentence each."""
    parameters = {n: p for n, p in inspect.signature(module).parameters.items() if p.kind is p.KEYWORD_ONLY}
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in options]
    unknown = [n for n in options if n not in parameters]
    unfit = [n for n in options if n in parameters and not fits(options[n], parameters[n].annotation)]
    return [
        *(f"{name} needs {n!r}" for n in missing),
        *(f"{name} has no option {n!r}; known: {', '.join(parameters) or 'none'}" for n in unknown),
        *(f"{name}: {n} is {described(parameters[n].annotation)}, found {options[n]!r}" for n in unfit),
    ]


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is what the annotation of an option says, its bounds included; unfamiliar ones say nothing."""
    inside = get_args(hint)
    if get_origin(hint) is Annotated:
        return fits(value, inside[0]) and all(value in bounds for bounds in inside if isinstance(bounds, Between))
    if get_origin(hint) in (Union, UnionType):
        return any(fits(value, each) for each in inside)
    if get_origin(hint) in (list, Sequence):
        return isinstance(value, list | tuple) and all(fits(each, inside[0]) for each in value)
    return hint not in WORDS or type(value) is hint or (hint is float and type(value) is int)  # true is no number


WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}


def described(hint: Any) -> str:
    """What an annotation asks for, in words."""
    inside = get_args(hint)
    if get_origin(hint) is Annotated:
        return ", ".join([described(inside[0]), *(str(bounds) for bounds in inside if isinstance(bounds, Between))])
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(described, inside))
    if get_origin(hint) in (list, Sequence):
        return f"a list, each {described(inside[0])}"
    return WORDS.get(hint, str(hint))


class Head(nn.Module):
    """What a member computes after the lookup: sequences pooled, dropout on the input vector, its trunk, its net.

    A trunk may belong to several heads; it is one module, registered in each of them.
    """

    def __init__(self, pools: list[nn.Module], trunk: Stack, net: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.pools = nn.ModuleList(pools)
        self.dropout = nn.Dropout(dropout)
        self.trunk = trunk
        self.net = net

    def forward(self, flat_BE: Tensor, tokens: list[Tensor], lengths: list[Tensor]) -> Outputs:
        """The outputs of each row; the trunk's layers come first among the hidden ones.

        Args:
            flat_BE: the input vector without the sequences.
            tokens: of each sequence, (B, L, D).
            lengths: of each sequence, (B,).
        """
        parts = [flat_BE]
        attention: list[Tensor] = []
        for k, pool in enumerate(self.pools):
            vector_BD, weight_BL = pool(flat_BE, tokens[k], lengths[k])
            parts.append(vector_BD)
            attention.append(weight_BL)
        embed_BE = torch.cat(parts, 1) if len(parts) > 1 else flat_BE
        layers = self.trunk(self.dropout(embed_BE))
        out = self.net(layers[-1])
        return Outputs(out.logits_BK, layers[1:] + out.hidden, embed_BE, attention)
