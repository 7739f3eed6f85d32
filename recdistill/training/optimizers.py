"""Optimizers of dense parameters: one per distinct setting, over the parts that an update trains."""

from collections.abc import Iterable

import torch
from torch import nn

from recdistill.distill.member import Part
from recdistill.spec.train import DenseOptimizer
from recdistill.training.cast import Cast


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


def _optimizer(setting: DenseOptimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if setting.adam is not None:
        return torch.optim.Adam(parameters, **setting.adam.model_dump(), fused=True)
    if setting.adamw is not None:
        return torch.optim.AdamW(parameters, **setting.adamw.model_dump(), fused=True)
    assert setting.sgd is not None
    return torch.optim.SGD(parameters, **setting.sgd.model_dump(), fused=True)
