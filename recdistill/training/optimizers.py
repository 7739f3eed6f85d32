"""Optimizers of dense parameters: one per distinct setting, over the members that a phase trains."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from recdistill.distill.member import Member
from recdistill.spec.train import DenseOptimizer


def dense_optimizers(
    members: Iterable[Member], heads: Mapping[str, nn.Module], default: DenseOptimizer
) -> list[torch.optim.Optimizer]:
    """Fresh optimizers for the members' dense parameters; a parameter that several members share moves once."""
    groups: dict[str, tuple[DenseOptimizer, list[nn.Parameter]]] = {}
    seen: set[int] = set()
    for member in members:
        setting = member.dense or default
        parameters = [p for p in heads[member.name].parameters() if id(p) not in seen]
        seen.update(id(p) for p in parameters)
        groups.setdefault(setting.model_dump_json(), (setting, []))[1].extend(parameters)
    return [_optimizer(setting, parameters) for setting, parameters in groups.values() if parameters]


def _optimizer(setting: DenseOptimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if setting.adam is not None:
        return torch.optim.Adam(parameters, **setting.adam.model_dump(), fused=True)
    if setting.adamw is not None:
        return torch.optim.AdamW(parameters, **setting.adamw.model_dump(), fused=True)
    assert setting.sgd is not None
    return torch.optim.SGD(parameters, **setting.sgd.model_dump(), fused=True)
