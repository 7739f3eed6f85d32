"""What a term is worth: one scalar over the rows of all processes."""

from torch import Tensor

from recdistill.distill.signal import Scene
from recdistill.distill.term import Term, reduce
from recdistill.training.processes import add_up


def divisor(term: Term, scene: Scene) -> Tensor:
    """What these rows contribute to the divisor of a term's sum."""
    if term.over == "batch":
        return scene.batch.weight_B.sum()
    _, weight = term.losses(scene)
    return weight.sum()


def term_value(term: Term, scene: Scene, total: Tensor | None = None) -> Tensor:
    """The scalar of a term: the weighted sum over its rows or lists by the global weight of what it is divided by."""
    loss, weight = term.losses(scene)
    if total is None:
        total = add_up((scene.batch.weight_B if term.over == "batch" else weight).sum())
    return reduce(loss, weight, total)
