"""What a report compares systems by: the AUC of rows, or a metric of the lists that users are shown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from recdistill.data.scores import Scored, read_scores, same_rows
from recdistill.evaluation.auc import auc
from recdistill.evaluation.lists import read_lists
from recdistill.evaluation.paired import compare_users, mean_over_users, recovered_gap_of_users
from recdistill.evaluation.report.metrics import Entry, over_seeds, summary
from recdistill.evaluation.significance import Comparison, RecoveredGap, compare, recovered_gap
from recdistill.evaluation.topk import TopK

Answers = Sequence[Any]  # of one system on one split, one for each seed


class Measure(Protocol):
    """A way to compare systems.

    Attributes:
        metric: its name in the report.
    """

    @property
    def metric(self) -> str:
        """Its name in the report."""
        ...

    def read(self, training: Path, member: str, split: str) -> Any:
        """What a training has left of a member on a split.

        Raises:
            RunError: nothing that could be read.
        """
        ...

    def value(self, answer: Any) -> float:
        """The metric of one seed."""
        ...

    def summary(self, seeds: Answers) -> Entry:
        """All metrics of a system over seeds, and the interval of the one that counts."""
        ...

    def compare(self, a: Answers, b: Answers) -> Comparison:
        """Whether a system is better than another one, on the same rows or users."""
        ...

    def gap(self, distilled: Answers, plain: Answers, teacher: Answers) -> RecoveredGap:
        """The share of a teacher's lead that the distilled student recovers."""
        ...

    def alike(self, first: Any, others: Iterable[Any]) -> bool:
        """Whether all are about the same rows or users."""
        ...

    def doubts(self, name: str, answer: Any, entry: Entry, *, serves: bool) -> list[tuple[str, str]]:
        """Causes and messages of what looks wrong with a system, from one seed and its metrics."""
        ...


@dataclass(frozen=True)
class OfRows:
    """The AUC of rows; answers are `Scored`."""

    metric: str = "auc"

    def read(self, training: Path, member: str, split: str) -> Scored:
        """The scores of the rows of the main label."""
        return read_scores(training / "scores" / f"{member}.{split}.parquet")

    def value(self, answer: Scored) -> float:
        """The AUC of one seed."""
        return auc(answer.label_N, answer.logit_N)

    def summary(self, seeds: Sequence[Scored]) -> Entry:
        """All metrics of rows."""
        return summary(seeds)

    def compare(self, a: Sequence[Scored], b: Sequence[Scored]) -> Comparison:
        """A paired test over rows and seeds."""
        return compare(a[0].label_N, [s.logit_N for s in a], [s.logit_N for s in b])

    def gap(self, distilled: Sequence[Scored], plain: Sequence[Scored], teacher: Sequence[Scored]) -> RecoveredGap:
        """The share of the teacher's lead in AUC."""
        logits = [[s.logit_N for s in scores] for scores in (distilled, plain, teacher)]
        return recovered_gap(distilled[0].label_N, *logits)

    def alike(self, first: Scored, others: Iterable[Scored]) -> bool:
        """Whether all hold the same rows."""
        return same_rows(first, [*others])

    def doubts(self, name: str, answer: Scored, entry: Entry, *, serves: bool) -> list[tuple[str, str]]:
        """Constant scores, a member that ranks almost perfectly, and of the student a bad calibration and no skill."""
        found = []
        if len(answer.logit_N) and np.ptp(answer.logit_N) == 0:
            words = f"{name} gives every row the same score; lower its learning rates or look at its inputs"
            found.append(("constant_scores", words))
        mean = entry["pcoc"]["mean"]
        if serves and (mean < 0.8 or mean > 1.25):  # NaN without rows or weights, of which nothing can be said
            words = f"{name} predicts {mean:.2f} times the observed rate; recalibrate before using probabilities"
            found.append(("calibration", words))
        low, high = entry["auc_ci"]
        if serves and low <= 0.5 <= high:
            words = f"the interval of {name}'s AUC holds 0.5: nothing says that it ranks better than chance"
            found.append(("no_skill", f"{words}; train it longer, or on more labelled rows"))
        if not serves and entry["auc"]["mean"] >= 0.99:
            words = f"{name} ranks almost perfectly; its privileged columns may be the label in disguise"
            found.append(("teacher_knows_label", words))
        return found


@dataclass(frozen=True)
class OfLists:
    """A metric of the lists of users; answers are `TopK`.

    Attributes:
        metric: ``recall@20``, for example.
    """

    metric: str

    def read(self, training: Path, member: str, split: str) -> TopK:
        """How good the list of each user was."""
        return read_lists(training / "rankings" / f"{member}.{split}.parquet")

    def value(self, answer: TopK) -> float:
        """Its mean over users for one seed."""
        return answer.means()[self.metric]

    def summary(self, seeds: Sequence[TopK]) -> Entry:
        """All metrics of lists, and how many users they are about."""
        per_seed = [{**found.means(), "users": len(found.user_V)} for found in seeds]
        return over_seeds(per_seed) | {f"{self.metric}_ci": list(mean_over_users(seeds, self.metric)[1])}

    def compare(self, a: Sequence[TopK], b: Sequence[TopK]) -> Comparison:
        """A paired test over users and seeds."""
        return compare_users(a, b, self.metric)

    def gap(self, distilled: Sequence[TopK], plain: Sequence[TopK], teacher: Sequence[TopK]) -> RecoveredGap:
        """The share of the teacher's lead in the metric."""
        return recovered_gap_of_users(distilled, plain, teacher, self.metric)

    def alike(self, first: TopK, others: Iterable[TopK]) -> bool:
        """Whether all are about the same users."""
        return all(np.array_equal(first.user_V, other.user_V) for other in others)

    def doubts(self, name: str, answer: TopK, entry: Entry, *, serves: bool) -> list[tuple[str, str]]:
        """Lists that are left to chance: whether anything is found depends on the order of equal scores everywhere."""
        del entry, serves
        hit_V = answer.values[f"hr@{self.metric.partition('@')[2]}"]
        if len(hit_V) and bool(((hit_V > 0) & (hit_V < 1)).all()):
            words = f"{name} scores all items alike, or nearly so; lower its learning rates or look at its inputs"
            return [("constant_scores", words)]
        return []


def measure_of(metric: str) -> Measure:
    """The measure behind a report's ``metric``."""
    return OfRows() if metric == OfRows.metric else OfLists(metric)
