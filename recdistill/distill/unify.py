"""Teachers that each know some classes: one distribution over all classes, and the part of it that each knows.

A teacher that knows the classes L says ``p(l | L) = q(l) / sum_L q`` of the distribution q over all; what several say
determines q as soon as their classes are linked.
"""

# Shapes: B rows, K classes, L classes of one teacher.

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recdistill.distill.signal import All, OfSignal, Scene, Several, Signal
from recdistill.errors import TrainingError
from recdistill.nets.exclusive import log_odds

Known = tuple[tuple[int, ...], ...]  # of each teacher the places of its classes among all

BY = ("logit", "cross_entropy")
ROUNDS, HALVINGS = 50, 30
FLAT = 1e-10  # a gradient below which a row is solved
RIDGE = 1e-10  # keeps the curvature of saturated rows from being singular


@dataclass(frozen=True)
class Unified(Several):
    """The distribution over all classes that several members know parts of, as log-odds."""

    signals: tuple[All, ...]
    known: Known
    by: str

    def __str__(self) -> str:
        return f"unify({', '.join(map(str, self.signals))})"

    def value(self, scene: Scene) -> Tensor:
        """The log-odds of each class, in the order of the job's labels, (B, K)."""
        said = [F.log_softmax(F.logsigmoid(signal.value(scene).double()), 1) for signal in self.signals]
        solve = least_squares if self.by == "logit" else cross_entropy
        log_share_BK = F.log_softmax(solve(said, self.known), 1)
        return log_odds(log_share_BK.to(scene.batch.weight_B.dtype))


@dataclass(frozen=True)
class Among(OfSignal):
    """What a member says of the classes that another one knows."""

    signal: All
    places: tuple[int, ...]

    def __str__(self) -> str:
        return f"among({self.signal})"

    def value(self, scene: Scene) -> Tensor:
        """Their logits, in the order of the one that knows them, (B, L)."""
        return self.signal.value(scene)[:, list(self.places)]


def classes_of(known: Known) -> int:
    """K, how many classes there are together."""
    return 1 + max(place for places in known for place in places)


def gathered(said: Sequence[Tensor], known: Known) -> Tensor:
    """The sum over the teachers of what each says of its classes, (B, K)."""
    total_BK = said[0].new_zeros(len(said[0]), classes_of(known))
    for said_BL, places in zip(said, known, strict=True):
        total_BK = total_BK.index_add(1, torch.tensor(places), said_BL)
    return total_BK


def links(known: Known) -> Tensor:
    """``sum_i D_i - 1 1' / |L_i|``: the Laplacian of the classes, 0 for constants alone if they are linked, (K, K)."""
    found_KK = torch.zeros(classes_of(known), classes_of(known), dtype=torch.float64)
    for places in known:
        found_KK[torch.tensor(places).unsqueeze(1), torch.tensor(places)] -= 1 / len(places)
        found_KK[torch.tensor(places), torch.tensor(places)] += 1
    return found_KK


def least_squares(said: Sequence[Tensor], known: Known) -> Tensor:
    """The scores u of all classes with ``z_il = u_l + c_i`` as nearly as can be, in closed form, (B, K).

    Args:
        said: logits of each teacher's classes, (B, L); a constant c of each row and teacher is free.
        known: the places of its classes.
    """
    centred = [said_BL - said_BL.mean(1, keepdim=True) for said_BL in said]
    scores_BK: Tensor = gathered(centred, known) @ torch.linalg.pinv(links(known))
    return scores_BK


def cross_entropy(said: Sequence[Tensor], known: Known) -> Tensor:
    """The scores u of all classes that minimise ``sum_i CE(p_i, softmax of u over L_i)``, by Newton's method, (B, K).

    The problem is convex. A step that does not lower the loss of a row enough is halved for that row; rows that are
    solved rest.

    Args:
        said: log shares of each teacher's classes, (B, L).
        known: the places of its classes.
    """
    wanted_BK = gathered([said_BL.exp() for said_BL in said], known)
    score_BK = least_squares(said, known)
    for _ in range(ROUNDS):
        slope_BK = _shares(score_BK, known) - wanted_BK
        rows = torch.nonzero(slope_BK.abs().amax(1) > FLAT).flatten()
        if not len(rows):
            break
        score_RK, slope_RK, wanted_RK = score_BK[rows], slope_BK[rows], wanted_BK[rows]
        step_RK: Tensor = torch.linalg.solve_ex(_curvature(score_RK, known), slope_RK)[0]
        score_BK[rows] = score_RK - _length(score_RK, step_RK, slope_RK, wanted_RK, known).unsqueeze(1) * step_RK
    return score_BK


def _shares(score_BK: Tensor, known: Known) -> Tensor:
    """The sum over the teachers of each class's share among those that the teacher knows, (B, K)."""
    return gathered([score_BK[:, list(places)].softmax(1) for places in known], known)


def _curvature(score_BK: Tensor, known: Known) -> Tensor:
    """The second derivative of the loss, (B, K, K); along constants, which change nothing, it is 1 instead of 0."""
    classes = score_BK.shape[1]
    found_BKK = torch.diag_embed(_shares(score_BK, known) + RIDGE) + 1 / classes
    for places in known:
        alone_BK = torch.zeros_like(score_BK)
        alone_BK[:, list(places)] = score_BK[:, list(places)].softmax(1)
        found_BKK = found_BKK - alone_BK.unsqueeze(2) * alone_BK.unsqueeze(1)
    return found_BKK


def _length(score_BK: Tensor, step_BK: Tensor, slope_BK: Tensor, wanted_BK: Tensor, known: Known) -> Tensor:
    """The length of the step in each row: 1, halved until the loss falls, (B,)."""

    def loss(score_BK: Tensor) -> Tensor:
        parts = torch.stack([torch.logsumexp(score_BK[:, list(places)], 1) for places in known])
        return parts.sum(0) - (wanted_BK * score_BK).sum(1)

    before_B, gain_B = loss(score_BK), (slope_BK * step_BK).sum(1)
    length_B = torch.ones_like(gain_B)
    for _ in range(HALVINGS):
        rises_B = loss(score_BK - length_B.unsqueeze(1) * step_BK) > before_B - 1e-4 * length_B * gain_B
        rises_B &= gain_B > FLAT  # what is nearly solved differs by rounding alone
        if not bool(rises_B.any()):
            break
        length_B = torch.where(rises_B, length_B / 2, length_B)
    return length_B


def unify(*signals: Signal, by: str = "logit") -> Unified:
    """One distribution over all classes from members that each know some of them (P3).

    ``unify(north.logits, south.logits)`` of members whose `labels` overlap.

    Args:
        signals: the logits of members whose net is `exclusive`.
        by: ``logit``, least squares in closed form, or ``cross_entropy``, by Newton's method. Where the members do not
            contradict each other both are the same.

    Raises:
        TrainingError: ``by`` is unknown, a signal is not all logits of a member, or the classes are not linked, so that
            nothing tells how likely those of one part are beside those of another one.

    Source: P3, Vongkulbhisal, Vinayavekhin and Visentini-Scarzanella, 2019 (MF-L with scale 1, and CE-X; derived from
        the relation above, unverified).
    Departure: both in float64 per row; factors of probabilities (MF-P) are left out, they converge slowly to the same.
    """
    if by not in BY:
        raise TrainingError(f"unify: by is {by!r}; expected one of {', '.join(BY)}")
    whole = [signal for signal in signals if isinstance(signal, All) and signal.labels]
    if len(whole) < len(signals) or not signals:
        raise TrainingError("unify: takes the logits of members that predict labels, such as unify(a.logits, b.logits)")
    labels = sorted({label for signal in whole for label in signal.labels})
    parts = linked([set(signal.labels) for signal in whole])
    if len(parts) > 1:
        apart = " and ".join(str(sorted(part)) for part in parts)
        raise TrainingError(
            f"unify: nobody knows classes of both parts {apart} (labels of the job by number), so nothing tells how "
            "likely one is beside the other; add a member whose labels link them"
        )
    return Unified(tuple(whole), tuple(tuple(map(labels.index, signal.labels)) for signal in whole), by)


def linked(sets: Sequence[set[int]]) -> list[set[int]]:
    """The sets, merged as long as two of them have something in common."""
    parts: list[set[int]] = []
    for each in sets:
        apart = [part for part in parts if not part & each]
        parts = [*apart, each.union(*(part for part in parts if part & each))]
    return parts


def among(signal: Signal, like: Signal) -> Among:
    """A member's logits of the classes that another one knows: ``among(student.logits, north.logits)`` (P3).

    Raises:
        TrainingError: one of them is not all logits of a member, or the first does not know all classes of the other.
    """
    if not isinstance(signal, All) or not isinstance(like, All) or not {*like.labels} <= {*signal.labels}:
        raise TrainingError(f"among: expected the logits of a member that knows all labels of {like}, found {signal}")
    return Among(signal, tuple(signal.labels.index(label) for label in like.labels))
