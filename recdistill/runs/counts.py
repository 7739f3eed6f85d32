"""What is known of a job's labels: told, and judged, before anything is trained."""

from collections.abc import Mapping

from recdistill.data.counts import Count, count_labels
from recdistill.data.encoded import EncodedLog
from recdistill.distill.compile import Plan
from recdistill.distill.signal import Column, walk
from recdistill.errors import LogError
from recdistill.spec.phases import LOG

Counts = Mapping[str, Mapping[str, Count]]  # split -> label -> count
REMEDY = (
    "if the latest rows are too young to have labels, leave them out of the log; otherwise look at the column, or "
    "change `split` in the spec"
)


def labels_of(log: EncodedLog, plan: Plan) -> Counts:
    """The job's labels in each split of a log, the main one first."""
    return {split: count_labels(log, split, plan.columns[: plan.labels]) for split in ("train", "valid", "test")}


def check_labels(counts: Counts, plan: Plan) -> None:
    """Refuse labels that can teach or judge nobody.

    Of the main label, training rows need both classes where a term reads it, and so do the rows that systems are judged
    by. Further labels need known rows where they are read. Lists are judged without labels, and may be learned from
    rows that are all positive.

    Raises:
        LogError: a split lacks known labels, or one of the classes.
    """
    main = plan.columns[0]
    for label in sorted(_read_in_training(plan) & {*counts["train"]}):
        _check("train", label, counts, both=label == main and plan.ranking is None)
    if plan.ranking is not None:
        return
    for split in ("valid", "test"):
        _check(split, main, counts, both=True)
    for label in sorted({plan.columns[member.labels[0]] for member in plan.scored}):
        _check("valid", label, counts, both=False)


def words(counts: Counts) -> list[str]:
    """A line for each label."""
    return [
        f"label {label}: " + "; ".join(f"{split} {by[label]}" for split, by in counts.items())
        for label in counts["train"]
    ]


def _read_in_training(plan: Plan) -> set[str]:
    """The binary columns that terms read of the rows of the log."""
    terms = [term for phase in plan.phases for update in phase.updates if update.feed == LOG for term in update.terms]
    return {part.name for term in terms for part in walk(term) if isinstance(part, Column)}


def _check(split: str, label: str, counts: Counts, *, both: bool) -> None:
    found = counts[split][label]
    if found.both or (found.known and not both):
        return
    expected = "some rows with the label 0 and some with 1" if both else "some rows whose label is known"
    purpose = "learn from" if split == "train" else "judge by"
    raise LogError(f"label {label!r}: the {split} split needs {expected} to {purpose}, found {found}; {REMEDY}")
