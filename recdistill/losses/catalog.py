"""The losses that a term can name. A new loss is one function and one line here."""

from collections.abc import Callable

from torch import Tensor

from recdistill.losses.listwise import soft_list
from recdistill.losses.order import pairwise, relative_order
from recdistill.losses.representation import l2
from recdistill.losses.response import soft
from recdistill.losses.scope import LIST
from recdistill.losses.supervised import bce

LOSSES: dict[str, Callable[..., Tensor]] = {
    "bce": bce,
    "soft": soft,
    "soft_list": soft_list,
    "l2": l2,
    "pairwise": pairwise,
    "relative_order": relative_order,
}

__all__ = ["LIST", "LOSSES"]
