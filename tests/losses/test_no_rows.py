"""A process may be left without rows in the last batch of an epoch: every loss then has no value, and a gradient."""

import inspect

import pytest
import torch
from torch import Tensor

from recdistill.errors import ShapeError
from recdistill.losses.catalog import LIST, LOSSES
from recdistill.losses.scope import scope_of


def of_no_rows(name: str, *shape: int) -> tuple[Tensor, Tensor]:
    """The learner, and the loss."""
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    count = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    lists = {LIST: torch.zeros(0, dtype=torch.int64)} if scope_of(LOSSES[name]) == "list" else {}
    learner, *targets = (torch.zeros(0, *shape, requires_grad=True) for _ in range(count))
    return learner, LOSSES[name](learner, *targets, **lists)


@pytest.mark.parametrize("name", [name for name in LOSSES if scope_of(LOSSES[name]) != "batch"])
def test_a_loss_takes_no_rows(name: str) -> None:
    try:
        learner, found = of_no_rows(name)
    except ShapeError:  # it compares layers only
        learner, found = of_no_rows(name, 3)
    assert found.shape == (0,)
    found.sum().backward()
    assert learner.grad is not None and learner.grad.shape == learner.shape
