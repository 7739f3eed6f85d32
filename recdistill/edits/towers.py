"""Edits of the hidden layers of a net: fewer layers, or narrower ones, with the weights of what is left.

An edit changes widths, and parameters along with them. It works on every net whose hidden layers are a `Stack` named
``stack`` and whose output layer ``out`` reads the last of them (behind whatever else it reads).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from recdistill.errors import TrainingError
from recdistill.nets.towers import Stack


@dataclass(frozen=True)
class Layers:
    """The linear maps of a stack and of the output layer behind it: weights (out, in) and biases (out,)."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]


class Edit(Protocol):
    """A change of hidden layers."""

    def widths(self, before: Sequence[int]) -> list[int]:
        """The widths of the hidden layers after it."""
        ...

    def layers(self, before: Layers) -> Layers:
        """The parameters after it."""
        ...


@dataclass(frozen=True)
class Drop:
    """Without one hidden layer: the maps before and behind it are multiplied, as if it had no ReLU."""

    layer: int

    def widths(self, before: Sequence[int]) -> list[int]:
        """The widths of the hidden layers after it.

        Raises:
            TrainingError: there is no such layer.
        """
        check_layer(self.layer, before, "drop")
        return [width for i, width in enumerate(before) if i != self.layer]

    def layers(self, before: Layers) -> Layers:
        """The parameters after it."""
        k, weights, biases = self.layer, [*before.weights], [*before.biases]
        biases[k + 1] = weights[k + 1] @ biases[k] + biases[k + 1]
        weights[k + 1] = weights[k + 1] @ weights[k]
        del weights[k], biases[k]
        return Layers(tuple(weights), tuple(biases))


@dataclass(frozen=True)
class Shrink:
    """One hidden layer with a share of its units: those whose maps in and out have the largest norms."""

    layer: int
    keep: float

    def widths(self, before: Sequence[int]) -> list[int]:
        """The widths of the hidden layers after it.

        Raises:
            TrainingError: there is no such layer, or the share is not in (0, 1].
        """
        check_layer(self.layer, before, "shrink")
        if not 0 < self.keep <= 1:
            raise TrainingError(f"shrink: keeps a share in (0, 1] of the units, found {self.keep}")
        return [max(1, round(width * self.keep)) if i == self.layer else width for i, width in enumerate(before)]

    def layers(self, before: Layers) -> Layers:
        """The parameters after it."""
        k, weights, biases = self.layer, [*before.weights], [*before.biases]
        importance = weights[k].norm(dim=1) * weights[k + 1][:, -len(weights[k]) :].norm(dim=0)
        count = max(1, round(len(importance) * self.keep))
        units = torch.sort(torch.topk(importance, count).indices).values
        beside = weights[k + 1].shape[1] - len(importance)  # what the next map reads besides this layer
        columns = torch.cat([torch.arange(beside), beside + units])
        weights[k], biases[k], weights[k + 1] = weights[k][units], biases[k][units], weights[k + 1][:, columns]
        return Layers(tuple(weights), tuple(biases))


def check_layer(layer: int, widths: Sequence[int], name: str) -> None:
    """Raise unless the layer exists and may be edited; the only one may not be dropped.

    Raises:
        TrainingError: there is no such layer, or none would be left.
    """
    if not 0 <= layer < len(widths):
        raise TrainingError(f"{name}: no hidden layer {layer}; there are {len(widths)}, counted from 0")
    if name == "drop" and len(widths) == 1:
        raise TrainingError("drop: would leave no hidden layer; shrink it instead")


def layers_of(net: nn.Module) -> Layers:
    """The hidden layers of a net, and its output layer.

    Raises:
        TrainingError: the net has none that could be edited.
    """
    stack, out = getattr(net, "stack", None), getattr(net, "out", None)
    if not isinstance(stack, Stack) or not isinstance(out, nn.Linear):
        raise TrainingError(
            f"edit: {type(net).__name__} has no `stack` of hidden layers with an output layer behind it"
        )
    linear = linear_maps(net)
    zero = torch.zeros(out.out_features)
    biases = [m.bias.detach().clone() if m.bias is not None else zero for m in linear]
    return Layers(tuple(m.weight.detach().clone() for m in linear), tuple(biases))


def linear_maps(net: nn.Module) -> list[nn.Linear]:
    """The linear maps of a net's hidden layers, and of its output layer."""
    blocks = net.get_submodule("stack.blocks").children()
    found = [next(m for m in block.modules() if isinstance(m, nn.Linear)) for block in blocks]
    out = net.get_submodule("out")
    assert isinstance(out, nn.Linear)
    return [*found, out]


def transplant(old: nn.Module, new: nn.Module, edits: Sequence[Edit]) -> None:
    """Give a net, built with the widths that the edits lead to, the parameters of the old one after them.

    Parameters outside the hidden layers are copied as they are.
    """
    layers = layers_of(old)
    for edit in edits:
        layers = edit.layers(layers)
    with torch.no_grad():
        mine, theirs = dict(new.named_parameters()), dict(old.named_parameters())
        for name, value in mine.items():
            if not name.startswith(("stack.", "out.")):
                value.copy_(theirs[name])
        for module, weight, bias in zip(linear_maps(new), layers.weights, layers.biases, strict=True):
            module.weight.copy_(weight)
            if module.bias is not None:
                module.bias.copy_(bias)


EDITS: dict[str, type[Drop] | type[Shrink]] = {"drop": Drop, "shrink": Shrink}
