"""Nets that combine the answers of other members and that no gradient teaches.

They read nothing but logits: ``view: []`` and ``inputs: member[:].logit``. An average has nothing to choose; a blend is
chosen on validation rows when a phase that needs it begins.
"""

# Shapes: B rows, N validation rows, M members, K labels, G points of the grid, S steps of a calibration.

from collections.abc import Iterator

import torch
from torch import Tensor

from recdistill.errors import TrainingError
from recdistill.nets.inputs import Inputs, Outputs, Scorer

CERTAIN = 1e-6  # probabilities are kept this far from 0 and 1 before they become logits
OF = ("logit", "probability")


def members_read(inputs: Inputs, labels: int, net: str) -> int:
    """How many members' answers a net reads.

    Raises:
        TrainingError: it reads something else.
    """
    if any(field.embedded or field.width != labels for field in inputs.fields) or not inputs.fields:
        raise TrainingError(
            f"{net}: reads the logits of other members, {labels} of each, and nothing else, found "
            f"{ {f.name: f.width for f in inputs.fields} }; write `view: []` and `inputs: member[:].logit`"
        )
    return len(inputs.fields)


class Average(Scorer):
    """The mean of what several members answer: of their logits, or of the probabilities behind them.

    Source: E7, EnsembleNet, Li et al., 2020, on the mean of logits.
    Departure: none.
    """

    learns = False

    def __init__(self, inputs: Inputs, labels: int, *, of: str = "logit") -> None:
        super().__init__()
        self.count, self.labels = members_read(inputs, labels, "average"), labels
        if of not in OF:
            raise TrainingError(f"average: of is {of!r}; expected one of {', '.join(OF)}")
        self.of_probabilities = of == "probability"

    def forward(self, embed_BE: Tensor) -> Outputs:
        """The mean of each row, (B, K)."""
        answer_BMK = embed_BE.view(-1, self.count, self.labels)
        if self.of_probabilities:
            return Outputs(torch.logit(torch.sigmoid(answer_BMK).mean(1), 1e-6), [], embed_BE, [])
        return Outputs(answer_BMK.mean(1), [], embed_BE, [])


class Blend(Scorer):
    """The weighted mean of calibrated probabilities; calibrations and weights are chosen on validation rows.

    Each member is calibrated by isotonic regression: a rising staircase over its scores, so that a score that only
    ranks becomes a probability, and a rescaled one the same. The weights are the best of a grid on the simplex by log
    loss; its corners are among them, so that no calibrated member alone is better on these rows. Until it is chosen, a
    blend is the plain mean of probabilities.

    Source: E11, Chebotar and Waters, 2016 (the details are unverified).
    Departure: isotonic calibration of each member, since towers trained on order have no scale.
    """

    learns = False
    by_validation = True
    edge_MS: Tensor
    level_MS: Tensor
    weight_M: Tensor
    chosen: Tensor

    def __init__(self, inputs: Inputs, labels: int, *, step: float = 0.1, stairs: int = 50) -> None:
        super().__init__()
        if labels != 1:
            raise TrainingError(f"blend: answers one label, but {labels} are asked for; name one with `labels`")
        self.count, self.step = members_read(inputs, labels, "blend"), step
        if stairs < 1 or not 0 < step <= 1:
            raise TrainingError(f"blend: has at least one stair and a step in (0, 1], found {stairs} and {step}")
        self.register_buffer("edge_MS", torch.zeros(self.count, stairs - 1))
        self.register_buffer("level_MS", torch.zeros(self.count, stairs))
        self.register_buffer("weight_M", torch.full((self.count,), 1 / self.count))
        self.register_buffer("chosen", torch.zeros(()))

    def forward(self, embed_BE: Tensor) -> Outputs:
        """The logit of each row, (B, 1)."""
        probability_BM = torch.where(self.chosen > 0, self.calibrated(embed_BE), torch.sigmoid(embed_BE))
        mean_B1 = (probability_BM * self.weight_M).sum(1, keepdim=True)
        return Outputs(torch.logit(mean_B1, 1e-6), [], embed_BE, [])

    def calibrated(self, logit_BM: Tensor) -> Tensor:
        """The stair on which each score stands, (B, M)."""
        found: list[Tensor] = []
        for m in range(self.count):
            stair_B = torch.bucketize(logit_BM[:, m].contiguous(), self.edge_MS[m], right=True)
            found.append(self.level_MS[m][stair_B])
        return torch.stack(found, 1)

    @torch.no_grad()
    def choose(self, logit_NM: Tensor, label_N: Tensor) -> dict[str, float]:
        """Calibrations, then weights; returns the log loss, the weights, and how alike the errors of members are.

        Args:
            logit_NM: what the members answer for some rows.
            label_N: their labels, 0 or 1.
        """
        for m in range(self.count):
            self.edge_MS[m], self.level_MS[m] = staircase(logit_NM[:, m], label_N, self.level_MS.shape[1])
        self.chosen.fill_(1)
        probability_NM, label_N1 = self.calibrated(logit_NM).double(), label_N.double().unsqueeze(1)
        weight_GM = torch.tensor([*simplex(self.count, round(1 / self.step))], dtype=torch.float64)
        mean_NG = (probability_NM @ weight_GM.T).clamp(CERTAIN, 1 - CERTAIN)
        loss_G = -(label_N1 * mean_NG.log() + (1 - label_N1) * (1 - mean_NG).log()).mean(0)
        best = int(loss_G.argmin())
        self.weight_M.copy_(weight_GM[best])
        alike_MM = torch.corrcoef((probability_NM - label_N1).T).reshape(self.count, self.count)
        found = {"logloss": float(loss_G[best])} | {f"weight.{m}": float(w) for m, w in enumerate(weight_GM[best])}
        pairs = [(m, n) for m in range(self.count) for n in range(m)]
        return found | {f"error_correlation.{n}.{m}": float(alike_MM[m, n]) for m, n in pairs}


def staircase(score_N: Tensor, label_N: Tensor, stairs: int) -> tuple[Tensor, Tensor]:
    """Isotonic regression of labels on scores, on as many stairs of equally many rows.

    Returns:
        The lowest score of each stair but the first, and the share of clicks on each, which never falls; the fewer
        the rows of a stair, the closer its share to that of all rows.
    """
    score_N, order_N = torch.sort(score_N)
    label_N = label_N[order_N].double()
    edge_S = score_N[torch.arange(1, stairs) * len(score_N) // stairs]
    stair_N = torch.bucketize(score_N, edge_S, right=True)
    rows_S = torch.bincount(stair_N, minlength=stairs).double()
    clicks_S = torch.zeros(stairs, dtype=torch.float64).index_add(0, stair_N, label_N)
    blocks: list[tuple[float, float, int]] = []  # clicks, rows, stairs; their shares rise
    for clicks, rows in zip((clicks_S + label_N.mean()).tolist(), (rows_S + 1).tolist(), strict=True):
        count = 1
        while blocks and blocks[-1][0] / blocks[-1][1] >= clicks / rows:
            last = blocks.pop()
            clicks, rows, count = clicks + last[0], rows + last[1], count + last[2]
        blocks.append((clicks, rows, count))
    level_S = [clicks / rows for clicks, rows, count in blocks for _ in range(count)]
    return edge_S, torch.tensor(level_S)


def simplex(parts: int, whole: int) -> Iterator[list[float]]:
    """Every way to share ``whole`` equal pieces among some parts, as shares."""
    for rest in divided(parts, whole):
        yield [pieces / whole for pieces in rest]


def divided(parts: int, whole: int) -> Iterator[list[int]]:
    """Every way to write ``whole`` as an ordered sum of ``parts`` whole numbers."""
    if parts == 1:
        yield [whole]
        return
    for first in range(whole + 1):
        for rest in divided(parts - 1, whole - first):
            yield [first, *rest]
