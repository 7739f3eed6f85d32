"""What one value of a loss stands for: a row, a list of rows, or a whole batch; and whether other rows matter to it.

A loss with the keyword ``list_B`` has one value per list. One that is declared with `over_batch` has a single value;
one that is declared with `within_batch` has a value per row that depends on the other rows. Both depend on which rows
meet in a batch, so that parts of a batch do not add up to it, and are exempt from what is promised of the others.
"""

import inspect
from collections.abc import Callable
from typing import TypeVar

LIST = "list_B"  # the keyword by which a loss over lists receives the list of each row

Loss = TypeVar("Loss", bound=Callable[..., object])


def over_batch(loss: Loss) -> Loss:
    """The loss, declared to have one value for a whole batch."""
    loss.scope = "batch"  # type: ignore[attr-defined]
    return loss


def within_batch(loss: Loss) -> Loss:
    """The loss, declared to compare each row with the other rows of its batch."""
    loss.in_batch = True  # type: ignore[attr-defined]
    return loss


def scope_of(loss: Callable[..., object]) -> str:
    """What one value of a loss stands for: ``row``, ``list`` or ``batch``."""
    if LIST in inspect.signature(loss).parameters:
        return "list"
    return str(getattr(loss, "scope", "row"))


def takes_candidates(loss: Callable[..., object]) -> bool:
    """Whether a loss over lists takes candidates of anchors as well, which stand side by side without ``list_B``."""
    keyword = inspect.signature(loss).parameters.get(LIST)
    return keyword is not None and keyword.default is not keyword.empty


def is_in_batch(loss: Callable[..., object]) -> bool:
    """Whether a row's value depends on the other rows of its batch."""
    return bool(getattr(loss, "in_batch", False))
