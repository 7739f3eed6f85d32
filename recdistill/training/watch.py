"""Validation while a phase is trained: what it has seen, when it stops, and which parameters it keeps."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recdistill.data.reader import Reader
from recdistill.distill.checks import behind, trained_names
from recdistill.distill.member import Phase
from recdistill.distill.schedule import Metric
from recdistill.evaluation import auc, log_loss
from recdistill.spec.graph import METRIC_AT
from recdistill.training.rankings import vectors_of
from recdistill.training.runlog import Event

LOWER = "logloss"  # the metric of which less is better

if TYPE_CHECKING:
    from recdistill.training.engine import Engine


def judge(engine: "Engine", names: Sequence[str], monitor: str) -> dict[str, float]:
    """The metrics of lists of those members that rank, ``member.metric`` to value."""
    found: dict[str, float] = {}
    rank = METRIC_AT.match(monitor)
    for name in names if engine.rankings is not None else ():
        if engine.rankings is not None and engine.cast.members[name].net.ranks:
            judged = engine.rankings.judge(
                vectors_of(engine.cast, name, seed=engine.seed), [int(rank[2])] if rank else []
            )
            found |= {f"{name}.{metric}": value for metric, value in judged.means().items()}
    return found


class Watch:
    """Follows the validation metric of a phase, remembers the best parameters, and says when to stop.

    Args:
        engine: what is trained.
        index: the number of the phase.
        phase: the phase.
    """

    def __init__(self, engine: "Engine", index: int, phase: Phase) -> None:
        self.engine, self.index, self.phase = engine, index, phase
        self.best = math.inf
        self.best_step = 0
        self.unimproved = 0
        self.kept: dict[str, Tensor] = {}
        self.seen: list[dict[str, float]] = []
        members = engine.cast.members
        self.trained = trained_names(phase.trained, members)
        still = [name for name, member in members.items() if not member.net.learns]
        carried = [name for name in still if behind({name}, members) & self.trained]
        self.moving = [*self.trained, *engine.followers.of(self.trained), *carried]
        # Best copies keep their parameters when their original is rolled back.
        self.returning = [name for name in self.moving if name not in engine.followers.best]
        judged = [n for n in members if n in self.moving and members[n].scored and members[n].same is None]
        originals = [members[n].follows for n in engine.followers.best if members[n].follows in self.moving]
        further = [*(metric.member for metric in phase.metrics), *(n for n in originals if n is not None)]
        self.judged = [name for name in judged if members[name].judged] or judged
        self.looked_at = list(dict.fromkeys([*judged, *further]))

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.phase.stop.patience is not None and self.unimproved >= self.phase.stop.patience

    @property
    def progress(self) -> dict[str, Any]:
        """Everything that changes and is no tensor."""
        return {
            "best": self.best,
            "best_step": self.best_step,
            "unimproved": self.unimproved,
            "seen": self.seen,
        }

    def restore(self, progress: Mapping[str, Any], kept: dict[str, Tensor]) -> None:
        """Put back what `progress` has said, and the best parameters so far."""
        self.best, self.best_step = progress["best"], progress["best_step"]
        self.unimproved, self.seen, self.kept = progress["unimproved"], progress["seen"], kept

    def is_due(self, step: int, last: int, per_epoch: int) -> bool:
        """Whether to look after this step."""
        return step % (self.phase.stop.every or per_epoch) == 0 or step == last

    def look(self, step: int, planned: int) -> None:
        """Evaluate; lower is better, so an AUC counts with a minus."""
        engine = self.engine
        assert engine.valid is not None
        metrics = evaluate(engine, self.looked_at, engine.valid, self.phase.metrics)
        metrics |= judge(engine, self.looked_at, str(self.phase.stop.monitor))
        self.seen.append(metrics)
        engine.listen(Event("evaluation", self.index, step, planned, metrics))
        monitor = str(self.phase.stop.monitor)
        engine.followers.evaluated(metrics, monitor, self.trained)
        if not self.judged:
            return
        values = [metrics[f"{name}.{monitor}"] for name in self.judged if f"{name}.{monitor}" in metrics]
        value = float(np.mean(values)) * (1 if monitor == LOWER else -1)
        if value < self.best:
            self.best, self.best_step, self.unimproved = value, step, 0
            if self.phase.stop.keep == "best":
                self.kept = {key: tensor.clone() for key, tensor in engine.cast.state(self.returning).items()}
        else:
            self.unimproved += 1

    def finish(self, taken: int) -> int:
        """Return to the best parameters, if they are to be kept; the steps that led to the parameters now in place."""
        if self.phase.stop.keep == "last" or not self.kept:
            return taken
        with torch.no_grad():
            for key, tensor in self.engine.cast.state(self.returning).items():
                tensor.copy_(self.kept[key])
        self.engine.cast.moved(self.returning)
        return self.best_step


def evaluate(
    engine: "Engine", names: Sequence[str], reader: Reader, metrics: Sequence[Metric] = ()
) -> dict[str, float]:
    """AUC and log loss of members on their first label, ``member.metric`` to value; and metrics within scenarios.

    A label that is always the same has no AUC.
    """
    scores, _, labels = engine.score(list(names), reader)
    found = {}
    for name, logits in scores.items():
        label = labels[reader.selection.labels[engine.cast.members[name].labels[0]]]
        known = ~np.isnan(label)
        if len(np.unique(label[known])) < 2 and engine.rankings is not None:
            continue
        found[f"{name}.auc"] = auc(label[known], logits[known, 0])
        found[f"{name}.logloss"] = log_loss(label[known], logits[known, 0])
    for metric in metrics:
        if metric.scenario is not None:
            label = labels[reader.selection.labels[engine.cast.members[metric.member].labels[0]]]
            rows = ~np.isnan(label) & (reader.scenarios() == metric.scenario)
            measure = auc if metric.name == "auc" else log_loss
            both = len(np.unique(label[rows])) == 2
            found[metric.key] = measure(label[rows], scores[metric.member][rows, 0]) if both else math.nan
    return found
