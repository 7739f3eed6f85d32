"""Optimizers of dense parameters: one per distinct setting, over the parts that an update trains."""

from collections.abc import Iterable

import torch
from torch import nn

from recdistill.distill.member import Part
from recdistill.spec.train import DenseOptimizer
from recdistill.training.cast import Cast
from recdistill.training.processes import add_up, world
from recdistill.training.sharding import device


def dense_optimizers(parts: Iterable[Part], cast: Cast, default: DenseOptimizer) -> list[torch.optim.Optimizer]:
    """Fresh optimizers for the dense parameters of some parts; a parameter that several share moves once."""
    groups: dict[str, tuple[DenseOptimizer, list[nn.Parameter]]] = {}
    seen: set[int] = set()
    for part in parts:
        setting = cast.members[part.member].dense or default
        parameters = [p for p in cast.parameters_of(part) if id(p) not in seen]
        seen.update(id(p) for p in parameters)
        groups.setdefault(setting.model_dump_json(), (setting, []))[1].extend(parameters)
    return [_optimizer(setting, parameters) for setting, parameters in groups.values() if parameters]


def scale_learning_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set every learning rate to its first value times a factor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def sum_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Add up dense gradients over processes; losses are divided by global weights already.

    A parameter that no process has a gradient of has none afterwards either: a zero would move it by its momentum.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]] if world() > 1 else []
    there = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int64, device=device())
    for parameter, found in zip(parameters, add_up(there).tolist(), strict=True):
        if found:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            add_up(parameter.grad)


def _optimizer(setting: DenseOptimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if setting.adam is not None:
        return torch.optim.Adam(parameters, **setting.adam.model_dump(), fused=True)
    if setting.adamw is not None:
        return torch.optim.AdamW(parameters, **setting.adamw.model_dump(), fused=True)
    assert setting.sgd is not None
    return torch.optim.SGD(parameters, **setting.sgd.model_dump(), fused=True)
