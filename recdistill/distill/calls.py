"""Whether a call suits the function that it names: the number of its arguments, its options, what a target is."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from recdistill.distill.signal import Column, Signal
from recdistill.errors import RecdistillError, ShapeError
from recdistill.losses.catalog import LIST
from recdistill.spec.terms import Call


def misfit(function: Callable[..., Any], call: Call) -> str | None:
    """Why a call does not fit a signature, apart from what the engine fills in."""
    given = [p for p in inspect.signature(function).parameters.values() if p.name != LIST]
    signature = inspect.Signature(given)
    try:
        signature.bind(*call.args, **call.kwargs)
    except TypeError as error:
        shown = ", ".join(
            str(p).split(":")[0].strip() for p in signature.parameters.values() if p.kind is not p.KEYWORD_ONLY
        )
        options = ", ".join(n for n, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY)
        return f"{call}: {error}; {call.function} takes ({shown})" + (f" and {options}" if options else "")
    return None


def refused(loss: Callable[..., torch.Tensor], targets: int, options: Mapping[str, Any]) -> str | None:
    """Why the loss refuses its options, found by calling it on no rows; what rows hold is looked at later."""
    try:
        lists = {LIST: torch.zeros(0, dtype=torch.int64)} if LIST in inspect.signature(loss).parameters else {}
        loss(*(torch.zeros(0) for _ in range(1 + targets)), **lists, **options)
    except ShapeError:
        return None
    except (RecdistillError, TypeError, ValueError, ArithmeticError) as error:
        return str(error)
    return None


def labels_for_logits(loss: Callable[..., torch.Tensor], call: Call, targets: Sequence[Signal]) -> list[str]:
    """Labels where a loss takes logits, by the names of its parameters: 0 and 1 would be read as logits."""
    _, *names = inspect.signature(loss).parameters
    return [
        f"{call}: {target.name} is a label, no logit; use bce"
        for name, target in zip(names, targets, strict=False)
        if name.endswith("logit_B") and isinstance(target, Column)
    ]
