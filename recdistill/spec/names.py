"""Words that mean something in terms and reports, and so can name nothing else."""

from collections.abc import Sequence

from recdistill.spec.columns import Binary
from recdistill.spec.features import FeatureSpec

MARKS = ("own", "taken", "log_q", "popularity")  # what is known of each candidate of an anchor
CONTROLS = ("plain", "shuffled", "shuffled_signal")
LABEL = "label"  # in terms the main label, whatever its name


def like_controls(members: Sequence[str], students: Sequence[str]) -> list[str]:
    """What is wrong with members that a report could not tell from controls, one sentence each."""
    taken = [*CONTROLS, *(f"plain_{student}" for student in students)]
    return [f"members.{n}: is the name of a control in reports; choose another one" for n in members if n in taken]


def hidden_columns(spec: FeatureSpec, label: str, *, candidates: bool) -> list[str]:
    """What is wrong with binary columns that terms could not name, one sentence each.

    Args:
        spec: the feature spec.
        label: the main label of the job.
        candidates: whether terms may look at candidates, and so at `MARKS`.
    """
    binary = [name for name, column in spec.post_event.items() if isinstance(column, Binary)]
    told = {LABEL: f"the main label, here {label!r}"} if label != LABEL else {}
    told |= {mark: "what is known of candidates" for mark in MARKS if candidates}
    return [
        f"post_event.{name}: in terms this word is {told[name]}, so that they could not name the column; call yours "
        f"something else and add `column: {spec.source(name)}`"
        for name in binary
        if name in told
    ]
