"""The losses that a term can name. A new loss is one function and one line here."""

from collections.abc import Callable

from torch import Tensor

from recdistill.losses.distribution import mmd
from recdistill.losses.embedding import half_square, quantisation
from recdistill.losses.listwise import score_gap, soft_list
from recdistill.losses.order import pairwise, relative_order
from recdistill.losses.ranking import bpr, sampled_softmax
from recdistill.losses.ranking_distillation import cd, rd, rrd, soft_sides, unkd
from recdistill.losses.representation import l2
from recdistill.losses.response import soft, softened
from recdistill.losses.scope import LIST
from recdistill.losses.supervised import bce, categorical

LOSSES: dict[str, Callable[..., Tensor]] = {
    "bce": bce,
    "categorical": categorical,
    "soft": soft,
    "softened": softened,
    "soft_list": soft_list,
    "score_gap": score_gap,
    "l2": l2,
    "mmd": mmd,
    "pairwise": pairwise,
    "relative_order": relative_order,
    "bpr": bpr,
    "sampled_softmax": sampled_softmax,
    "soft_sides": soft_sides,
    "rd": rd,
    "cd": cd,
    "rrd": rrd,
    "unkd": unkd,
    "quantisation": quantisation,
    "half_square": half_square,
}

BUILT_IN = dict(LOSSES)  # before Python brings others

__all__ = ["BUILT_IN", "LIST", "LOSSES"]
